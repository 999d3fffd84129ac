"""What prompts say, as far as it matters: which tokens of two requests are equal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged, Trace, previous_rows

Segment: TypeAlias = tuple[int, int, int]
"""(stream, first, tokens): tokens ``first`` to ``first + tokens - 1`` of an endless stream of tokens. Two tokens are
equal exactly if stream and position are. Stream -1 - i is what row i generates; others are numbered from 0."""


class Content:
    """The tokens with which a request begins, as far as another one may have the same: ``tokens`` of them.

    What follows them (the rest of the prompt, and what is generated) nobody else has. ``table`` belongs to the KV pool.
    This one is of tokens that nobody else has at all; the others say what two of a kind have in common.
    """

    __slots__ = ("table", "tokens")

    def __init__(self, tokens: int = 0) -> None:
        self.tokens = tokens
        self.table: Any = None

    def cut(self, start: int, tokens: int) -> object:
        """So many tokens from ``start`` on: equal for two contents that agree before, exactly if the tokens are."""
        return self

    def common(self, other: Any, start: int) -> int:
        """The first token from ``start`` on at which the two differ or one ends, if they agree before."""
        return self.tokens if other is self else start


class HashedContent(Content):
    """By the ids of blocks of ``size`` tokens, each of which stands for a block and everything before it.

    >>> one, other = HashedContent([4, 5, 6], 16, 40), HashedContent([4, 5, 7], 16, 48)
    >>> one.common(other, 0), one.cut(16, 16)
    (32, 5)
    """

    __slots__ = ("ids", "size")

    def __init__(self, ids: Sequence[int], size: int, tokens: int) -> None:
        self.tokens = tokens
        self.table = None
        self.ids = ids
        self.size = size

    def cut(self, start: int, tokens: int) -> int:
        return self.ids[(start + tokens - 1) // self.size]

    def common(self, other: HashedContent, start: int) -> int:
        ids, others = self.ids, other.ids
        end = min(len(ids), len(others))
        tokens = self.tokens if self.tokens < other.tokens else other.tokens
        if ids[end - 1] == others[end - 1]:
            return tokens
        low = start // self.size
        while low < end:  # ids before ``low`` are equal, those from ``end`` on are not
            middle = (low + end) // 2
            if ids[middle] == others[middle]:
                low = middle + 1
            else:
                end = middle
        return min(low * self.size, tokens)


class HistoryContent(Content):
    """By the conversation whose text it is, from its beginning.

    >>> one, other = HistoryContent(3, 40), HistoryContent(3, 64)
    >>> one.common(other, 0), one.common(HistoryContent(4, 64), 0)
    (40, 0)
    """

    __slots__ = ("history",)

    def __init__(self, history: int, tokens: int) -> None:
        self.tokens = tokens
        self.table = None
        self.history = history

    def cut(self, start: int, tokens: int) -> int:
        return self.history

    def common(self, other: HistoryContent, start: int) -> int:
        if self.history != other.history:
            return start
        return self.tokens if self.tokens < other.tokens else other.tokens


class WrittenContent(Content):
    """By what it says, segment after segment.

    >>> one, other = WrittenContent([(0, 0, 40), (1, 0, 8)]), WrittenContent([(0, 0, 32), (0, 32, 8), (2, 0, 9)])
    >>> one.common(other, 0), one.cut(32, 16)
    (40, ((0, 32, 8), (1, 0, 8)))
    """

    __slots__ = ("segments", "starts")

    def __init__(self, segments: Sequence[Segment]) -> None:
        super().__init__()
        self.segments: list[Segment] = []
        self.starts: list[int] = []
        for stream, first, tokens in segments:
            if self.segments:
                last_stream, last_first, last_tokens = self.segments[-1]
                if last_stream == stream and last_first + last_tokens == first:  # one segment in two pieces
                    self.segments[-1] = (stream, last_first, last_tokens + tokens)
                    self.tokens += tokens
                    continue
            self.segments.append((stream, first, tokens))
            self.starts.append(self.tokens)
            self.tokens += tokens

    def cut(self, start: int, tokens: int) -> tuple[Segment, ...]:
        i = bisect_right(self.starts, start) - 1
        stream, first, length = self.segments[i]
        offset = start - self.starts[i]
        if offset + tokens <= length:
            return ((stream, first + offset, tokens),)
        pieces = [(stream, first + offset, length - offset)]
        left = tokens - (length - offset)
        while left:
            i += 1
            stream, first, length = self.segments[i]
            pieces.append((stream, first, min(length, left)))
            left -= min(length, left)
        return tuple(pieces)

    def common(self, other: WrittenContent, start: int) -> int:
        if other is self:
            return self.tokens
        end = min(self.tokens, other.tokens)
        i = bisect_right(self.starts, start) - 1
        k = bisect_right(other.starts, start) - 1
        while start < end:
            stream, first, tokens = self.segments[i]
            other_stream, other_first, other_tokens = other.segments[k]
            begin, other_begin = self.starts[i], other.starts[k]
            if stream != other_stream or first - begin != other_first - other_begin:
                return start
            until, other_until = begin + tokens, other_begin + other_tokens
            start = min(until, other_until)
            i += until == start
            k += other_until == start
        return start


class Contents:
    """The contents of a trace's rows, made when they are asked for.

    Where prompts carry on a conversation, what a row generates is what the prompt of the next turn says behind its own:
    the next turn finds it, as far as it was computed.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._rows_of: dict[int, int] | None = None
        self._histories: memoryview[int] | None = None
        self._shared: memoryview[int]  # of each row: ids, or tokens of its history, that others have
        if trace.segments is not None:
            self._rows_of = _rows_by_stream(trace)
            return
        before = carried_on(trace)
        if trace.prefix_hashes is not None and trace.hash_block_tokens is not None:
            self._name_blocks(trace, trace.prefix_hashes, trace.hash_block_tokens, before)
            return
        self._histories = view(_ends(before))
        carries_on = before >= 0
        total = trace.prompt_tokens + trace.output_tokens
        shared = np.where(carries_on, total[before], 0)
        shared[before[carries_on]] = total[before[carries_on]]
        self._shared = view(shared)

    def _name_blocks(self, trace: Trace, hashes: Ragged, size: int, before: NDArray[np.int64]) -> None:
        """Ids of a row's own prompt, or of the last turn's that says what the row generates."""
        ids, offsets, counts = hashes.values, hashes.offsets, hashes.counts
        often = np.bincount(ids) > 1 if len(ids) else np.empty(0, bool)
        source = np.arange(len(trace))
        later = np.flatnonzero(before >= 0)
        row = before[later]
        if len(later) and len(ids):
            prompt, total = trace.prompt_tokens[row], trace.prompt_tokens[row] + trace.output_tokens[row]
            # The next turn has the same full blocks; a partial one has the same id, or one that nobody else has.
            full = np.minimum(prompt // size, counts[row])
            own, others = offsets[:-1][row] + full, offsets[:-1][later] + full
            padded = np.append(ids, -1)
            same = (full == 0) | (padded[own - 1] == padded[others - 1])
            last = np.where(counts[row] > full, padded[own], -1)
            begins = (counts[later] > full) & same & ((last < 0) | (last == padded[others]) | ~often[last])
            later, row, full, total = later[begins], row[begins], full[begins], total[begins]
            # Of the next turn's ids, those of blocks that the row generates; none is taken as generated by two rows.
            made = np.minimum(-(-total // size), counts[later]) - full
            which = np.repeat(np.arange(len(row)), made)
            place = np.arange(len(which)) - np.repeat(np.cumsum(made) - made, made)
            made_ids = ids[(offsets[:-1][later] + full)[which] + place]
            _, first, name = np.unique(made_ids, return_index=True, return_inverse=True)
            alone = np.ones(len(row), bool)
            alone[which[which[first][name] != which]] = False
            often[made_ids[alone[which]]] = True
            source[row[alone]] = later[alone]
        self._ids, self._offsets, self._size = view(ids), view(offsets), size
        source = _ends(source)  # all turns of a conversation have the ids of its last one
        self._source = view(source)
        self._shared = view(_leading(often[ids], offsets)[source])

    def __bool__(self) -> bool:
        """False if no two rows share anything."""
        if self._rows_of is not None:
            return any(rows > 1 for rows in self._rows_of.values())
        return any(self._shared)

    def of(self, row: int, prompt_tokens: int, output_tokens: int) -> Content | None:
        """What others may have in common with this row, or None: nothing."""
        if self._rows_of is not None:
            segments = self._by_segments(row, output_tokens)
            return WrittenContent(segments) if segments else None
        shared = self._shared[row]
        if not shared:
            return None
        if self._histories is not None:
            return HistoryContent(self._histories[row], min(shared, prompt_tokens + output_tokens))
        source = self._source[row]
        start = self._offsets[source]
        tokens = shared * self._size
        most = prompt_tokens if source == row else prompt_tokens + output_tokens
        ids = self._ids[start : start + shared].tolist()
        return HashedContent(ids, self._size, tokens if tokens < most else most)

    def _by_segments(self, row: int, output_tokens: int) -> list[Segment]:
        assert self._trace.segments is not None
        assert self._rows_of is not None
        values = self._trace.segments.row(row).tolist()
        segments = [*zip(values[0::3], values[1::3], values[2::3], strict=True), (-1 - row, 0, output_tokens)]
        for i, (stream, _, _) in enumerate(segments):
            if self._rows_of.get(stream, 0) < 2:
                return segments[:i]
        return segments


def carried_on(trace: Trace) -> NDArray[np.int64]:
    """The row whose prompt and output each row's prompt begins with, -1 where there is none; shape (n,).

    It is the row before it of the same ``history``; where the trace has no such column, of the same session (if it
    waits for that one, where ``wait_for`` says who waits for whom). A prompt that is shorter than the two together is
    of a history that was cut, and carries on nothing.
    """
    number = trace.session if trace.history is None else trace.history
    if number is None:
        return np.full(len(trace), -1)
    before = previous_rows(number)
    before[trace.prompt_tokens < (trace.prompt_tokens + trace.output_tokens)[before]] = -1
    if trace.history is None and trace.wait_for is not None:
        rows = trace.wait_for.rows
        waits = np.zeros(len(trace), bool)
        waits[rows[trace.wait_for.values == before[rows]]] = True
        before[~waits] = -1
    return before


def histories(trace: Trace) -> NDArray[np.int64]:
    """The column ``history`` of a trace, from its sessions where it has none: the number of a first row; shape (n,)."""
    return _ends(carried_on(trace))


def _ends(following: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where one comes from each row by going on to the row that follows it (-1 or itself: none); shape (n,)."""
    end = np.where(following < 0, np.arange(len(following)), following)
    while (end != (further := end[end])).any():
        end = further
    return end


def _rows_by_stream(trace: Trace) -> dict[int, int]:
    """How many rows have each stream, in the prompt or as what they generate."""
    assert trace.segments is not None
    streams = trace.segments.values[0::3]
    rows = trace.segments.rows[0::3]
    n = len(trace)
    own = np.arange(n)
    pairs = np.unique(np.stack((np.append(streams, -1 - own), np.append(rows, own))), axis=1)
    return dict(zip(*(part.tolist() for part in np.unique(pairs[0], return_counts=True)), strict=True))


def _leading(flags: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags of each row are set before the first that is not; shape (n,)."""
    unset = np.append(np.flatnonzero(~flags), len(flags))
    first = unset[np.searchsorted(unset, offsets[:-1])]
    leading: NDArray[np.int64] = np.minimum(first, offsets[1:]) - offsets[:-1]
    return leading


def view(column: NDArray[np.int64]) -> memoryview[int]:
    """Elements one by one, three times as fast."""
    return memoryview(np.ascontiguousarray(column, np.int64))  # type: ignore[arg-type]
