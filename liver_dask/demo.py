"""A synthetic archive for demonstrations and tests: an EM volume in the archive's own format, and an HTTP server.

`make_archive` writes files in the format of EMPIAR-13356: PNG masks, and LZW TIFFs with a predictor, one row per strip,
and the directory at the end. `serve` serves a folder over HTTP with byte ranges, and records the requests. `run_demo`
is the command `liver-dask demo`.
"""

import os
import shlex
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import tifffile
import xarray as xr
from PIL import Image, ImageColor, ImageDraw, ImageFont

from .archive.archives import EMPIAR_13356, color_of
from .archive.dataset import open_human_liver_em
from .core.errors import LiverDaskError, how_to_install
from .core.geometry import BoundingBox, check_shape
from .core.kinds import FOREGROUND, RAW
from .core.metrics import traffic
from .store.own_files import replacing
from .store.to_zarr import to_zarr

DEMO_SHAPE = (16, 1024, 1024)
DEMO_BOX = (200, 856, 120, 632, 2, 14)
PICTURE, CROP = "slice.png", "crop.zarr"
TIFF_TAGS = {317: 2, 278: 1}
"""Predictor 2 and one row per strip."""

LONGEST_RANGE_HEADER = (8 << 10) - len("Range: \r\n")
"""Maximum length of the header's value. As in nginx, a header line has at most 8 kB."""


Field = npt.NDArray[np.float32]


def make_archive(folder: str | os.PathLike[str], shape: Sequence[int] = DEMO_SHAPE, seed: int = 0) -> None:
    """Write an archive of EM-like slices: cells with membranes and nuclei, mitochondria with cristae, sheets of ER.

    Args:
        folder: The root folder of the archive. It is created if necessary.
        shape: Shape (z, y, x) in voxels, with at least 64 rows and columns.
        seed: Seed of the random shapes. The same seed gives the same voxels.
    """
    tissue = _Tissue(check_shape(shape), seed)
    for z in range(shape[0]):
        for variable, pixels in tissue.slice(z).items():
            path = Path(folder) / EMPIAR_13356.path(variable, z)
            path.parent.mkdir(parents=True, exist_ok=True)
            if variable == RAW:
                Image.fromarray(pixels).save(path, compression="tiff_lzw", tiffinfo=TIFF_TAGS)
            else:
                Image.fromarray(pixels).save(path)


class _Tissue:
    """A small piece of synthetic liver. All slices are computed from the same few random shapes."""

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        self._shape = depth, height, width = shape
        self._seed = seed
        random = np.random.default_rng(seed)
        self._size = max(height, width) / 1024
        cells = max(int(14 * height * width / 1024**2), 3)
        self._cells = random.uniform((-depth, 0, 0), (2 * depth, height, width), (cells, 3))
        organelles = max(int(260 * height * width / 1024**2), 4)
        self._mitochondria = random.uniform((0, 0, 0), (depth, height, width), (organelles, 3))
        self._radii = random.uniform((11, 20), (19, 46), (organelles, 2)) * max(self._size, 0.35)
        self._angles = random.uniform(0, np.pi, organelles)
        self._folds, self._waves, self._mottle = (_noise(random, depth, grain) for grain in (9, 5, 26))
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        self._rows, self._columns = rows, columns

    def slice(self, z: int) -> dict[str, npt.NDArray[Any]]:
        """Compute raw (uint16) and the masks (uint8, 0 / 255) of one slice, each with axes (y, x)."""
        folds, waves, mottle = (self._spread(noise[z]) for noise in (self._folds, self._waves, self._mottle))
        wall, centre = self._walls(z, waves)
        radius = (92 + 12 * folds) * self._size
        nucleus = (centre < radius) & (wall > 14 * self._size)
        mito, cristae = self._organelles(z, folds)
        mito &= ~nucleus & (wall > 5)
        lumen = np.abs(np.sin(4 * waves + 1.4 * folds + 0.2 * mottle))
        er = (lumen < 0.16) & (folds > -0.2) & ~nucleus & ~mito & (wall > 5)
        grey = 150 + 10 * mottle + 6 * folds
        grey = np.where(er, 168 - 420 * lumen, grey)
        grey = np.where(mito, 92 + 26 * cristae, grey)
        grey = np.where(nucleus, 160 + 22 * np.clip(mottle + folds, -1.5, 1), grey)
        envelope = np.minimum(np.abs(centre - radius), np.abs(wall - 14 * self._size))
        grey -= 75 * np.exp(-((wall / 2.5) ** 2)) + np.where(nucleus, 70 * np.exp(-((envelope / 2.5) ** 2)), 0)
        masks = {"mito": mito, "er": er, "nucleus": nucleus}
        noise = np.random.default_rng((self._seed, z)).normal(0, 9, grey.shape)
        inside = self._inside()
        raw = np.clip((grey + noise) * 200, 1, 65535).astype(np.uint16) * inside
        return {RAW: raw} | {
            name: (mask & inside).astype(np.uint8) * np.uint8(FOREGROUND) for name, mask in masks.items()
        }

    def _spread(self, noise: Field) -> Field:
        """Enlarge a small noise image to a slice."""
        _, height, width = self._shape
        return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), np.float32)

    def _inside(self) -> npt.NDArray[np.bool_]:
        """Return the region with tissue. Outside of it, slices are empty, as the real ones are."""
        _, height, width = self._shape
        inside = np.zeros((height, width), bool)
        inside[height // 43 : height - height // 46, width // 17 : width - width // 18] = True
        return inside

    def _walls(self, z: int, waves: Field) -> tuple[Field, Field]:
        """Return the distance to the wall of the nearest cell, and to the centre of that cell, in voxels."""
        bend = 22 * self._size * waves
        rows, columns = self._rows + bend, self._columns + bend
        shape = rows.shape
        centres = np.stack([self._cells[:, 1], self._cells[:, 2], 3 * (self._cells[:, 0] - z)], axis=1)
        squares = np.stack([(rows - y) ** 2 + (columns - x) ** 2 + up**2 for y, x, up in centres.astype(np.float32)])
        first, second = np.argpartition(squares, 1, axis=0)[:2]
        nearest, next_nearest = (np.take_along_axis(squares, i[None], 0)[0] for i in (first, second))
        apart = np.linalg.norm(centres[first] - centres[second], axis=-1).reshape(shape)
        return (next_nearest - nearest) / (2 * apart), np.sqrt(nearest)

    def _organelles(self, z: int, folds: Field) -> tuple[npt.NDArray[np.bool_], Field]:
        """Return the mask of the mitochondria, and the wave of their cristae (-1 to 1)."""
        inside = np.zeros(self._rows.shape, bool)
        cristae = np.zeros(self._rows.shape, np.float32)
        for (organelle_z, y, x), (short, long), angle in zip(
            self._mitochondria, self._radii, self._angles, strict=True
        ):
            shrink = 1 - ((z - organelle_z) / 7) ** 2
            if shrink <= 0:
                continue
            near = np.s_[max(int(y - long), 0) : int(y + long) + 1, max(int(x - long), 0) : int(x + long) + 1]
            down, right = self._rows[near] - y, self._columns[near] - x
            along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
            there = (along / long) ** 2 + (across / short) ** 2 < shrink * (1 + 0.25 * folds[near])
            inside[near] |= there
            cristae[near][there] = np.sin(along / 1.7 + 3 * folds[near])[there]
        return inside, cristae


def _noise(random: np.random.Generator, depth: int, grain: int) -> Field:
    """Return smooth noise around 0, with about `grain` bumps across, that changes slowly in z: (depth, 128, 128)."""
    spectrum = np.fft.fftn(random.normal(size=(depth + 8, 128, 128)))
    z, y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in spectrum.shape), indexing="ij")
    smooth = np.fft.ifftn(spectrum * np.exp(-((y**2 + x**2) * (64 / grain) ** 2 * 8 + z**2 * 80))).real[:depth]
    return (smooth / smooth.std()).astype(np.float32)


class Request(NamedTuple):
    """One request that a server received.

    Attributes:
        path: Path of the file.
        start: First requested byte, or 0 without a range.
        stop: Last requested byte + 1. With several ranges, all lie between `start` and `stop`.
        status: HTTP status of the response.
        sent: Number of bytes of the file in the response.
    """

    path: str
    start: int
    stop: int
    status: int
    sent: int


@dataclass
class ArchiveServer:
    """A folder that is served over HTTP.

    Attributes:
        url: The URL of the folder.
        requests: All requests so far, in order.
    """

    url: str
    requests: list[Request] = field(default_factory=list)

    @property
    def bytes_sent(self) -> int:
        """The number of bytes of files in all responses so far."""
        return sum(request.sent for request in self.requests)


class RangeRequestHandler(SimpleHTTPRequestHandler):
    """Serves a folder with byte ranges (one or several per request), ETags, keep-alive connections, HTML listings."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    last_modified = ""

    def do_GET(self) -> None:
        """Respond with one or several ranges (206), with the whole file (200), or with an error."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self._note(0, 0, HTTPStatus.OK if path.is_dir() else HTTPStatus.NOT_FOUND)
            super().do_GET()  # responds with a listing or 404
            return
        if len(self.headers.get("Range", "")) > LONGEST_RANGE_HEADER:
            self.refuse(HTTPStatus.BAD_REQUEST, {"Connection": "close"})
            return
        etag, size = self.tag(path), path.stat().st_size
        ranges = [(start, stop) for start, stop in self.asked_ranges(size) if start < size]
        if not ranges:
            self.refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"Content-Range": f"bytes */{size}"})
            return
        with path.open("rb") as file:
            parts = [(start, read_at(file, start, stop)) for start, stop in ranges]
        if len(parts) > 1:
            self.answer_parts(parts, size, etag)
        else:
            (start, stop), (_, body) = ranges[0], parts[0]
            self.answer(body, start, stop, size, etag)

    def do_HEAD(self) -> None:
        """Respond with the headers of the whole file, or of an error."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self._note(0, 0, HTTPStatus.OK if path.is_dir() else HTTPStatus.NOT_FOUND)
            super().do_HEAD()
            return
        self._note(0, 0, HTTPStatus.OK)
        headers = {"Content-Length": str(path.stat().st_size), "Accept-Ranges": "bytes", "ETag": self.tag(path)}
        self.send(HTTPStatus.OK, headers, b"")

    def tag(self, path: Path) -> str:
        """Return the ETag of a file, and set its date for the headers of the response."""
        about = path.stat()
        self.last_modified = self.date_time_string(about.st_mtime)
        return f'"{about.st_mtime_ns:x}-{about.st_size:x}"'

    def asked_ranges(self, size: int) -> list[tuple[int, int]]:
        """Return the ranges (start, stop) of the request, clipped to the file; the whole file if there is no range."""
        if "Range" not in self.headers:
            return [(0, size)]
        ranges = []
        for asked in self.headers["Range"].removeprefix("bytes=").split(","):
            first, _, last = asked.strip().partition("-")
            start = int(first) if first else max(size - int(last), 0)  # "-n" means the last n bytes
            ranges.append((start, min(int(last) + 1, size) if first and last else size))
        return ranges

    def answer(self, body: bytes, start: int, stop: int, size: int, etag: str) -> None:
        """Send one range."""
        status = HTTPStatus.PARTIAL_CONTENT if "Range" in self.headers else HTTPStatus.OK
        self._note(start, stop, status)
        headers = {"Accept-Ranges": "bytes", "ETag": etag}
        if status == HTTPStatus.PARTIAL_CONTENT:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        self.send(status, headers, body)

    def answer_parts(self, parts: Sequence[tuple[int, bytes]], size: int, etag: str) -> None:
        """Send several ranges in the same format as nginx. Each part is the offset of its first byte, and its bytes."""
        last, data = parts[-1]
        self._note(parts[0][0], last + len(data), HTTPStatus.PARTIAL_CONTENT, sum(len(data) for _, data in parts))
        boundary = uuid4().hex
        head = f"\r\n--{boundary}\r\nContent-Type: {self.guess_type(self.path)}\r\nContent-Range: bytes "
        pieces = [f"{head}{start}-{start + len(data) - 1}/{size}\r\n\r\n".encode() + data for start, data in parts]
        headers = {"Content-Type": f"multipart/byteranges; boundary={boundary}", "Accept-Ranges": "bytes", "ETag": etag}
        self.send(HTTPStatus.PARTIAL_CONTENT, headers, b"".join([*pieces, f"\r\n--{boundary}--\r\n".encode()]))

    def refuse(self, status: int, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        """Send a response without content of the file."""
        self._note(0, 0, status)
        self.send(status, headers, b"")

    def send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a response. The Content-Length is the length of the body, unless `headers` contain another one."""
        self.send_response(status)
        dated = {"Last-Modified": self.last_modified} if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT) else {}
        for name, value in {"Content-Length": str(len(body)), **dated, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _note(self, start: int, stop: int, status: int, sent: int | None = None) -> None:
        archive = self.server.archive  # type: ignore[attr-defined]  # `serve` sets this attribute
        archive.requests.append(Request(self.path, start, stop, status, stop - start if sent is None else sent))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because the requests are in `ArchiveServer.requests`."""


def read_at(file: BinaryIO, start: int, stop: int) -> bytes:
    """Read the bytes from `start` to `stop` (exclusive) of a file."""
    file.seek(start)
    return file.read(stop - start)


@contextmanager
def serve(folder: Path | str, handler: type[RangeRequestHandler] = RangeRequestHandler) -> Iterator[ArchiveServer]:
    """Serve a folder on a free port of 127.0.0.1 until the context is left.

    Args:
        folder: The folder to serve.
        handler: The class that handles requests.

    Yields:
        The server's URL and the requests that it receives.
    """

    def handle(*args: Any, **options: Any) -> RangeRequestHandler:
        return handler(*args, directory=str(folder), **options)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128
        archive: ArchiveServer
        connections: WeakSet[socket]

        def get_request(self) -> tuple[socket, Any]:
            connection, address = super().get_request()
            self.connections.add(connection)
            return connection, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Ignore errors, because a client may close its connection at any time."""

    with Server(("127.0.0.1", 0), handle) as server:
        server.archive = ArchiveServer(f"http://127.0.0.1:{server.server_port}")
        server.connections = WeakSet()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server.archive
        finally:
            server.shutdown()
            thread.join()
            for connection in list(server.connections):  # keep-alive connections would be served further
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)


def overlay_picture(ds: xr.Dataset, z: int) -> Image.Image:
    """Draw one slice twice, side by side: without and with its labels in colour.

    Args:
        ds: A Dataset with `raw`, labels and the attribute `title`. The whole slice is read.
        z: The slice's coordinate.

    Returns:
        An RGB image with a title and a legend.
    """
    pixels = ds.sel(z=z).compute()
    raw = pixels[RAW].to_numpy()
    low, high = np.percentile(raw[raw > 0], (0.5, 99.5)) if raw.any() else (0, 1)
    grey = np.clip((raw - low) / (high - low), 0, 1) * 255
    plain = np.repeat(grey[..., None], 3, axis=-1)
    coloured = plain.copy()
    labels = [str(name) for name in ds.data_vars if name != RAW]
    for label in labels:
        there = pixels[label].to_numpy() > 0
        coloured[there] = 0.55 * coloured[there] + 0.45 * np.array(ImageColor.getrgb(color_of(ds[label])))
    pair = Image.fromarray(np.concatenate([plain, coloured], axis=1).astype(np.uint8))
    return _with_legend(pair, f"{ds.attrs['title']}, slice {z}", {label: color_of(ds[label]) for label in labels})


def _with_legend(pair: Image.Image, title: str, colors: Mapping[str, str]) -> Image.Image:
    size = max(pair.height // 40, 10)
    picture = Image.new("RGB", (pair.width, pair.height + 2 * size))
    picture.paste(pair, (0, 2 * size))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    draw.text((size / 2, size / 3), title, fill="white", font=font)
    x = picture.width / 2 + size / 2
    for label, color in colors.items():
        draw.rectangle((x, size * 0.6, x + size * 0.8, size * 1.4), fill=color)
        draw.text((x + size * 1.1, size / 3), label, fill="white", font=font)
        x += size * 2.2 + draw.textlength(label, font=font)
    return picture


def run_demo(out: Path) -> None:
    """Make an archive, open it over HTTP, read a window, draw a slice, write a crop and check its voxels.

    Each step is printed.

    Args:
        out: Folder for the image and the crop. It is created if necessary. The results of an earlier demo are replaced.

    Raises:
        StoreExistsError: The folder has an image or a crop that no demo wrote, or that was changed afterwards.
            (FileExistsError)
        LiverDaskError: A voxel of the crop differs from the archive.
    """
    with replacing(out, (PICTURE, CROP), "liver_dask_demo") as new:
        archive, crop = new / "archive", new / CROP
        began = time.monotonic()
        print(f"Making an archive of {DEMO_SHAPE[0]} slices of {DEMO_SHAPE[1]} x {DEMO_SHAPE[2]} pixels ...")
        make_archive(archive, DEMO_SHAPE)
        with serve(archive) as server:
            print(f"Serving it at {server.url} ({time.monotonic() - began:.0f} s)\n")
            ds = open_human_liver_em(server.url, shape=DEMO_SHAPE)
            print(f'ds = open_human_liver_em("{server.url}", shape={DEMO_SHAPE})   # {len(server.requests)} requests')
            print(ds, "\n")
            _show_window(ds)
            overlay_picture(ds.assign_attrs(title="A made-up liver"), z=DEMO_SHAPE[0] // 2).save(new / PICTURE)
            to_zarr(ds, crop, bounding_box=DEMO_BOX)
        voxels = check_crop(crop, archive, BoundingBox(*DEMO_BOX))
    print(f"A picture of slice {DEMO_SHAPE[0] // 2} with its labels: {out / PICTURE}")
    print(f"A crop that any Zarr reader opens: {out / CROP}")
    print(f"All {voxels:,} voxels of the crop equal the archive's. The demo took {time.monotonic() - began:.0f} s.")
    shown = shlex.quote(str(out / CROP))
    print(f"\nNow look at the crop: liver-dask info {shown}")
    print(f"in a browser:         liver-dask view {shown}   ({how_to_install('view,app')})")
    print(f"or in Python:         xarray.open_zarr({str(out / CROP)!r})")
    print("`liver-dask verify` compares a store with its archive; the demo's own archive was only served while it ran.")


def _show_window(ds: xr.Dataset) -> None:
    requests, fetched = traffic.requests, traffic.bytes
    window = ds.raw.isel(z=3, y=slice(300, 428), x=slice(500, 756)).compute()
    print(
        f"ds.raw.isel(z=3, y=slice(300, 428), x=slice(500, 756)): {window.nbytes / 1e3:.0f} kB of voxels from "
        f"{(traffic.bytes - fetched) / 1e3:.0f} kB in {traffic.requests - requests} requests"
    )


def check_crop(crop: Path, archive: Path, box: BoundingBox) -> int:
    """Compare a store with the archive's files, which tifffile and Pillow read completely.

    Args:
        crop: The store.
        archive: The root folder of the archive.
        box: The box of the volume that the store contains.

    Returns:
        The number of compared voxels of all variables.

    Raises:
        LiverDaskError: A voxel differs.
    """
    stored = xr.open_zarr(crop)
    voxels = 0
    for name, variable in stored.data_vars.items():
        for i, z in enumerate(range(box.z_min, box.z_max)):
            path = archive / EMPIAR_13356.path(str(name), z)
            whole = tifffile.imread(path) if name == RAW else np.asarray(Image.open(path))
            here, there = variable[i].to_numpy(), whole[box.y_min : box.y_max, box.x_min : box.x_max]
            if not np.array_equal(here, there):
                raise LiverDaskError(f"Slice {z} of {name} in {crop} is not what {path} holds.")
            voxels += here.size
    return voxels
