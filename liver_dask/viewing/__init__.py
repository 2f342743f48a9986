"""Pictures, the slicer and viewers. Imports all but `training`."""
