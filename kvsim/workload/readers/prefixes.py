"""From the block ids of a file to ids that stand for a block and everything before it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged


def chained(values: NDArray[Any], offsets: NDArray[np.int64]) -> Ragged:
    """The column ``prefix_hashes`` from ids of any integer type: numbered from 0 in order of first appearance.

    If every id always follows the same id (published chained traces), ids are only renumbered. Otherwise they name a
    block's own content, and each (id of the block before, own id) becomes an id: equal ids then mean equal prefixes.

    >>> chained(np.array([70, 90, 70, 80, 70]), np.array([0, 2, 4, 5])).values.tolist()
    [0, 1, 0, 2, 0]
    >>> chained(np.array([70, 90, 80, 90]), np.array([0, 2, 4])).values.tolist()  # 90 after 70 is not 90 after 80
    [0, 1, 2, 3]
    """
    ids = _in_order_of_appearance(values)
    before = np.concatenate(([-1], ids[:-1])) if len(ids) else ids
    starts = offsets[:-1]
    before[starts[starts < len(ids)]] = -1  # an empty row shares its start with the row behind it
    first_before = np.empty(int(ids.max(initial=-1)) + 1, np.int64)
    first_before[ids[::-1]] = before[::-1]  # the first appearance is written last
    if np.array_equal(first_before[ids], before):
        return Ragged(ids, offsets)

    counts = np.diff(offsets)
    rows = np.argsort(-counts, kind="stable")  # the longest first, so that a level is a head of this list
    levels = np.searchsorted(-counts[rows], -np.arange(int(counts.max(initial=0))), side="left")
    chain = np.empty_like(ids)
    parent = np.full(len(counts), 0, np.int64)  # 0: the start of a prompt
    base, width = 1, int(ids.max(initial=-1)) + 1
    for level, deep in enumerate(levels.tolist()):
        at = starts[rows[:deep]] + level
        pairs = parent[:deep] * width + ids[at]
        distinct, own = np.unique(pairs, return_inverse=True)
        chain[at] = parent[:deep] = base + own
        base += len(distinct)
    return Ragged(_in_order_of_appearance(chain), offsets)


def _in_order_of_appearance(values: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers from 0 in place of the values, (m,) int64."""
    n = len(values)
    if n and int(values.max()) < 8 * n and int(values.min()) >= 0:  # a table is ten times faster than a sort
        first = np.full(int(values.max()) + 1, n, np.int64)
        first[values[::-1]] = np.arange(n - 1, -1, -1)
        number = np.empty(len(first), np.int64)
        number[np.argsort(first, kind="stable")] = np.arange(len(first))
        numbers: NDArray[np.int64] = number[values]
        return numbers
    _, at, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(at), np.int64)
    rank[np.argsort(at)] = np.arange(len(at))
    ranked: NDArray[np.int64] = rank[inverse]
    return ranked
