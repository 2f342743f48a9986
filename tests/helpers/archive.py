"""The small archive that the fixtures of `conftest.py` make and serve."""

SHAPE = (10, 300, 420)
