"""Benchmarks: `make bench`, or `pytest benchmarks --benchmark-json=FILE` and `python -m benchmarks.compare FILE`."""
