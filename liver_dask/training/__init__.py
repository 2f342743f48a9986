"""Datasets and loaders for PyTorch, and downloads under the names of torch_em. Imports all but `viewing`."""
