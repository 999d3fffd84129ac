"""Expectations: three verdicts, baselines that are named when stale, and the forms that CI reads."""

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from scipy import stats

import kvsim
from kvsim import InputError
from kvsim.cli import main
from kvsim.metrics.noise import detectable, half_width, t_quantile
from kvsim.sweeps.expect import Change, Expectation, check
from kvsim.testing import assert_expected, assert_not_worse

SCENARIO = """\
workload:
  generate: {name: lognormal_poisson, n: 300, rate_per_s: 8}
model: llama-2-7b
cluster: {gpu: a100-80gb-sxm}
scheduler: {max_num_batched_tokens: 1024}
cost: {name: affine, base_s: 8.0e-3}
slo: {ttft_ms: 500}
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "s.yaml"


def expecting(written: Path, *lines: str) -> str:
    written.write_text(SCENARIO + "expect:\n" + "".join(f"  {line}\n" for line in lines))
    return "s.yaml"


def exits(code: int, *args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 11, 40])
@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95, 0.975, 0.9999])
def test_student_t_is_scipys(probability: float, freedom: int) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9, abs=1e-12)


def test_half_width_and_detectable_difference() -> None:
    values = [10.0, 12.0, 11.0, 13.0]
    error = stats.sem(values)
    assert half_width(values, 0.95) == pytest.approx(stats.t.ppf(0.95, 3) * error)
    assert detectable(values, 0.95) == pytest.approx((stats.t.ppf(0.95, 3) + stats.t.ppf(0.8, 3)) * error)
    assert half_width([5, 5, 5], 0.95) == 0
    assert half_width([5], 0.95) == float("inf")


@pytest.mark.parametrize(
    ("written", "values", "verdict"),
    [
        ("< 10", [8.0, 8.1, 7.9], "pass"),
        ("< 10", [12.0, 12.1, 11.9], "fail"),
        ("< 10", [9.0, 11.0, 9.5], "no verdict"),
        ("< 10", [9.0], "no verdict"),
        ("< 10", [10, 10, 10], "fail"),
        ("<= 10", [10, 10, 10], "pass"),
        (">= 0.95", [0.99, 0.98, 0.99], "pass"),
        (0, [0, 0, 0], "pass"),
        (0, [0, 1, 0], "fail"),
        ("stable", ["stable", "overloaded"], "fail"),
        ("!= 3", [4, 3], "fail"),
        ("800", [800, 800.0], "pass"),
        ("!= overloaded", ["stable", "burst"], "pass"),
        ("== stable", ["stable", "stable"], "pass"),
        ("< 3", ["stable", "stable"], "fail"),
        ("< 3", [["a"], ["a"]], "fail"),
        ("< 10", [None, None], "fail"),
    ],
)
def test_three_verdicts(written: object, values: list[object], verdict: str) -> None:
    assert Expectation.parse("x", written).judge(values, 0.95).verdict == verdict


@pytest.mark.parametrize(
    ("allowed", "values", "verdict"),
    [
        ("+3%", [102.0, 101.9, 102.1], "pass"),
        ("+3%", [105.0, 104.9, 105.1], "fail"),
        ("+3%", [101.0, 110.0, 92.0], "no verdict"),
        ("+3%", [50.0, 50.1, 49.9], "pass"),
        ("-3%", [50.0, 50.1, 49.9], "fail"),
        ("3%", [50.0, 50.1, 49.9], "fail"),
        ("0%", [100.0, 100.0, 100.0], "pass"),
    ],
)
def test_changes_are_judged_on_pairs(allowed: str, values: list[float], verdict: str) -> None:
    assert Change.parse("x", allowed).judge(values, [100.0] * 3, 0.95, "b").verdict == verdict


def test_noise_that_seeds_share_cancels_in_pairs() -> None:
    finding = Change.parse("x", "+3%").judge([101.0, 151.5, 202.0], [100.0, 150.0, 200.0], 0.95, "b")
    assert finding.verdict == "pass"
    assert "+1.00% against 150 in b" in finding.found


def test_a_verdict_is_as_rare_an_error_as_it_says() -> None:
    """Where the truth lies on the bound, a pass is wrong: at 95 % confidence in at most 5 % of cases."""
    import numpy as np

    rng = np.random.default_rng(1)
    bound = Expectation.parse("x", "< 10")
    passed = sum(bound.judge(rng.normal(10, 1, 4).tolist(), 0.95).verdict == "pass" for _ in range(4000))
    assert passed / 4000 == pytest.approx(0.05, abs=0.011)  # three standard deviations of a share


def test_what_is_expected_holds_or_not(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exits(0, "check", expecting(written, 'p99_ttft_ms: "< 4000"', "preemptions: 0", "stability: stable"))
    assert capsys.readouterr().out.startswith("s.yaml: pass (3 seeds)\n  PASS       p99_ttft_ms < 4000: it is ")
    exits(1, "check", expecting(written, 'p99_ttft_ms: "< 4"', "preemptions: 0"))
    assert "FAIL       p99_ttft_ms < 4: it is " in capsys.readouterr().out


def test_more_seeds_are_run_before_there_is_no_verdict(written: Path) -> None:
    middle = check(expecting(written, 'mean_ttft_ms: "> 0"')).findings[0].found.split()[2]
    report = check(expecting(written, f'mean_ttft_ms: "< {middle}"', "max_seeds: 6"))
    assert (report.verdict, report.seeds) == ("no verdict", 6)
    assert "with so many seeds a distance of" in report.findings[0].found


def test_a_half_token_budget_fails_against_the_baseline(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = expecting(written, 'vs_baseline: {p99_ttft_ms: "+3%", mean_tpot_ms: "+3%"}')
    text = written.read_text().replace("n: 300, rate_per_s: 8", "n: 1000, rate_per_s: 5")
    written.write_text(text.replace("cost: {name: affine, base_s: 8.0e-3}", "cost: roofline"))
    exits(2, "check", name)
    assert "there is no baseline s.baseline.json; kvsim check --update-baseline records" in capsys.readouterr().out
    exits(0, "check", name, "--update-baseline")
    first = Path("s.baseline.json").read_bytes()
    exits(0, "check", name)
    capsys.readouterr()
    exits(1, "check", name, "--set", "scheduler.max_num_batched_tokens=512", "--junit", "j.xml", "--github")
    printed = capsys.readouterr().out
    assert "p99_ttft_ms +3% of baseline: it is" in printed
    assert "in s.baseline.json; +3% is allowed" in printed
    assert "::error file=s.yaml,line=8,title=fail%3A p99_ttft_ms +3%25 of baseline::it is" in printed
    assert Path("s.baseline.json").read_bytes() == first, "a baseline is never renewed unasked"
    suite = ElementTree.parse("j.xml").getroot()[0]
    assert (suite.get("name"), suite.get("failures"), suite.get("errors")) == ("s.yaml", "1", "0")


def test_a_change_of_1_percent_inside_the_noise_gives_no_verdict(written: Path) -> None:
    """Steps that cost 1 % more, and chunks that end elsewhere: the P99 of 300 requests moves by several per cent from
    seed to seed, so six of them can neither keep nor break a margin of 1 %."""
    name = expecting(written, 'vs_baseline: {p99_ttft_ms: "+1%"}', "max_seeds: 6")
    check(name, update_baseline=True)
    report = check(name, {"cost.base_s": 8.08e-3, "scheduler.max_num_batched_tokens": 1000})
    assert report.verdict == "no verdict", report
    assert "would be told apart" in report.findings[0].found


def test_a_stale_baseline_is_named(written: Path) -> None:
    name = expecting(written, 'vs_baseline: {p99_ttft_ms: "+3%"}', "max_seeds: 3")
    check(name, update_baseline=True)
    with pytest.raises(InputError, match=r"s.baseline.json: is stale: it was recorded for other requests"):
        check(name, {"workload.generate.n": 301})
    path = Path("s.baseline.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"kvsim": "0.0.1"}))
    assert check(name).notes == (f"s.baseline.json was recorded by kvsim 0.0.1, this is {kvsim.__version__}",)
    del found["figures"]["p99_ttft_ms"]
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match="is stale: it has no p99_ttft_ms"):
        check(name)
    path.write_text("[]")
    with pytest.raises(InputError, match="is not a baseline"):
        check(name)


def test_a_baseline_of_other_seeds_is_stale(written: Path) -> None:
    name = expecting(written, 'vs_baseline: {p99_ttft_ms: "+3%"}', "max_seeds: 3")
    check(name, update_baseline=True)
    path = Path("s.baseline.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seeds": [2, 3, 4]}))
    with pytest.raises(InputError, match=r"is stale: it has 1 of the seeds 0 to 2; kvsim check --update-baseline"):
        check(name)


def test_where_the_seed_changes_nothing_two_runs_are_enough(written: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n0.1,50,3\n")
    written.write_text('workload: {trace: {path: t.csv}}\nexpect: {mean_ttft_ms: "< 1000"}\n')
    report = check("s.yaml")
    assert (report.verdict, report.seeds) == ("pass", 2)


def test_a_run_that_crashes_or_gets_stuck_is_an_error(written: Path, tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(
        "from kvsim.costs.affine import Affine\n"
        "class Crashing(Affine):\n"
        "    def start(self, *_): return self\n"
        "    def step_s(self, shape): raise RuntimeError('no price')\n"
        "    steps_s = step_s\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        report = check(expecting(written, 'p99_ttft_ms: "< 4000"'), {"cost": "crashing:Crashing"})
    finally:
        sys.path.remove(str(tmp_path))
    assert report.verdict == "error"
    assert "RuntimeError: no price" in str(report)
    stuck = {"kv.num_gpu_blocks_override": 5, "cluster.reject_oversized": False}
    report = check(expecting(written, 'p99_ttft_ms: "< 4000"'), stuck)
    assert report.verdict == "error"
    assert "the run got stuck" in str(report)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('p99_tfft_ms: "< 8"', "s.yaml:9: expect.p99_tfft_ms: unknown figure; did you mean 'p99_ttft_ms'?"),
        ('p99_ttft_ms: "about 8"', "s.yaml:9: expect.p99_ttft_ms: 'about 8' is no comparison"),
        ("p99_ttft_ms: [8]", "s.yaml:9: expect.p99_ttft_ms: expected a comparison, found a list"),
        ('vs_baseline: {p99_ttft_ms: "3"}', "s.yaml:9: expect.vs_baseline.p99_ttft_ms: '3' is no change"),
        ('vs_baseline: {p98_ttft_ms: "3%"}', "expect.vs_baseline.p98_ttft_ms: unknown figure"),
        ('stability: "< 3"', "s.yaml:9: expect.stability: cannot be compared with 3.0: it is 'stable'"),
        ("p99_ttft_ms: fast", "s.yaml:9: expect.p99_ttft_ms: cannot be compared with 'fast': it is "),
        ('stability: "< stable"', "s.yaml:9: expect.stability: '< stable' is no comparison"),
        ("p99_ttft_ms: .nan", "s.yaml:9: expect.p99_ttft_ms: nan is no comparison"),
        ('approximation: "< 3"', "s.yaml:9: expect.approximation: cannot be compared with 3.0: it is a list"),
        ('vs_baseline: {stability: "3%"}', "s.yaml:9: expect.vs_baseline.stability: is no number: it is 'stable'"),
        ("seeds: 1", "s.yaml:9: expect.seeds: 1 is not allowed; it must be at least 2"),
        ("confidence: 0.9", "s.yaml:8: expect: is missing: nothing is expected"),
    ],
)
def test_mistakes_are_one_line(written: Path, line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    exits(2, "check", expecting(written, line))
    assert message in capsys.readouterr().out


def test_what_is_expected_is_no_part_of_the_run(written: Path) -> None:
    plain = kvsim.run(written.with_name(expecting(written, "preemptions: 0"))).summary
    written.write_text(SCENARIO)
    assert kvsim.run("s.yaml").summary == plain


def test_assertions_say_what_differs(written: Path) -> None:
    written.write_text(SCENARIO)
    result, slower = kvsim.run("s.yaml"), kvsim.run("s.yaml", cost={"base_s": 9e-3})
    assert_expected(result, p99_ttft_ms="< 4000", preemptions=0)
    with pytest.raises(AssertionError, match=r"s is not as expected:\n  FAIL       p99_ttft_ms < 4: it is \d+"):
        assert_expected(result, p99_ttft_ms="< 4", preemptions=0)
    assert_not_worse(result, slower, mean_tpot_ms="+3%")
    with pytest.raises(AssertionError, match=r"FAIL       mean_tpot_ms \+3% of baseline: it is [\d.]+, \+1\d\.\d+% ag"):
        assert_not_worse(slower, result, mean_tpot_ms="+3%", p99_ttft_ms="+900%")
    with pytest.raises(ValueError, match="did you mean 'p99_ttft_ms'"):
        assert_expected(result, p99_tfft_ms="< 4")


def test_the_plug_in_collects_scenarios_and_lends_kvsim_run(written: Path, tmp_path: Path) -> None:
    expecting(written, 'p99_ttft_ms: "< 4000"')
    (tmp_path / "bad.yaml").write_text(SCENARIO + 'expect: {p99_ttft_ms: "< 4"}\n')
    (tmp_path / "other.yaml").write_text("expect: a document of somebody else's\n")
    (tmp_path / "test_mine.py").write_text(
        "from kvsim.testing import assert_expected\n"
        "def test_it(kvsim_run):\n"
        "    assert_expected(kvsim_run('s.yaml', seed=3), p99_ttft_ms='< 4000')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--junitxml=j.xml"]
    if (
        "kvsim.testing.plugin"
        not in subprocess.run(
            [sys.executable, "-c", "from importlib.metadata import entry_points as e; print(e(group='pytest11'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    ):
        command += ["-p", "kvsim.testing.plugin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1 failed, 2 passed" in done.stdout
    assert "FAIL       p99_ttft_ms < 4: it is" in done.stdout
    assert "Traceback" not in done.stdout


def test_the_plug_in_costs_a_pytest_run_nothing() -> None:
    code = "import kvsim.testing.plugin, sys; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pandas", "pydantic", "pyarrow", "simpy"} & set(done.stdout.split())
