"""Clients who give up while prompts share blocks: stepping and leaping agree, and every block is accounted for."""

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.runlog import ABANDONED
from kvsim.core.trace import Trace
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.metrics.laws import broken_laws
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.testing.conformance import Recording
from tests.differential.test_prefix_caching import worlds
from tests.worlds import ROUND, assert_equal_logs, requests


def check(trace: Trace, cluster: Cluster, timeout_ns: int) -> int:
    """Plays it in every way. Returns how many gave up."""
    options = RunOptions(client_timeout_ns=timeout_ns)
    leap = simulate(trace, cluster, options)
    assert broken_laws(leap) == []
    assert_equal_logs(leap, simulate(trace, cluster, dataclasses.replace(options, check_laws=True)))
    assert_equal_logs(leap, simulate(trace, cluster, dataclasses.replace(options, mode="step", check_laws=True)))
    return int((leap.status == ABANDONED).sum())


@settings(deadline=None)
@given(worlds(("fcfs", "priority")), st.sampled_from((900, 3_000, 3_000, 9_000, 30_000)))
def test_stepping_and_leaping_agree(recording: Recording, timeout_ns: int) -> None:
    check(recording.trace(), recording.cluster(), timeout_ns)


def test_who_gives_up_leaves_the_blocks_of_the_step_in_flight_as_they_are() -> None:
    """The second client gives up in a step that has taken a block for each of the two."""
    scheduler = ChunkedPrefill(async_scheduling=False)
    pool = Pool("mixed", 1, scheduler, Paged(2, True), 28, ROUND, RoundRobin())
    assert check(requests((0.0, 9, 25), (0.003, 9, 19)), Cluster((pool,), 54), 30_000_000) > 0
