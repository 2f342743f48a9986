"""Sharded Zarr v3 stores: layout, writing, pyramid, verification, reading. Imports `core` and `archive`."""
