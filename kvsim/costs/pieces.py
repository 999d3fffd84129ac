"""Steps of a rank whose attention is no straight line in the context: linear piece by piece, and windows."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import frexp, inf, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core import operators
from kvsim.core.hardware import Gpu
from kvsim.core.layers import Attention
from kvsim.core.shape import BatchShape
from kvsim.core.surface import Factor, Surface, octave
from kvsim.costs.rank import Counts, Rank, Seconds, Timed
from kvsim.costs.stretch import ARRAY_FROM_STEPS

Pieces = tuple[list[int], list[float], list[float]]
"""Decode attention for one number of requests, linear in the sum of their contexts piece by piece: where a piece
starts, seconds there, seconds per token. One start more, out of reach, ends the list."""

SPANS: Final = np.array(
    sorted({base * step // 4 for base in (2**i for i in range(22)) for step in (4, 5, 6, 7) if base * step >= 4})
)
"""Mean contexts between which decode attention is linear: four to an octave, as integers."""

QUARTERS: Final = (-0.863, -0.523, 0.0, 1.386)
"""Means of the four quarters of an exponential distribution of mean 0 and deviation 1. A batch of decodes is taken as
four groups whose contexts lie so about their mean: with windows, which need more than the mean of the contexts, the
tokens read by a batch are then off by at most 13 % where lengths are constant, uniform, normal, exponential or
log-normal (deviation 1 of the logarithm), whatever the window; by the mean alone it would be 50 %."""

_ARRAY_WITH_WINDOWS_FROM: Final = 32
"""Shorter stretches are cheaper as a list (measured: 0.6 to 2 us a step, against 50 to 80 us an array)."""

_TOGETHER: Final = 32
_PRICED_TOGETHER: Final = 256


class PiecedStep:
    """Prices steps of one rank. ``generic_operators`` and ``notes``: what a user of the result should know; ``spread``:
    how sure the time of each kind of operator is, as in ``roofline``."""

    __slots__ = (
        "_head_s",
        "_host_request_s",
        "_linear_s",
        "_prefills",
        "_rank",
        "_whole",
        "_windows",
        "generic_operators",
        "host_s",
        "longest_last",
        "notes",
        "reads_squares",
        "spread",
    )

    def __init__(
        self,
        rank: Rank,
        prefills: Iterable["Prefill"],
        host_s: float = 0.0,
        host_request_s: float = 0.0,
        generic_operators: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        spread: Mapping[str, float] | None = None,
    ) -> None:
        self._rank = rank
        self._prefills = tuple(prefills)
        self._host_request_s = host_request_s
        self.host_s = host_s
        self._linear_s: dict[int, float] = {}
        self._head_s: dict[int, float] = {0: 0.0}
        whole = [(mixer, count) for mixer, count in rank.mixers if _window(mixer) == inf]
        self._whole = _Decodes(rank, whole, host_request_s)
        self._windows = tuple(
            (_window(mixer), mixer.kind == "chunked", _Decodes(rank, [(mixer, count)], 0.0))
            for mixer, count in rank.mixers
            if _window(mixer) < inf
        )
        # More context takes more time, the pieces are made so; but a chunk of context ends, and is read no more.
        self.longest_last = not any(chunked for _, chunked, _ in self._windows)
        self.reads_squares = bool(self._windows)
        self.generic_operators, self.notes, self.spread = generic_operators, notes, spread or {}

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step."""
        tokens = shape.prefill_tokens
        decodes = shape.decode_requests
        try:
            step_s = self._linear_s[tokens + decodes] + self._head_s[shape.sampled_requests]
        except KeyError:
            step_s = self._linear_and_head_s(tokens + decodes, shape.sampled_requests)
        if tokens:
            step_s += shape.prefill_requests * self._host_request_s
            for prefill in self._prefills:
                step_s += prefill.seconds(shape)
        if decodes:
            starts, seconds, slopes = self._whole.known.get(decodes) or self._whole.pieces(decodes)
            context = shape.decode_context_tokens
            piece = bisect_right(starts, context) - 1
            step_s += seconds[piece] + (context - starts[piece]) * slopes[piece]
            if self._windows:
                step_s += self._windows_s(decodes, context, _spread(shape))
        return step_s

    def _windows_s(self, decodes: int, context: int, spread: float) -> float:
        """Seconds of the decodes' attention in layers with a window, for a sum of contexts and their deviation."""
        mean = context / decodes
        if spread > mean:
            spread = mean
        groups = [mean + spread * place for place in QUARTERS]
        total_s = 0.0
        for window, chunked, kind in self._windows:
            read: float = context
            if groups[3] >= window - 1:
                one, two, three, four = (
                    [group % window for group in groups]
                    if chunked
                    else [group if group < window - 1 else window - 1 for group in groups]
                )
                read = decodes * (one + two + three + four) / 4
            starts, seconds, slopes = kind.known.get(decodes) or kind.pieces(decodes)
            piece = bisect_right(starts, read) - 1
            total_s += seconds[piece] + (read - starts[piece]) * slopes[piece]
        return total_s

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` decode steps, (steps,): every decode gains a token of context per step."""
        decodes = shape.decode_requests
        try:
            fixed_s = self._linear_s[decodes] + self._head_s[shape.sampled_requests]
        except KeyError:
            fixed_s = self._linear_and_head_s(decodes, shape.sampled_requests)
        starts, seconds, slopes = self._whole.known.get(decodes) or self._whole.pieces(decodes)
        first = shape.decode_context_tokens
        end = first + steps * decodes
        if self._windows:
            spread = _spread(shape)
            if steps < _ARRAY_WITH_WINDOWS_FROM:
                found = []
                for context in range(first, end, decodes):
                    piece = bisect_right(starts, context) - 1
                    step_s = fixed_s + (seconds[piece] + (context - starts[piece]) * slopes[piece])
                    found.append(step_s + self._windows_s(decodes, context, spread))
                return found
            contexts = np.arange(first, end, decodes)
            whole_s = fixed_s + _look_up(contexts, starts, seconds, slopes)
            return whole_s + self._stretch_windows_s(decodes, contexts, spread)
        piece = bisect_right(starts, first) - 1
        start, start_s, slope = starts[piece], seconds[piece], slopes[piece]
        if end - decodes < starts[piece + 1]:  # all on one piece, as most are
            if steps < ARRAY_FROM_STEPS:
                return [fixed_s + (start_s + (context - start) * slope) for context in range(first, end, decodes)]
            together = np.arange(first - start, end - start, decodes, dtype=np.float64)
            together *= slope
            together += start_s
            together += fixed_s
            return together
        return _look_up(np.arange(first, end, decodes), starts, seconds, slopes) + fixed_s

    def _stretch_windows_s(self, decodes: int, contexts: Counts, spread: float) -> Seconds:
        """As ``_windows_s`` for the sums of contexts (steps,) of a stretch, in which their deviation stays."""
        means = contexts / decodes
        spreads = np.minimum(spread, means)
        groups = [means + spreads * place for place in QUARTERS]
        total_s: Seconds = np.zeros(len(contexts))
        for window, chunked, kind in self._windows:
            reads: NDArray[Any] = contexts
            if groups[3][-1] >= window - 1:
                one, two, three, four = (
                    np.remainder(group, window) if chunked else np.minimum(group, window - 1) for group in groups
                )
                reads = np.where(groups[3] >= window - 1, decodes * (one + two + three + four) / 4, contexts)
            total_s += _look_up(reads, *(kind.known.get(decodes) or kind.pieces(decodes)))
        return total_s

    def _linear_and_head_s(self, tokens: int, sampled: int) -> float:
        return linear_and_head_s(self._rank, self._linear_s, self._head_s, tokens, sampled)


class _Decodes:
    """Decode attention of some layers as pieces, by number of requests; what was asked for before is in ``known``."""

    __slots__ = ("_mixers", "_rank", "_request_s", "known")

    def __init__(self, rank: Rank, mixers: Sequence[tuple[Timed, int]], request_s: float) -> None:
        self._rank, self._mixers, self._request_s = rank, tuple(mixers), request_s
        self.known: dict[int, Pieces] = {}

    def pieces(self, decodes: int) -> Pieces:
        """A number of decodes that is met for the first time: price its neighbours too, in one go."""
        first = max(1, decodes - decodes % _TOGETHER)
        counts = np.arange(first, decodes - decodes % _TOGETHER + _TOGETHER)
        self.known.update(zip(counts.tolist(), self._price(counts), strict=True))
        return self.known[decodes]

    def _price(self, decodes: Counts) -> Iterator[Pieces]:
        """Pieces for each number of requests (c,), with their host time."""
        # A decode attends its context and its own token.
        starts = np.outer(SPANS - 1, decodes)
        totals_s: Seconds = np.zeros(starts.shape)
        for mixer, count in self._mixers:
            totals_s = totals_s + count * self._rank.decode_s(mixer, np.outer(SPANS, decodes), decodes)
        totals_s += decodes * self._request_s
        seconds, slopes = [totals_s[0]], []
        for j in range(1, len(starts)):
            width = starts[j] - starts[j - 1]
            slopes.append(np.maximum(totals_s[j] - seconds[-1], 0.0) / width)
            seconds.append(seconds[-1] + width * slopes[-1])  # so that the pieces meet to the last bit
        columns = (starts.T.tolist(), np.array(seconds).T.tolist(), np.array(slopes).T.tolist())
        return zip(*columns, strict=True)


class Prefill:
    """Prefill attention of the ``layers`` with one kind of it, for one step at a time: the roofline, or a surface
    sliced at this model's heads.

    With a window the chunks of a step are taken as equal ones with the mean position of its tokens; without, and for
    one chunk, no such thing is needed.
    """

    def __init__(self, rank: Rank, mixer: Timed, layers: int, gpu: Gpu, surface: Surface | None = None) -> None:
        pair_flops, kv_bytes, query_bytes = rank.attention_sizes(mixer, prompt=True)
        self._heads = heads = mixer.heads // rank.tp
        compute, memory, self._fixed_s = 1.0, 1.0, operators.ATTENTION_START_S * layers
        self._walk_blocks = float(gpu.sm_count or 0)  # SMs that wait for one block, in units of a block's work
        if surface is None:
            fitted = rank.efficiency["prefill_attention"]
            compute, memory, self._fixed_s = fitted.compute, fitted.memory, fitted.fixed_s * layers
        scale = rank.scale["prefill_attention"]
        self._fixed_s *= scale
        self._measured = surface is not None
        self._pair_s = scale * pair_flops / heads * layers / (gpu.bf16_flops_per_s * compute)  # per query head
        bytes_per_s = gpu.hbm_bytes_per_s * memory / scale
        self._kv_token_s = kv_bytes * layers / bytes_per_s
        self._query_token_s = query_bytes * layers / bytes_per_s
        kv_heads = mixer.rank_kv_heads(rank.layout) if isinstance(mixer, Attention) else heads
        self._spans, self._blocks, self._utilisation = _slice(
            surface.utilisation if surface else None, heads / kv_heads
        )
        self._mixer, self._window = mixer, _window(mixer)
        self._restored_s = 0.0  # keys and values of a latent context, made again for each chunk
        if not isinstance(mixer, Attention):
            self._restored_s = layers * float(rank.restored_s(mixer, np.array([_MANY]))[0]) / _MANY

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of the chunks of a step, layers together: ``operators.prefill_attention`` on single numbers."""
        tokens, requests = shape.prefill_tokens, shape.prefill_requests
        context = float(shape.prefill_context_tokens)
        pairs = shape.prefill_chunk_contexts + shape.prefill_chunk_squares / 2
        if self._window < inf:
            behind, chunk = shape.prefill_chunk_contexts / tokens, shape.prefill_chunk_squares / tokens
            assert isinstance(self._mixer, Attention)
            pairs = tokens * (self._mixer.pairs(behind + chunk) - self._mixer.pairs(behind)) / chunk
            context = min(context, requests * self._window)
        kv_tokens = context + tokens
        memory_s = kv_tokens * self._kv_token_s + tokens * self._query_token_s
        restored_s = context * self._restored_s
        if not self._measured:
            return max(pairs * self._heads * self._pair_s, memory_s) + self._fixed_s + restored_s
        blocks = -(-tokens // (operators.QUERY_ROWS * requests))
        work = self._heads * pairs * (blocks * operators.QUERY_ROWS * requests / tokens)
        walked = kv_tokens / requests
        if walked > self._window + operators.QUERY_ROWS:
            walked = self._window + operators.QUERY_ROWS
        walk = operators.QUERY_ROWS * walked * self._walk_blocks
        arithmetic_s = (work if work > walk else walk) * self._pair_s
        bound_s = (arithmetic_s if arithmetic_s > memory_s else memory_s) + self._fixed_s
        i, right = _place(self._spans, pairs / tokens)
        j, up = _place(self._blocks, requests * self._heads * blocks)
        low, high = self._utilisation[i], self._utilisation[i + 1]
        below = low[j] + (high[j] - low[j]) * right
        above = low[j + 1] + (high[j + 1] - low[j + 1]) * right
        return bound_s / (below + (above - below) * up) + restored_s


_MANY: Final = 8192
"""Tokens at which a matrix that restores a latent context is priced."""


def linear_and_head_s(
    rank: Rank, linear_s: dict[int, float], head_s: dict[int, float], tokens: int, sampled: int
) -> float:
    """Seconds for a pair of counts of which one is met for the first time; what is found is kept in the two tables."""
    # Surfaces begin at one token.
    _price_neighbours(linear_s, lambda counts: rank.linear_s(np.maximum(counts, 1)), tokens)
    _price_neighbours(head_s, lambda counts: rank.head_s(np.maximum(counts, 1)), sampled)
    head_s[0] = 0.0  # no sample, no head
    return linear_s[tokens] + head_s[sampled]


def _price_neighbours(known: dict[int, float], price: Callable[[Counts], Seconds], count: int) -> None:
    """If this count has no price yet, give it one, and its neighbours too: in one go they hardly cost more."""
    if count not in known:
        first = count - count % _PRICED_TOGETHER
        counts = np.arange(first, first + _PRICED_TOGETHER)
        known.update(zip(counts.tolist(), price(counts).tolist(), strict=True))


def _window(mixer: Timed) -> float:
    """Tokens that a query sees at most."""
    window = mixer.window if isinstance(mixer, Attention) else None
    return inf if window is None else float(window)


def _spread(shape: BatchShape) -> float:
    """The standard deviation of the decodes' contexts, from sums that are exact."""
    decodes, context = shape.decode_requests, shape.decode_context_tokens
    return sqrt(max(decodes * shape.decode_context_squares - context * context, 0)) / decodes


def _look_up(reads: NDArray[Any], starts: list[int], seconds: list[float], slopes: list[float]) -> Seconds:
    """Seconds of decode attention for sums of contexts, (n,)."""
    pieces = np.searchsorted(starts, reads, side="right") - 1
    found: Seconds = np.array(seconds)[pieces] + (reads - np.array(starts)[pieces]) * np.array(slopes)[pieces]
    return found


def _slice(utilisation: Factor | None, group: float) -> tuple[list[float], list[float], list[list[float]]]:
    """Knots of span and of blocks as octaves, and the utilisation over both for one group of heads."""
    if utilisation is None:
        return [], [], []
    spans, blocks = (np.array(utilisation.axes[name]) for name in ("span", "blocks"))
    span, block = (each.ravel() for each in np.meshgrid(spans, blocks, indexing="ij"))
    values = utilisation.at({"span": span, "blocks": block, "group": np.full(len(span), group)})
    return octave(spans).tolist(), octave(blocks).tolist(), values.reshape(len(spans), -1).tolist()


def _place(places: Sequence[float], x: float) -> tuple[int, float]:
    """The piece between knots in which ``octave(x)`` lies, and how far right in it, 0 to 1; the edge beyond them."""
    mantissa, exponent = frexp(x)
    place = exponent + (2.0 * mantissa - 2.0)
    if place <= places[0]:
        return 0, 0.0
    if place >= places[-1]:
        return len(places) - 2, 1.0
    piece = bisect_right(places, place) - 1
    return piece, (place - places[piece]) / (places[piece + 1] - places[piece])
