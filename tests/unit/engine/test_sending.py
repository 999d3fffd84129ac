"""Who is sent after whom, who gives up when, and what is told on the way."""

import numpy as np
import pytest

from kvsim.core.runlog import NEVER
from kvsim.core.trace import Trace
from kvsim.engine.sending import Followers
from tests.worlds import Mode, assert_same, ragged, replica, requests, world

MODES = pytest.mark.parametrize("mode", ["leap", "step"])
MS = 1_000_000


def plain(n: int, **columns: object) -> Trace:
    ones = np.ones(n, np.int64)
    return Trace(np.arange(n), ones, ones, **columns)  # type: ignore[arg-type]


def test_a_row_is_released_by_the_last_of_those_it_waits_for() -> None:
    followers = Followers(plain(5, wait_for=ragged([[], [], [0], [0, 1, 1], [2, 3]]), session=np.zeros(5, np.int64)))
    assert followers.first_rows.tolist() == [0, 1]
    assert [followers.has(row) for row in range(5)] == [True, True, True, True, False]
    assert [followers.released(row) for row in (1, 0, 3, 2, 4)] == [[], [2, 3], [], [4], []]


def test_without_wait_for_a_row_waits_for_its_session() -> None:
    followers = Followers(plain(6, session=np.array([1, -1, 0, 1, -1, 1])))
    assert followers.first_rows.tolist() == [0, 1, 2, 4]
    assert [followers.released(row) for row in range(6)] == [[3], [], [], [5], [], []]
    assert Followers(plain(3)).first_rows.tolist() == [0, 1, 2]


@MODES
def test_refused_and_given_up_requests_have_ended_too(mode: Mode) -> None:
    """0 is too long and refused at once, 1 gives up after 3 ms; 2 waits for both, 3 for 2."""
    rows = [(0.0, 600, 1), (0.0, 10, 90), (0.0, 10, 1), (0.0, 10, 1)]
    trace = requests(
        *rows, wait_for=[[], [], [0, 1], [2]], think_s=[0, 0, 0.5, 0], deadline_s=[None, 0.003, None, None]
    )
    played = world(trace, replica(), max_model_len=500, closed_sessions=True, give_up_at_deadline=True)
    log = played.simulate(mode)
    assert_same(log, played.reference())
    assert log.arrival_ns.tolist() == [0, 0, 503 * MS, 505 * MS]
    assert [log.reasons[k] for k in log.reason] == ["prompt_exceeds_max_model_len", "deadline", "", ""]


@MODES
@pytest.mark.parametrize(("timeout_s", "reason"), [(0.004, "client_timeout"), (0.005, "deadline"), (0.006, "deadline")])
def test_the_shorter_patience_counts(mode: Mode, timeout_s: float, reason: str) -> None:
    trace = requests((0.0, 10, 90), (0.0, 10, 1), deadline_s=[0.005, None])
    log = world(trace, client_timeout_ns=round(timeout_s * 1e9), give_up_at_deadline=True).simulate(mode)
    assert [log.reasons[k] for k in log.reason] == [reason, ""]
    assert log.finish_ns[0] == min(timeout_s, 0.005) * 1e9


@MODES
def test_a_deadline_that_is_only_reported_changes_nothing(mode: Mode) -> None:
    trace = requests((0.0, 10, 90), deadline_s=[0.005])
    assert world(trace).simulate(mode).finish_ns[0] > 5 * MS


@MODES
def test_what_waits_for_a_request_that_never_ends_is_not_sent(mode: Mode) -> None:
    trace = requests((0.0, 10, 1000), (0.0, 10, 1), (0.0, 10, 1), (0.0, 9, 1), wait_for=[[], [], [0, 1], [2]])
    log = world(trace, closed_sessions=True, horizon_ns=20 * MS).simulate(mode)
    assert [log.reasons[k] for k in log.reason] == ["horizon", "", "not_sent", "not_sent"]
    assert log.arrival_ns.tolist() == [0, 0, NEVER, NEVER]


def test_a_closed_loop_reports_its_progress() -> None:
    """A chain of 2,000 turns: reading it ahead would be the end of the reports."""
    told: list[int] = []
    rows = [(0.0, 4, 1)] * 2000
    world(requests(*rows, session=[0] * 2000), closed_sessions=True).simulate(progress=told.append)
    assert told[-1] == 1536
    assert len(told) >= 4
