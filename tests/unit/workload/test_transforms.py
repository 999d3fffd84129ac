"""Transforms: what changes, what does not, and rows that still add up."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.errors import InputError
from kvsim.core.trace import FailedRows, Ragged, Trace, TraceRows, waits_among
from kvsim.testing.readers import trace_fault
from kvsim.workload import limit, rate_scale, read_trace
from kvsim.workload.generate import burstgpt_like, composed
from kvsim.workload.generate import distributions as d
from kvsim.workload.generate.arrivals import Gamma, Poisson
from kvsim.workload.generate.lengths import Independent
from kvsim.workload.generate.prefixes import SystemPrompts
from kvsim.workload.generate.sessions import AgentChains, Chat
from kvsim.workload.transforms import (
    fit_context,
    keep_rows,
    merge,
    merge_file,
    remap,
    repeat,
    resample,
    row_range,
    set_deadlines,
    spread_ties,
    thin,
    window,
)
from kvsim.workload.writers import write_canonical
from tests.unit.workload.equal_traces import same


def failed_rows(before: list[int]) -> FailedRows:
    places = np.sort(np.array(before, np.int64))
    return FailedRows(places, places * 10**9, np.zeros_like(places))


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
        source_failed=failed_rows([0, 2, 3, 5]),
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
    cut = limit(trace_of(12, rows=rows, source_failed=failed_rows(failed_before)), n)
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


# ---- what is left out is counted

SIZES = Independent(d.Lognormal(1, median=200), d.Lognormal(1, median=50))


def full_trace() -> Trace:
    """Agents with sub-agents, shared prefixes, failed rows, tenants: every column there is."""
    agents = AgentChains(steps=d.Constant(6), fan_out_frac=0.3, children=d.Constant(2), child_steps=d.Constant(2))
    trace = composed(
        Poisson(0.02), SIZES, requests=600, sessions=agents, prefixes=SystemPrompts(3), images=d.Uniform(0, 1), seed=1
    )
    n = len(trace)
    failed = np.sort(np.random.default_rng(2).integers(0, n + 1, 40))
    return dataclasses.replace(
        trace,
        priority=np.arange(n) % 3,
        tenant=np.arange(n) % 4 - 1,
        tenant_names=["a", "b", "c"],
        rows=TraceRows(read=n + 45, source_failed=40, dropped={"odd": 5}),
        source_failed=FailedRows(
            failed,
            np.append(trace.arrival_ns, trace.arrival_ns[-1])[failed],
            failed + 1,
            session=failed % 9 - 1,
            tenant=failed % 3,
        ),
    )


LEAVE_OUT = {
    "row_range": (lambda t: row_range(t, 50, 300), "outside row_range"),
    "window": (lambda t: window(t, 100.0, 9_000.0), "outside window"),
    "keep_rows": (lambda t: keep_rows(t, "prompt_tokens", most=2_000), "prompt_tokens filtered"),
    "fit_context drop": (lambda t: fit_context(t, 2_000), "exceeds max_tokens"),
    "fit_context clip": (lambda t: fit_context(t, 2_000, "clip"), "prompt exceeds max_tokens"),
    "thin": (lambda t: thin(t, 0.5), "thinned"),
}


@pytest.mark.parametrize("name", LEAVE_OUT)
def test_what_leaves_rows_out_counts_them_and_cuts_every_column(name: str) -> None:
    trace = full_trace()
    change, reason = LEAVE_OUT[name]
    cut = change(trace)
    assert 0 < len(cut) < len(trace)
    assert cut.rows is not None
    assert cut.rows.read == 645
    failed = cut.rows.source_failed
    assert 0 < failed <= 40
    assert cut.rows.dropped == {"odd": 5, reason: len(trace) - len(cut) + 40 - failed}
    assert cut.rows.replayed == len(cut)
    assert cut.arrival_ns[0] == 0
    for column in ("session", "think_ns", "priority", "tenant", "images", "wait_for", "prefix_hashes"):
        assert len(getattr(cut, column)) == len(cut)
    assert cut.source_failed is not None
    assert len(cut.source_failed) == failed
    assert change(trace).arrival_ns.tolist() == cut.arrival_ns.tolist()


@pytest.mark.parametrize("name", LEAVE_OUT)
def test_nothing_left_is_refused(name: str) -> None:
    nothing = {
        "row_range": lambda t: row_range(t, 700),
        "window": lambda t: window(t, 1e9),
        "keep_rows": lambda t: keep_rows(t, "priority", least=9),
        "fit_context drop": lambda t: fit_context(t, 2),
        "fit_context clip": lambda t: fit_context(t, 2, "clip"),
        "thin": lambda t: thin(t, 1e-12),
    }
    with pytest.raises(InputError):
        nothing[name](full_trace())


def test_a_window_moves_the_origin_to_its_first_request() -> None:
    cut = window(trace_of(10), 2.5, 6.0)
    assert cut.prompt_tokens.tolist() == [4, 5, 6]
    assert cut.arrival_ns.tolist() == [0, 10**9, 2 * 10**9]
    noon = dataclasses.replace(trace_of(10), origin_ns=43_200 * 10**9)
    assert window(noon, 2.5).origin_ns == 43_203 * 10**9
    assert rate_scale(noon, 2).origin_ns is None
    assert len(window(trace_of(10), to_s=3)) == 3


def test_rows_are_kept_by_name_and_by_bounds() -> None:
    trace = dataclasses.replace(trace_of(6), tenant=np.array([0, 1, -1, 0, 1, 1]), tenant_names=["x", "y"])
    assert keep_rows(trace, "tenant", among=("y",)).prompt_tokens.tolist() == [2, 5, 6]
    assert keep_rows(trace, "tenant", among=(0, -1)).prompt_tokens.tolist() == [1, 3, 4]
    assert keep_rows(trace, "prompt_tokens", least=2, most=4).prompt_tokens.tolist() == [2, 3, 4]
    with pytest.raises(
        InputError, match="column: the trace has no column 'model'; it has prompt_tokens, output_tokens, te"
    ):
        keep_rows(trace, "model", among=("z",))
    with pytest.raises(InputError, match="among: no tenant is called 'z'; known: x, y"):
        keep_rows(trace, "tenant", among=("z",))
    with pytest.raises(InputError, match="says nothing about which rows to keep"):
        keep_rows(trace, "tenant")


def test_beyond_the_context_each_policy_does_what_it_says() -> None:
    trace = Trace(np.arange(4), np.array([10, 90, 99, 100]), np.array([10, 20, 1, 1]))
    dropped, clipped = fit_context(trace, 100), fit_context(trace, 100, "clip")
    assert dropped.prompt_tokens.tolist() == [10, 99]
    assert (clipped.prompt_tokens.tolist(), clipped.output_tokens.tolist()) == ([10, 90, 99], [10, 10, 1])
    assert clipped.rows == TraceRows(read=4, dropped={"prompt exceeds max_tokens": 1}, clipped=1)
    assert fit_context(trace, 100, "keep") is trace


# ---- thinning and scaling


def test_thinning_keeps_the_clock_and_scaling_does_not() -> None:
    """Half the requests either way; the hour of the day of what is left differs."""
    trace = burstgpt_like(2, rate=5.0, seed=3)
    thinned, scaled = thin(trace, 0.5), rate_scale(trace, 0.5)
    assert len(thinned) / len(trace) == pytest.approx(0.5, abs=0.02)
    assert thinned.arrival_ns[-1] == pytest.approx(float(trace.arrival_ns[-1]), rel=0.001)
    assert scaled.arrival_ns[-1] == 2 * trace.arrival_ns[-1]

    def by_hour(one: Trace) -> np.ndarray:
        return np.bincount((one.arrival_ns // (3600 * 10**9)).astype(int) % 24, minlength=24) / len(one)

    assert by_hour(thinned) == pytest.approx(by_hour(trace), abs=0.01)
    assert float(np.abs(by_hour(scaled) - by_hour(trace)).max()) > 0.02


def test_a_thinned_poisson_process_is_one() -> None:
    trace = composed(Poisson(8), SIZES, requests=200_000, seed=5)
    gaps = np.diff(thin(trace, 0.25).arrival_ns) / 1e9
    assert float(gaps.mean()) == pytest.approx(0.5, rel=0.02)
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1, rel=0.02)
    assert float(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) == pytest.approx(0, abs=0.02)


def test_thinned_bursts_have_the_dispersion_of_the_closed_form() -> None:
    """Gaps of CV c, each arrival kept with probability p: the squared CV of the new gaps is p c^2 + 1 - p."""
    trace = composed(Gamma(8, 3), SIZES, requests=400_000, seed=6)
    gaps = np.diff(thin(trace, 0.25).arrival_ns) / 1e9
    assert float(gaps.var() / gaps.mean() ** 2) == pytest.approx(0.25 * 9 + 0.75, rel=0.05)


def test_scaling_keeps_the_cv_of_the_gaps() -> None:
    trace = composed(Gamma(8, 3), SIZES, requests=10_000, seed=6)
    before, after = np.diff(trace.arrival_ns), np.diff(rate_scale(trace, 4).arrival_ns)
    assert after.std() / after.mean() == pytest.approx(before.std() / before.mean(), rel=1e-6)
    assert before.mean() / after.mean() == pytest.approx(4, rel=1e-6)


def test_sessions_are_thinned_as_a_whole_with_their_sub_agents() -> None:
    trace = full_trace()
    cut = thin(trace, 0.5, seed=4)
    assert trace.session is not None
    assert cut.session is not None
    assert cut.wait_for is not None
    before = np.bincount(trace.session)
    after = np.bincount(cut.session, minlength=len(before))
    assert ((after == 0) | (after == before)).all()
    assert trace.wait_for is not None
    kept = np.isin(trace.session, np.unique(cut.session))
    assert cut.wait_for.counts.tolist() == trace.wait_for.counts[kept].tolist()  # nobody lost whom they wait for


# ---- ties


def test_tied_rows_are_spread_in_order_and_never_past_the_next_time() -> None:
    arrival = np.array([0, 0, 0, 0, 2, 2, 5], np.int64) * 10**9
    trace = Trace(arrival, np.arange(1, 8), np.ones(7, np.int64))
    spread = spread_ties(trace, 1.0, seed=1)
    first = int(spread.arrival_ns[0])
    assert first == 0
    gaps = np.diff(spread.arrival_ns)
    assert (gaps > 0).all()
    assert spread.prompt_tokens.tolist() == trace.prompt_tokens.tolist()
    assert int(spread.arrival_ns[3]) < 10**9
    wide = spread_ties(trace, 1000.0, seed=1)
    assert (np.diff(wide.arrival_ns) > 0).all()
    assert int(wide.arrival_ns[3]) < 2 * 10**9
    with pytest.raises(InputError, match=r"over_s: 0\.0 is not a positive number"):
        spread_ties(trace, 0.0)


def test_spreading_a_poisson_process_of_whole_seconds_gives_it_back() -> None:
    trace = composed(Poisson(20), SIZES, requests=100_000, seed=7)
    coarse = dataclasses.replace(trace, arrival_ns=trace.arrival_ns // 10**9 * 10**9)
    gaps = np.diff(spread_ties(coarse, 1.0).arrival_ns)
    assert float((np.diff(coarse.arrival_ns) == 0).mean()) > 0.9
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1, rel=0.02)


# ---- more rows


def test_a_resampled_trace_is_made_of_whole_sessions_at_their_times() -> None:
    trace = composed(Poisson(1), SIZES, requests=2_000, sessions=Chat(), hash_block_tokens=64, seed=8)
    assert trace.session is not None
    again = resample(trace, seed=9)
    assert again.session is not None
    assert again.think_ns is not None
    assert again.rows == TraceRows(read=len(again))
    turns = np.bincount(trace.session)
    drawn = np.bincount(again.session)
    assert len(drawn) == len(turns)
    assert set(drawn.tolist()) <= set(turns.tolist())
    assert float(drawn.mean()) == pytest.approx(float(turns.mean()), rel=0.2)
    first = {}
    for row in range(len(again)):
        first.setdefault(int(again.session[row]), row)
    starts = {int(p): int(a) for p, a in zip(trace.prompt_tokens, trace.arrival_ns, strict=True)}
    assert len(starts) > 100
    assert len(set(first.values())) == len(turns)
    assert 0.55 < len(np.unique(again.prefix_hashes.values)) / len(np.unique(trace.prefix_hashes.values)) < 0.72  # type: ignore[union-attr]  # 1 - 1/e
    assert len(resample(trace, 10).session_names or np.unique(resample(trace, 10).session)) == 10


def test_resampled_agents_still_wait_for_their_own() -> None:
    trace = full_trace()
    trace = dataclasses.replace(trace, priority=np.arange(len(trace)))  # who a row was
    again = resample(trace, seed=3)
    assert again.wait_for is not None
    assert trace.wait_for is not None
    assert again.priority is not None
    for row, was in enumerate(again.priority.tolist()):
        waits = again.priority[again.wait_for.row(row)]
        assert sorted(waits.tolist()) == sorted(trace.wait_for.row(was).tolist())


def test_a_repeated_trace_counts_every_time() -> None:
    trace = full_trace()
    thrice = repeat(trace, 3, pause_s=5.0)
    assert len(thrice) == 3 * len(trace)
    assert thrice.rows == TraceRows(read=3 * 645, source_failed=120, dropped={"odd": 15})
    n, last = len(trace), int(trace.arrival_ns[-1])
    assert (thrice.arrival_ns[n : 2 * n] - trace.arrival_ns == last + 5 * 10**9).all()
    assert trace.session is not None
    assert thrice.session is not None
    assert len(np.unique(thrice.session)) == 3 * len(np.unique(trace.session))
    assert thrice.wait_for is not None
    assert (thrice.wait_for.values < thrice.wait_for.rows).all()
    assert thrice.source_failed is not None
    assert trace.source_failed is not None
    assert thrice.source_failed.before[:40].tolist() == trace.source_failed.before.tolist()
    assert repeat(trace, 1) is trace


def test_merged_traces_keep_apart_what_is_apart() -> None:
    one = trace_of(3, session=np.array([0, 0, -1]), tenant=np.array([0, 1, 0]), tenant_names=["x", "y"])
    two = dataclasses.replace(
        trace_of(3, tenant=np.array([0, 0, 0]), tenant_names=["y"], priority=np.array([7, 7, 7])),
        arrival_ns=np.array([0, 5, 20]) * 10**8,
        rows=TraceRows(read=5, source_failed=1, dropped={"odd": 1}),
        source_failed=dataclasses.replace(failed_rows([3]), arrival_ns=np.array([2 * 10**9])),
    )
    both = merge(one, two)
    assert (both.arrival_ns / 1e8).tolist() == [0, 0, 5, 10, 20, 20]
    assert both.prompt_tokens.tolist() == [1, 1, 2, 2, 3, 3]
    assert both.session is not None
    assert both.session.tolist() == [0, -1, -1, 0, -1, -1]
    assert both.tenant is not None
    assert both.tenant_names is not None
    assert [both.tenant_names[k] for k in both.tenant] == ["x", "y", "y", "y", "x", "y"]
    assert both.priority is not None
    assert both.priority.tolist() == [0, 7, 7, 0, 0, 7]
    assert both.rows == TraceRows(read=8, source_failed=1, dropped={"odd": 1})
    assert both.source_failed is not None
    assert both.source_failed.before.tolist() == [6]
    assert merge(one) is one


def test_merged_block_ids_do_not_meet_by_accident() -> None:
    blocks = Ragged(np.array([0, 1, 0]), np.array([0, 2, 3]))
    one = Trace(np.array([0, 2]), np.array([30, 10]), np.array([1, 1]), prefix_hashes=blocks, hash_block_tokens=16)
    two = dataclasses.replace(one, prefix_hashes=Ragged(blocks.values.copy(), blocks.offsets))
    both = merge(one, two)
    assert both.prefix_hashes is not None
    first, other = both.prefix_hashes.row(0).tolist(), both.prefix_hashes.row(1).tolist()
    assert not set(first) & set(other)
    with pytest.raises(InputError, match="block ids of 16 and 32 tokens cannot be merged"):
        merge(one, dataclasses.replace(one, prompt_tokens=one.prompt_tokens * 2, hash_block_tokens=32))


def test_a_file_is_merged(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0.5,700,1\n2.5,800,2\n")
    both = merge_file(trace_of(3), tmp_path / "t.csv")
    assert both.prompt_tokens.tolist() == [1, 700, 2, 3, 800]


# ---- names


def test_tenants_and_models_get_other_names() -> None:
    trace = dataclasses.replace(trace_of(4), model=np.array([0, 1, 2, -1]), model_names=["a", "b", "c"])
    renamed = remap(trace, "model", (("a", "small"), ("b", "small")))
    assert renamed.model is not None
    assert (renamed.model.tolist(), renamed.model_names) == ([0, 0, 1, -1], ["small", "c"])
    every = remap(trace, "model", (("b", "big"), ("*", "rest")))
    assert every.model is not None
    assert (every.model.tolist(), every.model_names) == ([0, 1, 0, -1], ["rest", "big"])
    added = remap(trace, "tenant", (("*", "me"),))
    assert added.tenant is not None
    assert (added.tenant.tolist(), added.tenant_names) == ([0, 0, 0, 0], ["me"])
    with pytest.raises(InputError, match="to: no model is called 'z'; known: a, b, c"):
        remap(trace, "model", (("z", "y"),))
    with pytest.raises(InputError, match="column: the trace has no tenant"):
        remap(trace, "tenant", (("z", "y"),))


def test_deadlines_by_length_and_by_tenant() -> None:
    trace = trace_of(3, tenant=np.array([0, 1, 0]), tenant_names=["chat", "batch"])  # outputs of 11, 12, 13 tokens
    every = set_deadlines(trace, 0.5, 0.1)
    assert every.deadline_ns is not None
    assert every.deadline_ns.tolist() == [1_600_000_000, 1_700_000_000, 1_800_000_000]
    some = set_deadlines(trace, 2, tenant="chat")
    both = set_deadlines(some, 3600, tenant="batch")
    assert some.deadline_ns is not None
    assert both.deadline_ns is not None
    assert some.deadline_ns.tolist() == [2_000_000_000, -1, 2_000_000_000]
    assert both.deadline_ns.tolist() == [2_000_000_000, 3_600_000_000_000, 2_000_000_000]
    with pytest.raises(InputError, match="tenant: no tenant is called 'API'; known: chat, batch"):
        set_deadlines(trace, 1, tenant="API")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: row_range(t, 3, 3), "first: there is no request from 3 to below 3"),
        (lambda t: window(t, 5, 5), "from_s: 5 to 5 is no time"),
        (lambda t: thin(t, 0), "keep_frac: 0 is not a share"),
        (lambda t: resample(t, 0), "sessions: 0 is too few"),
        (lambda t: repeat(t, 0), "times: 0 is too few"),
        (lambda t: repeat(t, 2, -1), "pause_s: -1 is not a number from 0"),
        (lambda t: repeat(t, 10**10), "times: 10000000000 is too many"),
        (lambda t: fit_context(t, 1), "max_tokens: 1 is too few"),
        (set_deadlines, "fixed_s: no time at all"),
        (lambda t: set_deadlines(t, -1), "fixed_s: -1 is not a number from 0"),
        (lambda t: set_deadlines(t, 1, float("nan")), "per_output_token_s: nan is not a number from 0"),
        (lambda t: set_deadlines(t, 1, 1e9), "fixed_s: a deadline would be after 146 years"),
        (lambda t: set_deadlines(t, 1, tenant="x"), "tenant: no tenant is called 'x'; the trace has none"),
    ],
)
def test_impossible_arguments_are_refused(change: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        change(trace_of(5))  # type: ignore[operator]


@given(st.data())
def test_any_chain_of_transforms_keeps_the_counts_adding_up(data: st.DataObject) -> None:
    trace = full_trace()
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from([*LEAVE_OUT, "limit", "repeat", "resample", "spread", "scale"]))
        more = {
            "limit": lambda t: limit(t, 200),
            "repeat": lambda t: repeat(t, 2) if len(t) < 2_000 else t,
            "resample": resample,
            "spread": spread_ties,
            "scale": lambda t: rate_scale(t, 3),
        }
        try:
            trace = (more[name] if name in more else LEAVE_OUT[name][0])(trace)
        except InputError:  # nothing left
            continue
        assert trace.rows is not None
        assert trace.rows.replayed == len(trace)
        assert trace.arrival_ns[0] == 0
        assert trace.rows.source_failed == len(trace.source_failed or ())


CHAINS = {
    **{name: change for name, (change, _) in LEAVE_OUT.items()},
    "limit": lambda t: limit(t, 200),
    "repeat": lambda t: repeat(t, 2, pause_s=3),
    "merge": lambda t: merge(t, t, burst()),
    "resample": resample,
    "spread": lambda t: spread_ties(t, 1.0),
    "spread to the next": spread_ties,
    "scale": lambda t: rate_scale(t, 1 / 3),
    "remap": lambda t: remap(t, "tenant", (("*", "one"),)),
}


def burst() -> Trace:
    """Whole seconds with many ties, and rows that failed."""
    return burstgpt_like(1, rows=500, start_day=9, seed=0)


def small() -> Trace:
    return limit(full_trace(), 100)


@pytest.mark.parametrize("start", [small, burst])
@pytest.mark.parametrize("first", CHAINS)
def test_what_any_two_transforms_make_is_written_and_read_again(
    tmp_path: Path, start: Callable[[], Trace], first: str
) -> None:
    try:
        once = CHAINS[first](start())
    except InputError:  # nothing left
        return
    for second in CHAINS.values():
        try:
            trace = second(once)
        except InputError:
            continue
        write_canonical(trace, tmp_path / "t.parquet")
        same(trace, read_trace(tmp_path / "t.parquet"))


def test_a_row_comes_after_what_those_left_out_waited_for() -> None:
    waits = Ragged(np.array([0, 1, 0, 2, 3, 4]), np.array([0, 0, 1, 2, 3, 5, 6]))  # 0 <- 1 <- 2; 0 <- 3; 2, 3 <- 4 <- 5
    trace = dataclasses.replace(trace_of(6), wait_for=waits)
    without = {1: [[], [0], [0], [1, 2], [3]], 3: [[], [0], [1], [0, 2], [3]], 4: [[], [0], [1], [0], [2, 3]]}
    for row, expected in without.items():
        cut = trace.select(np.delete(np.arange(6), row))
        assert cut.wait_for is not None
        assert [cut.wait_for.row(i).tolist() for i in range(5)] == expected
    alone = trace.select(np.array([5]))
    assert alone.wait_for is not None
    assert alone.wait_for.counts.tolist() == [0]


@given(st.data())
def test_who_waits_for_whom_at_any_distance_stays(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    waits = [sorted(data.draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else [] for i in range(n)]
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))

    def earlier(waits: list[list[int]]) -> list[set[int]]:
        found: list[set[int]] = []
        for own in waits:
            found.append(set(own).union(*(found[each] for each in own)))
        return found

    column = Ragged(np.array([each for own in waits for each in own], np.int64), np.cumsum([0, *map(len, waits)]))
    cut = waits_among(column, kept)
    whole, now = earlier(waits), earlier([cut.row(i).tolist() for i in range(len(kept))])
    for i, row in enumerate(kept.tolist()):
        assert {int(kept[each]) for each in now[i]} == whole[row] & {*kept.tolist()}


def test_rows_that_failed_are_cut_with_those_around_them() -> None:
    trace = dataclasses.replace(
        trace_of(10, tenant=np.arange(10) % 2, tenant_names=["a", "b"]),
        rows=TraceRows(read=14, source_failed=4),
        source_failed=FailedRows(
            *(np.array([1, 4, 6, 10]), np.array([1, 4, 6, 10]) * 10**9 - 10**8, np.array([0, 0, 50, 0])),
            tenant=np.array([0, 0, 1, 1]),
        ),
    )

    def left(cut: Trace) -> list[int]:
        assert cut.source_failed is not None
        assert cut.rows is not None
        assert cut.rows.source_failed == len(cut.source_failed)
        assert trace_fault(cut) is None
        return cut.source_failed.before.tolist()

    assert left(window(trace, 3.0, 6.0)) == [1, 3]  # at 3.9 and 5.9, behind 3 and 5
    assert left(row_range(trace, 4, 6)) == []
    assert left(row_range(trace, 0, 7)) == left(limit(trace, 7)) == [1, 4, 6]
    assert left(keep_rows(trace, "tenant", among=("b",))) == [3, 5]
    assert left(keep_rows(trace, "output_tokens", least=13)) == []
    assert left(fit_context(trace, 40)) == [1, 4, 10]
    many = trace.source_failed.select(np.repeat(np.arange(4), 250))  # type: ignore[union-attr]
    thinned = thin(dataclasses.replace(trace, source_failed=many, rows=TraceRows(1010, 1000)), 0.3)
    assert 250 < len(left(thinned)) < 350
