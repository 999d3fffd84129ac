"""Intervals of predictions: a law, a closed form, and scenarios as people run them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import kvsim
from kvsim.cli import main
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.stretch import linear_stretch
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import resolve
from kvsim.sweeps.uncertainty import interval, redrawn, uncertainty

STEP_S = 0.01


@dataclass(frozen=True)
class OneOperator:
    """Every step is one GEMM of 10 ms, give or take ``sigma``."""

    sigma: float = 0.2
    scale: dict[str, float] | None = None

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> "OneOperatorStep":
        return OneOperatorStep(self)


class OneOperatorStep:
    longest_last = True
    reads_squares = False

    def __init__(self, cost: OneOperator) -> None:
        self.spread = {"gemm": cost.sigma}
        self.seconds = STEP_S * (cost.scale or {}).get("gemm", 1.0)

    def step_s(self, shape: BatchShape) -> float:
        return self.seconds

    def steps_s(self, shape: BatchShape, steps: int):
        return linear_stretch(self.seconds, 0.0, shape, steps)


COST = f"{__name__}:OneOperator"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "trace.csv"
    rows = [f"{i * 0.05},{200 + 37 * (i % 11)},{5 + i % 23}" for i in range(60)]
    file.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return file


def scenario(trace: Path, **keys) -> Scenario:
    return Scenario(**{"workload": {"trace": {"path": str(trace)}}, "measure": {"timeline_instants": 1}, **keys})


def test_without_spread_every_draw_is_the_prediction(trace: Path) -> None:
    exact = scenario(trace, cost={"name": COST, "sigma": 0.0})
    drawn = uncertainty(exact, 19, workers=1)
    figures = kvsim.run(exact).summary
    assert drawn["spread"] == {"mixed": {"gemm": 0.0}}
    assert drawn["intervals"]["p99_ttft_ms"] == [figures["p99_ttft_ms"]] * 2
    named = {**figures, **figures["kvsim"]}
    known = {name: bounds for name, bounds in drawn["intervals"].items() if bounds is not None and name in named}
    assert len(known) > 40
    assert known == {name: [named[name]] * 2 for name in known}


def test_one_operator_gives_the_quantiles_of_its_factor(tmp_path: Path) -> None:
    """Requests that never meet: TPOT is the step, so its interval is 10 ms x exp(-+ 1.645 x 0.2). Of 199 draws a 5 %
    quantile has a standard error of sqrt(0.05 x 0.95 / 199) / density(1.645) = 0.15 sigma."""
    alone = tmp_path / "alone.csv"
    alone.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,4\n9,10,4\n")
    low, high = uncertainty(scenario(alone, cost=COST), 199, workers=1)["intervals"]["mean_tpot_ms"]
    three_errors = 3 * 0.15 * 0.2
    assert math.log(low / 10) == pytest.approx(-1.645 * 0.2, abs=three_errors)
    assert math.log(high / 10) == pytest.approx(1.645 * 0.2, abs=three_errors)


def test_an_interval_holds_a_new_draw_nine_times_in_ten() -> None:
    """Whatever the distribution and however few draws: exactly, by symmetry; here over 4,000 experiments."""
    rng = np.random.default_rng(7)
    for draws in (19, 40):
        values = rng.lognormal(sigma=2.0, size=(4000, draws + 1))
        bounds = [interval(row[:-1].tolist()) for row in values]
        inside = np.mean([low <= row[-1] <= high for row, (low, high) in zip(values, bounds, strict=True)])
        assert inside == pytest.approx(0.9, abs=0.015)
    assert interval([1.0] * 18 + [None]) is None


def test_a_draw_depends_on_its_number_and_the_seed_alone(trace: Path) -> None:
    resolved = resolve(scenario(trace, cost="calibrated", engine={"frontend_s": 0.006}, seed=3))
    drawn = [redrawn(resolved, draw) for draw in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]
    neighbours = [redrawn(resolve(scenario(trace, seed=seed)), draw).seed for seed in range(5) for draw in range(1, 6)]
    assert len(set(neighbours)) == 25
    assert drawn[0].engine.frontend_s != drawn[1].engine.frontend_s
    assert drawn[0].cost.parameters["scale"].keys() == resolved.pools[0].pool.cost.spread.keys()
    other = redrawn(resolve(scenario(trace, cost="calibrated", seed=4)), 1)
    assert other.cost.parameters["scale"] != drawn[0].cost.parameters["scale"]


def test_a_factor_of_the_scenario_stays_and_pools_share_their_luck(trace: Path) -> None:
    pools = [{"role": "decode", "gpu": "a100-80gb-sxm"}, {"role": "prefill", "cost": {"name": "roofline"}}]
    apart = scenario(
        trace,
        cost={"name": "calibrated", "scale": {"gemm": 2.0, "experts": 3.0}},
        cluster={"pools": pools, "link": {"bytes_per_s": 10**10}},
    )
    resolved = resolve(apart)
    new = redrawn(resolved, 5)
    scales = {pool.role: pool.cost.parameters["scale"] for pool in new.cluster.pools or []}
    spread = {built.pool.role: built.pool.cost.spread for built in resolved.pools}
    lucks = [
        math.log(scales["decode"]["gemm"] / 2) / spread["decode"]["gemm"],
        math.log(scales["prefill"]["gemm"]) / spread["prefill"]["gemm"],
    ]
    assert lucks[0] == pytest.approx(lucks[1])
    assert scales["decode"]["experts"] == 3.0
    assert resolve(new).pools[1].gpu.name == "a100-80gb-sxm"


def test_more_spread_is_a_wider_interval_around_the_prediction(trace: Path) -> None:
    widths = []
    for sigma in (0.05, 0.2):
        question = scenario(trace, cost={"name": COST, "sigma": sigma})
        low, high = uncertainty(question, 40, workers=1)["intervals"]["mean_e2el_ms"]
        assert low < kvsim.run(question).summary["mean_e2el_ms"] < high
        widths.append(math.log(high / low))
    assert 3 < widths[1] / widths[0] < 6


def test_a_cost_without_spread_has_intervals_of_its_seeds_or_none(trace: Path) -> None:
    made = {"generate": {"name": "lognormal_poisson", "n": 50, "rate_per_s": 5.0}}
    seeds = uncertainty(scenario(trace, workload=made, cost="affine"), 19, workers=1)
    assert seeds["spread"] == {}
    low, high = seeds["intervals"]["mean_ttft_ms"]
    assert low < high
    with pytest.raises(InputError, match="nothing to redraw: cost affine has no spread"):
        uncertainty(scenario(trace, cost="affine"), 19, workers=1)
    with pytest.raises(InputError, match="18 draws make no 90 % interval; at least 19"):
        uncertainty(scenario(trace), 18)


def command(*args: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["run", *args])
    return int(done.value.code or 0)


def test_the_command_prints_and_writes_the_same_bytes_with_any_workers(trace: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("workload: {trace: {path: trace.csv}}\ncost: calibrated\nengine: {frontend_s: 0.006}\n")
    texts = []
    for workers in "12":
        out = tmp_path / workers
        assert command(str(file), "--uncertainty", "19", "--workers", workers, "--out", str(out)) == 0
        texts.append((out / "summary.json").read_bytes())
    assert texts[0] == texts[1]
    summary = json.loads(texts[0])
    low, high = summary["kvsim"]["uncertainty"]["intervals"]["mean_ttft_ms"]
    assert low < summary["mean_ttft_ms"] < high
    printed = capsys.readouterr().out
    assert (
        f"Mean TTFT (ms):                              {summary['mean_ttft_ms']:.2f} [{low:.2f}, {high:.2f}]" in printed
    )
    assert "Trace rows read:                             60\n" in printed
    assert "90% intervals from 19 draws (operators 8%, " in printed
    assert "uncertainty" not in kvsim.run(file).summary["kvsim"]
    again = kvsim.run(file, uncertainty=19).summary["kvsim"]["uncertainty"]
    assert again == summary["kvsim"]["uncertainty"]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["--uncertainty", "5"], "5 draws make no 90 % interval"),
        (["--uncertainty", "some"], "'some' is not a valid integer"),
        (["--uncertainty", "19", "--set", "cost=affine"], "nothing to redraw"),
        (["--uncertainty", "19", "--out", "{trace}"], "is a file"),
        (["--workers", "2"], "--workers goes with --uncertainty"),
    ],
)
def test_a_mistake_is_one_line(trace: Path, tmp_path: Path, capsys, args: list[str], problem: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("workload: {trace: {path: trace.csv}}\n")
    assert command(str(file), *(arg.format(trace=trace) for arg in args)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert problem in lines[0]


def test_the_intervals_hold_measured_servers(shared_data: Path, tmp_path: Path, capsys) -> None:
    """Llama-3.1-8B on an RTX PRO 6000 and an RTX 4090, 300 requests at 10 per second, which no fit has seen: every
    latency and throughput, by the command that writes the table of docs/accuracy.md."""
    from kvsim.accuracy.coverage import BEGIN, END

    document = tmp_path / "accuracy.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    args = ["--only", "llmservingsim_bench", "--uncertainty", "19", "--workers", "1", "--update", str(document)]
    with pytest.raises(SystemExit) as done:
        main(["accuracy", str(shared_data / "ground_truth"), *args])
    assert done.value.code == 0
    table = capsys.readouterr().out
    assert document.read_text() == f"before\n{BEGIN}\n\n{table}\n{END}\nafter\n"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:5] for row in rows] == [
        ["saturated", metric, "2", "**100%**", "100%"] for metric in ("TTFT", "TPOT", "E2E", "throughput")
    ]
    widths = {row[1]: float(row[-1].rstrip("%")) for row in rows}
    assert widths["TPOT"] < 30 < widths["TTFT"] < 70  # a queue that grows doubles what a server lacks
