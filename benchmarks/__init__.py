"""The benchmarks of bench.py, a file for each subject."""
