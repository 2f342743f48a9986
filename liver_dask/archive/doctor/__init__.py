"""Examination of an archive: whether its files are there, and as its description says."""
