"""The corpus of multipart answers, and some mutations of it; `tests/fuzz/run.py multipart` makes more."""

import random

import pytest

from helpers.paths import FUZZ

INPUTS = sorted((FUZZ / "corpus" / "multipart").iterdir())


@pytest.fixture
def one_input():
    return __import__("fuzz_multipart").one_input


def test_answers_that_were_found(one_input) -> None:
    """Each answer of the corpus passes the target's checks."""
    assert len(INPUTS) >= 5
    for path in INPUTS:
        one_input(path.read_bytes())


@pytest.mark.parametrize("seed", range(4))
def test_mutated_answers(one_input, seed: int) -> None:
    """Mutated answers pass the target's checks."""
    chosen = random.Random(seed)
    for _ in range(300):
        data = bytearray(chosen.choice(INPUTS).read_bytes())
        for _ in range(chosen.randint(1, 8)):
            at = chosen.randrange(len(data))
            match chosen.randrange(4):
                case 0:
                    data[at] = chosen.randrange(256)
                case 1:
                    del data[at : at + chosen.randint(1, 9)]
                case 2:
                    data[at:at] = data[chosen.randrange(len(data)) :][: chosen.randint(1, 40)]
                case 3:
                    data[at:at] = chosen.randbytes(chosen.randint(1, 5))
            data = data or bytearray(5)
        one_input(bytes(data))
