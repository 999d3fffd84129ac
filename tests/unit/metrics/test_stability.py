"""The verdict on queues whose load is known."""

import numpy as np
import pytest

from kvsim.core.runlog import ABANDONED, REJECTED, UNFINISHED
from kvsim.metrics.stability import stability
from kvsim.metrics.window import window
from tests.unit.metrics.tiny_log import Row, queue_log, tiny_log


def verdict(log, warmup_s=0.0):
    return stability(log, window(log, warmup_s))


def poisson_ms(n, mean_ms, seed=0):
    return np.cumsum(np.random.default_rng(seed).exponential(mean_ms, n))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("load", "requests", "expected"),
    [
        (0.5, 100, "stable"),
        (0.5, 2000, "stable"),
        (0.9, 2000, "stable"),
        (1.5, 100, "overloaded"),
        (1.5, 2000, "overloaded"),
        (1.2, 5000, "overloaded"),
        (5.0, 500, "overloaded"),
    ],
)
def test_one_server_that_drains(load, requests, expected, seed):
    assert verdict(queue_log(poisson_ms(requests, 10 / load, seed), service_ms=10)) == expected


@pytest.mark.parametrize("together", [True, False])
def test_a_burst_is_not_a_steady_load(together):
    # 200 requests within a tenth of a second, 5 seconds of service each, all in parallel
    arrivals = [0.0] * 200 if together else np.linspace(0, 100, 200)
    assert verdict(tiny_log([Row(a, (a + 500, a + 5000)) for a in arrivals])) == "burst"


def test_a_long_service_in_a_long_trace_is_stable():
    # ten seconds of service, in parallel, over 100 seconds: a tenth is still running at the last arrival
    rows = [Row(a, tuple(np.linspace(a + 500, a + 10_000, 20))) for a in np.linspace(0, 100_000, 1000)]
    assert verdict(tiny_log(rows)) == "stable"


def test_waiting_between_two_pools_is_not_service():
    # decode serves one request each 30 ms, three times too slowly; the first token comes at once
    rows = [Row(10 * i, (10 * i + 5, 30 * (i + 1), 30 * (i + 1) + 1)) for i in range(500)]
    assert verdict(tiny_log(rows)) == "overloaded"


def test_a_run_cut_by_its_horizon_is_judged_all_the_same():
    log = queue_log(poisson_ms(1000, 10 / 1.5), service_ms=10)
    horizon = log.arrival_ns[-1]
    rows = [
        Row(a / 1e6, (f / 1e6, e / 1e6), scheduled=s / 1e6)
        if e <= horizon
        else Row(a / 1e6, status=UNFINISHED, output=2)
        for a, s, f, e in zip(log.arrival_ns, log.first_scheduled_ns, log.first_token_ns, log.finish_ns, strict=True)
    ]
    assert verdict(tiny_log(rows)) == "overloaded"


def test_clients_that_give_up_were_not_served():
    rows = [Row(10 * i, (10 * i + 5, 10 * i + 8)) for i in range(200)]
    rows += [Row(10 * i, output=2, status=ABANDONED, ended=10 * i + 50) for i in range(100, 200)]
    assert verdict(tiny_log(rows)) == "overloaded"


def test_requests_refused_for_their_size_are_no_load():
    rows = [Row(10 * i, (10 * i + 5, 10 * i + 8)) for i in range(200)]
    rows += [Row(10 * i, status=REJECTED, reason=1, ended=10 * i) for i in range(200)]
    assert verdict(tiny_log(rows, reasons=("", "exceeds_kv_pool"))) == "stable"


def test_nothing_and_nearly_nothing():
    assert verdict(tiny_log([])) == "stable"
    assert verdict(tiny_log([Row(0, (100, 200))])) == "stable"
    assert verdict(tiny_log([Row(0, output=5, status=UNFINISHED)], diagnosis="replica 0: ...")) == "stuck"


def test_the_warm_up_is_left_out():
    flood = [Row(0, (100 + i, 200 + i)) for i in range(100)]
    calm = [Row(1000 + 10 * i, (1000 + 10 * i + 2, 1000 + 10 * i + 4)) for i in range(100)]
    assert verdict(tiny_log(flood + calm), warmup_s=0.5) == "stable"


def test_a_closed_loop_cannot_be_outpaced():
    # 64 in flight at a server that serves them one by one: a request is sent when another ends
    log = queue_log(10.0 * np.maximum(0, np.arange(300) - 63), service_ms=10)
    assert verdict(log) == "overloaded"
    assert stability(log, window(log), max_concurrency=64) == "stable"
