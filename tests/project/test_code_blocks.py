"""The code of the README and of docs runs as it is written there, and their tables say what the package says.

The pages name slices, rows and columns of the liver. So they run on an archive of its full size, which takes few bytes
(`helpers.liver_sized`), served over HTTP in place of the archive's own address. The blocks of a page run from the first
to the last, in one folder, as a reader would run them.
"""

import builtins
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import click
import matplotlib as mpl
import pytest
from distributed import LocalCluster

import liver_dask as ld
from helpers.command import run_here
from helpers.liver_sized import make_liver_sized_archive
from helpers.object_storage import BUCKET, ObjectStorage
from helpers.paths import ROOT
from liver_dask.archive import dataset
from liver_dask.archive.archives import EMPIAR_13356
from liver_dask.archive.remote.address import archive_url
from liver_dask.cli import main
from liver_dask.core import errors
from liver_dask.core.config import DEFAULTS
from liver_dask.demo import serve
from liver_dask.store import progress
from liver_dask.store.plan import Export

DOCS = ROOT / ".github" / "docs"
PAGES = [ROOT / "README.md", *sorted((DOCS).glob("*.md"))]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

SMALLER = {
    "(2219, 6315, 1493, 5589, 200, 328)": "(2219, 2987, 1493, 2261, 200, 216)",
    "patch_shape=(8, 512, 512)": "patch_shape=(8, 256, 256), n_samples=4",
    "(16, 256, 256), box": "(16, 256, 256), (2219, 2987, 1493, 2261, 200, 216)",
    "2219 4267 1493 3541": "2219 2475 1493 1749",
    "(2219, 4267, 1493, 3541": "(2219, 2475, 1493, 1749",
}
"""Parts of the code, and what they are in the tests, so that these take seconds."""

NOT_RUN = {
    "from dask_jobqueue import SLURMCluster": "needs Slurm: tests/real/test_slurm.py runs the same",
    "python3 -m venv": "installs: CI runs one of them, test_project.py reads it",
    "#!/bin/bash": "a job of Slurm: test_slurm_page.py and tests/real/test_slurm.py run it",
    '"""Write a store by jobs of Slurm': "the driver of such a job: the same tests run it",
    "pip install dask-jobqueue": "installs, and asks a node of Slurm for the archive",
    "12:00:05 Writing crop.zarr": "lines of a run: below, they are compared with what a run prints",
    "EMPIAR-13356 at http": "a report: test_doctor.py compares it with one of the same archive",
}
"""Beginnings of blocks that do not run here, and why."""

CREDENTIALS = '{"key": "...", "secret": "...", "endpoint_url": "https://..."}'
"""Those of an object storage, as a page shows them."""

ONLY_READ = ("view", "serve", "doctor")
"""Commands that end with Ctrl-C, or ask for each file of the liver. Here they are only read; other tests run them."""


class Block(NamedTuple):
    """A block of code of a page.

    Attributes:
        language: What follows the first three backticks.
        code: The lines.
    """

    language: str
    code: str


def blocks(page: str) -> list[Block]:
    """The blocks of code of a page, in order."""
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)]


@pytest.fixture(scope="module")
def liver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an archive of the liver's size, which answers in place of the archive's own."""
    folder = tmp_path_factory.mktemp("liver")
    make_liver_sized_archive(folder)

    def redirected(source: object) -> object:
        return archive_url(server.url if source == EMPIAR_13356.url else source)

    with serve(folder) as server, mock.patch.object(dataset, "archive_url", redirected):
        yield server.url


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the code runs, without windows for pictures."""
    monkeypatch.chdir(tmp_path)
    mpl.use("agg")
    return tmp_path


def changed(code: str, changes: Mapping[str, str]) -> str:
    for part, other in changes.items():
        code = code.replace(part, other)
    return code


def commands_in(code: str) -> list[list[str]]:
    """The commands `liver-dask` of a block, each as its words."""
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in code.splitlines()]
    return [line[1:] for line in words if line[:1] == ["liver-dask"]]


def read_only(words: list[str]) -> None:
    """Check that a command and its options exist, without running it."""
    context: click.Context = main.make_context("liver-dask", list(words))
    command = main.get_command(context, words[0])
    assert command is not None, words
    command.make_context(words[0], words[1:], parent=context)


def run_block(block: Block, page: str, names: dict[str, object], folder: Path) -> None:
    """Run a block of a page, whose earlier blocks left `names` and files."""
    code = block.code
    if block.language == "python":
        exec(compile(code, page, "exec"), names)
    elif block.language == "toml":
        (folder / "mine.toml").write_text(code)
    elif block.language == "sh":
        for words in commands_in(code):
            if words[0] in ONLY_READ:
                read_only(words)
            else:
                done = run_here(*words)
                assert done.returncode == 0, (words, done.stderr)
    elif block.language == "console":  # a command, and what it prints
        command, _, printed = code.partition("\n")
        done = run_here(*commands_in(command)[0])
        assert done.returncode == 0, done.stderr
        assert done.stdout.replace(f"{folder}/", "") == printed
    else:
        pytest.fail(f"{page} has a block of {block.language!r}, which no test runs")


def prepare(page: str, folder: Path) -> None:
    """Make what a page takes for given: a model, or a store of another page."""
    if page == "compute.md":
        save_checkpoint(folder, "mito")
    if page == "slurm.md":
        export = Export.plan(ld.open_human_liver_em(), "full_volume.zarr", EMPIAR_13356.full_box)
        with export.store.locked(export._write_metadata):
            pass  # it is begun, and nothing is finished
    if page == "look.md":
        box = (2219, 2475, 1493, 1749, 290, 294)
        ld.to_zarr(ld.open_human_liver_em(), "crop.zarr", bounding_box=box, progress=False)


def save_checkpoint(folder: Path, name: str) -> None:
    """Save what a trainer of torch_em saves: `checkpoints/NAME`."""
    import torch
    from torch_em.loss import DiceLoss
    from torch_em.model import AnisotropicUNet
    from torch_em.trainer import DefaultTrainer

    network = AnisotropicUNet(1, 1, scale_factors=[[1, 2, 2]], initial_features=2, final_activation="Sigmoid")
    loader = torch.utils.data.DataLoader([(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))])
    loader.shuffle = True
    DefaultTrainer(
        name=name, train_loader=loader, val_loader=loader, model=network, loss=DiceLoss(), metric=DiceLoss(),
        optimizer=torch.optim.Adam(network.parameters()), device="cpu", save_root=str(folder), mixed_precision=False,
        compile_model=False, logger=None,
    ).fit(1)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of torch_em's trainer
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_code_of_a_page_runs(page: Path, liver: str, here: Path, s3: ObjectStorage) -> None:
    """Each block of code of a page runs after those before it, and prints what is shown."""
    pytest.importorskip("torch_em", reason="the extra `train` is not installed")
    prepare(page.name, here)
    places = {CREDENTIALS: repr(s3.options), "s3://bucket/": f"s3://{BUCKET}/", '"/data/mine"': repr(str(here))}
    names: dict[str, object] = {}
    for block in blocks(page.read_text()):
        if not block.code.startswith(tuple(NOT_RUN)):
            small = {} if block.language == "console" else SMALLER
            run_block(block._replace(code=changed(block.code, small | places)), page.name, names, here)


def test_code_in_docstrings_is_that_of_a_page() -> None:
    """The code in docstrings of public functions is on a page, where it runs."""
    shown = flat(block.code for page in PAGES for block in blocks(page.read_text()))
    found = []
    for name in ld.__all__:
        head = re.split(r"^(?:Args|Returns|Yields|Raises|Attributes):$", inspect.getdoc(getattr(ld, name)), flags=re.M)[
            0
        ]
        assert ">>>" not in head, name
        found += [(name, flat([code])) for code in re.findall(r"(?:^    .*\n)+", head, flags=re.MULTILINE)]
    assert found
    assert [(name, code) for name, code in found if code not in shown] == []


def flat(codes: Iterable[str]) -> str:
    """Code without comments and indentation."""
    return " ".join(re.sub(r"  #.*$", "", "\n".join(codes), flags=re.MULTILINE).split())


def test_parts_that_are_changed_are_there() -> None:
    """What the tests change in the code, or do not run, is on a page."""
    code = "".join(block.code for page in PAGES for block in blocks(page.read_text()))
    assert [part for part in (*SMALLER, CREDENTIALS) if part not in code] == []
    for beginning in NOT_RUN:
        assert any(block.code.startswith(beginning) for page in PAGES for block in blocks(page.read_text()))


def test_the_lines_of_a_run_are_what_it_prints(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The lines in .github/docs/keep.md are those of a run, with other numbers."""
    (shown,) = (block.code for block in blocks((DOCS / "keep.md").read_text()) if block.language == "text")
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", (0, 0))
    with progress.show_progress("Writing crop.zarr", 83_886_080, True) as advance:
        advance(33_554_432, "14.7 MB fetched")
        advance(83_886_080 - 33_554_432, "36.8 MB fetched")
    numbers = re.compile(r"[\d:.]+|\b[kMGTP]?B/s")
    printed = capsys.readouterr().err
    assert numbers.sub("#", printed) == numbers.sub("#", shown)


def test_the_box_of_the_training_example_costs_what_is_said(tmp_path: Path) -> None:
    """As many GB are fetched for the box in the README as it says."""
    text = " ".join((ROOT / "README.md").read_text().split())
    (box,) = re.findall(r"bounding_boxes=\[\((.*?)\)\]", text)
    (said,) = re.findall(r"of this box, ([\d.]+ GB) are fetched", text)
    command = ["download", "a.zarr", "--bbox", *box.split(", "), "--label", "mito", "--dry-run"]
    assert f"to fetch    {said} in" in run_here(*command, cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_scheduler_that_runs(liver: str, here: Path) -> None:
    """`--scheduler` works on the cluster of that scheduler."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        command = ["download", "a.zarr", "--bbox", "2219", "2475", "1493", "1749", "290", "294"]
        done = run_here(*command, "--source", liver, "--scheduler", cluster.scheduler_address)
    assert done.returncode == 0, done.stderr
    assert "is complete" in done.stdout


def test_commands_in_the_text_exist() -> None:
    """Each command in the text of a page has the subcommand and the options that are named."""
    found = [words for page in PAGES for words in re.findall(r"`liver-dask ([^`]+)`", page.read_text())]
    assert len(found) > 5
    for text in found:
        name, *words = text.split()
        if name != "COMMAND":
            options = {option for parameter in all_parameters(name) for option in parameter.opts}
            assert {word for word in words if word.startswith("--") and word != "--help"} <= options, text


def all_parameters(name: str) -> list[click.Parameter]:
    command = main.commands[name]
    return [*command.params, *(p for sub in getattr(command, "commands", {}).values() for p in sub.params)]


def test_links_lead_somewhere() -> None:
    """Each relative link of a page leads to a file, and to one of its headings."""
    for page in [*PAGES, ROOT / ".github" / "CONTRIBUTING.md"]:
        for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {path}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
                assert anchor in [heading.lower().replace(" ", "-") for heading in headings], f"{page.name}: {anchor}"


def test_the_extras_are_those_that_are_installed() -> None:
    """The table of extras has those of pyproject.toml, but for the project's own."""
    assert rows("README.md", "| extra |") == {f"`{name}`" for name in EXTRAS.keys() - {"test", "fuzz", "docs"}}
    named = {
        name for page in PAGES for part in re.findall(r'"\.\[(.*?)\]"', page.read_text()) for name in part.split(",")
    }
    assert named <= EXTRAS.keys()


def rows(page: str, header: str) -> set[str]:
    """The first columns of the table with a header."""
    text = next(path for path in PAGES if path.name == page).read_text()
    lines = text[text.index(f"\n{header}") + 1 :].split("\n\n")[0].splitlines()
    return {name for line in lines[2:] for name in line.split(" | ")[0].removeprefix("| ").split(", ")}


def test_tables_say_what_the_package_says() -> None:
    """Tables of attributes, settings, errors and files name all that there are, with their values."""
    for header, described in (("| of the archive |", ld.Archive), ("| of a variable |", ld.Variable)):
        assert rows("archives.md", header) == {f"`{field.name}`" for field in fields(described)}
    text = (DOCS / "network.md").read_text()
    assert rows("network.md", "| setting |") == {f"`{name}`" for name in DEFAULTS}
    assert [name for name, value in DEFAULTS.items() if f"| `{name}` | {value} |" not in text] == []
    own = {name: of for name, of in vars(errors).items() if inspect.isclass(of) and issubclass(of, ld.LiverDaskError)}
    del own["LiverDaskError"]
    assert rows("network.md", "| error |") == {f"`{name}`" for name in own}
    for name, also in re.findall(r"^\| `(\w+Error)` \| `(\w+)` \|", text, flags=re.MULTILINE):
        assert issubclass(getattr(ld, name), getattr(builtins, also)), name
    files = {f"| `{name}` | `{EMPIAR_13356[name].files}` |" for name in ("raw", *EMPIAR_13356.labels)}
    assert [line for line in files if line not in (DOCS / "archives.md").read_text()] == []
