"""Statistics of a list that is kept as an exact histogram: every value once, with how often it occurred."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def percentiles(values: NDArray[np.float64], counts: NDArray[np.int64], levels: Sequence[float]) -> list[float]:
    """Percentiles of the expanded list, bit for bit those of ``np.percentile(..., method="linear")``.

    ``values`` (m,) increasing, ``counts`` (m,) positive, ``levels`` in [0, 100]. Raises ValueError if empty.

    >>> percentiles(np.array([1.0, 3.0]), np.array([3, 1]), [50, 90])      # of [1, 1, 1, 3]
    [1.0, 2.4000000000000004]
    """
    if not len(values):
        raise ValueError("percentiles of an empty histogram")
    ends = np.cumsum(counts)
    last = int(ends[-1]) - 1
    result = []
    for level in levels:
        position = last * (level / 100)
        below = int(position)
        low, high = values[np.searchsorted(ends, [below, min(below + 1, last)], side="right")]
        share = position - below
        # numpy's own interpolation: from the nearer end, so that it is exact at both
        result.append(float(high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share))
    return result


def mean(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Mean of the expanded list. Raises ValueError if empty."""
    if not len(values):
        raise ValueError("mean of an empty histogram")
    return float((values * counts).sum() / counts.sum())


def std(values: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Population standard deviation (ddof 0) of the expanded list. Raises ValueError if empty."""
    centre = mean(values, counts)
    return float(np.sqrt(((values - centre) ** 2 * counts).sum() / counts.sum()))
