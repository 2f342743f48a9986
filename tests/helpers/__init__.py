"""Shared code of tests, benchmarks and fuzz targets. Tests import it from here, and not from other tests."""
