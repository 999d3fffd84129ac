"""The clock: requests arrive, are routed, scheduled step by step, handed over and finished, in integer nanoseconds.

``simulate(trace, cluster, options) -> RunLog`` is the one way in. Here: ``clock`` (SimPy and the order of equal
times), ``cluster`` (sending, routing, sessions, handoff), ``plan`` (the verbs a scheduler speaks), ``link``
(transfers), ``recorder`` (facts on their way to the RunLog), and a replica in four layers, each built on the one
before: ``state`` (what it holds and policies read), ``books`` (totals and records), ``steps`` (a step: planned,
launched, applied), ``replica`` (time: settling, the fast loop, visitors). ``ahead`` is a replica that plans a step
while another one runs, ``pace`` decode steps of small batches by running sums. May import: ``kvsim.core`` and SimPy;
knows no policy and no metric. To change it, write the mechanism into ``tests/reference.py`` first (what vLLM's
scheduler does: ``tests/vllm_model.py``); ``make test`` compares in nanoseconds. Called by: ``kvsim/scenario``, tests.
"""

from kvsim.engine.cluster import simulate

__all__ = ["simulate"]
