"""Numbers: the objects of masks and labels, block by block, and how well a prediction agrees with a mask."""
