"""Queues whose answers are known: a replica with a suitable affine cost is an M/D/1, M/M/1 or M/G/1-PS queue.

Each test runs independent replications and puts a 99.9 % Student confidence interval around their mean. Theory must
lie within it, and the interval must be narrow, or the test would say nothing. Seeds are fixed.
"""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kvsim.core.trace import Trace
from kvsim.metrics.laws import littles_law
from tests.worlds import World, affine, replica, world

REPLICATIONS = 12
MEAN_SERVICE_S = 0.01


def poisson_trace(
    rng: np.random.Generator, per_s: float, prompt: NDArray[np.int64], output: NDArray[np.int64]
) -> Trace:
    arrival_s = np.cumsum(rng.exponential(1 / per_s, len(prompt)))
    return Trace(np.round(arrival_s * 1e9).astype(np.int64), prompt, output)


def sojourns_s(queue: World) -> NDArray[np.float64]:
    """Time from arrival to finish of the requests after the first tenth (the start from empty), s."""
    log = queue.simulate()
    kept = slice(len(log) // 10, None)
    return ((log.finish_ns - log.arrival_ns) / 1e9)[kept]


def assert_theory_within_interval(estimates: list[float], theory: float, *, half_width: float) -> None:
    """``half_width`` is the largest one allowed, as a share of the theory."""
    mean, error = np.mean(estimates), stats.sem(estimates)
    half = stats.t.ppf(0.9995, len(estimates) - 1) * error
    assert half < half_width * theory, f"interval {mean} +- {half} is too wide to judge {theory}"
    assert abs(mean - theory) < half, f"theory {theory} outside {mean} +- {half}"


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_m_d_1_mean_wait(load: float) -> None:
    """One request at a time, each a step of 10 ms. Mean wait = load S / 2 (1 - load) (Pollaczek, Khinchine)."""
    one_by_one = replica(cost=affine(base_s=MEAN_SERVICE_S), max_num_seqs=1)
    ones = np.ones(20_000, np.int64)
    waits = [
        sojourns_s(
            world(poisson_trace(np.random.default_rng(seed), load / MEAN_SERVICE_S, ones, ones), one_by_one)
        ).mean()
        - MEAN_SERVICE_S
        for seed in range(REPLICATIONS)
    ]
    assert_theory_within_interval(waits, load * MEAN_SERVICE_S / (2 * (1 - load)), half_width=0.12)


def test_m_m_1_sojourn_is_exponential() -> None:
    """One request at a time, service by prompt length, exponential at 1 us per token: the time in the system is
    exponential with rate mu - lambda, so its mean and its 90th percentile are known."""
    load = 0.7
    by_length = replica(
        cost=affine(base_s=0.0, prefill_token_s=1e-6),
        block_size=1 << 16,
        max_num_seqs=1,
        max_num_batched_tokens=1 << 30,
    )
    means, p90s = [], []
    for seed in range(REPLICATIONS):
        rng = np.random.default_rng(100 + seed)
        prompt = np.maximum(1, np.round(rng.exponential(MEAN_SERVICE_S * 1e6, 20_000))).astype(np.int64)
        queue = world(poisson_trace(rng, load / MEAN_SERVICE_S, prompt, np.ones_like(prompt)), by_length)
        in_system_s = sojourns_s(queue)
        means.append(in_system_s.mean())
        p90s.append(float(np.percentile(in_system_s, 90)))
    mean = MEAN_SERVICE_S / (1 - load)
    assert_theory_within_interval(means, mean, half_width=0.12)
    assert_theory_within_interval(p90s, mean * np.log(10), half_width=0.12)


@pytest.mark.parametrize("lengths", ["constant", "two kinds"])
def test_m_g_1_processor_sharing_is_insensitive(lengths: str) -> None:
    """A step takes 0.1 ms per request in it and gives each one token: processor sharing. The mean time in the system
    is E[S] / (1 - load) whatever the distribution, and x / (1 - load) for requests of size x (Kleinrock 1976).

    The step is the quantum of sharing: an arrival waits for the one in progress, about 0.6 % of the mean here.
    """
    load, token_s = 0.6, 1e-4
    tokens = round(MEAN_SERVICE_S / token_s)
    sharing = replica(
        cost=affine(base_s=0.0, prefill_token_s=token_s, decode_request_s=token_s),
        kv_blocks=1 << 20,
        max_num_seqs=1 << 20,
        max_num_batched_tokens=1 << 20,
    )
    estimates: dict[int, list[float]] = {}
    for seed in range(REPLICATIONS):
        rng = np.random.default_rng(200 + seed)
        output = (
            np.full(3_000, tokens)
            if lengths == "constant"
            else rng.choice([tokens // 5, 5 * tokens], 3_000, p=[5 / 6, 1 / 6])
        )
        queue = world(poisson_trace(rng, load / MEAN_SERVICE_S, np.ones_like(output), output), sharing)
        in_system_s = sojourns_s(queue)
        size = output[len(output) // 10 :]
        for x in np.unique(size).tolist():
            estimates.setdefault(x, []).append(float(in_system_s[size == x].mean()))
    for x, means in estimates.items():
        assert_theory_within_interval(means, x * token_s / (1 - load), half_width=0.2)


def test_littles_law() -> None:
    """Requests in the system, sampled over time, average to arrival rate times mean time in the system: samples of
    queue and batch on one side, arrivals and ends of requests on the other."""
    rng = np.random.default_rng(7)
    n = 4_000
    trace = poisson_trace(rng, 60.0, rng.integers(1, 400, n), rng.integers(1, 120, n))
    cost = affine(base_s=4e-3, prefill_token_s=2e-5, decode_request_s=2e-5, context_token_s=2e-8)
    log = world(trace, replica(cost=cost, kv_blocks=450)).simulate(timeline_instants=100_000)

    assert log.preemptions.sum() > 100
    in_system, rate_times_stay = littles_law(log)
    assert in_system == pytest.approx(rate_times_stay, rel=1e-3)
