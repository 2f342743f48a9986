"""Lazy arrays of voxels, built on dask and NumPy, and the analysis of their graphs."""
