"""Prompts that displace each other for ever: what comes or goes while that is found out is not lost."""

import numpy as np
import pytest

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.runlog import FINISHED
from kvsim.core.trace import Trace
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.worlds import affine

STEP_NS = 1_000_000


def world(*more: tuple[int, int, int], is_ahead: bool = False) -> tuple[Trace, Cluster]:
    """Two prompts of 57 and 65 tokens on 11 blocks of 8, in chunks of 3; and others, of the first priority."""
    rows = np.array([(0, 57, 1), (0, 65, 1), *more], np.int64)
    scheduler = ChunkedPrefill(
        max_num_seqs=6,
        max_num_batched_tokens=6,
        long_prefill_token_threshold=3,
        scheduler_reserve_full_isl=False,
        policy="priority",
        async_scheduling=is_ahead,
    )
    pool = Pool("mixed", 1, scheduler, Paged(8), 11, affine(base_s=STEP_NS / 1e9), RoundRobin(), kv_bytes_per_token=1)
    priority = np.array([5, 5] + [0] * len(more), np.int64)
    return Trace(*rows.T, priority=priority), Cluster((pool,), 200)


def last_step(is_ahead: bool) -> int:
    """When the step ends behind which nothing is planned any more, ns."""
    log = simulate(*world(is_ahead=is_ahead))
    assert log.diagnosis is not None
    return log.end_ns


@pytest.mark.parametrize("is_ahead", [False, True])
@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("early_ns", [2 * STEP_NS, STEP_NS, STEP_NS // 2, 0, -STEP_NS])
def test_who_arrives_meanwhile_is_served(early_ns, mode, is_ahead) -> None:
    trace, cluster = world((last_step(is_ahead) - early_ns, 3, 1), is_ahead=is_ahead)
    assert simulate(trace, cluster, RunOptions(mode=mode)).status[2] == FINISHED


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("early_ns", [2 * STEP_NS, STEP_NS, STEP_NS // 2, 1, -STEP_NS])
def test_when_one_gives_up_the_other_goes_on(early_ns, mode) -> None:
    trace, cluster = world()
    deadlines = np.array([-1, last_step(False) - early_ns], np.int64)
    trace = Trace(trace.arrival_ns, trace.prompt_tokens, trace.output_tokens, deadline_ns=deadlines)
    assert simulate(trace, cluster, RunOptions(mode=mode, give_up_at_deadline=True)).status[0] == FINISHED
