"""Asynchronous scheduling: the engine, stepping and leaping, against the block-by-block model of vLLM."""

import dataclasses

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsim.core.cluster import Cluster, RunOptions
from kvsim.engine import simulate
from kvsim.metrics.laws import broken_laws
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.testing.conformance import Mode, Recording, first_difference, replay
from tests.differential import test_prefix_caching
from tests.differential.test_model_recordings import model_of
from tests.differential.test_prefix_caching import check
from tests.oracles.test_vllm_rules import Row, play_engine, play_model, preempted
from tests.worlds import World, affine, assert_equal_logs, cluster, replica, requests, worlds

MODES: tuple[Mode, ...] = ("step", "leap")


@st.composite
def async_worlds(draw: st.DrawFn) -> Recording:
    """The worlds of prefix caching, planned a step ahead, with a cache or without; some outputs end by a stop token."""
    world = draw(test_prefix_caching.worlds(("fcfs", "priority")))
    longest = world.config["max_model_len"] - 1
    changes = {
        "async_scheduling": True,
        "enable_prefix_caching": draw(st.booleans()),
        "max_model_len": longest + draw(st.sampled_from((1, 1, 0))),
    }
    rows = [row | {"ends": draw(st.sampled_from(("", "eos")))} for row in world.requests]
    return dataclasses.replace(world, config=world.config | changes, requests=rows)


@settings(deadline=None)
@given(async_worlds())
def test_steps_and_times_are_those_of_the_model(recording: Recording) -> None:
    try:
        model_of(recording).run(3000)
    except RuntimeError:  # prompts that displace each other for ever, in vLLM too
        for mode in MODES:
            log, _ = replay(recording, mode)
            assert log.diagnosis is not None
    else:
        check(recording)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(handoff=False), st.sampled_from((0.0, 1e-4, 1e-3, 3e-3)), st.integers(0, 3))
def test_stepping_and_leaping_agree_whatever_surrounds_the_replicas(world: World, host_s: float, eos: int) -> None:
    """Several replicas, routers, sessions, closed loops, horizons, and a host that is hidden, in part or not at all."""
    (pool,) = cluster(*world.pools, options=world.options).pools
    cost = affine(base_s=1.2345678e-3, prefill_token_s=6.1e-5, context_token_s=2.3456789e-6, hidden_host_s=host_s)
    if isinstance(pool.scheduler, ChunkedPrefill):
        pool = dataclasses.replace(
            pool, scheduler=dataclasses.replace(pool.scheduler, async_scheduling=True), cost=cost
        )
    ends = (np.arange(len(world.trace)) % 4 < eos).astype(np.int64)
    trace = dataclasses.replace(world.trace, ends_by_eos=ends)
    ahead = Cluster((pool,), world.options.max_model_len, None, world.options.reject_oversized)
    options = world.run_options(client_timeout_ns=None, give_up_at_deadline=False)
    leap = simulate(trace, ahead, options)
    step = simulate(trace, ahead, dataclasses.replace(options, mode="step", check_laws=True))
    assert broken_laws(leap) == []
    assert_equal_logs(leap, step)
    assert_equal_logs(leap, simulate(trace, ahead, dataclasses.replace(options, check_laws=True)))


def test_the_last_block_of_a_victim_gets_no_name_before_its_token_is_known() -> None:
    """Request 2 is preempted while the token that fills its block is under way; request 3 must not find it."""
    rows: tuple[Row, ...] = (
        (0, "s0[0:2];t0[0:28]", 1),
        (0, "s0[0:17];t0[0:21]", 1),
        (0, "s0[0:6];t1[0:9]", 2, 0, "eos"),
        (0, "s0[0:6];t1[0:9];o2[0:1];t0[0:3]", 1),
    )
    tight = {"usable_blocks": 13, "max_num_seqs": 3, "max_num_batched_tokens": 6, "long_prefill_token_threshold": 3}
    ahead = {"async_scheduling": True, "enable_prefix_caching": True}
    steps = play_engine(*rows, **tight, **ahead)
    assert 2 in [request for _, request in preempted(steps)]
    assert first_difference("step", play_model(*rows, **tight, **ahead), steps) is None


def test_nobody_waits_before_arriving_while_the_host_plans_for_nothing() -> None:
    """Arrivals within the host's time after the last end: the timeline of leaps is that of steps."""
    rows = requests((0.0, 100, 1), (0.0192, 100, 20), (0.0196, 100, 20))
    (pool,) = cluster(replica()).pools
    cost = affine(base_s=1e-3, hidden_host_s=1e-2)
    pool = dataclasses.replace(pool, scheduler=ChunkedPrefill(async_scheduling=True), cost=cost)
    ahead = Cluster((pool,), 4096)
    leap = simulate(rows, ahead, RunOptions())
    assert broken_laws(leap) == []
    assert_equal_logs(leap, simulate(rows, ahead, RunOptions(mode="step")))
