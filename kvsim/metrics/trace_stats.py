"""What a trace is like: volume, burstiness, lengths, sessions, and what a prefix cache could find."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged, Trace

LRU_BLOCKS: Final = (1_000, 5_000, 10_000, 30_000, 50_000)
"""Sizes of LRU caches, in blocks of the trace, for which hits are counted if nobody asks for others."""
MOST_BLOCKS_TO_REPLAY: Final = 5_000_000
"""A trace with more blocks is replayed through LRU caches only if asked: it takes about 0.2 s per million and size."""
MOST_NAMES: Final = 20


def describe(trace: Trace, lru_blocks: Sequence[int] | None = None) -> dict[str, Any]:
    """Statistics of a trace as plain data; a part that the trace has nothing for is None.

    ``arrivals``, the lengths with ``_with_failed``, ``models``, ``tenants`` and the number of sessions cover every row
    of the file, also those that failed in the traced system (no output); everything else covers the requests to be
    replayed. ``elapsed_s`` is how long the traced system took. ``gap_cv`` is standard deviation over mean
    of the gaps between arrivals; minutes and seconds are counted from the first row; percentiles are NumPy's
    ``linear``. ``lru_blocks`` are sizes of the caches under ``prefix`` (default LRU_BLOCKS, unless the trace has more
    than MOST_BLOCKS_TO_REPLAY blocks).
    """
    rows = trace.rows
    failed_ns = trace.source_failed.arrival_ns if trace.source_failed is not None else np.empty(0, np.int64)
    time_ns = np.sort(np.concatenate((trace.arrival_ns, failed_ns)))
    return {
        "format": trace.format,
        "sha256": trace.sha256,
        "rows": {
            "read": rows.read if rows else len(trace),
            "replayed": len(trace),
            "source_failed": rows.source_failed if rows else 0,
            "dropped": sum(rows.dropped.values()) if rows else 0,
            "dropped_by_reason": dict(sorted(rows.dropped.items())) if rows else {},
        },
        "arrivals": _arrivals(time_ns),
        "prompt_tokens": distribution(trace.prompt_tokens),
        "output_tokens": distribution(trace.output_tokens),
        **_lengths_with_failed(trace),
        "length_correlation": _correlation(trace.prompt_tokens, trace.output_tokens),
        "sessions": None if trace.session is None else _sessions(trace, trace.session),
        "waits": None if trace.wait_for is None else _waits(trace.wait_for),
        "elapsed_s": None if trace.elapsed_ns is None else distribution(trace.elapsed_ns[trace.elapsed_ns >= 0] / 1e9),
        "models": _shares(_of_all(trace, "model"), trace.model_names),
        "tenants": _shares(_of_all(trace, "tenant"), trace.tenant_names),
        "priorities": _counts(trace.priority),
        "images": None if trace.images is None else distribution(trace.images),
        "deadlines_s": None
        if trace.deadline_ns is None
        else distribution(trace.deadline_ns[trace.deadline_ns >= 0] / 1e9),
        "prefix": None if trace.prefix_hashes is None else _prefix(trace, trace.prefix_hashes, lru_blocks),
    }


def distribution(values: NDArray[Any]) -> dict[str, float] | None:
    """Mean, percentiles, largest and smallest of an array; None if it is empty."""
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    ends = {"max": values.max().item(), "min": values.min().item()}
    return {"mean": float(values.mean()), "p50": p50, "p90": p90, "p99": p99, **ends}


def _arrivals(time_ns: NDArray[np.int64]) -> dict[str, Any]:
    since_ns = time_ns - time_ns[0]
    gaps_s = np.diff(since_ns) / 1e9
    span_s = float(since_ns[-1]) / 1e9
    mean_s = float(gaps_s.mean()) if len(gaps_s) else 0.0
    per_min = np.bincount(since_ns // (60 * 10**9)) if span_s < 10**8 else None
    _, per_s = np.unique(since_ns // 10**9, return_counts=True)
    return {
        "span_s": span_s,
        "requests_per_min": len(time_ns) / span_s * 60 if span_s else None,
        "requests_per_min_min": None if per_min is None else int(per_min.min()),
        "requests_per_min_max": None if per_min is None else int(per_min.max()),
        "empty_minutes": None if per_min is None else int((per_min == 0).sum()),
        "requests_per_s_max": int(per_s.max()),
        "gap_cv": float(gaps_s.std()) / mean_s if mean_s else None,
        "longest_gap_s": float(gaps_s.max()) if len(gaps_s) else None,
        "tied": int((gaps_s == 0).sum()),
        "distinct_times": 1 + int((gaps_s > 0).sum()),
    }


def _lengths_with_failed(trace: Trace) -> dict[str, Any]:
    prompts = trace.source_failed.prompt_tokens if trace.source_failed is not None else ()
    if not len(prompts):
        return {"prompt_tokens_with_failed": None, "output_tokens_with_failed": None}
    return {
        "prompt_tokens_with_failed": distribution(np.concatenate((trace.prompt_tokens, prompts))),
        "output_tokens_with_failed": distribution(np.concatenate((trace.output_tokens, np.zeros_like(prompts)))),
    }


def _correlation(prompt: NDArray[np.int64], output: NDArray[np.int64]) -> float | None:
    """Pearson's, None if one of them is constant."""
    if len(prompt) < 2 or not prompt.std() or not output.std():
        return None
    return float(np.corrcoef(prompt, output)[0, 1])


def _of_all(trace: Trace, name: str) -> NDArray[np.int64] | None:
    """A column of the requests and of the rows that failed; -1 where nothing is known of these."""
    column: NDArray[np.int64] | None = getattr(trace, name)
    failed = trace.source_failed
    if column is None or failed is None:
        return column
    of_failed = getattr(failed, name)
    return np.concatenate((column, np.full(len(failed), -1) if of_failed is None else of_failed))


def _sessions(trace: Trace, session: NDArray[np.int64]) -> dict[str, Any]:
    inside = session >= 0
    if not inside.any():
        return {"sessions": 0, "requests_outside": len(session)}
    numbers, first, own, turns = np.unique(session[inside], return_index=True, return_inverse=True, return_counts=True)
    every = _of_all(trace, "session")
    assert every is not None
    time_ns = trace.arrival_ns[inside]
    by_session = np.argsort(own, kind="stable")
    gaps_s = np.diff(time_ns[by_session])[np.diff(own[by_session]) == 0] / 1e9
    mean_s = float(gaps_s.mean()) if len(gaps_s) else 0.0
    last_ns = np.zeros(len(numbers), np.int64)
    np.maximum.at(last_ns, own, time_ns)
    later = np.ones(int(inside.sum()), np.bool_)
    later[first] = False
    think_s = None if trace.think_ns is None else trace.think_ns[inside][later] / 1e9
    return {
        "sessions": len(np.unique(every[every >= 0])),
        "requests_outside": int((~inside).sum()),
        "single_turn_frac": float((turns == 1).mean()),
        "gap_cv": float(gaps_s.std()) / mean_s if mean_s else None,
        "gaps_over_300_s_frac": float((gaps_s > 300).mean()) if len(gaps_s) else None,
        "turns": distribution(turns),
        "length_s": distribution((last_ns - time_ns[first]) / 1e9),
        "think_s": None if think_s is None else distribution(think_s),
    }


def _waits(wait_for: Ragged) -> dict[str, Any]:
    counts = wait_for.counts
    return {
        "first": int((counts == 0).sum()),
        "after_one": int((counts == 1).sum()),
        "after_several": int((counts > 1).sum()),
    }


def _shares(numbers: NDArray[Any] | None, names: Sequence[Any] | None) -> dict[str, int] | None:
    """Requests by name, the most frequent first; beyond MOST_NAMES together. Rows without a name are ``null``."""
    if numbers is None:
        return None
    found, counts = np.unique(numbers, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    named = [
        ("null" if k < 0 else str(names[k] if names is not None else k), count)
        for k, count in zip(found[order].tolist(), counts[order].tolist(), strict=True)
    ]
    shares = dict(named[:MOST_NAMES])
    if len(named) > MOST_NAMES:
        shares[f"{len(named) - MOST_NAMES} others"] = sum(count for _, count in named[MOST_NAMES:])
    return shares


def _counts(values: NDArray[np.int64] | None) -> dict[str, int] | None:
    """Requests by value, the most frequent first; beyond MOST_NAMES together."""
    if values is None:
        return None
    distinct, numbers = np.unique(values, return_inverse=True)
    return _shares(numbers, distinct.tolist())


def _prefix(trace: Trace, hashes: Ragged, lru_blocks: Sequence[int] | None) -> dict[str, Any]:
    block_tokens = trace.hash_block_tokens or 1
    blocks = len(hashes.values)
    uses = np.bincount(hashes.values)
    hit = leading_hits(hashes)
    hit_tokens = np.minimum(hit * block_tokens, trace.prompt_tokens)
    if lru_blocks is None:
        lru_blocks = LRU_BLOCKS if blocks <= MOST_BLOCKS_TO_REPLAY else ()
    return {
        "block_tokens": block_tokens,
        "blocks": blocks,
        "distinct_blocks": int((uses > 0).sum()),
        "blocks_used_once": int((uses == 1).sum()),
        "hit_blocks_frac": float(hit.sum()) / blocks if blocks else None,
        "hit_tokens_frac": float(hit_tokens.sum()) / float(trace.prompt_tokens.sum()),
        "requests_hit_in_full": int((hit_tokens == trace.prompt_tokens).sum()),
        "lru_hit_blocks_frac": {
            str(size): float(lru_hits(hashes, size).sum()) / blocks if blocks else None for size in lru_blocks
        },
    }


def leading_hits(hashes: Ragged) -> NDArray[np.int64]:
    """Blocks of each row, from its start, that an earlier row had: hits in a cache that keeps everything, (n,) int64.

    Ids stand for a block and everything before it, so what was seen before is always a prefix of the row.
    """
    rows = hashes.rows
    first_row = np.full(int(hashes.values.max(initial=-1)) + 1, -1, np.int64)
    first_row[hashes.values[::-1]] = rows[::-1]  # the first appearance is written last
    return np.bincount(rows[first_row[hashes.values] < rows], minlength=len(hashes))


def lru_hits(hashes: Ragged, blocks: int) -> NDArray[np.int64]:
    """Blocks of each row, from its start, found in one LRU cache of so many blocks, (n,) int64.

    Rows are looked up in order; a row's blocks then become the most recently used, its last block the most recent.
    """
    cache: OrderedDict[int, None] = OrderedDict()  # in order of use
    hits = np.zeros(len(hashes), np.int64)
    for i in range(len(hashes)):
        ids = hashes.row(i).tolist()
        found = 0
        for each in ids:
            if each not in cache:
                break
            found += 1
        hits[i] = found
        for each in ids:
            cache[each] = None
            cache.move_to_end(each)
        while len(cache) > blocks:
            cache.popitem(last=False)
    return hits
