"""Capacity: the answer on paper where there is one, and no answer where there is none."""

import json
from math import exp, factorial, floor
from pathlib import Path

import numpy as np
import psutil
import pytest

import kvsim
from kvsim import InputError, Scenario
from kvsim.cli import main
from kvsim.core.trace import Trace
from kvsim.sweeps.resampling import resample
from kvsim.sweeps.sizing import best, capacity

SERVICE_S, BOUND_S = 0.01, 0.04
ONE_BY_ONE = {
    "scheduler": {"max_num_seqs": 1},
    "cost": {
        "name": "affine",
        "base_s": SERVICE_S,
        "prefill_token_s": 0.0,
        "decode_request_s": 0.0,
        "context_token_s": 0.0,
    },
    "slo": {"ttft_ms": BOUND_S * 1e3},
    "measure": {"timeline_instants": 10},
}
ONE_TOKEN = {"prompt_mean": 16, "prompt_sigma": 0.0, "output_mean": 1, "output_sigma": 0.0, "output_range": [1, 1]}


def queue(n: int, **changed: object) -> Scenario:
    generate = {"name": "lognormal_poisson", "n": n, "rate_per_s": 10, **ONE_TOKEN}
    return Scenario(**{"workload": {"generate": generate}, **ONE_BY_ONE, **changed})  # type: ignore[arg-type]


def md1_largest_rate(attainment: float) -> float:
    """The rate at which the wait of an M/D/1 queue stays below BOUND - SERVICE with this probability.

    Source: Erlang 1909; P(W <= x) = (1 - rho) sum over k of (l (kD - x))^k / k! exp(-l (kD - x)), k D <= x.
    """
    wait_s = BOUND_S - SERVICE_S

    def share(rate: float) -> float:
        terms = (rate * (k * SERVICE_S - wait_s) for k in range(floor(wait_s / SERVICE_S + 1e-9) + 1))
        return (1 - rate * SERVICE_S) * sum(x**k / factorial(k) * exp(-x) for k, x in enumerate(terms))

    low, high = 0.0, 1 / SERVICE_S
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) >= attainment else (low, middle)
    return low


def test_the_largest_rate_of_an_m_d_1_queue() -> None:
    scenario = queue(10_000).replace(**{"workload.generate.rate_per_s": 50})
    (answer,) = capacity(scenario, find="rate", attainment=0.95, seeds=10, workers=1)
    theory = md1_largest_rate(0.95)
    assert answer.value is not None
    assert answer.estimate is not None
    assert answer.interval is not None
    assert answer.value == pytest.approx(theory, rel=0.02)
    assert answer.estimate == pytest.approx(theory, rel=0.01)
    assert answer.interval[0] <= theory <= answer.interval[1]
    assert all(verdict == "sound" for value, _, verdict in answer.looked_at if value < 0.9 / SERVICE_S)


def test_fewest_replicas_are_found_and_one_less_is_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scenario = queue(2000, router="round_robin").replace(**{"workload.generate.rate_per_s": 330})
    (answer,) = capacity(scenario, attainment=0.9, workers=1)
    again = capacity(scenario, attainment=0.9, workers=1)
    assert again == [answer]
    assert answer.value is not None
    assert answer.lock is not None
    fewest = int(answer.value)
    assert 4 <= fewest < 9
    assert (answer.gpus, answer.find) == (fewest, "replicas")
    Path("answer.yaml").write_text(answer.lock)
    attained = [
        kvsim.run("answer.yaml", cluster={"replicas": fewest - less}).summary["slo_attainment"] for less in (0, 1)
    ]
    assert attained[0] >= 0.9
    seen = {value: (share, verdict) for value, share, verdict in answer.looked_at}
    assert seen[fewest - 1][0] < seen[fewest][0]


def test_what_is_never_kept_is_no_answer() -> None:
    """More replicas make no step shorter."""
    (answer,) = capacity(queue(300, slo={"ttft_ms": 5}), attainment=0.9, workers=1)
    assert answer.value is None
    assert answer.reason is not None
    assert answer.reason.startswith("the SLO is kept at no value of cluster.replicas: at best 0 of the requests")
    assert best([answer]) is None


def test_an_overloaded_run_keeps_nothing_even_if_its_requests_do() -> None:
    """A bound so wide that every request of this trace keeps it, at any rate: only the verdict on the run says no."""
    (answer,) = capacity(queue(3000, slo={"ttft_ms": 1e9}), find="rate", workers=1, seeds=2)
    assert answer.value is not None
    assert 80 < answer.value < 1.1 / SERVICE_S
    too_much = [row for row in answer.looked_at if row[0] > 1.2 / SERVICE_S]
    assert too_much
    assert all(share == 1.0 and verdict == "overloaded" for _, share, verdict in too_much)


def test_a_censored_run_keeps_nothing() -> None:
    (answer,) = capacity(queue(300, measure={"horizon_s": 5.0}), find="replicas", attainment=0.5, workers=1, seeds=2)
    assert answer.value is None
    assert answer.reason is not None
    assert "censored: requests had not ended" in answer.reason


def test_prices_and_several_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{k * 0.05:.2f},{200 + 37 * (k % 11)},{20 + k % 7}\n" for k in range(600))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    (tmp_path / "s.yaml").write_text("workload: {trace: {path: t.csv}}\nslo: {ttft_ms: 200, tpot_ms: 40}\n")
    args = [
        "capacity",
        "s.yaml",
        "--gpus",
        "h100-sxm,l40s",
        "--price",
        "h100-sxm=3.6",
        "--price",
        "l40s=0.9",
        "--workers",
        "1",
    ]
    for out in ("a", "b"):
        with pytest.raises(SystemExit) as ended:
            main([*args, "--out", out, "--attainment", "0.9", "--seeds", "3"])
        assert ended.value.code == 0
    assert Path("a/capacity.json").read_bytes() == Path("b/capacity.json").read_bytes()
    printed = capsys.readouterr().out
    assert "cheapest: l40s" in printed
    answers = json.loads(Path("a/capacity.json").read_text())["answers"]
    for answer, price in zip(answers, (3.6, 0.9), strict=True):
        summary = kvsim.run(f"a/{answer['scenario']}").summary
        tokens = summary["total_input_tokens"] + summary["total_output_tokens"]
        usd = price * summary["kvsim"]["gpu_hours"] / tokens * 1e6
        assert answer["usd_per_million_tokens"] == pytest.approx(usd)
        low, high = answer["usd_per_million_tokens_interval"]
        assert low < usd < high


def test_an_interval_of_dollars_is_above_0_however_bursty_the_traffic(tmp_path: Path) -> None:
    """Nearly all tokens in one window of twenty: replicates differ by far more than their mean."""
    rows = "".join(f"{k},{4000 if k == 50 else 10},{200 if k == 50 else 2}\n" for k in range(100))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    scenario = Scenario(workload={"trace": {"path": str(tmp_path / "t.csv")}}, slo={"ttft_ms": 2000})
    (answer,) = capacity(scenario, attainment=0.5, seeds=4, prices={"h100-sxm": 2.0}, workers=1)
    assert answer.usd_per_million_tokens_interval is not None
    assert answer.usd_per_million_tokens is not None
    low, high = answer.usd_per_million_tokens_interval
    assert 0 < low < answer.usd_per_million_tokens < high
    assert low * high == pytest.approx(answer.usd_per_million_tokens**2)


def test_where_a_rate_means_nothing_the_answer_says_what_was_served(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "0,10,5\n" * 30)
    workload = {"trace": {"path": str(tmp_path / "t.csv")}, "max_concurrency": 4}
    (answer,) = capacity(Scenario(workload=workload, slo={"ttft_ms": 2000}), attainment=0.5, seeds=2, workers=1)
    assert answer.lock is not None
    (tmp_path / "a.yaml").write_text(answer.lock)
    assert answer.requests_per_s == kvsim.run(tmp_path / "a.yaml").summary["request_throughput"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--attainment", "95"), "attainment: 95.0 is not a share"),
        (("--seeds", "1"), "1 seeds show no noise"),
        (("--price", "l40s"), "--price: 'l40s' is not GPU=USD"),
        (("--key", "scheduler.name", "--find", "rate"), "scheduler.name: is no number to start from"),
        (("--set", "slo=null"), "slo: is missing: nothing is to be kept"),
        (("--gpus", "h1000"), "unknown GPU 'h1000'"),
        (("--price", "h100=2"), "price: 'h100' is not a GPU; did you mean 'h100-sxm'?"),
        (("--key", "seed.x"), "s.yaml: seed.x: is no number to start from"),
        (("--key", "cluster.pools.0.replicas"), "cluster.pools.0.replicas: is no number to start from"),
        (("--vary", "cluster.replicas=[1,2]"), "cluster.replicas: is searched, and has several values"),
        (("--set", "workload={trace: {path: t.csv}}"), "workload.trace: has 2 requests: too few to say how far"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "workload: {generate: {name: lognormal_poisson, n: 20, rate_per_s: 5}}\nslo: {ttft_ms: 500}\n"
    )
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n0,1,1\n")
    with pytest.raises(SystemExit) as ended:
        main(["capacity", "s.yaml", "--workers", "1", *args])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_worker_that_is_killed_does_not_end_the_search() -> None:
    scenario = queue(2000)
    (answer,) = capacity(scenario, find="rate", attainment=0.9, seeds=2, workers=1)
    killed = []

    def kill_one(_: str) -> None:
        workers = [p for p in psutil.Process().children(recursive=True) if "forkserver" in " ".join(p.cmdline())]
        if not killed and len(workers) > 1:
            killed.append(max(workers, key=lambda p: p.create_time()))
            killed[0].kill()

    (other,) = capacity(scenario, find="rate", attainment=0.9, seeds=2, workers=2, progress=kill_one)
    assert killed
    assert other == answer


def test_a_rate_that_is_not_written_has_to_be_named() -> None:
    scenario = Scenario(workload={"generate": {"name": "lognormal_poisson", "n": 20}}, slo={"ttft_ms": 1})
    with pytest.raises(InputError, match="has no rate_per_s; write it out, or name the key to search"):
        capacity(scenario, find="rate", workers=1)


def test_a_replicate_is_windows_of_the_trace() -> None:
    rng = np.random.default_rng(5)
    n = 2000
    arrival_ns = np.cumsum(rng.exponential(1e9, n)).astype(np.int64)
    arrival_ns -= arrival_ns[0]
    session = rng.integers(-1, 50, n)
    trace = Trace(arrival_ns, rng.integers(1, 1000, n), np.arange(1, n + 1), session=session)
    replicate = resample(trace, np.random.default_rng(0), blocks=20)
    rows = replicate.output_tokens - 1  # which row of the trace each one is
    assert np.array_equal(replicate.prompt_tokens, trace.prompt_tokens[rows])
    steps = np.diff(rows)
    assert (steps != 1).sum() <= 19
    inside = steps == 1
    assert np.array_equal(np.diff(replicate.arrival_ns)[inside], np.diff(trace.arrival_ns)[rows[:-1][inside]])
    assert int(replicate.arrival_ns[-1]) <= int(arrival_ns[-1]) + 20
    assert replicate.session is not None
    assert ((replicate.session == -1) == (session[rows] == -1)).all()
    lengths = [len(resample(trace, np.random.default_rng(k))) for k in range(200)]
    assert np.mean(lengths) == pytest.approx(n, rel=0.02)
