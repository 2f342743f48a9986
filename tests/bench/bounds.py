"""What no program can undercut: the least bytes that decode to some voxels, and the time of the codecs alone."""

import multiprocessing
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile

from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.store.layout import CHUNKS
from liver_dask.store.shards import encode_chunk

from .archive import BenchArchive

BAND, PROCESSES = 256, 2
INDEX_ENTRY = 8
"""Bytes of the index for a strip: its offset and its count."""


def strip_prefixes(path: Path, rows: Sequence[int], columns: int) -> float:
    """The least bytes of some strips that decode up to a column, from a sample of them."""
    sample = rows[:: max(len(rows) // 128, 1)]
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        offsets, counts = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
        needed = 0
        for row in sample:
            file.seek(offsets[row])
            needed += shortest_prefix(file.read(counts[row]), 2 * columns)
    return needed * len(rows) / len(sample)


def shortest_prefix(strip: bytes, count: int) -> int:
    """The least bytes of an LZW strip that decode to `count` bytes."""
    low, high = 16, len(strip)
    while low < high:
        middle = (low + high) // 2
        if len(imagecodecs.lzw_decode(strip[:middle], out=count)) < count:
            low = middle + 1
        else:
            high = middle
    return low


def mask_prefix(path: Path, rows: int, width: int) -> int:
    """The least bytes of a PNG, to within 64, that inflate to its first rows."""
    data = path.read_bytes()
    inflate = zlib.decompressobj()
    there, wanted = 0, rows * (width + 1)  # a byte before each row says how it is filtered
    at = 8
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        for piece in range(at + 8, at + 8 + length, 64) if kind == b"IDAT" else ():
            there += len(inflate.decompress(data[piece : min(piece + 64, at + 8 + length)]))
            if there >= wanted:
                return piece + 64
        at += 12 + length
    return len(data)


def least_bytes(archive: BenchArchive, z: Sequence[int], y: Sequence[int], x_stop: int, masks: bool = True) -> str:
    """What the rows of some slices need at least, in words: strips, their index, and masks."""
    raw = sum(strip_prefixes(archive.path("raw", at), y, x_stop) for at in z)
    index = INDEX_ENTRY * len(y) * len(z)
    labels = EMPIAR_13356.labels if masks else ()
    of_masks = sum(mask_prefix(archive.path(label, at), max(y) + 1, archive.size) for label in labels for at in z)
    return f"at least {(raw + index + of_masks) / 1e6:.3g} MB decode to these voxels"


def codec_seconds(archive: BenchArchive, rows: range, slices: int, part: int) -> dict[str, float]:
    """Seconds that the codecs take for a share of a slab; reading the files is not counted."""
    spent = dict.fromkeys(["LZW", "PNG", "Blosc"], 0.0)
    strips = []
    for z in range(slices):
        with tifffile.TiffFile(archive.path("raw", z)) as tiff:
            strips.append((tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts))
    for first in range(rows.start + part * BAND, rows.stop, PROCESSES * BAND):
        height = min(BAND, rows.stop - first)
        block = np.empty((slices, height, archive.size), np.uint16)
        for z, (offsets, counts) in enumerate(strips):
            with archive.path("raw", z).open("rb") as file:
                file.seek(offsets[first])
                last = first + height - 1
                data = file.read(offsets[last] + counts[last] - offsets[first])
            began = time.perf_counter()
            for row in range(height):
                at = offsets[first + row] - offsets[first]
                imagecodecs.lzw_decode(data[at : at + counts[first + row]], out=block[z, row].view(np.uint8))
            imagecodecs.delta_decode(block[z], axis=-1, out=block[z])
            spent["LZW"] += time.perf_counter() - began
        spent["Blosc"] += encode_seconds(block)
    for label in EMPIAR_13356.labels:
        masks = []
        for z in range(part, slices, PROCESSES):
            mask, seconds = decoded_mask(archive.path(label, z))
            spent["PNG"] += seconds * rows.stop / len(mask)
            masks.append(mask[rows.start : rows.stop].copy())
        for first in range(0, len(rows), BAND):
            deep = np.stack([mask[first : first + BAND] for mask in masks] * PROCESSES)
            spent["Blosc"] += encode_seconds(deep) / PROCESSES  # as many chunks as one process has
    return spent


def decoded_mask(path: Path) -> tuple[np.ndarray, float]:
    """A mask, and the seconds that decoding it took."""
    data = path.read_bytes()
    began = time.perf_counter()
    return imagecodecs.png_decode(data), time.perf_counter() - began


def encode_seconds(block: np.ndarray) -> float:
    """Seconds to encode a block as a store has it."""
    began = time.perf_counter()
    for x in range(0, block.shape[2], CHUNKS[2]):
        encode_chunk(block[:, :, x : x + CHUNKS[2]], CHUNKS, has_means=block.itemsize > 1)
    return time.perf_counter() - began


def slab_codecs(archive: BenchArchive, rows: range, slices: int) -> dict[str, float]:
    """Seconds of the slower of the processes, for each codec."""
    os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)  # dask's, which takes the codecs to a quarter of their rate
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        parts = pool.starmap(codec_seconds, [(archive, rows, slices, part) for part in range(PROCESSES)])
    return {name: max(part[name] for part in parts) for name in parts[0]}
