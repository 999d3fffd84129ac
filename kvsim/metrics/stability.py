"""Did the system keep up? A verdict on the run, because an overloaded run's percentiles measure the trace's length."""

from typing import Literal

import numpy as np

from kvsim.core.runlog import NEVER, REJECTED, RunLog
from kvsim.metrics.latency import finished, inference_s, max_itl_s
from kvsim.metrics.window import Window

Stability = Literal["stable", "overloaded", "burst", "stuck"]

NOISE = 2.0
"""Standard deviations of a Poisson count that a backlog must exceed."""
MARGIN = 0.05
"""Share of the arrivals that a backlog must exceed. A load within about 5 % above capacity is not told apart from a
stable one, in exchange for a trace that ends in a busy hour not being called overloaded."""


def stability(log: RunLog, window: Window, max_concurrency: int | None = None) -> Stability:
    """The verdict on the measured part of a run.

    Of A arrivals over T (first to last arrival), B had not been completed at the last arrival. A system that keeps
    up has about A / T x S of them in service then (Little's law; S is the mean time in service: first scheduled to
    last token, less the largest gap, which holds any wait between pools). What is above that is a backlog, and it
    counts if it exceeds max(2 sqrt(A), 0.05 A). Rejected requests do not count: they were refused for their size,
    not for load. A client that gave up is an arrival that was not completed. In a closed loop a request is sent when
    another ends, so up to ``max_concurrency`` of them are no backlog.

    - ``stuck``: the run ended because nothing could move any more
    - ``stable``: no backlog
    - ``burst``: B exceeds that limit, but T < 2 S: arrivals stopped before the system could settle, so the run shows
      how a burst drains and cannot show a steady state
    - ``overloaded``: a backlog, and T >= 2 S: arrivals outpace completions
    """
    if log.diagnosis is not None:
        return "stuck"
    offered = window.measured & (log.arrival_ns != NEVER) & (log.status != REJECTED)
    arrivals = int(offered.sum())
    if not arrivals:
        return "stable"
    served = finished(log) & offered
    last_ns = int(log.arrival_ns[offered].max())
    period_s = (last_ns - int(log.arrival_ns[offered].min())) / 1e9
    remaining = arrivals - int((served & (log.finish_ns <= last_ns)).sum())
    in_service_s = inference_s(log)
    in_service_s -= np.nan_to_num(max_itl_s(log), copy=False)
    in_service_s = in_service_s[served]
    service_s = float(in_service_s.mean()) if len(in_service_s) else np.inf
    allowed = max(NOISE * arrivals**0.5, MARGIN * arrivals, max_concurrency or 0)
    if period_s < 2 * service_s:
        return "burst" if remaining > allowed else "stable"
    in_service = arrivals / period_s * service_s if period_s else 0.0  # no period, no service: B is what is left
    return "overloaded" if remaining - in_service > allowed else "stable"
