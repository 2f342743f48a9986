"""A Dataset as OME-Zarr for viewers: in this process, and over HTTP. It imports `core`, `archive` and `store`."""
