"""Which requests are measured, and over what time: everything that arrives from the end of the warm-up on."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import NEVER, RunLog
from kvsim.metrics.latency import finished


@dataclass(frozen=True)
class Window:
    """The measured part of a run.

    - ``measured`` (n,) bool: arrived at or after the warm-up, or was never sent
    - ``excluded``: requests that arrived during the warm-up; with the measured ones they make n
    - ``from_ns``: first measured arrival; ``to_ns``: last delivery to a measured request that finished; None if none
    """

    measured: NDArray[np.bool_]
    excluded: int
    from_ns: int | None
    to_ns: int | None

    @property
    def duration_s(self) -> float | None:
        """Last delivery - first arrival in seconds; None if nothing finished."""
        if self.from_ns is None or self.to_ns is None:
            return None
        return (self.to_ns - self.from_ns) / 1e9


def window(log: RunLog, warmup_s: float = 0.0) -> Window:
    """Cut the warm-up off: requests with ``arrival_s < warmup_s`` are excluded from every per-request statistic."""
    sent = log.arrival_ns != NEVER
    warm_up = sent & (log.arrival_ns < round(warmup_s * 1e9))
    arrivals = log.arrival_ns[sent & ~warm_up]
    finishes = log.finish_ns[finished(log) & ~warm_up]
    return Window(
        measured=~warm_up,
        excluded=int(warm_up.sum()),
        from_ns=int(arrivals.min()) if len(arrivals) else None,
        to_ns=int(finishes.max()) if len(finishes) else None,
    )
