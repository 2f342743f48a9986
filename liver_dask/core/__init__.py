"""The base of all other packages: errors, configuration, geometry, threads and metrics. It imports none of them."""
