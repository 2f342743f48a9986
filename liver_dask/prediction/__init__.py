"""Models run over a volume, block by block, as a lazy variable."""
