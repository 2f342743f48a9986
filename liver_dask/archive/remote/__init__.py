"""Files of an archive, by ranges of bytes: transport, retries, caches, versions."""
