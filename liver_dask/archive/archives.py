"""The built-in archives; each is a description in `descriptions/`."""

import os
from functools import cache
from importlib.resources import files

import xarray as xr

from ..core.addresses import is_address
from ..core.errors import InvalidArgumentError
from .description import COLOR, Archive

OTHER_COLOR = "#a05adc"
"""The colour of labels that have no colour of their own."""


@cache
def _built_in() -> dict[str, Archive]:
    descriptions = files(__package__).joinpath("descriptions")
    found = [Archive.from_toml(str(file)) for file in sorted(descriptions.iterdir(), key=str)]
    return {archive.name: archive for archive in found}


def archives() -> dict[str, Archive]:
    """Return the built-in archives by name; each is a description that `open_archive` accepts."""
    return dict(_built_in())


EMPIAR_13356 = _built_in()["EMPIAR-13356"]
"""Human liver: raw, and masks of mitochondria, endoplasmic reticulum, nuclei and more."""


def find_archive(archive: Archive | str | os.PathLike[str]) -> Archive:
    """Return an archive, given as itself, as the name of a built-in one, or as the path of a TOML file.

    Raises:
        InvalidArgumentError: There is no such archive, or its description is not valid. (ValueError)
    """
    if isinstance(archive, Archive):
        known = _built_in().get(archive.name)
        if known and known.variables != archive.variables:
            raise InvalidArgumentError(
                f"{archive.name} is the name of another archive, which is built in; choose another."
            )
        return archive
    try:
        text = os.fspath(archive)
    except TypeError:
        text = repr(archive)
    found = _built_in().get(text)
    if found:
        return found
    if is_address(text):  # which may hold a password
        raise InvalidArgumentError("An address was given instead of an archive; give it as the source.")
    if text.endswith(".toml"):
        return find_archive(Archive.from_toml(text))
    raise InvalidArgumentError(
        f"There is no archive {text!r}; give one of {', '.join(_built_in())}, or a file .toml that describes it."
    )


def color_of(variable: xr.DataArray) -> str:
    """Return the colour of a label in all views, as #rrggbb.

    The attribute `color` takes precedence, then the colour of a label of the same name in a built-in archive.
    """
    color = variable.attrs.get("color")
    if isinstance(color, str) and COLOR.fullmatch(color):
        return color
    for archive in _built_in().values():
        for known in archive.variables:
            if known.name == variable.name and known.color:
                return known.color
    return OTHER_COLOR
