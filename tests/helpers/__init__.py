"""What tests, benchmarks and fuzz targets share; no test imports it from another test."""
