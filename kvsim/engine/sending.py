"""Who follows whom in a closed loop: rows of the trace that are sent when others have ended."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvsim.core.content import view
from kvsim.core.trace import Trace


class Followers:
    """Which rows wait for an end: counts of the ends that each still waits for, and the rows that each end is for.

    ``first_rows`` (m,), in order, wait for nobody; ``think_ns`` (n,) is every row's pause after the last end that it
    waits for. Takes 16 bytes per row and 8 per wait.
    """

    __slots__ = ("_first", "_rows", "_waiting", "first_rows", "think_ns")

    def __init__(self, trace: Trace) -> None:
        waits = trace.waits()
        awaited = np.bincount(waits.values, minlength=len(trace))
        self.first_rows: NDArray[np.int64] = np.flatnonzero(waits.counts == 0)
        self.think_ns = view(np.zeros(len(trace), np.int64) if trace.think_ns is None else trace.think_ns)
        self._waiting = view(waits.counts)
        self._rows = view(waits.rows[np.argsort(waits.values, kind="stable")])
        self._first = view(np.concatenate(([0], np.cumsum(awaited))))

    def has(self, row: int) -> bool:
        """Does any row wait for this one?"""
        return self._first[row] < self._first[row + 1]

    def released(self, row: int) -> list[int]:
        """This row has ended: the rows that have waited for it alone by now."""
        waiting = self._waiting
        released = []
        for follower in self._rows[self._first[row] : self._first[row + 1]]:
            waiting[follower] -= 1
            if not waiting[follower]:
                released.append(follower)
        return released
