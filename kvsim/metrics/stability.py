"""Did the system keep up? A verdict on the run, because an overloaded run's percentiles measure the trace's length."""

from typing import Literal

import numpy as np

from kvsim.core.runlog import NEVER, REJECTED, RunLog
from kvsim.metrics.latency import finished, inference_s, max_itl_s
from kvsim.metrics.window import Window

Stability = Literal["stable", "overloaded", "burst", "stuck"]

NOISE = 2.0
"""Standard deviations of a Poisson count that a shortfall must exceed."""
MARGIN = 0.05
"""Share of the arrivals that a shortfall must exceed. A load within about 5 % above capacity is not told apart from a
stable one, in exchange for a trace that ends in a busy hour not being called overloaded."""


def stability(log: RunLog, window: Window) -> Stability:
    """The verdict on the measured part of a run.

    Over the second half of the arrival period (first to last measured arrival; the first half lets the system fill
    up) count the arrivals A and the requests C that finished. Rejected requests count as neither, being refused
    for their size, not for load; a client that gave up counts as an arrival that was not completed.

    - ``stuck``: the run ended because nothing could move any more
    - ``stable``: A - C <= max(2 sqrt(A), 0.05 A)
    - ``burst``: arrivals outpaced completions, but the arrival period is shorter than twice the median time in
      service (first scheduled to last token, less the largest gap, which holds any wait between pools): the run
      shows how a burst drains, and cannot show a steady state
    - ``overloaded``: arrivals outpaced completions, and went on doing so for longer than that
    """
    if log.diagnosis is not None:
        return "stuck"
    offered = window.measured & (log.arrival_ns != NEVER) & (log.status != REJECTED)
    if not offered.any():
        return "stable"
    arrivals_ns = log.arrival_ns[offered]
    first_ns, last_ns = int(arrivals_ns.min()), int(arrivals_ns.max())
    middle_ns = (first_ns + last_ns) // 2
    served = finished(log)
    arrived = int((arrivals_ns >= middle_ns).sum())
    completed = int((served & (log.finish_ns >= middle_ns) & (log.finish_ns <= last_ns)).sum())
    if arrived - completed <= max(NOISE * arrived**0.5, MARGIN * arrived):
        return "stable"
    in_service_s = (inference_s(log) - np.nan_to_num(max_itl_s(log)))[served & window.measured]
    if not len(in_service_s) or (last_ns - first_ns) / 1e9 < 2 * float(np.median(in_service_s)):
        return "burst"
    return "overloaded"
