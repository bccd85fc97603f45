"""The benchmarks of bench.py, one file per subject."""
