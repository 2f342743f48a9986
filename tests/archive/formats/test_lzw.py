"""TIFF's LZW: strips that are cut anywhere, damaged, or written by other libraries."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import liver_dask as ld
from helpers.archive import write_raw
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import lzw, png_filters
from liver_dask.archive.formats.lzw import End
from liver_dask.core.compiled import Compiled
from liver_dask.demo import RangeRequestHandler, make_archive, serve

CLEAR, END_OF_DATA = 256, 257
KINDS = ["em", "uneven", "noise", "zeros with margins", "one value", "steps"]


def row(kind: str, width: int, seed: int = 0) -> np.ndarray:
    """A row of pixels of a kind, like those of EM or artificial ones."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, width, np.uint16)
    em = (np.sin(np.arange(width) / 9) * 9000 + 20000).astype(np.uint16) + noise
    match kind:
        case "em":
            return em
        case "uneven":
            return np.where(np.arange(width) < width * 2 // 3, 512 * (em // 8192), em).astype(np.uint16)
        case "noise":
            return random.integers(0, 1 << 16, width, np.uint16)
        case "zeros with margins":
            return np.where(abs(np.arange(width) - width / 2) < width / 4, em, 0).astype(np.uint16)
        case "one value":
            return np.full(width, 4711, np.uint16)
        case _:
            return np.repeat(random.integers(0, 3, width // 7 + 1, np.uint16), 7)[:width]


def coded(pixels: np.ndarray) -> tuple[bytes, np.ndarray]:
    """A row as the archive has it, and the bytes that a decoder should give."""
    differences = imagecodecs.delta_encode(pixels)
    return imagecodecs.lzw_encode(differences.tobytes()), differences.view(np.uint8)


def pack(codes: list[int]) -> bytes:
    """Codes packed into bytes, each with as many bits as a writer takes at that point."""
    bits, width, free = "", 9, CLEAR + 1
    for code in codes:
        bits += f"{code:0{width}b}"
        if code == CLEAR:
            width, free = 9, CLEAR + 1
        else:
            free += 1
            width = min(max(width, (free + 1).bit_length()), 12)
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))


def bytes_of_codes(strip: bytes, plain: np.ndarray) -> list[tuple[int, int]]:
    """For each code of a strip, by the specification, the bits up to its end and the bytes known then."""
    number, bits, at, width, found = int.from_bytes(strip, "big"), 8 * len(strip), 0, 9, 0
    known, table, last = [], {}, b""
    while found < len(plain):
        code = number >> (bits - at - width) & ((1 << width) - 1)
        at += width
        if code == CLEAR:
            table, last, width = {value: bytes([value]) for value in range(256)} | {256: b"", 257: b""}, b"", 9
            continue
        here = table[code] if code in table else last + last[:1]
        if last:
            table[len(table)] = last + here[:1]
        last, found = here, found + len(here)
        width = min(max(width, (len(table) + 1).bit_length()), 12)
        known.append((at, found))
    return known


@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_of_a_strip(kind: str) -> None:
    """Every prefix of a strip gives exactly the bytes of the codes that it holds in full, and no others."""
    strip, plain = coded(row(kind, 2300 if kind == "noise" else 1200))  # noise needs more, for a second Clear
    at, found = np.array([(0, 0), *bytes_of_codes(strip, plain)]).T
    target = np.empty(len(plain), np.uint8)
    for length in range(len(strip) + 1):
        target[:] = 0xA5
        count, end, _, _ = lzw.decode(strip[:length], target)
        expected = found[np.searchsorted(at, 8 * length, "right") - 1]
        assert count == min(expected, len(plain)), f"of the first {length} bytes"
        assert end in ((End.FULL, End.OVERFULL) if count == len(plain) else (End.CUT,))
        assert np.array_equal(target[:count], plain[:count]), f"of the first {length} bytes"
        assert (target[count:] == 0xA5).all(), "it writes beyond what it knows"


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    width=st.integers(1, 3000),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
    column=st.floats(0, 1),
)
def test_any_share_of_a_strip_for_any_column(kind: str, width: int, seed: int, share: float, column: float) -> None:
    """Any share of a strip is decoded right up to any column, and no bytes outside of the target are written."""
    strip, plain = coded(row(kind, width, seed))
    around = np.full(len(plain) + 64, 0xA5, np.uint8)
    target = around[32 : 32 + max(2, 2 * round(column * width))]
    cut = strip[: round(share * len(strip))]
    count, end, _, _ = lzw.decode(cut, target)
    np.testing.assert_array_equal(target[:count], plain[:count])
    assert (around[:32] == 0xA5).all()
    assert (around[32 + count :] == 0xA5).all()
    assert end in (End.CUT, End.FULL, End.OVERFULL)
    assert (count == len(target)) == (end != End.CUT)
    if cut == strip:
        assert count == len(target)


def read_by_libtiff(strip: bytes, count: int) -> bytes | None:
    """What libtiff makes of a strip; None if it refuses it."""
    file = io.BytesIO()
    tifffile.imwrite(file, iter([strip]), shape=(1, count), dtype="u1", compression="lzw", rowsperstrip=1)
    try:
        return np.asarray(Image.open(file)).tobytes()
    except OSError:
        return None


BYTES = np.random.default_rng(0).integers(0, 256, 6000).tolist()


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([CLEAR, 65, 66, END_OF_DATA], b"AB"),
        ([CLEAR, 65, 66], b"AB"),
        ([CLEAR, 65, 258, 259, END_OF_DATA], b"AAAAAA"),
        ([CLEAR, CLEAR, 65, CLEAR, CLEAR, CLEAR, 66, 258, END_OF_DATA], b"ABBB"),
        ([CLEAR, *BYTES[:3838], END_OF_DATA], bytes(BYTES[:3838])),
        ([CLEAR, *BYTES[:3839], CLEAR, 65, END_OF_DATA], bytes(BYTES[:3839]) + b"A"),
        ([CLEAR, *BYTES[:4500], 258, 4095, END_OF_DATA], bytes(BYTES[:4500] + BYTES[:2] + BYTES[3837:3839])),
        ([CLEAR, *BYTES[:4862], END_OF_DATA], bytes(BYTES[:4862])),
    ],
    ids=["plain", "no end", "runs", "Clear and Clear", "full table", "Clear late", "no Clear", "no Clear for long"],
)
def test_whole_strips_are_read_as_libtiff_and_imagecodecs_read_them(codes: list[int], expected: bytes) -> None:
    """A whole strip of another writer gives the same bytes as libtiff and imagecodecs give."""
    strip = pack(codes)
    target = np.empty(len(expected), np.uint8)
    decoded = lzw.decode(strip, target)
    assert target.tobytes() == imagecodecs.lzw_decode(strip) == read_by_libtiff(strip, len(expected)) == expected
    assert decoded.end == End.FULL
    assert not lzw.holds_more(strip, decoded)
    if len(expected) > 2:
        shorter = lzw.decode(strip, target[:-2])
        assert lzw.holds_more(strip, shorter)
    assert lzw.decode(strip, np.empty(len(expected) + 1, np.uint8))[:2] == (
        len(expected), End.EARLY if codes[-1] == END_OF_DATA else End.CUT,
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 1200), padding=st.integers(0, 1))
def test_the_end_of_a_strip_is_no_more_data(count: int, padding: int) -> None:
    """No code after the data, an end-of-data code even if a bit short, and a byte of padding are no more data."""
    values = BYTES[:count]
    strip = pack([CLEAR, *values])
    decoded = lzw.decode(strip, np.empty(len(values), np.uint8))
    used = f"{int.from_bytes(strip, 'big'):0{8 * len(strip)}b}"[: decoded.bits]
    width = decoded.width
    ends = {"": False, f"{END_OF_DATA:0{width}b}": False, f"{END_OF_DATA:0{width - 1}b}": False}
    for end, is_more in (ends | {f"{65:0{width}b}{66:0{width}b}": True}).items():
        bits = used + end
        bits += "0" * (-len(bits) % 8 + 8 * padding)
        whole = int(bits, 2).to_bytes(len(bits) // 8, "big")
        assert lzw.holds_more(whole, decoded) == is_more, f"{end} after {count} bytes"


@pytest.mark.parametrize("codes", [[END_OF_DATA], [CLEAR, END_OF_DATA], [CLEAR, CLEAR]], ids=str)
def test_a_strip_without_data(codes: list[int]) -> None:
    """Of a strip without data no bytes are decoded."""
    assert lzw.decode(pack(codes), np.empty(2, np.uint8)).length == 0


IMPOSSIBLE = {
    "no Clear": ([65, 66, 67], 0),
    "a place after Clear": ([CLEAR, 258, 65], 0),
    "the place after next": ([CLEAR, 65, 259], 1),
    "far beyond the table": ([CLEAR, 65, CLEAR, 300, 258, 259, 260], 1),
    "after much": ([CLEAR, *BYTES[:300], 2000], 300),
    "a table that overflows": ([CLEAR, *BYTES], 4864),
}
"""Codes, and how many bytes come before the invalid one."""


@pytest.mark.parametrize(("codes", "before"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_codes_that_cannot_be(codes: list[int], before: int) -> None:
    """Decoding stops as invalid at a code that cannot be, and writes nothing after the bytes before it."""
    target = np.zeros(8000, np.uint8)
    length, end, _, _ = lzw.decode(pack(codes), target)
    assert (length, end) == (before, End.INVALID)
    assert not target[length:].any()


@settings(max_examples=500, deadline=None)
@given(
    data=st.binary(max_size=300), start=st.sampled_from([b"", b"\x80\x00", b"\x80\x20\x7f"]), size=st.integers(0, 900)
)
def test_any_bytes(data: bytes, start: bytes, size: int) -> None:
    """Decoding of any bytes ends and writes nothing outside of the target or beyond the count that it returns."""
    around = np.full(size + 64, 0xA5, np.uint8)
    count, _, bits, _ = lzw.decode(start + data, around[32 : 32 + size])
    assert 0 <= count <= size
    assert bits <= 8 * len(start + data)
    assert (around[:32] == 0xA5).all()
    assert (around[32 + count :] == 0xA5).all()


def spoil_strip(path: Path, number: int, strip: bytes) -> None:
    """Replace a strip of a TIFF by another, cut or padded to the length of the old one."""
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[number], tiff.pages[0].databytecounts[number]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = strip[:count].ljust(count, b"\0")
    path.write_bytes(data)


@pytest.fixture
def one_slice(tmp_path: Path) -> Path:
    """An archive of one slice of EM."""
    path = tmp_path / EMPIAR_13356.path("raw", 0)
    path.parent.mkdir()
    pixels = np.stack([row("em", 300, seed) for seed in range(40)])
    write_raw(path, pixels)
    return path


def test_a_damaged_strip_names_its_rows_and_does_not_end_the_process(one_slice: Path) -> None:
    """A damaged strip is a FormatError that names its rows, and the process goes on."""
    damages = [codes for codes, _ in IMPOSSIBLE.values() if len(codes) < 500]
    for number, codes in enumerate(damages):
        spoil_strip(one_slice, number, pack(codes))
    script = (
        "import sys, liver_dask as ld\n"
        "for row in range(int(sys.argv[2])):\n"
        "    try: ld.open_human_liver_em(sys.argv[1], shape=(1, 40, 300)).raw[0, row].compute()\n"
        "    except ld.FormatError as error: print(error)"
    )
    command = [sys.executable, "-c", script, str(one_slice.parents[1]), str(len(damages))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    told = done.stdout.splitlines()
    assert len(told) == len(damages)
    for number, line in enumerate(told):
        assert f"the strip of rows {number}-{number} cannot be decoded (a code that cannot be" in line


@pytest.mark.parametrize("fewer", [-3, -1, 1, 3])
def test_a_row_that_gets_another_length_is_noticed(one_slice: Path, fewer: int) -> None:
    """A strip whose row comes out too long or too short is a FormatError that names its row."""
    spoil_strip(one_slice, 7, coded(row("steps", 300 - fewer, 7))[0])
    ds = ld.open_human_liver_em(one_slice.parents[1], shape=(1, 40, 300))
    with pytest.raises(ld.FormatError, match="the strip of rows 7-7 holds"):
        ds.raw.compute()


def test_windows_that_end_within_strips(tmp_path: Path) -> None:
    """Windows that end at many columns within strips have the right voxels, though the fetched part cuts a code."""
    shape = (1, 256, 1024)
    make_archive(tmp_path, shape)
    whole = tifffile.imread(tmp_path / EMPIAR_13356.path("raw", 0))
    with serve(tmp_path) as server:
        ds = ld.open_human_liver_em(server.url, shape=shape)
        wrong = {}
        for stop in range(20, 1024, 13):
            window = ds.raw[0, 24:248, max(stop - 300, 0) : stop].to_numpy()
            wrong[stop] = int((window != whole[24:248, max(stop - 300, 0) : stop]).sum())
    assert not any(wrong.values()), {stop: count for stop, count in wrong.items() if count}


def test_the_loop_is_compiled_once_for_many_threads() -> None:
    """Sixteen threads that call a compiled function for the first time together share one compilation."""
    loop = Compiled("int64(int64)", lambda number: number + 1)
    loop._compile, compiled = _counting(loop._compile)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(loop(41))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [42] * 16
    assert len({id(code) for code in compiled}) == 1


@pytest.mark.parametrize("name", ["raw", "mito"])
def test_the_decoder_is_loaded_while_bytes_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A server that sends no voxel before the decoder is loaded is read all the same, and rightly."""
    of, loaded = (lzw, "_decode") if name == "raw" else (png_filters, "_undo"), threading.Event()
    fresh = Compiled(getattr(*of)._signature, getattr(*of)._loop)
    compile_it = fresh._compile
    fresh._compile = lambda: (compile_it() and loaded.set()) or compile_it()
    monkeypatch.setattr(*of, fresh)
    asked: list[bool] = []
    headers = 2 if name == "raw" else 1  # so many requests do not wait

    class Waits(RangeRequestHandler):
        def send(self, *args) -> None:
            asked.append(len(asked) < headers or loaded.wait(20))
            super().send(*args)

    shape = (1, 1600, 700)
    make_archive(tmp_path, shape)
    path = tmp_path / EMPIAR_13356.path(name, 0)
    if name == "mito":  # of which the first request holds a part
        Image.fromarray(np.random.default_rng(0).integers(0, 2, shape[1:], "u1") * 255).save(path)
    whole = tifffile.imread(path) if name == "raw" else np.asarray(Image.open(path))
    with serve(tmp_path, Waits) as server:
        window = ld.open_human_liver_em(server.url, shape=shape)[name][0, 1200:1500, 20:600].to_numpy()
    assert (window == whole[1200:1500, 20:600]).all()
    assert len(asked) > headers
    assert all(asked), "the decoder was not loaded ahead"


def test_what_cannot_be_loaded_ahead_is_told_by_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error on the loading thread is nobody's; the call raises its own, and without threads it still works."""
    broken = Compiled("no signature", lambda number: number)
    broken.load_ahead()
    with pytest.raises(SyntaxError):
        broken(1)
    loop = Compiled("int64(int64)", lambda number: number + 1)
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    loop.load_ahead()
    assert loop(41) == 42


def no_thread(thread: threading.Thread) -> None:
    """As Python says it where no more threads may be started."""
    raise RuntimeError("can't start new thread")


def _counting(function):
    results = []
    return lambda: results.append(function()) or results[-1], results


@pytest.mark.slow
@pytest.mark.parametrize("where", ["cannot be written", "damaged"])
def test_it_is_compiled_where_nothing_can_be_kept(tmp_path: Path, where: str) -> None:
    """A function is compiled and runs even if Numba's cache folder cannot be written or its files are damaged."""
    folder = tmp_path / "cache"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    script = tmp_path / "script.py"
    script.write_text(
        "from liver_dask.core.compiled import Compiled\n"
        "def loop(number): return number + 1\n"
        "print(Compiled('int64(int64)', loop)(41))"
    )
    if where == "cannot be written":
        folder.write_text("no folder")
    else:
        subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True)
        kept = [path for path in folder.rglob("*") if path.is_file()]
        assert kept, "nothing is kept for the next process"
        for path in kept:
            path.write_bytes(b"damaged")
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout == "42\n", done.stderr


def test_a_fork_while_the_loop_is_compiled_can_decode() -> None:
    """A process that is forked while a thread compiles the loop can decode."""
    script = (
        "import os, threading, numpy as np, sys\n"
        "from liver_dask.archive.formats import lzw\n"
        "import liver_dask.core.compiled\n"
        "def decode():\n"
        "    target = np.zeros(1, 'u1'); lzw.decode(bytes([0x80, 0x10, 0x60, 0x20]), target); return target[0]\n"
        "started = threading.Event()\n"
        "class Told:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'numba': started.set()\n"
        "sys.meta_path.insert(0, Told())\n"
        "thread = threading.Thread(target=decode); thread.start(); started.wait()\n"
        "child = os.fork()\n"
        "if not child: os._exit(int(decode()) != 65)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])); thread.join()"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr
