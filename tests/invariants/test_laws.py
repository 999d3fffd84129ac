"""Laws that every run obeys, whatever the world: checked on the engine's log alone."""

import dataclasses

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsim.core.runlog import FINISHED, NEVER, REJECTED, STATUS_NAMES, RunLog
from kvsim.metrics.laws import broken_laws
from tests.worlds import Mode, World, assert_equal_logs, replica, requests, world, worlds

MODES: st.SearchStrategy[Mode] = st.sampled_from(["leap", "step"])
a_hundred_worlds = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@a_hundred_worlds
@given(worlds(), MODES)
def test_no_log_breaks_a_law(random_world: World, mode: Mode) -> None:
    """``check_laws`` recounts blocks and contexts request by request at every step; ``broken_laws`` reads the log."""
    assert broken_laws(random_world.simulate(mode, check_laws=True)) == []


@a_hundred_worlds
@given(worlds(), MODES)
def test_every_request_ends_once(random_world: World, mode: Mode) -> None:
    log = random_world.simulate(mode)
    sent = log.arrival_ns != NEVER
    finished = log.status == FINISHED
    for i in range(len(log)):
        reason, status = log.reasons[log.reason[i]], STATUS_NAMES[log.status[i]]
        assert (reason == "") == (status == "finished"), f"request {i} is {status}: {reason!r}"
        assert (log.finish_ns[i] == NEVER) == (status == "unfinished")
        assert sent[i] == (reason != "not_sent")
    assert (log.generated_tokens[finished] == log.output_tokens[finished]).all()
    assert (log.generated_tokens[log.status == REJECTED] == 0).all()
    assert (log.replica_prefill[log.status == REJECTED] == -1).all()


@a_hundred_worlds
@given(worlds(), MODES)
def test_time_never_goes_back(random_world: World, mode: Mode) -> None:
    """Arrival <= first scheduled < first token <= finish, and all within the run: so TTFT <= E2E."""
    log = random_world.simulate(mode)
    for earlier, later in (
        (log.arrival_ns, log.first_scheduled_ns),
        (log.first_scheduled_ns, log.first_token_ns),
        (log.first_token_ns, log.finish_ns),
        (log.arrival_ns, log.finish_ns),
    ):
        both = (earlier != NEVER) & (later != NEVER)
        assert (earlier[both] <= later[both]).all()
        assert (later <= log.end_ns).all()
    assert (log.client_queue_ns >= 0).all()
    assert (np.diff(log.timeline.time_ns) >= 0).all()


@a_hundred_worlds
@given(worlds(), MODES)
def test_nobody_is_sent_before_all_that_it_waits_for_has_ended(random_world: World, mode: Mode) -> None:
    """In a closed loop a row is ready think time after the last of these ends, and never if one does not come."""
    trace, options = random_world.trace, random_world.options
    log = random_world.simulate(mode)
    ready_ns = np.where(log.arrival_ns == NEVER, NEVER, log.arrival_ns - log.client_queue_ns)
    last_turn: dict[int, int] = {}
    for i in range(len(trace)):
        waits: list[int] = []
        if options.closed_sessions and trace.wait_for is not None:
            waits = trace.wait_for.row(i).tolist()
        elif options.closed_sessions and trace.session is not None and (session := int(trace.session[i])) >= 0:
            waits = [last_turn[session]] if session in last_turn else []
            last_turn[session] = i
        ends_ns = [int(log.finish_ns[k]) for k in waits]
        think_ns = 0 if trace.think_ns is None else int(trace.think_ns[i])
        due_ns = max(ends_ns) + think_ns if waits else int(trace.arrival_ns[i])
        if NEVER in ends_ns:
            assert ready_ns[i] == NEVER
        elif options.max_concurrency is None:
            past_the_end = options.horizon_ns is not None and due_ns > options.horizon_ns
            assert ready_ns[i] == (NEVER if past_the_end else due_ns)
        else:
            assert ready_ns[i] in (due_ns, NEVER)


@a_hundred_worlds
@given(worlds(), MODES)
def test_no_client_outstays_its_patience(random_world: World, mode: Mode) -> None:
    """Whoever gives up does so at its timeout or its deadline to the nanosecond, and nobody is served beyond either."""
    trace, options = random_world.trace, random_world.options
    log = random_world.simulate(mode)
    for i in range(len(trace)):
        patience_ns = {"client_timeout": options.client_timeout_ns}
        if options.give_up_at_deadline and trace.deadline_ns is not None and trace.deadline_ns[i] >= 0:
            patience_ns["deadline"] = int(trace.deadline_ns[i])
        spent_ns = int(log.finish_ns[i] - log.arrival_ns[i])
        reason = log.reasons[log.reason[i]]
        if reason in ("client_timeout", "deadline"):
            assert spent_ns == patience_ns[reason]
        elif log.status[i] == FINISHED:
            assert all(patience is None or spent_ns <= patience for patience in patience_ns.values())


@a_hundred_worlds
@given(worlds(), MODES)
def test_every_token_is_counted_once(random_world: World, mode: Mode) -> None:
    log = random_world.simulate(mode)
    assert log.tokens_by_second.tokens.sum() == log.generated_tokens.sum()
    assert log.gaps.count.sum() == np.maximum(log.generated_tokens - 1, 0).sum()
    assert (np.diff(log.gaps.gap_ns) > 0).all()
    last_gap = log.gaps.gap_ns[-1] if len(log.gaps.gap_ns) else NEVER
    assert log.max_gap_ns.max() == last_gap


@a_hundred_worlds
@given(worlds(handoff=True), MODES)
def test_the_link_never_carries_more_than_its_bandwidth(random_world: World, mode: Mode) -> None:
    """In no interval do the transfers that lie within it have more bytes than the link can carry in that time."""
    log = random_world.simulate(mode)
    assert random_world.options.link is not None
    bytes_per_s, latency_s = random_world.options.link
    start, end = log.transfers.start_ns, log.transfers.end_ns - round(latency_s * 1e9)
    for first in start.tolist():
        for last in end[end >= first].tolist():
            carried = int(log.transfers.bytes[(start >= first) & (end <= last)].sum())
            assert carried * 1_000_000_000 <= bytes_per_s * (last - first)


@a_hundred_worlds
@given(worlds(), MODES, st.integers(1, 10**12))
def test_shifting_all_arrivals_shifts_all_results(random_world: World, mode: Mode, shift_ns: int) -> None:
    horizon_ns = random_world.options.horizon_ns
    shifted_world = dataclasses.replace(
        random_world,
        trace=dataclasses.replace(random_world.trace, arrival_ns=random_world.trace.arrival_ns + shift_ns),
        options=dataclasses.replace(
            random_world.options, horizon_ns=None if horizon_ns is None else horizon_ns + shift_ns
        ),
    )
    log, shifted = random_world.simulate(mode), shifted_world.simulate(mode)
    for name in ("arrival_ns", "queued_ns", "first_scheduled_ns", "first_token_ns", "finish_ns"):
        column = getattr(log, name)
        np.testing.assert_array_equal(
            np.where(column == NEVER, NEVER, column + shift_ns), getattr(shifted, name), err_msg=name
        )
    for name in (
        "client_queue_ns",
        "generated_tokens",
        "computed_tokens",
        "preemptions",
        "max_gap_ns",
        "status",
        "reason",
    ):
        np.testing.assert_array_equal(getattr(log, name), getattr(shifted, name), err_msg=name)
    np.testing.assert_equal(vars(log.gaps), vars(shifted.gaps))
    assert (log.steps, log.peak_used_blocks) == (shifted.steps, shifted.peak_used_blocks)


@a_hundred_worlds
@given(worlds(), MODES)
def test_the_same_seed_gives_the_same_log(random_world: World, mode: Mode) -> None:
    assert_equal_logs(random_world.simulate(mode), random_world.simulate(mode), but=())


def test_another_seed_gives_another_log() -> None:
    """The law above would hold for a seed that nobody reads."""

    def routed(seed: int) -> list[int]:
        rows = [(0.001 * i, 10, 2) for i in range(40)]
        log: RunLog = world(requests(*rows), replica(replicas=4, router="random"), seed=seed).simulate()
        return [int(k) for k in log.replica_prefill]

    assert routed(0) == routed(0) != routed(1)
