"""The clock: requests arrive, are routed, scheduled step by step, handed over and finished, in integer nanoseconds.

``simulate(trace, cluster, options) -> RunLog`` is the one way in. Here: ``clock`` (SimPy and the order of equal
times), ``cluster`` (sending, routing, sessions, handoff), ``replica`` (steps and leaps), ``plan`` (the verbs a
scheduler speaks), ``link`` (transfers), ``recorder`` (facts on their way to the RunLog). May import: ``kvsim.core``
and SimPy; knows no policy and no metric. To change it, write the mechanism into ``tests/reference.py`` first;
``make test`` compares the two in nanoseconds. Called by: ``kvsim/scenario`` and tests.
"""

from kvsim.engine.cluster import simulate

__all__ = ["simulate"]
