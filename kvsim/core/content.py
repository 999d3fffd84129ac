"""What prompts say, as far as it matters: which tokens of two requests are equal."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Trace

Segment: TypeAlias = tuple[int, int, int]
"""(stream, first, tokens): tokens ``first`` to ``first + tokens - 1`` of an endless stream of tokens. Two tokens are
equal exactly if stream and position are. Stream -1 - i is what row i generates; others are numbered from 0."""


class Content:
    """The tokens with which a request begins, as far as another one may have the same: ``tokens`` of them.

    What follows them (the rest of the prompt, and what is generated) nobody else has. ``table`` belongs to the KV pool.

    >>> one, other = Content([(0, 0, 40), (1, 0, 8)]), Content([(0, 0, 32), (0, 32, 8), (2, 0, 9)])
    >>> one.common(other, 0), one.cut(32, 16)
    (40, ((0, 32, 8), (1, 0, 8)))
    """

    __slots__ = ("segments", "starts", "table", "tokens")

    def __init__(self, segments: Sequence[Segment] = ()) -> None:
        self.segments: list[Segment] = []
        self.starts: list[int] = []
        self.tokens = 0
        self.table: object = None
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
        """So many tokens from ``start`` on: equal for two contents exactly if the tokens are."""
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

    def common(self, other: Content, start: int) -> int:
        """The first token from ``start`` on at which the two differ or one of them ends."""
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
    """The contents of a trace's rows, made when they are asked for."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._rows_of: dict[int, int] | None = None
        if trace.segments is not None:
            self._rows_of = _rows_by_stream(trace)
        elif trace.prefix_hashes is not None:
            ids = trace.prefix_hashes.values
            often = np.bincount(ids) > 1 if len(ids) else np.empty(0, bool)
            self._shared_ids: NDArray[np.int64] = _leading(often[ids], trace.prefix_hashes.offsets)

    def __bool__(self) -> bool:
        """False if no two rows share anything."""
        if self._rows_of is not None:
            return any(rows > 1 for rows in self._rows_of.values())
        return self._trace.prefix_hashes is not None and bool(self._shared_ids.any())

    def of(self, row: int, output_tokens: int) -> Content | None:
        """What others may have in common with this row, or None: nothing."""
        segments = self._by_segments(row, output_tokens) if self._rows_of is not None else self._by_hashes(row)
        return Content(segments) if segments else None

    def _by_hashes(self, row: int) -> list[Segment]:
        hashes, size = self._trace.prefix_hashes, self._trace.hash_block_tokens
        shared = int(self._shared_ids[row])
        if not shared:
            return []
        assert hashes is not None
        assert size is not None
        start = int(hashes.offsets[row])
        segments = [(stream, 0, size) for stream in hashes.values[start : start + shared].tolist()]
        over = shared * size - int(self._trace.prompt_tokens[row])
        if over > 0:
            segments[-1] = (segments[-1][0], 0, size - over)
        return segments

    def _by_segments(self, row: int, output_tokens: int) -> list[Segment]:
        assert self._trace.segments is not None
        assert self._rows_of is not None
        values = self._trace.segments.row(row).tolist()
        segments = [*zip(values[0::3], values[1::3], values[2::3], strict=True), (-1 - row, 0, output_tokens)]
        for i, (stream, _, _) in enumerate(segments):
            if self._rows_of.get(stream, 0) < 2:
                return segments[:i]
        return segments


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
