"""What readers of sessions share: pauses between turns, from times and durations."""

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import previous_rows


def think_times(
    arrival_ns: NDArray[np.int64], session: NDArray[np.int64], elapsed_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pause before each turn, (n,) int64 ns: max(0, gap since its session's previous row - that row's elapsed time).

    0 for a first turn and where ``session`` is -1.
    """
    before = previous_rows(session)
    later = np.flatnonzero(before >= 0)
    earlier = before[later]
    think_ns = np.zeros(len(session), np.int64)
    think_ns[later] = np.maximum(0, arrival_ns[later] - arrival_ns[earlier] - elapsed_ns[earlier])
    return think_ns
