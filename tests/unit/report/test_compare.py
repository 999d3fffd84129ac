"""Comparing runs: pairs of requests, intervals that hold what they promise, and refusals."""

from pathlib import Path

import numpy as np
import pytest

import kvsim
from kvsim import InputError
from kvsim.cli import main
from kvsim.report.compare import BLOCKS, _weighted_percentile, compare_runs, plot_comparison


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    scenario = kvsim.Scenario(
        workload={"generate": {"name": "lognormal_poisson", "n": 600, "rate_per_s": 8}},
        cost={"name": "affine", "base_s": 8e-3},
        slo={"ttft_ms": 500},
    )
    kvsim.run(scenario, out=folder / "base")
    kvsim.run(scenario, out=folder / "slow", cost={"base_s": 9e-3})
    kvsim.run(scenario, out=folder / "fast", cost={"base_s": 7e-3})
    kvsim.run(scenario, out=folder / "others", seed=1)
    kvsim.run(
        scenario, out=folder / "fewer", workload={"generate": {"name": "lognormal_poisson", "n": 50, "rate_per_s": 8}}
    )
    return folder


def exits(code: int, *args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code


def test_a_run_is_the_same_as_itself(runs: Path) -> None:
    found = compare_runs([runs / "base", runs / "base"])
    assert {c.verdict for c in found} == {"same"}
    assert {c.low_frac for c in found} == {0.0}


def test_values_are_those_of_the_summary(runs: Path) -> None:
    found = {c.figure: c for c in compare_runs([runs / "base", runs / "slow"])}
    for name, figure in (("p99_ttft_ms", "P99 TTFT (ms)"), ("mean_tpot_ms", "Mean TPOT (ms)")):
        assert found[figure].base == pytest.approx(kvsim.Result.load(runs / "base").summary[name], rel=1e-12)
        assert found[figure].value == pytest.approx(kvsim.Result.load(runs / "slow").summary[name], rel=1e-12)


def test_slower_is_worse_and_faster_is_better(runs: Path) -> None:
    slow, fast = (
        {c.figure: c for c in compare_runs([runs / "base", runs / name])}["Mean TPOT (ms)"] for name in ("slow", "fast")
    )
    assert (slow.verdict, fast.verdict) == ("worse", "better")
    assert slow.low_frac is not None
    assert slow.change_frac is not None
    assert slow.high_frac is not None
    assert 0.05 < slow.low_frac < slow.change_frac < slow.high_frac


def test_exit_code_table_and_figures(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exits(1, "compare", str(runs / "base"), str(runs / "slow"), "--plot", str(tmp_path))
    assert "Mean TPOT (ms)" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.png", "compare.svg"]
    exits(0, "compare", str(runs / "base"), str(runs / "fast"))
    exits(0, "compare", str(runs / "base"), str(runs / "slow"), "--margin", "90")
    first = (tmp_path / "compare.png").read_bytes()
    plot_comparison([runs / "base", runs / "slow"], tmp_path)
    assert (tmp_path / "compare.png").read_bytes() == first


def test_requests_that_do_not_finish_make_a_run_worse(runs: Path) -> None:
    """Those that are left were fast: without their share the run would look better."""
    scenario = kvsim.Scenario(
        workload={"generate": {"name": "lognormal_poisson", "n": 600, "rate_per_s": 8}},
        cost={"name": "affine", "base_s": 8e-3},
        measure={"horizon_s": 30.0},
    )
    kvsim.run(scenario, out=runs / "cut")
    found = {c.figure: c for c in compare_runs([runs / "base", runs / "cut"])}["Finished"]
    assert (found.base, found.verdict) == (1.0, "worse")
    assert found.value is not None
    assert 0.2 < found.value < 0.6


def test_deadlines_kept_are_compared_among_those_that_have_one(tmp_path: Path) -> None:
    rows = [f"{i / 2},64,{1 + i % 97},{0.1 + 0.0085 * (i % 97) if i % 3 else ''}" for i in range(600)]
    (tmp_path / "t.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens,deadline_s", *rows, ""]))
    scenario = kvsim.Scenario(
        workload={"trace": {"path": str(tmp_path / "t.csv")}}, cost={"name": "affine", "base_s": 8e-3}
    )
    kvsim.run(scenario, out=tmp_path / "a")
    kvsim.run(scenario, out=tmp_path / "b", cost={"base_s": 10e-3})
    found = {c.figure: c for c in compare_runs([tmp_path / "a", tmp_path / "b"])}["Deadlines kept"]
    for name, share in (("a", found.base), ("b", found.value)):
        assert share == pytest.approx(kvsim.Result.load(tmp_path / name).summary["kvsim"]["deadline_attainment"])
    assert found.verdict == "worse"


def test_one_request_is_no_evidence(tmp_path: Path) -> None:
    one = kvsim.Scenario(workload={"generate": {"name": "lognormal_poisson", "n": 1, "rate_per_s": 8}})
    kvsim.run(one, out=tmp_path / "a", cost={"name": "affine", "base_s": 8e-3})
    kvsim.run(one, out=tmp_path / "b", cost={"name": "affine", "base_s": 9e-3})
    found = {c.figure: c for c in compare_runs([tmp_path / "a", tmp_path / "b"])}["Mean TTFT (ms)"]
    assert found.verdict == "unclear"
    assert found.change_frac is not None
    assert found.change_frac > 0


def test_an_overloaded_run_is_named_first(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = kvsim.Scenario(
        workload={"generate": {"name": "lognormal_poisson", "n": 600, "rate_per_s": 8}},
        scheduler={"max_num_seqs": 1},
    )
    kvsim.run(scenario, out=tmp_path / "over")
    exits(1, "compare", str(runs / "base"), str(tmp_path / "over"))
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'over'}: ")


def test_other_requests_are_refused(runs: Path) -> None:
    with pytest.raises(InputError, match=r"has 600 requests, .*fewer has 50; only runs of the same requests"):
        compare_runs([runs / "base", runs / "fewer"])
    with pytest.raises(InputError, match=r"request 0 has \d+ prompt tokens in .*base, \d+ in .*others"):
        compare_runs([runs / "base", runs / "others"])
    with pytest.raises(InputError, match="one run cannot be compared"):
        compare_runs([runs / "base"])
    with pytest.raises(InputError, match="not a run folder"):
        compare_runs([runs / "base", runs / "nowhere"])


def test_weighted_percentiles_are_numpys_of_the_repeated_values() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values, weights = rng.random(40), rng.integers(0, 4, 40)
        weights[0] = 1
        for level in (50, 90, 99):
            expected = np.percentile(np.repeat(values, weights), level)
            assert _weighted_percentile(values, weights, level) == pytest.approx(expected, rel=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Independent requests whose mean differs by 2 %: of 95 % intervals some 95 % hold it (30 blocks: a bit fewer)."""
    from kvsim.report.compare import DRAWS, _blocks, _judged, _weighted_mean

    rng = np.random.default_rng(3)
    draws = rng.multinomial(BLOCKS, [1 / BLOCKS] * BLOCKS, size=DRAWS)
    held = 0
    for _ in range(300):
        base = rng.gamma(4, 25, 900)
        pair = (base, base * rng.normal(1.02, 0.2, 900))
        c = _judged("r", "f", pair, _blocks(900), _weighted_mean, draws, 0.03, 0.95)
        assert c.low_frac is not None
        assert c.high_frac is not None
        held += c.low_frac <= 0.02 <= c.high_frac
    assert 0.90 < held / 300 <= 0.98
