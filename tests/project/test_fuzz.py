"""Each fuzz target runs on its corpus and on some mutated inputs.

The same targets run for hours under atheris, which looks for inputs that reach new code: see fuzz/run.py.
"""

import importlib
import logging
import random
import sys

import pytest

from helpers.paths import FUZZ

NAMES = sorted(path.stem.removeprefix("fuzz_") for path in FUZZ.glob("fuzz_*.py"))
MUTATIONS = {"metadata": 300, "verify": 40}
"""The number of mutations of slow targets; others get a thousand."""


def mutated(inputs: list[bytes], rng: random.Random) -> bytes:
    """One of the inputs with bytes changed, deleted, inserted or taken from another one."""
    data = bytearray(rng.choice(inputs))
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        at = rng.randint(0, len(data))
        length = rng.choice([1, 1, 2, 4, 30])
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = rng.randbytes(length)
            case 4:
                data[at : at + length] = rng.choice(inputs)[at : at + length]
            case _ if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_inputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each target accepts its corpus and mutated inputs without a failure."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.NOTSET)  # the targets change it
    target = importlib.import_module(f"fuzz_{name}")
    sys.modules.pop(f"fuzz_{name}")
    inputs = [path.read_bytes() for path in sorted((FUZZ / "corpus" / name).iterdir())]
    assert inputs, "it begins with nothing"
    assert sum(map(len, inputs)) < 200_000
    for data in inputs:
        target.one_input(data)
    rng = random.Random(0)
    for _ in range(MUTATIONS.get(name, 1000)):
        target.one_input(mutated(inputs, rng))
