"""torch_em and the modules that need it, imported when they are used, and the transforms that are the default."""

from typing import Any, NamedTuple

from ..core.errors import MissingExtraError, how_to_install
from .arguments import has_own_code
from .sources import PatchSource


class Extra(NamedTuple):
    """torch_em, and the modules that need it."""

    torch_em: Any
    dataset: Any
    batches: Any
    transforms: Any
    randomness: Any


def import_extra() -> Extra:
    """Import torch_em and the modules that need it.

    Raises:
        MissingExtraError: They cannot be imported.
    """
    try:
        import torch_em

        from . import batches, dataset, randomness, transforms
    except ImportError as error:
        raise MissingExtraError(f"Training needs torch and torch_em ({error}): {how_to_install('train')}.") from error
    return Extra(torch_em, dataset, batches, transforms, randomness)


def with_defaults(options: dict[str, Any], extra: Extra, source: PatchSource) -> dict[str, Any]:
    """Add the default transforms, and a label transform that returns masks of 0 / 1."""
    chosen = dict(options)
    chosen["has_own_transforms"] = not has_own_code(options)
    own = extra.transforms
    raw_transform = chosen["raw_transform"]
    chosen["raw_transform"] = own.standardized if raw_transform is None else own.Widened(raw_transform)
    chosen["flips"] = chosen["transform"] is None
    is_mask = tuple(kind == "mask" for kind in source.kinds)
    kornia = extra.torch_em.transform.augmentation.KorniaAugmentationPipeline  # it computes with float32
    in_float32 = chosen["label_dtype"].is_floating_point or isinstance(chosen["transform"], kornia)
    if any(is_mask) and not all(is_mask) and chosen["label_transform"] is None:
        chosen["label_transform"] = own.ByChannel(is_mask, in_float32)
    elif not all(is_mask):
        widened = own.Widened(chosen["label_transform"])
        chosen["label_transform"] = own.Renumbered(widened) if in_float32 else widened
    elif chosen["label_transform"] is None:
        chosen["label_transform"] = own.Binary(extra.dataset.numpy_dtype(chosen["label_dtype"]))
    return chosen
