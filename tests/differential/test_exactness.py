"""Reference = step = leap: every column of every request in nanoseconds, every gap, transfer and block peak."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsim.core.trace import Trace
from kvsim.engine import pace
from tests.reference import Outcome, PoolSpec
from tests.worlds import ODD, ROUND, World, assert_equal_logs, assert_same, ragged, replica, requests, world, worlds


def traffic(
    n: int,
    seed: int,
    *,
    per_s: float = 200.0,
    prompt: tuple[int, int] = (1, 400),
    output: tuple[int, int] = (1, 60),
    burst: int = 1,
    sessions: int = 0,
) -> Trace:
    """Poisson arrivals of bursts, log-uniform lengths; turns belong to ``sessions`` sessions, some to none."""
    rng = np.random.default_rng(seed)
    at_s = np.repeat(np.cumsum(rng.exponential(burst / per_s, -(-n // burst))), burst)[:n]

    def lengths(low: int, high: int) -> np.ndarray:
        return np.exp(rng.uniform(np.log(low), np.log(high + 1), n)).astype(np.int64)

    return Trace(
        np.round(at_s * 1e9).astype(np.int64),
        lengths(*prompt),
        lengths(*output),
        session=rng.integers(-1, sessions, n) if sessions else None,
        think_ns=rng.choice([0, 1_000_000, 50_000_001], n) if sessions else None,
    )


def agents(n: int, seed: int, *, near: int, roots: float = 0.1, **traffic_options: Any) -> Trace:
    """The same traffic as a request graph: a row waits for up to three of the ``near`` rows before it, or for nobody;
    every third one has a deadline."""
    rng = np.random.default_rng([seed, 1])
    trace = traffic(n, seed, **traffic_options)
    waits = [
        []
        if rng.random() < roots
        else sorted({i - int(k) for k in rng.integers(1, near + 1, rng.integers(1, 4)) if k <= i})
        for i in range(n)
    ]
    return replace(
        trace,
        wait_for=ragged(waits),
        think_ns=rng.choice([0, 0, 1_000_000, 50_000_001], n),
        deadline_ns=np.where(np.arange(n) % 3, -1, rng.choice([0, 90_000_000, 400_000_001], n)),
    )


def split(link: tuple[int, float], prefill: PoolSpec, decode: PoolSpec, trace: Trace, **options: Any) -> World:
    prefill = replace(prefill, role="prefill", kv_bytes_per_token=1000)
    return world(trace, prefill, replace(decode, role="decode"), link=link, **options)


TIGHT = replica(cost=ODD, kv_blocks=60)
ROOMY = replica(cost=ODD)
SWAPPING = replica(
    cost=ODD, scheduler="prefill_first", kv_blocks=60, max_num_batched_tokens=600, watermark=0.01,
    preemption_mode="swap", host_blocks=100, block_copy_s=1.234567e-4,
)  # fmt: skip
CONFIGURATIONS = {
    "plenty of everything": world(traffic(300, 1), ROOMY),
    "preemptions": world(traffic(800, 2, per_s=100, prompt=(1, 200), output=(50, 400)), TIGHT),
    "preemptions in mid-prefill": world(
        traffic(300, 3, prompt=(50, 800), output=(10, 120)),
        replica(cost=ODD, kv_blocks=80, scheduler_reserve_full_isl=False, max_num_batched_tokens=96),
    ),
    "watermark": world(traffic(300, 4, output=(10, 200)), replace(TIGHT, watermark=0.1)),
    "long prompts in small chunks": world(
        traffic(120, 5, per_s=30, prompt=(100, 5000)), replica(cost=ODD, max_num_batched_tokens=64)
    ),
    "threshold": world(
        traffic(150, 6, per_s=20, prompt=(100, 5000)),
        replica(cost=ODD, max_num_batched_tokens=512, long_prefill_token_threshold=128),
    ),
    "adaptive threshold": world(
        traffic(150, 7, prompt=(100, 3000)),
        replica(
            cost=ODD,
            max_num_batched_tokens=1024,
            long_prefill_token_threshold=64,
            long_prefill_token_threshold_adaptive=True,
        ),
    ),
    "prompts never split": world(
        traffic(200, 8), replica(cost=ODD, kv_blocks=90, enable_chunked_prefill=False, max_num_batched_tokens=500)
    ),
    "one-token outputs": world(traffic(400, 9, output=(1, 1)), replica(max_num_batched_tokens=256)),
    "tied arrivals on step ends": world(
        traffic(400, 10, burst=40, prompt=(1, 100), output=(1, 60)),
        replica(cost=ROUND, kv_blocks=40, max_num_seqs=16),
    ),
    "block size 1": world(
        traffic(200, 11, prompt=(1, 100), output=(10, 200)), replica(cost=ODD, block_size=1, kv_blocks=300)
    ),
    "prefill first": world(
        traffic(300, 12, prompt=(1, 200), output=(10, 300)),
        replica(cost=ODD, scheduler="prefill_first", kv_blocks=60, max_num_batched_tokens=600, watermark=0.01),
    ),
    "swapping": world(
        traffic(300, 30, prompt=(1, 200), output=(10, 300)),
        replace(SWAPPING, host_blocks=200, preempt_victim="most_context"),
    ),
    "swapping, host memory full": world(
        traffic(300, 31, prompt=(1, 200), output=(10, 300)), replace(SWAPPING, host_blocks=16, watermark=0.05)
    ),
    "swapping, impatient clients": world(
        traffic(300, 32, prompt=(1, 200), output=(10, 300)),
        replace(SWAPPING, replicas=2, router="least_tokens", preempt_victim="least_context"),
        client_timeout_ns=900_000_000,
    ),
    "swapping, stuck": world(traffic(100, 33, prompt=(1, 400), output=(10, 900)), SWAPPING, reject_oversized=False),
    "three replicas, round robin": world(traffic(300, 13, per_s=600, output=(10, 200)), replace(TIGHT, replicas=3)),
    "three replicas, random": world(
        traffic(300, 14, per_s=600, output=(10, 200)), replace(TIGHT, replicas=3, router="random"), seed=5
    ),
    "three replicas, least requests": world(
        traffic(300, 15, per_s=600, output=(10, 200), burst=5), replace(TIGHT, replicas=3, router="least_requests")
    ),
    "three replicas, least tokens": world(
        traffic(300, 16, per_s=600, output=(10, 200), burst=5), replace(TIGHT, replicas=3, router="least_tokens")
    ),
    "sessions": world(
        traffic(300, 17, sessions=30, output=(10, 200)),
        replace(TIGHT, replicas=2, router="least_requests"),
        closed_sessions=True,
    ),
    "max_concurrency": world(traffic(300, 18, burst=30, output=(10, 200)), TIGHT, max_concurrency=17),
    "sessions under max_concurrency": world(
        traffic(300, 19, sessions=40, output=(10, 200)),
        replica(cost=ROUND, kv_blocks=60),
        closed_sessions=True,
        max_concurrency=15,
    ),
    "a request graph": world(
        agents(300, 34, near=40, output=(10, 200)),
        replace(TIGHT, replicas=2, router="least_requests"),
        closed_sessions=True,
    ),
    "a request graph of ties under max_concurrency": world(
        agents(300, 35, near=25, burst=50, output=(10, 60)),
        replica(cost=ROUND, kv_blocks=60),
        closed_sessions=True,
        max_concurrency=6,
    ),
    "a request graph whose clients give up": world(
        agents(300, 36, near=60, roots=0.3, output=(10, 200)),
        TIGHT,
        closed_sessions=True,
        give_up_at_deadline=True,
        client_timeout_ns=400_000_001,
    ),
    "a request graph cut by a horizon": world(
        agents(300, 37, near=10), replace(ROOMY, replicas=3), closed_sessions=True, horizon_ns=900_000_000
    ),
    "deadlines at recorded times": world(agents(300, 38, near=1, output=(10, 200)), TIGHT, give_up_at_deadline=True),
    "impatient clients": world(traffic(300, 20, output=(10, 200)), TIGHT, client_timeout_ns=300_000_000),
    "horizon": world(traffic(300, 21, output=(10, 200)), TIGHT, horizon_ns=800_000_000),
    "horizon on the end of a step": world(
        requests((0.0, 9, 50)), replica(cost=ROUND, block_size=1), horizon_ns=7_400_000
    ),
    "outputs cut and prompts refused": world(
        traffic(200, 22, prompt=(1, 1500), output=(1, 400)), replica(kv_blocks=40), max_model_len=700
    ),
    "stuck behind an oversized prompt": world(
        traffic(100, 23, prompt=(1, 900)), replica(kv_blocks=40), reject_oversized=False
    ),
    "handoff": split((20_000_000, 0.0005), replace(ROOMY, replicas=2), replace(ROOMY, replicas=2), traffic(200, 24)),
    "handoff over a slow link into a small pool": split(
        (3_000_001, 0.0012345),
        replace(ROOMY, replicas=2, kv_blocks=300, router="least_tokens", scheduler_reserve_full_isl=False),
        replace(TIGHT, replicas=2, router="least_tokens"),
        traffic(200, 25, output=(1, 120)),
    ),
    "handoff cut by a horizon": split(
        (5_000_000, 0.2), ROOMY, replace(ROOMY, kv_blocks=200), traffic(200, 29), horizon_ns=900_000_000
    ),
    "handoff of ties at no latency": split(
        (10_000_000, 0.0), replica(kv_blocks=200), replica(kv_blocks=60, replicas=2), traffic(200, 26, burst=20)
    ),
    "handoff with sessions and impatient clients": split(
        (2_000_000, 0.002),
        replace(ROOMY, kv_blocks=200),
        replace(TIGHT, scheduler="prefill_first", watermark=0.01, router="least_requests", replicas=2),
        traffic(200, 27, sessions=30, output=(5, 80)),
        closed_sessions=True,
        client_timeout_ns=900_000_000,
        max_concurrency=25,
    ),
    "handoff of a request graph with deadlines": split(
        (2_000_000, 0.002),
        replace(ROOMY, kv_blocks=200),
        replace(TIGHT, router="least_requests", replicas=2),
        agents(200, 39, near=30, roots=0.3, output=(1, 80)),
        closed_sessions=True,
        give_up_at_deadline=True,
    ),
}


@cache
def reference(name: str) -> Outcome:
    return CONFIGURATIONS[name].reference()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_reference_step_and_leap_agree(name: str) -> None:
    outcome = reference(name)
    step = CONFIGURATIONS[name].simulate("step", check_laws=True)
    assert_same(step, outcome)
    assert_equal_logs(step, CONFIGURATIONS[name].simulate("leap"))


def test_the_configurations_are_hard() -> None:
    """Agreement means little where nothing happens: count what did."""
    outcomes = [reference(name) for name in CONFIGURATIONS]
    rows = [request for outcome in outcomes for request in outcome.requests]
    assert sum(request.preemptions for request in rows) > 3000
    assert sum(request.swaps for request in rows) > 500
    for status, at_least in {"finished": 5000, "abandoned": 100, "rejected": 10, "unfinished": 100}.items():
        assert sum(request.status == status for request in rows) >= at_least, status
    assert {request.reason for request in rows} >= {"stuck", "horizon", "not_sent", "exceeds_kv_pool", "deadline"}
    assert sum(len(outcome.transfers) for outcome in outcomes) > 500
    assert max(len(outcome.steps) for outcome in outcomes) == 4


@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(worlds(), st.sampled_from([4, 1 << 20]))
def test_random_worlds_agree(random_world: World, pays: int) -> None:
    """``pays``: a pace table is made when it pays, or for every small batch at once."""
    outcome = random_world.reference()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "_PAYS", pays)
        leap = random_world.simulate("leap")
    step = random_world.simulate("step")
    assert_same(leap, outcome)
    assert_equal_logs(leap, step)
