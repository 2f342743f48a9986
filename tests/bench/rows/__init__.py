"""The rows of the benchmark, in the order of the README."""

from ..row import Row
from .box import BOX
from .gateway import GATEWAY
from .lazily import OPEN, OVERVIEW, STATISTICS, WINDOW
from .patches import PATCHES
from .slab import SLAB

ROWS: dict[str, Row] = {row.name: row for row in (OPEN, WINDOW, OVERVIEW, BOX, STATISTICS, SLAB, PATCHES, GATEWAY)}
