"""Paths in the project."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
FUZZ = ROOT / "tests" / "fuzz"
