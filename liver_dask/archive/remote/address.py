"""Checks of an archive's address: which parts are secret, and what is not an archive."""

import os
from pathlib import Path
from urllib.parse import urlsplit

import fsspec

from ...core.errors import InvalidArgumentError, SliceNotFoundError
from .credentials import Secret, split_secret

ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
"""The folder of every Zarr store contains one of these files."""


def resolve_url(source: str | os.PathLike[str]) -> tuple[str, Secret]:
    """Return the archive's root as a URL or an absolute folder without a final slash, and the secret parts.

    This checks a local folder on the disk, and accesses nothing else.

    Raises:
        InvalidArgumentError: The source is neither a URL nor a folder, is a chain of URLs or names no host, or fsspec
            does not know the protocol or lacks a package for it.
        SliceNotFoundError: There is no such local folder.
    """
    try:
        address = os.fspath(source)
        text, secret = split_secret(address)
        protocol, separator, path = text.partition("://")
    except (TypeError, ValueError, AttributeError) as error:
        shown = f"source={source!r}" if "@" not in str(source) else "The source"  # it may contain a part of a password
        raise InvalidArgumentError(f"{shown} is neither a URL nor a folder ({error}).") from None
    if separator and "::" in text:
        raise InvalidArgumentError("The source is a chain of URLs (::); give one.")
    if not separator:
        folder = Path(text).expanduser().absolute()
        if not text or not folder.is_dir():
            raise SliceNotFoundError(
                f"There is no folder {text!r}; give a store, a URL, or a folder with the archive's layout."
            )
        return str(folder), secret
    if protocol in ("http", "https"):
        _check_web_address(text, address)
    else:
        try:
            fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise InvalidArgumentError(f"A source of {protocol}:// cannot be opened: {error}.") from None
    return f"{protocol}://{path.rstrip('/')}", secret


def _check_web_address(text: str, address: str) -> None:
    """Refuse an address that names no server, without showing any part of a possible password."""
    parts = urlsplit(text)
    try:
        named = bool(parts.hostname) and (parts.port or True)
    except ValueError:
        named = False
    if not named and "@" in address:
        raise InvalidArgumentError(
            "The source's address names no host; write #, / and ? of a password as %23, %2F, %3F."
        )
    if not named:
        raise InvalidArgumentError(f"source={text!r} names no host.")


def archive_url(source: str | os.PathLike[str]) -> tuple[str, Secret]:
    """Do the same as `resolve_url`, but refuse a Zarr store if it can be recognized without a request.

    Raises:
        InvalidArgumentError: The source is a Zarr store, or an error as in `resolve_url`.
        SliceNotFoundError: There is no such local folder.
    """
    url, secret = resolve_url(source)
    is_local = "://" not in url
    shown = url if is_local else url.partition("?")[0].rstrip("/")
    if Path(url, "store", "zarr.json").exists() if is_local else shown.endswith(".zarr.partial"):
        raise InvalidArgumentError(f"{shown} is an unfinished Zarr store; the call that began it goes on with it.")
    if any(Path(url, name).exists() for name in ZARR_METADATA) if is_local else shown.endswith(".zarr"):
        raise InvalidArgumentError(f"{shown} {zarr_message(shown)}")
    return url, secret


def zarr_message(url: str) -> str:
    """Return the error text for a Zarr store that was given as an archive."""
    return f"is a Zarr store, and no archive of slices; open it with xr.open_zarr({url!r})."
