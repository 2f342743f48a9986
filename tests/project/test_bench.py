"""The benchmark's command, whose figures are never asserted: its rows, its processes, and its tables."""

import json
from pathlib import Path

import bench.archive
import numpy as np
import pytest
from bench import __main__ as command
from bench import sides
from bench.archive import BenchArchive, build
from bench.growth import Point
from bench.growth import markdown as markdown_of_growth
from bench.measure import STORE_OF, Measurement, Table
from bench.processes import Outcome, Task, last_line, run
from bench.report import as_json, markdown
from bench.row import differences
from bench.rows import ROWS, patches

MADE_UP = Table(
    "box",
    "keep a box",
    "far away",
    "a server",
    "s",
    [
        Measurement("ours", [2.0, 1.0, 4.0], [60.0, 61.0, 62.0], [7, 8, 9], 400.4),
        Measurement("plain_dask", [30.0], [500.0], [100], 900, "raw: 3 of 8 voxels differ"),
        Measurement("torch_em_module", wrong="TypeError: a | in words", peak=1000),
    ],
    "at least 58 MB",
    {"miao-io": "not installed"},
)


def test_all_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` tells each row with what is done, and measures nothing."""
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*ROWS, "growth"]
    assert all(len(line) > 20 for line in lines)


def test_a_row_that_is_unknown_is_an_error_of_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong name of a row ends with 2 and names those that there are."""
    with pytest.raises(SystemExit) as ended:
        command.main(["bx"])
    assert ended.value.code == 2
    assert "no such row: bx; there are open, window," in capsys.readouterr().err


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_each_side_has_the_works_of_its_rows(row) -> None:
    """Each side of a row is described, and its module has the function of the row."""
    assert row.sides[0] == "ours"
    for side in row.sides:
        source = (Path(sides.__file__).parent / f"{side}.py").read_text()
        assert f"def run_{row.name}(" in source
        if row.stores:
            assert side in row.stores or STORE_OF[side] in row.stores
    assert set(row.sides).isdisjoint(row.absent)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_cases_fit_into_slices_of_any_size(row, quick: bool) -> None:
    """What is read lies within the slices, and a task comes back from JSON as it was."""
    for size in (4096, 20000):
        archive = BenchArchive(Path(), Path())
        archive.__dict__["size"] = size
        for case in row.cases(archive, quick):
            bounds = [case.settings.get("y", [0, 0]), *case.settings.get("window", [])]
            bounds += [case.settings["box"][i : i + 2] for i in (0, 2)] if "box" in case.settings else []
            assert all(0 <= start <= stop <= size for start, stop in bounds)
            task = Task("ours", row.name, "http://x", (8, size, size), "/out", dict(case.settings))
            again = Task.from_json(task.to_json())
            assert again.shape == task.shape
            assert again.to_json() == task.to_json()


def test_a_table_tells_medians_ratios_and_what_was_wrong() -> None:
    """Medians over rounds, ratios to ours, and a side that was wrong or failed, with its reason and without figures."""
    text = markdown([MADE_UP], {"date": "today"})
    assert "- date: today" in text
    assert "## box: far away" in text
    assert "| liver_dask | right | 2 (1 to 4) | 1 | 61 | 8 | 400 |" in text
    assert "| plain dask + xarray | **raw: 3 of 8 voxels differ** | 30 | 15 | 500 | 100 | 900 |" in text
    assert "| torch_em's own module | **TypeError: a / in words** |  |  |  |  | 1000 |" in text
    assert "| box, far away (s) | 2 | TypeError: a / in words | 30 (wrong) |" in text
    assert "Bound: at least 58 MB." in text
    assert "Not in it: miao-io (not installed)." in text


def test_json_has_each_round() -> None:
    """The JSON has all figures, and is JSON."""
    told = json.loads(json.dumps(as_json([MADE_UP], {"date": "today"})))
    (table,) = told["tables"]
    assert told["environment"] == {"date": "today"}
    assert table["row"] == "box"
    ours, other, failed = table["measurements"]
    assert (ours["seconds"], ours["median"], ours["requests"]) == ([2, 1, 4], 2, [7, 8, 9])
    assert other["wrong"].startswith("raw: 3")
    assert failed["median"] is None


@pytest.mark.parametrize(
    ("ours", "right"),
    [
        ([Measurement("ours", [1.0])], True),
        ([Measurement("ours", [1.0], wrong="raw: 1 of 8 voxels differ")], False),
        ([Measurement("ours", wrong="stopped after 60 s")], False),
        ([Measurement("plain_dask", [1.0])], False),
    ],
)
def test_a_wrong_voxel_of_ours_is_a_failure(ours: list[Measurement], right: bool) -> None:
    """Only rows of ours that were measured, with the right voxels, are no failure."""
    assert Table("box", "", "", "", "s", ours, "", {}).ours_is_right is right


def test_differences_are_counted() -> None:
    """Each voxel that differs counts, and so do other shapes and missing arrays."""
    truth = {"raw": np.zeros((2, 600, 5), np.uint16), "mito": np.ones((2, 600, 5), np.uint8), "er": np.arange(4.0)}
    raw = truth["raw"].copy()
    raw[1, 599, 4] = raw[0, 0, 0] = 7
    assert differences(truth, dict(truth)) == ""
    found = differences(truth, {"raw": raw, "mito": truth["mito"][:1], "er": None})
    assert found == "raw: 2 of 6000 voxels differ; mito: shape (1, 600, 5); er: missing"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nothing", ""),
        ("int16", "values of raw above 32767 are negative"),
        ("elsewhere", "a patch of raw is nowhere in the archive"),
        ("label", "1 of 3200 labels of a patch differ"),
    ],
)
def test_a_patch_is_found_where_it_is(tmp_path: Path, change: str, told: str) -> None:
    """A patch is compared with the archive at the place that its first voxels show."""
    random = np.random.default_rng(0)
    truth = {"raw": random.integers(0, 1 << 16, (6, 60, 70), "u2"), "mito": random.integers(0, 2, (6, 60, 70), "u1")}
    raw, label = (truth[name][None, 2:4, 10:50, 20:60].copy() for name in ("raw", "mito"))
    if change == "int16":
        raw = raw.view("i2")
    if change == "elsewhere":
        raw[0, 1, 20, 20] ^= 1
    if change == "label":
        label[0, 1, 20, 20] ^= 1
    for name, patch in (("raw", raw), ("mito", label)):
        np.save(tmp_path / f"{name}.npy", patch.astype("f4"))
    assert patches.check(truth, tmp_path) == told


def test_a_process_that_hangs_or_fails_is_told(tmp_path: Path) -> None:
    """A process is stopped at its limit, and the error of one that fails is its last line."""
    task = Task("nobody", "box", "", (1, 1, 1), str(tmp_path / "a"), {})
    assert run(task, 60).error == "ModuleNotFoundError: No module named 'tests.bench.sides.nobody'"
    late = run(Task("ours", "open", "", (1, 1, 1), str(tmp_path / "b"), {}), 0)
    assert late == Outcome(None, late.peak, "stopped after 0 s")


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("Traceback:\n  File x\nValueError: no\n\n", "ValueError: no"),
        ("a.b.GenericError: late {\n  kind: 1\n}\n", "a.b.GenericError: late {"),
        ("Killed", "Killed"),
        ("", "it ended without a word"),
    ],
)
def test_the_error_in_a_log_is_found(log: str, told: str) -> None:
    """The error of a traceback is told, also if it has several lines."""
    assert last_line(log) == told


def test_growth_is_a_table(tmp_path: Path) -> None:
    """Each point has a line, with the rate of voxels, or with its error."""
    points = [Point("measure", 1, 8, 2.0, 4.0, 300, 12), Point("measure", 2, 8, 2.0, None, 300, 12, "stopped")]
    text = markdown_of_growth(points, [{"workers": 1, "CPU ms a task": 0.7}], {})
    assert "| measure | 1 | 8 | 2.00 | 4.0 | 500 | 300 | 12.0 |" in text
    assert "| measure | 2 | 8 | 2.00 | stopped |  | 300 | 12.0 |" in text
    assert "| 1 | 0.7 |" in text


def test_an_archive_is_built_once_and_read_independently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without real EM an archive is made up; what is there is kept, and links stand in for more slices."""
    monkeypatch.setattr(bench.archive, "SECTION", 100)
    monkeypatch.setattr(bench.archive, "MARGIN", 20)
    built = tmp_path / "built"
    assert build(built, 256, em=tmp_path / "nowhere").startswith("built of made-up EM")
    assert build(built, 256) == "found there"
    archive = BenchArchive(built, tmp_path / "links")
    archive.link()
    assert archive.shape == (8, 256, 256)
    raw = archive.voxels("raw", (1, 6), (10, 200), (20, 240), 3)
    assert raw.shape == (5, 64, 74)
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(raw[0], raw[4])
    assert (raw[0] != raw[1]).any()
    assert set(np.unique(archive.voxels("mito", (0, 4), (0, 256), (0, 256)))) <= {0, 255}
