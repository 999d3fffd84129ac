"""Facts on their way to the RunLog: columns by request, the pooled gaps, tokens by second, timeline samples."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import NEVER, UNFINISHED, Gaps, Timeline, TokensBySecond
from kvsim.core.trace import Trace
from kvsim.engine.clock import FOREVER

_WEIGHT_BITS = 20
LONGEST_PACKED_NS = 1 << 43
"""A gap and how many requests saw it travel in one int64: less than 2.4 hours, and than 2^20 requests."""

PACK_AT = 65536

_NONE: NDArray[np.int64] = np.empty(0, np.int64)


class GapHistogram:
    """Gaps between tokens, counted exactly by nanosecond; memory follows distinct values, not tokens.

    The gaps of a step are one value with a weight. They are collected as they come and merged when what is pending
    outgrows what is merged, so the cost per gap is constant on average.
    """

    __slots__ = ("_array_runs", "_arrays", "_chunks", "_counted", "_merged", "_pending", "_rare", "runs", "values")

    def __init__(self) -> None:
        self.values: list[float] = []  # gaps of short stretches, in order (whole ns)
        self.runs: list[int] = []  # their weights: requests, steps, requests, steps, ...
        self._chunks: list[NDArray[np.int64]] = []  # packed gap << bits | requests
        self._arrays: list[NDArray[np.int64]] = []  # gaps of long stretches
        self._array_runs: list[int] = []
        self._pending = 0
        self._counted: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._rare: Counter[int] = Counter()  # gaps of single requests: preemption, stall, transfer
        self._merged = (_NONE, _NONE)

    def add_step(self, gap_ns: int, requests: int) -> None:
        """This gap was seen by so many requests."""
        if gap_ns >= LONGEST_PACKED_NS:
            self.add_one(gap_ns, requests)
            return
        self.values.append(gap_ns)
        self.runs += (requests, 1)

    def add(self, gaps_ns: Sequence[float] | NDArray[np.int64], requests: int, largest_ns: int) -> None:
        """Each of these gaps (the largest of them: ``largest_ns``) was seen by so many requests."""
        if largest_ns >= LONGEST_PACKED_NS:
            for gap in gaps_ns:
                self.add_one(int(gap), requests)
        elif isinstance(gaps_ns, np.ndarray):
            self._arrays.append(gaps_ns)
            self._array_runs += (requests, len(gaps_ns))
            self._pending += len(gaps_ns)
            if self._pending > max(1_000_000, len(self._merged[0])):
                self._merge()
        else:
            self.values += gaps_ns
            self.runs += (requests, len(gaps_ns))
            if len(self.values) >= PACK_AT:
                self.pack()

    def add_one(self, gap_ns: int, requests: int = 1) -> None:
        """A gap outside the common rhythm of the batch."""
        self._rare[gap_ns] += requests

    def pack(self) -> None:
        runs = np.frombuffer(array("q", self.runs), np.int64)
        weights = np.repeat(runs[0::2], runs[1::2])
        values = np.frombuffer(array("d", self.values)).astype(np.int64)  # whole numbers below 2^53
        self._keep((values << _WEIGHT_BITS) + weights)
        self.values.clear()
        self.runs.clear()

    def _keep(self, packed: NDArray[np.int64]) -> None:
        self._chunks.append(packed)
        self._pending += len(packed)
        if self._pending > max(1_000_000, len(self._merged[0])):
            self._merge()

    def _merge(self) -> None:
        self._pending = 0
        if self._arrays:
            weights = np.repeat(self._array_runs[0::2], self._array_runs[1::2])
            self._chunks.append((np.concatenate(self._arrays) << _WEIGHT_BITS) + weights)
            self._arrays.clear()
            self._array_runs.clear()
        if self._chunks:
            packed = np.concatenate(self._chunks)
            self._chunks.clear()
            packed.sort()
            counts = packed & ((1 << _WEIGHT_BITS) - 1)
            packed >>= _WEIGHT_BITS
            values, counts = _sum_equal(packed, counts)
            del packed
            self._absorb(values, counts)

    def _absorb(self, values: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
        """Add distinct gaps, in order, and their counts to what is merged; a long column is let go of at once."""
        if len(self._merged[0]):
            values = np.concatenate((self._merged[0], values))
            counts = np.concatenate((self._merged[1], counts))
            self._merged = (_NONE, _NONE)
            order = np.argsort(values, kind="stable")
            values = values[order]
            counts = counts[order]
            del order
            values, counts = _sum_equal(values, counts)
        self._merged = (values, counts)

    def add_counted(self, gaps_ns: NDArray[np.int64], requests: NDArray[np.int64]) -> None:
        """Gaps that were counted elsewhere, and how many requests saw each; shape (m,), any order, repeats allowed."""
        self._counted.append((gaps_ns, requests))

    def result(self) -> Gaps:
        """The histogram so far."""
        if self.values:
            self.pack()
        self._merge()
        if self._rare:  # these may be longer than a packed value can hold, so they join after the merge
            self.add_counted(np.array(list(self._rare), np.int64), np.array(list(self._rare.values()), np.int64))
            self._rare.clear()
        if self._counted:
            gaps_ns, requests = (np.concatenate(columns) for columns in zip(*self._counted, strict=True))
            self._counted.clear()
            order = np.argsort(gaps_ns, kind="stable")
            self._absorb(*_sum_equal(gaps_ns[order], requests[order]))
        gaps_ns, requests = self._merged
        seen = requests > 0
        return Gaps(gaps_ns[seen], requests[seen])


def _sum_equal(values: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sorted values with repeats, and their counts, to distinct values with summed counts."""
    if len(values) == 0:
        return values, counts
    first = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    return values[first], np.add.reduceat(counts, first)


_ROW = Struct("10q")


class TimelineSamples:
    """Rows of one replica at instants 0, interval, 2 interval, ...; the interval doubles when there are too many."""

    __slots__ = ("_full", "_rows", "every_step", "interval_ns", "limit", "next_ns")

    WIDTH = 10

    def __init__(self, interval_ns: int, limit: int | None) -> None:
        """With no limit there is a row for the start of every step instead, and the replica sets ``next_ns``."""
        self.every_step = limit is None
        self.interval_ns = interval_ns
        self.limit = limit or 1
        self.next_ns = FOREVER if limit is None else 0
        self._rows = bytearray()
        self._full = self.limit * _ROW.size

    def add(self, row: tuple[int, ...]) -> None:
        """The row of instant ``next_ns``."""
        self._rows += _ROW.pack(*row)
        if self.every_step:
            return
        self.next_ns += self.interval_ns
        if len(self._rows) >= self._full:
            self._thin()

    def skip_gap(self, until_ns: int) -> None:
        """Before many equal rows are written up to ``until_ns``: make the interval long enough for them."""
        while (until_ns - self.next_ns) // self.interval_ns >= self.limit:
            self._thin()

    def _thin(self) -> None:
        self.interval_ns *= 2
        rows = self.rows()
        self._rows = bytearray(rows[rows[:, 0] % self.interval_ns == 0].tobytes())
        self.next_ns = -(-self.next_ns // self.interval_ns) * self.interval_ns

    def rows(self) -> NDArray[np.int64]:
        """Shape (rows, WIDTH), first column the time in ns."""
        return np.frombuffer(self._rows, np.int64).reshape(-1, self.WIDTH)


def join_timelines(samples: list[TimelineSamples]) -> Timeline:
    """The rows of all replicas at their common instants, ordered by time, then replica."""
    interval = max((s.interval_ns for s in samples), default=1)
    parts = []
    for replica, one in enumerate(samples):
        rows = one.rows()
        if not one.every_step:
            rows = rows[rows[:, 0] % interval == 0]
        parts.append(np.column_stack((rows[:, :1], np.full((len(rows), 1), replica, np.int64), rows[:, 1:])))
    table = np.concatenate(parts) if parts else np.empty((0, TimelineSamples.WIDTH + 1), np.int64)
    table = table[np.lexsort((table[:, 1], table[:, 0]))]
    return Timeline(*(np.ascontiguousarray(table[:, i]) for i in range(TimelineSamples.WIDTH + 1)))


class RequestColumns:
    """Per-request facts, shape (n,) each; written one element at a time through memoryviews (three times as fast).

    Zeros are left to the operating system: a page that nobody writes to takes no memory. What the trace says already
    is the trace's own column, which is not written to.
    """

    __slots__ = (
        "_output_is_own",
        "arrays",
        "arrival_ns",
        "cached_tokens",
        "client_queue_ns",
        "computed_tokens",
        "finish_ns",
        "first_scheduled_ns",
        "first_token_ns",
        "generated_tokens",
        "max_gap_ns",
        "preemptions",
        "reason",
        "replica_decode",
        "replica_prefill",
        "status",
        "swapped_tokens",
        "swaps",
    )

    arrival_ns: memoryview[int]
    cached_tokens: memoryview[int]
    client_queue_ns: memoryview[int]
    computed_tokens: memoryview[int]
    finish_ns: memoryview[int]
    first_scheduled_ns: memoryview[int]
    first_token_ns: memoryview[int]
    generated_tokens: memoryview[int]
    max_gap_ns: memoryview[int]
    preemptions: memoryview[int]
    reason: memoryview[int]
    replica_decode: memoryview[int]
    replica_prefill: memoryview[int]
    status: memoryview[int]
    swapped_tokens: memoryview[int]
    swaps: memoryview[int]

    def __init__(self, trace: Trace, *, sent_later: bool, handed_on: bool) -> None:
        """``sent_later``: requests may be sent at other times than the trace's; ``handed_on``: to a second pool."""
        n = len(trace)
        self._output_is_own = False
        self.arrays: dict[str, NDArray[Any]] = {
            "arrival_ns": np.full(n, NEVER, np.int64) if sent_later else trace.arrival_ns,
            "status": np.full(n, UNFINISHED, np.int8),
            "reason": np.zeros(n, np.int8),
            "replica_prefill": np.full(n, -1, np.int32),
        }
        self.arrays["replica_decode"] = np.full(n, -1, np.int32) if handed_on else self.arrays["replica_prefill"]
        for name in ("first_scheduled_ns", "first_token_ns", "finish_ns", "max_gap_ns"):
            self.arrays[name] = np.full(n, NEVER, np.int64)
        for name in (
            "client_queue_ns", "generated_tokens", "computed_tokens", "cached_tokens", "preemptions", "swaps",
            "swapped_tokens",
        ):  # fmt: skip
            self.arrays[name] = np.zeros(n, np.int64)
        for name, column in self.arrays.items():
            setattr(self, name, memoryview(column))  # type: ignore[arg-type]
        self.arrays["output_tokens"] = trace.output_tokens

    def cut_output(self, i: int, tokens: int) -> None:
        """Request ``i`` is to generate no more than this."""
        if not self._output_is_own:
            self._output_is_own = True
            self.arrays["output_tokens"] = self.arrays["output_tokens"].copy()
        self.arrays["output_tokens"][i] = tokens


class Recorder:
    """What all replicas write to."""

    __slots__ = ("_seconds", "_seconds_packed", "columns", "gaps", "tokens_by_second")

    def __init__(self, columns: RequestColumns) -> None:
        self.columns = columns
        self.gaps = GapHistogram()
        self.tokens_by_second: Counter[int] = Counter()  # what is not packed yet
        self._seconds = np.empty((2, PACK_AT), np.int64)  # second and tokens, in order of the second
        self._seconds_packed = 0

    def pack_seconds(self) -> None:
        """Many seconds as an array take a tenth of the memory."""
        counter = self.tokens_by_second
        if not counter:
            return
        new = np.array([np.fromiter(part, np.int64, len(counter)) for part in (counter, counter.values())])
        counter.clear()
        # Replicas are hours apart at most, so all but the last of what is there stays as it is.
        begin = int(np.searchsorted(self._seconds[0, : self._seconds_packed], new[0].min()))
        table = np.concatenate((self._seconds[:, begin : self._seconds_packed], new), axis=1)
        table = table[:, np.argsort(table[0], kind="stable")]
        second, tokens = _sum_equal(table[0], table[1])
        end = begin + len(second)
        if end > self._seconds.shape[1]:
            grown = np.empty((2, 2 * end), np.int64)
            grown[:, :begin] = self._seconds[:, :begin]
            self._seconds = grown
        self._seconds[:, begin:end] = second, tokens
        self._seconds_packed = end

    def seconds(self) -> TokensBySecond:
        """Tokens by second so far."""
        self.pack_seconds()
        second, tokens = self._seconds[:, : self._seconds_packed]
        return TokensBySecond(second, tokens)
