"""Simulated against measured servers: the arithmetic of the table, what is sent, and runs that were measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kvsim
from kvsim.accuracy import kv_blocks, table
from kvsim.accuracy.errors import Errors, Line, lines, noise
from kvsim.accuracy.predict import COSTS, Predicted, predict, simulate
from kvsim.accuracy.served import METRICS, Served, Skipped, poisson, scenario, uniform_trace, varied_trace
from kvsim.accuracy.sets import NOT_SIMULATED, SETS, served_runs
from kvsim.cli import main
from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.costs.hosts import host_of


def burst() -> Trace:
    return uniform_trace(np.zeros(4, np.int64), 100, 10)


def served(name: str = "one", model: str = "qwen3-14b", tpot_ms: float = 10.0, **options: object) -> Served:
    keys = scenario(model, "h100-sxm", 1, max_num_seqs=8, max_model_len=4096)
    run = Served("made_up", name, model, "h100-sxm", 1, "below", keys, burst, {"tpot": tpot_ms}, file=Path(__file__))
    return replace(run, **options)  # type: ignore[arg-type]


def predicted(run: Served, tpot_ms: float) -> Predicted:
    return Predicted(run, {"calibrated": {"tpot": tpot_ms}}, {"roofline": "model: no"})


def test_errors_are_relative_to_what_was_measured() -> None:
    errors = Errors.of([0.1, -0.3, 0.2])
    assert errors is not None
    found = (errors.runs, errors.median, errors.mean, errors.p90, errors.bias, errors.by_configuration)
    assert found == pytest.approx((3, 0.2, 0.2, 0.28, 0.0, 0.2))
    many = Errors.of([0.1, 0.1, 0.1, 0.3], ["a", "a", "a", "b"])
    assert many is not None
    assert (many.median, many.by_configuration) == pytest.approx((0.1, 0.2))
    assert Errors.of([]) is None
    assert predicted(served(tpot_ms=10.0), 9.0).errors("calibrated") == pytest.approx({"tpot": -0.1})
    assert predicted(served(), 9.0).errors("roofline") == {}


def test_runs_that_a_fit_may_use_are_counted_apart() -> None:
    """By whole configurations, so that a run is never judged by constants that its twin has set."""
    unseen, fitted = served(), served(model="llama-3.1-8b")
    assert (unseen.fitted, fitted.fitted) == (False, True)
    assert unseen.configuration == "qwen3-14b h100-sxm"
    assert replace(unseen, ranks=2).configuration == "qwen3-14b h100-sxm x2"
    published = {"Other": {"tpot": 0.5}}
    both = [predicted(replace(unseen, others=published), 11.0), predicted(replace(fitted, others=published), 8.0)]
    (line,) = lines(both)
    assert (line.load, line.data_set, line.metric) == ("below", "made_up", "tpot")
    assert line.unseen["calibrated"].median == pytest.approx(0.1)
    assert line.fitted["calibrated"].median == pytest.approx(0.2)
    assert "roofline" not in line.unseen
    assert line.others["Other"] == Errors(1, 0.5, 0.5, 0.5, 0.5, 0.5)  # of the unseen run alone


def test_repeats_give_the_noise() -> None:
    twins = [served("a", tpot_ms=9.0), served("b", tpot_ms=11.0)]
    found = noise([*twins, served("c", tpot_ms=50.0, max_concurrency=4)], "tpot")
    assert found is not None
    assert (found.runs, found.mean) == (2, pytest.approx(0.1))
    assert noise(twins[:1], "tpot") is None


def test_the_table_shows_every_line_and_what_is_left_out() -> None:
    errors = Errors(3, 0.012, 0.02, 0.03, -0.01, 0.015)
    line = Line("below", "a_set", "ttft", {"calibrated": errors}, {}, {"Other": errors}, None)
    rows = list(table.markdown([line], [("x", 0.05)], [Skipped("b_set", "no reason", 7)]))
    rows = rows[rows.index(table.HEAD) :]
    columns = {row.count("|") for row in rows if row.startswith("|")}
    assert len(columns) == 1
    assert "**1.2%** | 2.0% | 3.0% | -1.0% | 1.5%" in rows[2]
    assert "Other 1.2% (3)" in rows[2]
    assert "KV blocks | 1 | **5.0%**" in rows[3]
    assert rows[-1] == "- b_set (7 runs): no reason"
    document = f"before {table.BEGIN} old {table.END} after"
    assert table.inserted(document, "new") == f"before {table.BEGIN}\n\nnew\n\n{table.END} after"
    with pytest.raises(ValueError, match="marks"):
        table.inserted("no marks", "new")


def test_an_aim_that_the_configurations_miss_is_missed() -> None:
    """However many runs of one configuration pull the median of the runs below it."""
    good = [predicted(served(str(i)), 10.1) for i in range(3)]
    bad = predicted(served(model="qwen3-32b", tpot_ms=10.0), 12.0)
    assert not bad.served.fitted
    rows = list(table.markdown(list(lines([*good, bad])), [], []))
    assert rows[2] == ("| below saturation | TPOT | <= 5% | 4: 1.0% | 2: 10.5% | **missed by configurations** | - |")
    rows = list(table.markdown(list(lines(good)), [], []))
    assert rows[2] == "| below saturation | TPOT | <= 5% | 3: 1.0% | 1: 1.0% | yes | - |"


def test_runs_by_which_a_rule_was_chosen_count_as_fitted() -> None:
    assert served(model="llama-4-scout", ranks=2).fitted
    assert served(model="llama-4-scout", ranks=4).fitted


def test_arrivals_of_a_poisson_process_have_the_rate_that_was_measured() -> None:
    arrivals_s = poisson(8.0, 4000) / 1e9
    gaps_s = np.diff(arrivals_s)
    assert arrivals_s[0] == 0
    assert arrivals_s[-1] == pytest.approx(500, rel=0.005)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1.0, abs=0.05)  # an exponential distribution's


def test_prompts_that_are_sent_over_and_over_are_found_in_the_cache() -> None:
    """Six prompts in two groups: after the first round only what lies behind the last full block is computed."""
    prompt, block, rounds = 592, 16, 20
    trace = uniform_trace(np.arange(6 * rounds) * 10**9, prompt, 4, (2, 3, 96))
    keys = scenario("llama-3.1-8b", "h100-sxm", 1, max_model_len=4096, kv={"enable_prefix_caching": True})
    keys["workload"] = {"trace": {"path": __file__, "format": "canonical"}}
    resolved = kvsim.scenario.resolve.resolve(kvsim.Scenario(**keys, cost="affine"), read=lambda *_, **__: trace)
    log = kvsim.api.execute(resolved).result.log
    again = (prompt - 1) // block * block  # vLLM computes the last token in any case
    shared_in_group = 96
    first = [prompt, prompt, *[prompt - shared_in_group] * 4]
    assert sorted(log.computed_tokens[:6].tolist(), reverse=True) == first
    assert set(log.computed_tokens[6:].tolist()) == {prompt - again}


def test_a_frontend_adds_its_time_to_the_first_token_and_to_nothing_else() -> None:
    def run(frontend_s: float) -> kvsim.Result:
        workload = {"generate": {"name": "lognormal_poisson", "n": 50, "rate_per_s": 10}}
        return kvsim.run(kvsim.Scenario(workload=workload, engine={"frontend_s": frontend_s}, cost="affine"))

    plain, behind = run(0.0), run(0.01)
    for key in ("ttft", "e2el"):
        assert behind.summary[f"mean_{key}_ms"] == pytest.approx(plain.summary[f"mean_{key}_ms"] + 10, abs=1e-6)
    for key in ("mean_tpot_ms", "p99_itl_ms", "request_rate"):
        assert behind.summary[key] == plain.summary[key]
    assert (behind.log.arrival_ns == plain.log.arrival_ns).all()
    assert (behind.log.finish_ns == plain.log.finish_ns + 10**7).all()


def test_a_fixed_number_in_flight_overlaps_by_the_frontend_and_says_so() -> None:
    """The engine counts slots without it: the summary says what that means, and the engine's own laws hold."""
    workload = {"generate": {"name": "lognormal_poisson", "n": 50, "rate_per_s": 10}, "max_concurrency": 2}
    one = kvsim.Scenario(workload=workload, engine={"frontend_s": 0.01}, cost="affine")
    outcome = kvsim.api.execute(kvsim.scenario.resolve.resolve(one), check_laws=True)
    assert outcome.broken_laws == ()
    notes = outcome.result.summary["kvsim"]["approximation"]
    assert any(note.startswith("frontend_s: with max_concurrency a request is sent 10 ms before") for note in notes)


def test_a_closed_session_waits_for_the_frontend_in_every_turn() -> None:
    trace = Trace(*(np.array(each, np.int64) for each in ([0, 1, 2], [64] * 3, [8] * 3)), session=np.zeros(3, np.int64))
    keys = {"trace": {"path": __file__, "format": "canonical"}, "sessions": "closed"}
    spans = []
    for frontend_s in (0.0, 0.5):
        one = kvsim.Scenario(workload=keys, engine={"frontend_s": frontend_s}, cost="affine")
        log = kvsim.api.execute(kvsim.scenario.resolve.resolve(one, read=lambda *_, **__: trace)).result.log
        spans.append(int(log.finish_ns.max()))
        assert (log.arrival_ns[1:] == log.finish_ns[:-1]).all()
    assert spans[1] - spans[0] == 3 * 500_000_000


def test_the_data_sheet_is_never_slower_than_what_was_fitted() -> None:
    run = served()
    fitted, ideal = (simulate(run, COSTS[name], burst()) for name in ("roofline", "data sheet"))
    assert all(ideal[metric] < fitted[metric] for metric in ("ttft", "tpot", "e2e"))
    assert ideal["throughput"] > fitted["throughput"]


def test_a_model_that_cannot_be_timed_is_named_with_the_reason() -> None:
    (one,) = predict([served(scenario=scenario("mamba-2.8b", "h100-sxm", 1))], {"roofline": COSTS["roofline"]})
    assert "unknown model" in one.refused["roofline"]
    with pytest.raises(InputError, match=r"the host of 'orca' was not measured; known: vllm, vllm-sync"):
        host_of("orca")


def test_every_set_is_read_and_split_by_configuration(shared_data: Path) -> None:
    found = list(served_runs(shared_data / "ground_truth"))
    runs = [each for each in found if isinstance(each, Served)]
    skipped = {each.data_set for each in found if isinstance(each, Skipped)}
    assert set(NOT_SIMULATED) <= skipped
    counts = {name: sum(run.data_set == name for run in runs) for name in {run.data_set for run in runs}}
    assert counts["residency_vllm_h100"] == 19
    assert counts["llmservingsim_bench"] == 2
    assert counts["blis_sim_to_real"] + counts["blis_vllm_h100"] > 50
    assert all(set(run.measured) <= set(METRICS) and run.file.is_file() for run in runs)
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for run in runs:
        sides[run.fitted].add(run.configuration)
    assert not sides[True] & sides[False]
    assert min(map(len, sides.values())) > 10


def test_replays_of_a_measured_server(shared_data: Path) -> None:
    """300 requests each on two GPUs: mean TPOT and end-to-end latency within 5 %, by surfaces and constants of others
    (the RTX 4090 was not in the operator tables). Mean TTFT is a queue's of 7 to 65 s."""
    runs = [each for each in served_runs(shared_data / "ground_truth", SETS[:1]) if isinstance(each, Served)]
    for one in predict(runs, {"calibrated": COSTS["calibrated"]}):
        errors = one.errors("calibrated")
        print(one.served.name, errors)
        assert abs(errors["tpot"]) < 0.05
        assert abs(errors["e2e"]) < 0.05
        assert abs(errors["ttft"]) < 0.09
        assert abs(errors["throughput"]) < 0.05


def test_a_measured_server_below_saturation(shared_data: Path) -> None:
    """Qwen3-14B at 4 and 8 requests per second; no constant was fitted to it."""
    runs = [each for each in served_runs(shared_data / "ground_truth", SETS[1:2]) if isinstance(each, Served)]
    chosen = [run for run in runs if run.name.endswith(("agg_4rps (stock)", "agg_8rps (stock)"))]
    assert len(chosen) == 4
    for one in predict(chosen, {"calibrated": COSTS["calibrated"]}):
        assert not one.served.fitted
        errors = one.errors("calibrated")
        assert abs(errors["tpot"]) < 0.03
        assert abs(errors["e2e"]) < 0.03
        assert abs(errors["throughput"]) < 0.01


def test_pools_that_engines_logged(shared_data: Path) -> None:
    found = dict(kv_blocks.errors(shared_data / "ground_truth"))
    assert len(found) == 9
    assert float(np.median(np.abs(list(found.values())))) < 0.03


def test_the_command(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, document = str(shared_data / "ground_truth"), tmp_path / "accuracy.md"
    document.write_text(f"# Title\n{table.BEGIN}\n{table.END}\nend\n")
    one_set = ["accuracy", data, "--only", "llmservingsim_bench", "--workers", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*one_set, "--format", "json", "--update", str(document)])
    assert ended.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert {each["configuration"] for each in shown["runs"]} == {
        "llama-3.1-8b rtx-4090",
        "llama-3.1-8b rtx-pro-6000-server",
    }
    assert "| saturated | llmservingsim_bench | TTFT |" in document.read_text()
    for bad in (
        ["accuracy", str(tmp_path / "none")],
        ["accuracy", data, "--only", "blys"],
        ["accuracy", str(tmp_path)],
    ):
        with pytest.raises(SystemExit) as ended:
            main(bad)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("Error: ")


def test_lengths_of_a_trace_are_those_given() -> None:
    trace = varied_trace(np.arange(3, dtype=np.int64), [5, 6, 7], np.array([1.0, 2.0, 3.0]))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([5, 6, 7], [1, 2, 3])
