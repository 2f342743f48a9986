"""The human-liver EM volume EMPIAR-13356 as one lazy, labelled xarray Dataset over dask."""

from .dataset import open_human_liver_em
from .errors import (
    FormatError,
    InvalidArgumentError,
    LiverDaskError,
    NotDownloadedError,
    RangeNotSupportedError,
    RemoteError,
    SliceNotFoundError,
    SourceChangedError,
    StoreExistsError,
)

__all__ = [
    "FormatError",
    "InvalidArgumentError",
    "LiverDaskError",
    "NotDownloadedError",
    "RangeNotSupportedError",
    "RemoteError",
    "SliceNotFoundError",
    "SourceChangedError",
    "StoreExistsError",
    "open_human_liver_em",
]
