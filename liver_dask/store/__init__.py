"""Sharded Zarr v3 stores: layout, writing, pyramid, verification and reading.

It imports `core` and `archive`.
"""
