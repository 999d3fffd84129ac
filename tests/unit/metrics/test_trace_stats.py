"""Statistics of tiny traces, by hand; caches against an obvious simulation."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim.core.trace import FailedRows, Ragged, Trace
from kvsim.metrics.trace_stats import describe, leading_hits, lru_hits
from kvsim.workload.readers.prefixes import chained


def ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    return chained(
        np.array([each for row in rows for each in row], np.int64), np.cumsum([0, *map(len, rows)]).astype(np.int64)
    )


def test_a_small_trace_by_hand() -> None:
    trace = Trace(
        np.array([0, 1, 1, 121]) * 10**9,
        np.array([10, 20, 30, 40]),
        np.array([4, 3, 2, 1]),
        session=np.array([0, 0, -1, 0]),
        think_ns=np.array([0, 1, 0, 60]) * 10**9,
        tenant=np.array([1, 1, 0, -1]),
        tenant_names=["a", "b"],
        priority=np.array([-1, 0, 0, 5]),
        wait_for=Ragged(np.array([0, 0, 1]), np.array([0, 0, 1, 1, 3])),
        prefix_hashes=ragged([[1], [1, 2], [5, 6], [1, 2, 9]]),
        hash_block_tokens=16,
        source_failed=FailedRows(np.array([0]), np.array([60 * 10**9]), np.array([0]), session=np.array([1])),
        elapsed_ns=np.array([2, -1, 3, 4]) * 10**9,
    )
    found = describe(trace, [1, 3])
    assert found["arrivals"] == {
        "span_s": 121.0,
        "requests_per_min": 5 / 121 * 60,
        "requests_per_min_min": 1,
        "requests_per_min_max": 3,
        "empty_minutes": 0,
        "requests_per_s_max": 2,
        "gap_cv": pytest.approx(np.std([1, 0, 59, 61]) / 30.25),
        "longest_gap_s": 61.0,
        "tied": 1,
        "distinct_times": 4,
    }
    assert found["length_correlation"] == pytest.approx(-1)
    assert found["sessions"]["sessions"] == 2  # the only turn of one failed
    assert found["sessions"]["gap_cv"] == pytest.approx(np.std([1, 120]) / 60.5)
    assert found["sessions"]["gaps_over_300_s_frac"] == 0
    assert found["elapsed_s"]["mean"] == 3
    assert found["sessions"]["requests_outside"] == 1
    assert found["sessions"]["think_s"]["mean"] == 30.5
    assert found["tenants"] == {"b": 2, "null": 2, "a": 1}
    assert found["priorities"] == {"0": 2, "-1": 1, "5": 1}
    assert found["waits"] == {"first": 2, "after_one": 1, "after_several": 1}
    assert found["prefix"] == {
        "block_tokens": 16,
        "blocks": 8,
        "distinct_blocks": 5,
        "blocks_used_once": 3,
        "hit_blocks_frac": 3 / 8,  # 1; 1 2
        "hit_tokens_frac": (16 + 32) / 100,
        "requests_hit_in_full": 0,
        "lru_hit_blocks_frac": {"1": 1 / 8, "3": 1 / 8},
    }


def obvious(rows: Sequence[Sequence[int]], size: float) -> list[int]:
    """Prefixes (tuples) in a list, the least recently used first."""
    cache: list[tuple[int, ...]] = []
    hits = []
    for row in rows:
        prefixes = [tuple(row[: k + 1]) for k in range(len(row))]
        found = 0
        while found < len(row) and prefixes[found] in cache:
            found += 1
        hits.append(found)
        for prefix in prefixes:
            if prefix in cache:
                cache.remove(prefix)
            cache.append(prefix)
        cache = cache[max(0, len(cache) - size) :] if size < 1e9 else cache  # type: ignore[misc]
    return hits


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=12), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_hits_are_those_of_an_obvious_cache(rows: list[list[int]], size: int) -> None:
    """Contents of blocks are drawn, not chained: ``chained`` has to tell 2 after 1 from 2 after 3."""
    hashes = ragged(rows)
    assert leading_hits(hashes).tolist() == obvious(rows, 1e9)
    assert lru_hits(hashes, size).tolist() == obvious(rows, size)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=6), max_size=10))
@settings(max_examples=200, deadline=None)
def test_chained_ids_are_equal_where_prefixes_are(rows: list[list[int]]) -> None:
    values = np.array([each for row in rows for each in row], np.uint64)
    hashes = chained(values, np.cumsum([0, *map(len, rows)]).astype(np.int64))
    number: dict[tuple[int, ...], int] = {}
    expected = [[number.setdefault(tuple(row[: k + 1]), len(number)) for k in range(len(row))] for row in rows]
    assert [hashes.row(i).tolist() for i in range(len(rows))] == expected
