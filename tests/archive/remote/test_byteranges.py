"""Byte ranges of a file are merged, requested together and put together again; strips are fetched by prefixes."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import example, given, settings
from hypothesis import strategies as st

import liver_dask as ld
from helpers.archive import SHAPE
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.formats import tiff
from liver_dask.archive.formats.strip_prefix import MARGIN_BYTES, PrefixShares, bytes_for
from liver_dask.archive.remote.ranges import ByteRange, Received, coalesce_ranges, read_parts
from liver_dask.demo import RangeRequestHandler, serve

FILE = bytes(range(256)) * 4

spans_of_a_file = st.lists(st.integers(0, len(FILE) - 1), min_size=2, max_size=40, unique=True).map(
    lambda cuts: [ByteRange(*pair) for pair in zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False)]
)


@example(ranges=[ByteRange(0, 5), ByteRange(5, 9)], gap=0, most=9)  # next to each other, and as long as they may be
@given(ranges=spans_of_a_file, gap=st.integers(0, 60), most=st.integers(1, 900))
def test_merged_ranges_hold_all_that_was_asked_for(ranges: list[ByteRange], gap: int, most: int) -> None:
    """Merged byte ranges cover all that was asked for, stay within the allowed gaps and length, and are the fewest."""
    merged = coalesce_ranges(ranges, gap, most)
    assert all(any(m.start <= s.start and s.stop <= m.stop for m in merged) for s in ranges)
    for a, b in pairwise(merged):
        begins = next(s for s in ranges if s.start == b.start)
        assert begins.start - a.stop > gap or begins.stop - a.start > most, "one request would do"
    asked, fetched = (sum(s.stop - s.start for s in some) for some in (ranges, merged))
    assert fetched - asked <= gap * (len(ranges) - len(merged))
    assert all(m in ranges or m.stop - m.start <= most for m in merged)


@settings(max_examples=200)
@given(ranges=spans_of_a_file, sizes=st.lists(st.integers(1, 300), min_size=1), data=st.data())
def test_a_body_of_several_parts_is_read_whatever_its_blocks_are(ranges: list[ByteRange], sizes, data) -> None:
    """A multipart body is read correctly however it is split into blocks and whatever the order of its parts."""
    order = data.draw(st.permutations(ranges))
    body = b"".join(
        b"\r\n--X\r\nContent-Type: image/tiff\r\nContent-range: bytes %d-%d/%d\r\n\r\n%b"
        % (byte_range.start, byte_range.stop - 1, len(FILE), FILE[byte_range.start : byte_range.stop])
        for byte_range in order
    )
    body += b"\r\n--X--\r\n"
    cuts = np.cumsum([0, *(sizes * len(body))])
    blocks = [body[a:b] for a, b in pairwise(cuts) if a < len(body)]
    received = Received(ranges)
    for piece in read_parts(blocks):
        assert piece.size == len(FILE)
        assert received.add(piece.start, piece.data)
    assert received.missing() == []
    assert [bytes(part) for part in received.cut(ranges)] == [FILE[s.start : s.stop] for s in ranges]


@settings(deadline=None)
@given(ranges=spans_of_a_file, data=st.data())
def test_what_came_before_a_fault_is_not_asked_for_again(ranges: list[ByteRange], data) -> None:
    """After a broken answer only the bytes that are still missing are requested."""
    received = Received(ranges)
    while missing := received.missing(len(FILE)):
        first = missing[0]
        stop = data.draw(st.integers(first.start + 1, first.stop))
        assert received.add(first.start, FILE[first.start : stop])
        assert sum(s.stop - s.start for s in received.missing()) < sum(s.stop - s.start for s in missing)
    assert [bytes(part) for part in received.cut(ranges)] == [FILE[s.start : s.stop] for s in ranges]
    assert not received.add(ranges[0].start, b"again")


@settings(deadline=None)
@given(ranges=spans_of_a_file, lengths=st.lists(st.integers(0, 400), max_size=12), data=st.data())
def test_no_byte_gets_to_a_wrong_place(ranges: list[ByteRange], lengths: list[int], data) -> None:
    """Pieces that overlap, come again, or span several ranges add exactly the next bytes of each range."""
    received, reached = Received(ranges), [s.start for s in ranges]
    for length in lengths:
        start = data.draw(st.sampled_from(reached) | st.integers(0, len(FILE) - 1))
        stop = min(start + length, len(FILE))
        goes_on = [start <= at < min(stop, s.stop) for at, s in zip(reached, ranges, strict=True)]
        reached = [min(stop, s.stop) if on else at for on, at, s in zip(goes_on, reached, ranges, strict=True)]
        assert received.add(start, FILE[start:stop]) == any(goes_on)
    there = list(zip(reached, ranges, strict=True))
    assert [bytes(part) for part in received.cut(ranges)] == [FILE[s.start : at] for at, s in there]
    inner = [ByteRange((2 * s.start + s.stop) // 3, (s.start + 2 * s.stop) // 3) for s in ranges]
    found = [bytes(part) for part in received.cut(inner)]
    assert found == [FILE[s.start : min(at, s.stop)] for at, s in zip(reached, inner, strict=True)]
    assert received.missing() == [ByteRange(at, s.stop) for at, s in there if at < s.stop]
    size = data.draw(st.integers(0, len(FILE)))
    assert received.missing(size) == [ByteRange(at, min(s.stop, size)) for at, s in there if at < min(s.stop, size)]


@pytest.mark.parametrize("x_stop", [1, 30, 200, 420])
def test_a_window_fetches_the_beginnings_of_its_strips(archive: Path, voxels, monkeypatch, x_stop: int) -> None:
    """A window fetches of each strip about the share that its columns need, in at most 6 requests."""
    monkeypatch.setattr("liver_dask.archive.remote.files.GAP", 0)  # these strips are shorter than the gap
    with serve(archive) as server:
        raw = ld.open_human_liver_em(server.url, shape=SHAPE).raw
        for z in (1, 2):  # no share is known yet for the first
            begun, requests = server.bytes_sent, len(server.requests)
            np.testing.assert_array_equal(raw[z, 5:250, :x_stop], voxels["raw"][z, 5:250, :x_stop])
        sent, requests = server.bytes_sent - begun, len(server.requests) - requests
    with tifffile.TiffFile(archive / EMPIAR_13356.path("raw", 2)) as tif:
        strips = sum(tif.pages[0].databytecounts[5:250])
        index = 12 * len(tif.pages[0].databytecounts) + 4096
    assert sent <= 1.1 * strips * x_stop / SHAPE[2] + 300 * 48 + index
    assert requests <= 6


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7])
def test_strips_that_are_short_get_what_they_lack(archive: Path, voxels, share: float) -> None:
    """If the fetched prefix of a strip is too short, the rest is fetched and the voxels are right."""
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        tiff.prefix_shares.learn(server.url, SHAPE[2], 390, share)
        np.testing.assert_array_equal(ds.raw[3, ::3, 300:390], voxels["raw"][3, ::3, 300:390])


@pytest.mark.parametrize("way", ["200", "first", "416", "400"])
def test_a_server_that_takes_one_range_a_request_is_asked_so(archive: Path, voxels, way: str) -> None:
    """A server that refuses several ranges is sent such a request once, and single ranges from then on."""
    refused = []

    class One(RangeRequestHandler):
        def do_GET(self) -> None:
            first, several, _ = self.headers.get("Range", "").partition(",")
            if not several:
                super().do_GET()
                return
            refused.append(self.path)
            if way == "first":
                self.headers.replace_header("Range", first)
                super().do_GET()
                return
            self.send_response(int(way))
            self.send_header("Content-Length", str(905_000_000 if way == "200" else 0))
            self.end_headers()

    with serve(archive, One) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE, connections=1)
        np.testing.assert_array_equal(ds.raw[0, ::2, :99], voxels["raw"][0, ::2, :99])
        np.testing.assert_array_equal(ds.raw[5, 3:200, 5:9], voxels["raw"][5, 3:200, 5:9])
    assert len(refused) == 1, "it was tried again"


def test_shares_between_known_columns_are_guessed_from_them() -> None:
    """The share of a strip up to a column is interpolated from known columns, with a margin, per archive."""
    counts = np.array([10_000, 40_000])
    shares = PrefixShares()
    assert shares.bytes_wanted("a", 1000, 250, counts).tolist() == pytest.approx([2500, 10_000], rel=0.04)
    shares.learn("a", 1000, 200, 0.1)
    shares.learn("a", 1000, 200, 0.12)
    shares.learn("a", 1000, 300, 0.22)
    assert shares.bytes_wanted("a", 1000, 200, counts).tolist() == pytest.approx([1200, 4800], rel=0.06)
    assert shares.bytes_wanted("a", 1000, 250, counts).tolist() == pytest.approx([1700, 6800], rel=0.06)
    assert shares.bytes_wanted("b", 1000, 250, counts).tolist() == pytest.approx([2500, 10_000], rel=0.04)
    assert shares.bytes_wanted("a", 1000, 950, counts).tolist() == counts.tolist()
    for x in range(2000):
        shares.learn("a", 1000, x, 0.5)
    assert len(shares._seen["a", 1000]) <= 300


@given(count=st.integers(2, 10**6), data=st.data())
def test_what_a_short_strip_lacks_is_guessed_from_what_it_gave(count: int, data) -> None:
    """A strip that gave too little gets more bytes each time, until it is there; about as many as it will need."""
    part, decoded = data.draw(st.integers(1, count - 1)), data.draw(st.integers(0, 10**6))
    wanted = data.draw(st.integers(decoded + 1, 2 * 10**6))
    found = bytes_for(count, part, decoded, wanted)
    needed = part * wanted / max(decoded, 1)
    assert part < found <= count
    assert min(needed, count) <= found <= 1.02 * needed + MARGIN_BYTES + 1
