"""File formats of slices: which bytes hold which pixels, and how to decode them."""
