"""Speed and memory, as ratios to bare SimPy events measured in the same process: ``python -m tests.bench``."""
