"""Where a web server sends a request instead, and which server that is."""

from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from ...core.documents import printable
from ...core.errors import RemoteError
from .credentials import split_secret


class Origin(NamedTuple):
    """The server of an address."""

    scheme: str
    host: str
    port: int

    def secured(self) -> "Origin | None":
        """Return the same server over TLS; None if this is not plain http on port 80."""
        return Origin("https", self.host, 443) if (self.scheme, self.port) == ("http", 80) else None


def redirected(url: str, address: str, target: str) -> tuple[str, str]:
    """Return the address and the query of a redirect; the query may be a token, and the last one is not passed on.

    Args:
        url: The file that was asked for, for messages.
        address: The address that was asked last.
        target: What the server answered, which may be relative to it.

    Raises:
        RemoteError: It is no web address, or one without TLS in place of one with it.
    """
    try:
        moved, secret = split_secret(urljoin(address, target))
        origin = origin_of(moved)
    except ValueError:
        raise RemoteError(f"{url}: is redirected to an address that makes no sense.") from None
    if origin.scheme not in ("http", "https") or not origin.host:
        shown = moved.partition("?")[0]  # what follows may be a secret
        raise RemoteError(f"{url}: is redirected to {printable(shown)}, which is no web address.")
    if origin.scheme == "http" and address.startswith("https"):
        raise RemoteError(f"{url}: is redirected to {printable(moved)}, away from https, and that is not followed.")
    return moved, secret.query


def origin_of(url: str) -> Origin:
    """Return the server of an address."""
    parts = urlsplit(url)
    return Origin(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
