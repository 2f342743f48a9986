"""An archive of slices as a lazy Dataset: remote files, formats, lazy arrays. Imports `core` only."""
