"""The human-liver EM volume EMPIAR-13356 as one lazy, labelled xarray Dataset over dask."""

from . import accessor  # noqa: F401  # registers ds.liver
from .dataset import open_human_liver_em
from .download import get_human_liver_em_data, get_human_liver_em_full_volume, get_human_liver_em_paths
from .errors import (
    DamagedError,
    ExportError,
    FormatError,
    InvalidArgumentError,
    LiverDaskError,
    MissingExtraError,
    NotDownloadedError,
    RangeNotSupportedError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
    StoreExistsError,
)
from .pictures import show
from .pyramid import add_pyramid
from .traffic import Trace, trace
from .training import get_human_liver_em_dataset, get_human_liver_em_loader
from .verify import VerifyReport, verify
from .view import view
from .zarr_export import to_zarr

__all__ = [
    "DamagedError",
    "ExportError",
    "FormatError",
    "InvalidArgumentError",
    "LiverDaskError",
    "MissingExtraError",
    "NotDownloadedError",
    "RangeNotSupportedError",
    "RemoteError",
    "SliceNotFoundError",
    "SourceChangedError",
    "StoreExistsError",
    "Trace",
    "VerifyReport",
    "add_pyramid",
    "get_human_liver_em_data",
    "get_human_liver_em_dataset",
    "get_human_liver_em_full_volume",
    "get_human_liver_em_loader",
    "get_human_liver_em_paths",
    "open_human_liver_em",
    "show",
    "to_zarr",
    "trace",
    "verify",
    "view",
]
