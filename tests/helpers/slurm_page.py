"""The scripts of .github/docs/slurm.md, as a user copies them from the page, and the settings that the page exposes."""

import re
from pathlib import Path

from liver_dask.archive.archives import EMPIAR_13356

from .paths import ROOT

PAGE = ROOT / ".github" / "docs" / "slurm.md"
NAMES = ("download.sbatch", "download.py", "one-node.sbatch")


def scripts() -> dict[str, str]:
    """Return the text of each script, in the order of NAMES."""
    blocks = re.findall(r"^```(?:bash|python)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return dict(zip(NAMES, blocks, strict=True))


def copy_scripts(folder: Path) -> Path:
    """Write the scripts into a new folder, and return it."""
    folder.mkdir()
    for name, text in scripts().items():
        (folder / name).write_text(text)
    return folder


def describe(path: Path, url: str, shape: tuple[int, int, int]) -> Path:
    """Write the description of an archive like EMPIAR-13356 that is elsewhere and has another size."""
    variables = [
        f'[variables.{variable.name}]\nfiles = "{variable.files}"\nkind = "{variable.kind}"\ndtype = "{variable.dtype}"'
        for variable in EMPIAR_13356.variables
        if variable.name in ("raw", *EMPIAR_13356.labels)
    ]
    path.write_text("\n".join([f'name = "FAR"\nurl = "{url}"\nshape = {list(shape)}', *variables]))
    return path


def settings(folder: Path, archive: Path, store: Path) -> dict[str, str]:
    """Return the settings of the scripts for a test: all of an archive, by at most two workers on this machine."""
    return {
        "LIVER_STORE": str(store),
        "LIVER_BOX": "",
        "LIVER_ARCHIVE": str(archive),
        "LIVER_WORKERS": "2",
        "LIVER_WORKER_MINUTES": "10",
        "LIVER_LOGS": str(folder / "logs"),
        "LIVER_SCRATCH": str(folder / "scratch"),
        "LIVER_INTERFACE": "lo",
    }
