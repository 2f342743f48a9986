"""The human-liver EM volume EMPIAR-13356, and other archives, as one lazy, labelled xarray Dataset with dask arrays.

Arrays have the axes (z, y, x). A bounding box is (x_min, x_max, y_min, y_max, z_min, z_max) in voxels of the whole
volume, each max exclusive.

- **Open**: `open_human_liver_em`, `open_archive`; `archives`, `Archive`, `Variable` and `EMPIAR_13356` describe what
  there is; `trace` and `Trace` count requests; `examine` says whether an archive is as described (`ArchiveReport`).
- **Look**: `view`, `show`; `serve` (a `Server`) and `as_zarr` for other viewers; `LiverAccessor` has the methods of
  `ds.liver`.
- **Keep**: `to_zarr`, `verify` with its `VerifyReport`, `add_pyramid`, `add_variables`, `annotate`.
- **Train**, with torch_em's names: `get_human_liver_em_loader`, `get_human_liver_em_dataset`,
  `get_human_liver_em_tiles`, `get_human_liver_em_data`, `get_human_liver_em_full_volume`, `get_human_liver_em_paths`;
  `SplitGrid` splits the volume.
- **Compute**: `predict`, `image_statistics`, `segmentation_scores`, `measure`, `label_objects`.
- **Errors** are subclasses of `LiverDaskError`, and of the builtin error that a caller would catch.
"""

from .analysis.measure import label_objects, measure
from .analysis.scores import segmentation_scores
from .archive.archives import EMPIAR_13356, archives
from .archive.dataset import open_archive, open_human_liver_em
from .archive.description import Archive, Variable
from .archive.doctor.examine import examine
from .archive.doctor.report import ArchiveReport
from .core.errors import (
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
from .core.metrics import Trace, trace
from .prediction.predict import predict
from .prediction.statistics import image_statistics
from .serving.server import Server, as_zarr, serve
from .store.add_variables import add_variables
from .store.annotate import annotate
from .store.pyramid import add_pyramid
from .store.to_zarr import to_zarr
from .store.verify import VerifyReport, verify
from .training.downloads import get_human_liver_em_data, get_human_liver_em_full_volume, get_human_liver_em_paths
from .training.loaders import get_human_liver_em_dataset, get_human_liver_em_loader
from .training.splits import SplitGrid
from .training.tiles import get_human_liver_em_tiles
from .viewing.accessor import LiverAccessor  # which registers ds.liver
from .viewing.figures import show
from .viewing.view import view

__version__ = "0.1.0"

__all__ = [
    "EMPIAR_13356",
    "Archive",
    "ArchiveReport",
    "DamagedError",
    "ExportError",
    "FormatError",
    "InvalidArgumentError",
    "LiverAccessor",
    "LiverDaskError",
    "MissingExtraError",
    "NotDownloadedError",
    "RangeNotSupportedError",
    "RemoteError",
    "Server",
    "SliceNotFoundError",
    "SourceChangedError",
    "SplitGrid",
    "StoreExistsError",
    "Trace",
    "Variable",
    "VerifyReport",
    "add_pyramid",
    "add_variables",
    "annotate",
    "archives",
    "as_zarr",
    "examine",
    "get_human_liver_em_data",
    "get_human_liver_em_dataset",
    "get_human_liver_em_full_volume",
    "get_human_liver_em_loader",
    "get_human_liver_em_paths",
    "get_human_liver_em_tiles",
    "image_statistics",
    "label_objects",
    "measure",
    "open_archive",
    "open_human_liver_em",
    "predict",
    "segmentation_scores",
    "serve",
    "show",
    "to_zarr",
    "trace",
    "verify",
    "view",
]
