"""Decode steps by running sums: how long so many steps of a small batch take, in two look-ups."""

from __future__ import annotations

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

    A step of g decodes at context c is followed by one at c + g, so sums run along c, c + g, c + 2g, ...:
    ``before[c]`` is the time of the steps at c - g, c - 2g, ..., and n steps from c on take ``before[c + n * g] -
    before[c]`` ns. Which steps were taken is counted the same way: ``begun[c]`` is how many requests saw a gap begin
    to repeat at c, less those for which it ended.
    """

    __slots__ = ("before", "begun", "duration", "size", "stride")

    def __init__(self, stride: int, durations_ns: NDArray[np.int64]) -> None:
        """``durations_ns``, shape (rows * stride,): of the step at each context."""
        self.stride = stride
        self.size = len(durations_ns)
        rows = durations_ns.reshape(-1, stride)
        before = np.zeros_like(rows)
        np.cumsum(rows[:-1], axis=0, out=before[1:])
        self.duration: memoryview[int] = memoryview(durations_ns)  # type: ignore[arg-type]
        self.before: memoryview[int] = memoryview(before.reshape(-1))  # type: ignore[arg-type]
        self.begun: memoryview[int] = memoryview(np.zeros(self.size, np.int64))  # type: ignore[arg-type]

    def durations(self, context: int, steps: int) -> list[int]:
        """Of so many steps from this context on, ns."""
        return self.duration[context : context + steps * self.stride : self.stride].tolist()

    def ends_before(self, time_ns: int, context: int, steps: int, start_ns: int) -> int:
        """How many of so many steps from this context on end before a time, if they begin at ``start_ns``."""
        before, duration, stride = self.before, self.duration, self.stride
        begin_ns = start_ns - before[context] - time_ns
        count = (time_ns - start_ns) // duration[context]  # no step is shorter than the first: not too few
        if count > steps:
            count = steps
        while count > 0 and (late_ns := begin_ns + before[context + count * stride]) >= 0:
            count -= late_ns // duration[context + (count - 1) * stride] + 1  # no step is longer: not too many
        return count

    def counted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Gaps and how many requests saw each, shapes (m,); in no order, with repeats."""
        counts = np.asarray(self.begun).reshape(-1, self.stride).cumsum(axis=0).reshape(-1)
        seen = np.flatnonzero(counts)
        return np.asarray(self.duration)[seen], counts[seen]


class DecodePace:
    """Tables of one pool, made (and made longer) once so many steps of a batch size were met that they pay.

    For costs that price decode steps by the number of decodes and their total context alone (``reads_squares`` False)
    and never price a later step below an earlier one (``longest_last`` True).
    """

    __slots__ = ("_steps_met", "_steps_s", "tables")

    def __init__(self, steps_s: Callable[[BatchShape, int], Sequence[float] | NDArray[np.float64]]) -> None:
        self._steps_s = steps_s
        self._steps_met = [0] * (LARGEST_BATCH + 1)
        self.tables: list[PaceTable | None] = [None] * (LARGEST_BATCH + 1)

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
        rows = -(-size // decodes)
        durations = np.empty((rows, decodes), np.int64)
        for context in range(decodes):
            shape = BatchShape(decode_requests=decodes, sampled_requests=decodes, decode_context_tokens=context)
            durations[:, context] = np.rint(np.asarray(self._steps_s(shape, rows)) * 1e9)
        table = PaceTable(decodes, durations.reshape(-1))
        if old:
            table.begun[: old.size] = old.begun
        self.tables[decodes] = table
        return table, steps
