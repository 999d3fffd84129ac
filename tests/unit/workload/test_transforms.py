"""limit and rate_scale: what changes, what does not, and rows that still add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload import limit, rate_scale


def trace_of(n: int, **extra: object) -> Trace:
    step = np.arange(n, dtype=np.int64)
    return Trace(step * 10**9, step + 1, step + 11, **extra)  # type: ignore[arg-type]


def test_limit_cuts_every_column_and_counts_only_rows_up_to_the_last_kept() -> None:
    trace = trace_of(
        5,
        session=np.array([0, 1, 0, -1, 1]),
        think_ns=np.array([0, 0, 7, 0, 9]),
        priority=np.array([5, 4, 3, 2, 1]),
        session_names=["a", "b"],
        rows=TraceRows(read=9, source_failed=4),
        source_failed_before=np.array([0, 2, 3, 5]),
    )
    cut = limit(trace, 3)
    assert cut.arrival_ns.tolist() == [0, 10**9, 2 * 10**9]
    assert (cut.prompt_tokens.tolist(), cut.output_tokens.tolist()) == ([1, 2, 3], [11, 12, 13])
    assert cut.session is not None
    assert cut.think_ns is not None
    assert cut.priority is not None
    assert (cut.session.tolist(), cut.think_ns.tolist(), cut.priority.tolist()) == ([0, 1, 0], [0, 0, 7], [5, 4, 3])
    assert cut.rows == TraceRows(read=5, source_failed=2)  # the failed rows after the third request were not read
    assert cut.rows.replayed == len(cut)


def test_limit_keeps_what_it_cannot_place_in_the_count() -> None:
    trace = trace_of(5, rows=TraceRows(read=9, source_failed=1, dropped={"odd": 3}))
    assert limit(trace, 2).rows == TraceRows(read=6, source_failed=1, dropped={"odd": 3})
    assert limit(trace_of(5), 2).rows == TraceRows(read=2)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 15))
def test_limited_rows_add_up(failed_before: list[int], n: int) -> None:
    rows = TraceRows(read=12 + len(failed_before), source_failed=len(failed_before))
    cut = limit(trace_of(12, rows=rows, source_failed_before=np.sort(np.array(failed_before, np.int64))), n)
    assert cut.rows is not None
    assert cut.rows.replayed == len(cut) == min(n, 12)
    assert limit(cut, n) is cut


def test_rate_scale_divides_arrivals_and_nothing_else() -> None:
    trace = trace_of(3, think_ns=np.array([0, 5, 5]), rows=TraceRows(read=3))
    twice = rate_scale(trace, 3)
    assert twice.arrival_ns.tolist() == [0, 333_333_333, 666_666_667]
    assert twice.think_ns is trace.think_ns
    assert twice.rows == trace.rows
    assert rate_scale(trace, 0.01).arrival_ns.tolist() == [0, 100 * 10**9, 200 * 10**9]
    assert rate_scale(trace, 1) is trace


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 1e-12])
def test_impossible_rates_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match=r"^rate_scale: "):
        rate_scale(trace_of(3), factor)


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"^limit: 0 requests cannot be played; allowed: whole numbers from 1"):
        limit(trace_of(3), 0)
