"""Clients who give up where nothing runs."""

from dataclasses import replace

import numpy as np
import pytest

from kvsim.core.cluster import RunOptions
from kvsim.core.runlog import ABANDONED
from kvsim.engine import simulate
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.worlds import ROUND, Mode, assert_same, cluster, replica, requests, world

MODES: tuple[Mode, Mode] = ("leap", "step")


@pytest.mark.parametrize("mode", MODES)
def test_blocks_booked_for_kv_that_came_for_nobody_count(mode: Mode) -> None:
    """Prefill takes 4.2 ms, and its KV 32 ms to come: the client gives up when it is there and nothing has run yet."""
    played = world(
        requests((0, 32, 5)),
        replica(role="prefill", cost=ROUND, kv_bytes_per_token=1000),
        replica(role="decode", cost=ROUND),
        link=(1_000_000, 0.0),
        client_timeout_ns=36_200_000,
    )
    log = played.simulate(mode)
    assert log.status.tolist() == [ABANDONED]
    assert log.peak_used_blocks == (2, 3)
    assert_same(log, played.reference())


@pytest.mark.parametrize("mode", MODES)
def test_a_policy_may_be_asked_about_an_empty_replica(mode: Mode) -> None:
    """A prompt that never fits waits until its client gives up; what the policy remembers may have changed by that."""
    (pool,) = cluster(replica(kv_blocks=1)).pools
    adaptive = ChunkedPrefill(
        8, 64, long_prefill_token_threshold=4, long_prefill_token_threshold_adaptive=True, prefill_schedule_interval=3
    )
    built = replace(cluster(), pools=(replace(pool, scheduler=adaptive),), reject_oversized=False)
    log = simulate(requests((0, 32, 3), (9, 32, 3)), built, RunOptions(mode=mode, client_timeout_ns=3 * 10**9))
    assert log.status.tolist() == [ABANDONED] * 2
    assert np.array_equal(log.finish_ns, [3 * 10**9, 12 * 10**9])
