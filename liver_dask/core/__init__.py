"""What every other package stands on: errors, configuration, geometry, threads and metrics. Imports none of them."""
