"""``prefill_schedule_interval``: what is remembered of a replica is the same whether it leaps or steps."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.cluster import Cluster
from kvsim.engine import simulate
from kvsim.metrics.laws import broken_laws
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.worlds import World, assert_equal_logs, cluster, worlds


@given(worlds(handoff=False), st.integers(2, 9))
def test_stepping_and_leaping_agree_whatever_surrounds_the_replicas(world: World, interval: int) -> None:
    """Several replicas, sessions, closed loops, horizons, and clients that leave the queue."""
    (pool,) = cluster(*world.pools, options=world.options).pools
    if isinstance(pool.scheduler, ChunkedPrefill):
        scheduler = dataclasses.replace(pool.scheduler, prefill_schedule_interval=interval)
        pool = dataclasses.replace(pool, scheduler=scheduler)
    held = Cluster((pool,), world.options.max_model_len, None, world.options.reject_oversized)
    options = world.run_options()
    leap = simulate(world.trace, held, options)
    step = simulate(world.trace, held, dataclasses.replace(options, mode="step", check_laws=True))
    assert broken_laws(leap) == []
    assert_equal_logs(leap, step)
