"""The servers that `benchmarks/engine.py` compares, each a process of its own."""
