"""Lazy arrays over dask and NumPy, and the questions asked of their graphs."""
