"""The formats of slices: which bytes hold which pixels, and how they are decoded."""
