"""Resuming: after an error or a kill the same call fetches what is missing, and the store has the same bytes."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import liver_dask as ld
from helpers.archive import SHAPE
from helpers.kills import killed_at
from helpers.places import REAL_IN_S3, files_of, in_both
from helpers.stores import BOX, SMALL, assert_same_files, check_store, undisturbed
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.cli import main
from liver_dask.core.places import Place
from liver_dask.demo import make_archive, serve
from liver_dask.store import writer as store
from liver_dask.store.layout import Group, Region, plan_batches, plan_layout
from liver_dask.store.locks import open_locked
from liver_dask.store.shards import encode_chunk
from liver_dask.store.storage import folder

WHOLE = (0, 420, 0, 300, 0, 10)


def write_store(archive: Path, path: Path, options: dict) -> None:
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    ld.to_zarr(ds, path, bounding_box=BOX, progress=False, **options)


class WriteKillResume(RuleBasedStateMachine):
    """Runs of one call, killed at any step and in any order; the store must equal that of an undisturbed run."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(type(self).root, f"{len(os.listdir(type(self).root))}")
        self.folder.mkdir()
        self.path = self.folder / "crop.zarr"
        self.done = False

    @rule(step=st.integers(1, 1900))
    def write_and_be_killed(self, step: int) -> None:
        code = killed_at(step, partial(write_store, type(self).archive, self.path, SMALL))
        self.done |= code == 0

    @rule()
    def another_call_is_refused(self) -> None:
        if self.path.exists() or (self.path.with_name("crop.zarr.partial") / "store").exists():
            ds = ld.open_human_liver_em(type(self).archive, shape=SHAPE)
            with pytest.raises(ld.StoreExistsError):
                ld.to_zarr(ds, self.path, bounding_box=(0, 9, 0, 9, 0, 9), progress=False)

    @rule()
    def write(self) -> None:
        ds = ld.open_human_liver_em(type(self).archive, shape=SHAPE)
        ld.to_zarr(ds, self.path, bounding_box=BOX, progress=False, **SMALL)
        self.done = True

    @invariant()
    def a_store_is_there_if_and_only_if_it_is_complete(self) -> None:
        if self.path.exists():
            assert_same_files(type(self).expected, self.path)
        elif self.done:
            raise AssertionError("the store is gone")

    def teardown(self) -> None:
        self.write()
        assert_same_files(type(self).expected, self.path)
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_killed_in_any_order_at_any_step_the_store_is_the_same(archive: Path, tmp_path: Path) -> None:
    """After kills at any steps a store exists only if it is complete, and it equals that of an undisturbed run."""
    WriteKillResume.archive, WriteKillResume.root = archive, tmp_path / "runs"
    WriteKillResume.root.mkdir()
    WriteKillResume.expected = undisturbed(archive, tmp_path)
    case = WriteKillResume.TestCase
    case.settings = settings(
        max_examples=8, stateful_step_count=5, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case("runTest").runTest()


@pytest.mark.slow
def test_killed_while_a_run_that_finished_nothing_is_taken_back(archive: Path, tmp_path: Path, voxels) -> None:
    """After a kill while a run that finished nothing removes its files, the next call completes the store."""
    box = (150, 214, 100, 164, 1, 3)
    shutil.copytree(archive, tmp_path / "archive")
    ds = ld.open_human_liver_em(tmp_path / "archive", shape=SHAPE, labels=[])
    kept = archive / EMPIAR_13356.path("raw", 1)
    missing = tmp_path / "archive" / EMPIAR_13356.path("raw", 1)

    def fail(path: Path) -> None:
        with pytest.raises(ld.SliceNotFoundError):
            ld.to_zarr(ds, path, bounding_box=box, progress=False, **SMALL)

    step, code = 55, 9  # at earlier steps the run only begins
    while code == 9:
        missing.unlink()
        path = tmp_path / f"{step}.zarr"
        code = killed_at(step, partial(fail, path))
        shutil.copy2(kept, missing)
        ld.to_zarr(ds, path, bounding_box=box, progress=False, **SMALL)
        check_store(path, {"raw": voxels["raw"]}, box)
        assert not path.with_name(f"{path.name}.partial").exists()
        step += 1
    assert step > 65


def test_after_a_kill_only_what_was_in_flight_is_fetched_again(archive: Path, tmp_path: Path) -> None:
    """After a kill only the regions in flight, the strip indexes and the masks are fetched again."""
    with serve(archive) as server:
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        ld.to_zarr(ds, tmp_path / "whole.zarr", bounding_box=BOX, progress=False, **SMALL)
        once = server.bytes_sent
        server.requests.clear()
        assert killed_at(1200, partial(write_store, server.url, tmp_path / "a.zarr", SMALL)) == 9
        first = server.bytes_sent
        ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
        again = server.bytes_sent - once  # by both runs together
    in_flight = 4 * 2 * 2 * 64 * 420 * 2 * 1.5  # four jobs, each with a region written and one read ahead; LZW expands
    files = 8 * (512 + 2 * 16 * SHAPE[1]) + 3 * 8 * 4000  # strip indexes and masks are read again
    assert first > in_flight + files, "else the next line would hold although all is fetched again"
    assert again < in_flight + files


def test_a_source_that_changed_between_two_runs_is_refused(archive: Path, tmp_path: Path) -> None:
    """A source file whose version changed between two runs is an error."""
    own = tmp_path / "archive"
    shutil.copytree(archive, own)
    with serve(own) as server:
        assert killed_at(500, partial(write_store, server.url, tmp_path / "a.zarr", SMALL)) == 9
        for path in own.rglob("human*_*.*"):
            os.utime(path, ns=(1, 1))  # the server derives its ETag from the date
        progress = tmp_path / "a.zarr.partial" / "progress"
        assert list((progress / "sources").iterdir())
        for done in (*progress.glob("slabs/*/[0-9]*"), *progress.glob("shards/*/*.json")):
            done.unlink()  # so that some work on those slices is left, wherever the kill happened
        ds = ld.open_human_liver_em(server.url, shape=SHAPE)
        with pytest.raises(ld.SourceChangedError, match=r"is not the file that parts of .*a\.zarr were made of"):
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)


@in_both("on_error", ["raise", "continue"], ["raise", "continue"])
def test_a_slice_that_cannot_be_read_costs_its_own_regions(
    archive: Path, tmp_path: Path, place: Place, on_error: str, voxels
) -> None:
    """A corrupt slice is an error that names it, and the next call completes the store with the repaired file. With
    `on_error="continue"` only the regions of this slice fail.
    """
    own = tmp_path / "archive"
    shutil.copytree(archive, own)
    bad = own / EMPIAR_13356.path("raw", 4)
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2] + bytes(1000) + whole[len(whole) // 2 + 1000 :])
    shutil.copystat(archive / EMPIAR_13356.path("raw", 4), bad)  # the version of a file is its size and date
    labels, box, regions = (None, WHOLE, 60) if isinstance(place, Path) else (["er"], (37, 165, 85, 213, 0, 6), 6)
    ds = ld.open_human_liver_em(own, shape=SHAPE, labels=labels)
    kind = ld.ExportError if on_error == "continue" else ld.FormatError
    with pytest.raises(kind, match="raw, slice 4, rows") as told:
        ld.to_zarr(ds, place / "a.zarr", bounding_box=box, progress=False, on_error=on_error, **SMALL)
    assert "the same call goes on from there" in told.value.__notes__[0]
    assert "a.zarr/zarr.json" not in files_of(place)
    if on_error == "continue":
        assert 1 <= len(told.value.failures) <= 2
        assert all(text.startswith("raw, slices 4-5 and rows ") for text in told.value.failures)
        assert f"({regions - len(told.value.failures)} of {regions} regions)" in told.value.__notes__[0]
    bad.write_bytes(whole)
    shutil.copystat(archive / EMPIAR_13356.path("raw", 4), bad)
    ds = ld.open_human_liver_em(own, shape=SHAPE, labels=labels)
    ld.to_zarr(ds, place / "a.zarr", bounding_box=box, progress=False, **SMALL)
    check_store(place / "a.zarr", {name: voxels[name] for name in ds}, box)


def test_a_full_disk_is_one_sentence_and_keeps_what_is_finished(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is an error that says where the finished work is, and the next call completes the store."""
    written = 0

    class FullDisk(folder.DurableFile):
        def __enter__(self):
            nonlocal written
            written += 1
            if written > 60:
                raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))
            return super().__enter__()

    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "DurableFile", FullDisk)
        with pytest.raises(OSError, match="No space left on device") as told:
            ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    assert "is kept in" in told.value.__notes__[0]
    ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL)
    assert_same_files(undisturbed(archive, tmp_path), tmp_path / "a.zarr")


def test_a_late_job_of_an_ended_run_writes_nothing(archive: Path, tmp_path: Path) -> None:
    """A job that outlives its run is no longer current, and cannot write beside the finished store."""
    ds = ld.open_human_liver_em(archive, shape=SHAPE)
    path = Path(ld.to_zarr(ds, tmp_path / "a.zarr", bounding_box=BOX, progress=False, **SMALL))
    late = store.Store(path, plan_layout((8, 269, 364), {"raw": 2}, **SMALL), {"variables": {"raw": {"files": []}}})
    assert not late.finished.is_current("whichever")
    with pytest.raises(FileNotFoundError):
        late.finished.write_slab("raw", Region(0, 2, 0, 64), [encode_chunk(np.ones((2, 2, 2)), (2, 2, 2))])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zarr"]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data(), shape=st.tuples(*[st.integers(1, 90)] * 3), times=st.tuples(*[st.integers(1, 5)] * 3))
def test_the_runs_hold_what_is_missing_once(data: st.DataObject, shape: tuple, times: tuple) -> None:
    """The batches contain each missing region once and in order; a mask has one batch for each layer of chunks."""
    chunks = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    layout = plan_layout(shape, {"raw": 2, "er": 1}, chunks, [n * m for n, m in zip(chunks, times, strict=True)])
    groups = [Group(("raw",)), Group(("er", "mito"), from_the_top=True)]
    every = {(name, region) for name in ("raw", "er", "mito") for region in layout.regions()}
    written = data.draw(st.sets(st.sampled_from(sorted(every))))
    found = []
    for run in plan_batches(layout, groups, written):
        assert len({region.z_start for region in run.regions}) == 1
        assert sorted(run.regions) == list(run.regions)
        found += [(run.group, region) for region in run.regions]
    assert len(set(found)) == len(found)
    missing = {
        (group, region)
        for group in groups
        for region in layout.regions()
        for name in group.names
        if (name, region) not in written
    }
    assert set(found) == missing
    columns = [run.regions[0].z_start for run in plan_batches(layout, groups, written) if run.group.from_the_top]
    assert len(set(columns)) == len(columns)


@REAL_IN_S3
def test_zeros_are_not_taken_for_what_is_missing(tmp_path: Path, place: Place) -> None:
    """Shards of zeros are written, pass verify, and are not fetched again by a second call."""
    shape = (5, 100, 150)
    make_archive(tmp_path / "archive", shape)
    with serve(tmp_path / "archive") as server:
        ds = ld.open_human_liver_em(server.url, shape=shape, labels=[])
        zero = ds.assign(raw=ds.raw * 0)
        layout = {"chunks": (2, 32, 32), "shards": (4, 64, 64)}
        path = place / "a.zarr"
        ld.to_zarr(zero, path, progress=False, **layout)
        assert len(files_of(path / "raw" / "c")) == 2 * 2 * 3
        assert ld.verify(path, zero, progress=False).ok
        server.requests.clear()
        assert ld.to_zarr(zero, path, progress=False, **layout)
        assert server.requests == []


@pytest.mark.parametrize("option", [[], ["--unfinished"]])
def test_what_a_run_left_that_was_killed_before_the_record_is_cleaned(
    archive: Path, tmp_path: Path, option: list[str]
) -> None:
    """After a kill at any early step, `clean` removes what is there, as the next run would."""
    ds, step, was_begun = ld.open_human_liver_em(archive, shape=SHAPE, labels=[]), 1, False
    while not was_begun:
        store = tmp_path / f"{step}.zarr"
        partial = tmp_path / f"{step}.zarr.partial"
        assert killed_at(step, lambda: ld.to_zarr(ds, store, progress=False, **SMALL)) == 9  # noqa: B023  # called at once
        was_begun = (partial / "store").exists()
        if not was_begun:
            there = partial.exists()
            done = CliRunner().invoke(main, ["clean", str(store), *option])
            assert done.exit_code == 0, (step, done.output)
            assert ("is removed" if there else "Nothing is left") in done.output
            assert not partial.exists()
        step += 5
    assert step > 20


@pytest.mark.parametrize(
    "foreign",
    [
        "mine.txt",
        "progress/mine.txt",
        "progress/slabs/raw/mine",
        "store.new/notes",
        "store/zarr.json",
        "mine/",
        "lock/",
    ],
)
def test_what_somebody_put_beside_a_store_without_a_record_is_kept(tmp_path: Path, foreign: str) -> None:
    """Everything then stays: it is not known to be of this package."""
    partial = tmp_path / "a.zarr.partial"
    (partial / "progress" / "slabs" / "raw").mkdir(parents=True)
    (partial / foreign).parent.mkdir(parents=True, exist_ok=True)
    if foreign.endswith("/"):
        (partial / foreign).mkdir()
    else:
        (partial / foreign).write_text("mine")
    if foreign != "lock/":
        (partial / "lock").touch()
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(main, ["clean", "--unfinished", str(tmp_path / "a.zarr")])
    assert done.exit_code in (1, 2), done.output
    assert "Traceback" not in done.output
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_beside_a_store_without_a_record_are_kept(tmp_path: Path) -> None:
    """Neither they nor what they lead to is removed; and nothing is while another process writes."""
    partial, other = tmp_path / "a.zarr.partial", tmp_path / "other"
    other.mkdir()
    (other / "run").write_text("mine")
    partial.mkdir()
    (partial / "lock").touch()
    (partial / "progress").symlink_to(other)
    done = CliRunner().invoke(main, ["clean", str(tmp_path / "a.zarr")])
    assert (done.exit_code, "did not write" in done.output) == (1, True)
    assert (partial / "progress" / "run").read_text() == "mine"
    (partial / "progress").unlink()
    descriptor = open_locked(partial / "lock", busy="")
    try:
        done = CliRunner().invoke(main, ["clean", str(tmp_path / "a.zarr")])
        assert (done.exit_code, "another process" in done.output) == (1, True)
    finally:
        os.close(descriptor)
    assert (partial / "lock").exists()
