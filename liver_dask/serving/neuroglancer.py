"""Links that open a served store in neuroglancer, with its layers, contrast, colours and position."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import zarr

from ..core.errors import InvalidArgumentError

HOSTED = "https://neuroglancer-demo.appspot.com/"
"""Where neuroglancer is, unless somebody serves it elsewhere."""

NANOMETRES = 1e-9
AXES = ("x", "y", "z")
SCREEN = 900
"""Number of pixels of a screen that a whole slice is fitted to."""

OPACITY = 0.4


def link_of(url: str, root: zarr.Group, z: int, client: str) -> str:
    """Return a link that opens a store in neuroglancer, with one slice in view.

    Along z, a cross-section of an archive would read a strip of every slice, so that the layout is `xy`.

    Args:
        url: Address of the store.
        root: The store itself.
        z: The slice to begin with.
        client: Address of neuroglancer.

    Raises:
        InvalidArgumentError: The store has neither an image nor labels.
    """
    return f"{client}#!{quote(json.dumps(state_of(url, root, z), separators=(',', ':')))}"


def state_of(url: str, root: zarr.Group, z: int) -> dict[str, Any]:
    """Return neuroglancer's state, see `link_of`."""
    ome: Any = root.attrs.get("ome", {})
    labels = _labels_of(root)
    at = "" if "multiscales" in ome else f"labels/{labels[0]}/" if labels else None
    if at is None:
        raise InvalidArgumentError(f"{url} has no image and no labels that neuroglancer could show.")
    shown: Any = ome if not at else root[at].attrs["ome"]
    (finest, *_) = shown["multiscales"][0]["datasets"]
    scale, first = (list(step.values())[-1] for step in finest["coordinateTransformations"])
    has_unit = "unit" in shown["multiscales"][0]["axes"][0]
    array: Any = root[at + finest["path"]]
    corner = [at / size for at, size in zip(first, scale, strict=True)]
    middle = [at + length / 2 for at, length in zip(corner, array.shape, strict=True)]
    middle[0] = z
    return {
        "dimensions": {
            axis: [size * NANOMETRES, "m"] if has_unit else [1, ""]
            for axis, size in zip(AXES, reversed(scale), strict=True)
        },
        "position": [float(at) for at in reversed(middle)],
        "crossSectionScale": max(array.shape[1:]) / SCREEN,
        "layers": list(_layers(url, root, ome)),
        "layout": "xy",
        "showAxisLines": False,
    }


def _layers(url: str, root: zarr.Group, ome: dict[str, Any]) -> Sequence[dict[str, Any]]:
    images = []
    if "multiscales" in ome:
        images = [{"type": "image", "name": ome["multiscales"][0]["name"], "source": f"zarr3://{url}", "opacity": 1}]
    if images and "omero" in ome:
        window = ome["omero"]["channels"][0]["window"]
        images[0]["shaderControls"] = {"normalized": {"range": [window["start"], window["end"]]}}
    labels = enumerate(_labels_of(root), 1)
    return [*images, *(_label(_own_name(url, f"layer{number}"), root, label) for number, label in labels)]


def _labels_of(root: zarr.Group) -> list[str]:
    group: Any = root.get("labels")
    return list(group.attrs["ome"]["labels"]) if group is not None else []


def _label(url: str, root: zarr.Group, name: str) -> dict[str, Any]:
    layer = {"type": "segmentation", "name": name, "source": f"zarr3://{url}labels/{name}/", "selectedAlpha": OPACITY}
    label: Any = root[f"labels/{name}"].attrs["ome"]
    colors = {
        str(color["label-value"]): "#{:02x}{:02x}{:02x}".format(*color["rgba"][:3])
        for color in label["image-label"].get("colors", [])
    }
    return {**layer, "segments": [*colors], "segmentColors": colors} if colors else layer


def _own_name(url: str, name: str) -> str:
    """Return an address with a name of its own for the same server, if that is on this machine.

    Browsers send only six requests at once to each name, and find all names that end with `.localhost` on this machine.
    """
    return url.replace("//127.0.0.1:", f"//{name}.localhost:")
