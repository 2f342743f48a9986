"""Files of an archive by byte ranges: transport, retries, caches and versions."""
