"""Fuzz one target with atheris (the extra `fuzz`): `python tests/fuzz/run.py NAME [--runs N] [--seconds S]`.

A target is a file `fuzz_NAME.py` here with `def one_input(data: bytes) -> None`, and a folder `corpus/NAME` of a few
small inputs to begin with. Whatever `one_input` raises is a finding; so is an input that takes 10 s or 2 GB. What is
found, and what was learnt meanwhile, is kept in `--out`. The suite replays each corpus, see test_fuzz.py.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
COMPILED = ["liver_dask.archive.formats.lzw", "liver_dask.archive.formats.png_filters"]
"""Modules that numba compiles, which does not know what atheris puts into the others."""


def main() -> None:
    """Run one target; the process ends with it."""
    import atheris

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.py")))
    parser.add_argument("--runs", type=int, default=100_000, help="how many inputs")
    parser.add_argument("--seconds", type=int, default=0, help="stop after so long; 0 for never")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-len", type=int, default=4096, help="bytes of the longest input")
    parser.add_argument("--out", type=Path, help="a folder; otherwise a new one in the system's for such")
    asked = parser.parse_args()
    out = asked.out or Path(tempfile.mkdtemp(prefix=f"fuzz-{asked.name}-"))
    (out / "learnt").mkdir(parents=True, exist_ok=True)
    print(f"what is found is kept in {out}", flush=True)
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    name = f"fuzz_{asked.name}"
    with atheris.instrument_imports(include=["liver_dask", name], exclude=COMPILED):
        target = importlib.import_module(name)
    options = [
        f"-runs={asked.runs}", f"-max_total_time={asked.seconds}", f"-seed={asked.seed}", f"-max_len={asked.max_len}",
        "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", f"-artifact_prefix={out}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(out / "learnt"), str(HERE / "corpus" / asked.name)], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
