"""From a RunLog to numbers: times per request, pooled gaps, the summary, goodput, the verdict on overload, laws.

Implement here: one pure function from a RunLog to an array of shape (n,) or to a number; its definition in one
docstring line. May import: numpy and kvsim.core. Copy: ``latency.py``. Check: ``pytest tests/unit/metrics``.
Called by: kvsim.report, and whoever holds a RunLog.
"""
