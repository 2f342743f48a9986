"""How a store is written: to a folder that all processes share, or to object storage."""
