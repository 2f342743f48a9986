"""Benchmarks: `python -m tests.bench` measures what the README says of speed, next to what one would use instead.

Figures are never assertions. Each other file next to this one with a `main` is a script for a question of its own.
"""

import sys
from pathlib import Path

HELPERS = str(Path(__file__).parents[1])
if HELPERS not in sys.path:
    sys.path.insert(0, HELPERS)  # `helpers`, as in the tests
