"""Decode steps by running sums: how long so many steps of a small batch take, in two look-ups."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from kvsim.core.shape import BatchShape

LARGEST_BATCH = 16
_MOST_TOKENS = 1 << 16
_FEWEST_TOKENS = 1 << 11
_PAYS = 4
"""An entry of a table costs about a fourth of a step in a list (20 ns against 75 ns)."""


class PaceTable:
    """Durations of decode steps of one batch size, by the context tokens before the step.

    A step of g decodes at context c is followed by one at c + g, c + 2g, ...: these stand next to one another, c at
    place p = c mod g * ``rounds`` + c div g, c + g at p + 1, ... ``before[p]`` is the time of the steps left of p, so
    n steps from p on take ``before[p + n] - before[p]`` ns. Which steps were taken is counted the same way:
    ``begun[p]`` is how many requests saw a gap begin to repeat at p, less those for which it ended.
    """

    __slots__ = ("before", "begun", "duration", "rounds", "size")

    def __init__(self, durations_ns: NDArray[np.int64]) -> None:
        """``durations_ns``, shape (g, rounds): of the step at context r + g * k in row r, column k."""
        self.rounds = durations_ns.shape[1]
        self.size = durations_ns.size
        entries = np.zeros((*durations_ns.shape, 3), np.int64)  # what is read together stands together
        np.cumsum(durations_ns[:, :-1], axis=1, out=entries[:, 1:, 0])
        entries[:, :, 1] = durations_ns
        flat: memoryview[int] = memoryview(entries.reshape(-1))  # type: ignore[arg-type]
        self.before, self.duration, self.begun = flat[0::3], flat[1::3], flat[2::3]

    def ended_before(self, time_ns: int, place: int, steps: int, start_ns: int) -> int:
        """How many of so many steps from here on end before a time, if they begin at ``start_ns``."""
        first = place + 1
        return bisect_left(self.before, time_ns - start_ns + self.before[place], first, first + steps) - first

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gaps and how many requests saw each, shapes (m,); in no order, with repeats."""
        counts = np.asarray(self.begun).reshape(-1, self.rounds).cumsum(axis=1).reshape(-1)
        seen = np.flatnonzero(counts)
        return np.asarray(self.duration)[seen], counts[seen]


class DecodePace:
    """Tables of one pool, made (and made longer) once so many steps of a batch size were met that they pay.

    For costs that price decode steps by the number of decodes and their total context alone (``reads_squares`` False)
    and never price a later step below an earlier one (``longest_last`` True).
    """

    __slots__ = ("_hidden_ns", "_steps_met", "_steps_s", "all_tables", "tables")

    def __init__(
        self, steps_s: Callable[[BatchShape, int], Sequence[float] | NDArray[np.float64]], hidden_ns: int
    ) -> None:
        """``hidden_ns`` of each step is the host's time, which planning ahead hides."""
        self._steps_s = steps_s
        self._hidden_ns = hidden_ns
        self._steps_met = [0] * (LARGEST_BATCH + 1)
        self.tables: list[PaceTable | None] = [None] * (LARGEST_BATCH + 1)
        self.all_tables: list[PaceTable] = []  # stretches in flight may still follow one that has been outgrown

    def reach(self, decodes: int, context: int, steps: int) -> tuple[PaceTable | None, int]:
        """A table for this batch size and so many steps from this context on, or as many of them as a table may hold.

        Returns None and the steps if it cannot hold one, or if a table would not pay yet.
        """
        fit = (_MOST_TOKENS - 1 - context) // decodes
        if fit < 1:
            return None, steps
        steps = min(steps, fit)
        old = self.tables[decodes]
        tokens = context + steps * decodes
        if old and old.size > tokens:
            return old, steps
        size = max(_FEWEST_TOKENS, 1 << tokens.bit_length())
        self._steps_met[decodes] += steps
        if self._steps_met[decodes] * _PAYS < size:
            return None, steps
        rounds = -(-size // decodes)
        durations = np.empty((decodes, rounds), np.int64)
        for context in range(decodes):
            shape = BatchShape(decode_requests=decodes, sampled_requests=decodes, decode_context_tokens=context)
            durations[context] = np.rint(np.asarray(self._steps_s(shape, rounds)) * 1e9) - self._hidden_ns
        self.tables[decodes] = table = PaceTable(durations)
        self.all_tables.append(table)
        return table, steps
