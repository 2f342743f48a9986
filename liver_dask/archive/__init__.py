"""An archive of slices as a lazy Dataset: remote files, formats and lazy arrays. It imports `core` only."""
