"""Measurements that the documentation quotes. Each module is a program: `python -m benchmarks`."""
