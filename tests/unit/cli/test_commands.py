"""The command line where nothing is wrong: what it prints, writes, imports and returns."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import kvsim
from kvsim.cli import main
from kvsim.costs.affine import Affine, AffineStep

ROOT = Path(__file__).parents[3]
SCENARIO = """\
workload:
  generate: {name: lognormal_poisson, n: 200, rate_per_s: 20}
model: llama-2-7b
cluster: {gpu: a100-80gb-sxm}
slo: {ttft_ms: 500}
"""


@pytest.fixture
def scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    return path


def kvsim_exits(code: int, *args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code


def python(*args: str, cwd: Path = ROOT, path: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


# ---- run


def test_run_writes_a_result_folder_and_prints_the_summary(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "run", "s.yaml")
    folder = scenario.parent / "runs" / "s"
    assert sorted(path.name for path in folder.iterdir()) == [
        "requests.parquet",
        "run.json",
        "scenario.lock.yaml",
        "summary.json",
        "timeline.parquet",
    ]
    printed = capsys.readouterr()
    assert re.search(r"Successful requests: +200\n", printed.out)
    assert (
        "Note: prefix caching: the trace does not say what prompts share, so only preempted requests find blocks"
        in printed.out
    )
    assert printed.out.endswith(f"Result in {folder}\n")
    assert printed.err == ""


def test_the_same_scenario_twice_its_lock_and_the_other_mode_give_the_same_bytes(scenario: Path) -> None:
    kvsim_exits(0, "run", "s.yaml", "--out", "a", "--quiet")
    kvsim_exits(0, "run", str(scenario), "--out", "b/c", "--quiet", "--check-laws")
    kvsim_exits(0, "run", "a/scenario.lock.yaml", "--out", "d", "--quiet")
    for name in ("requests.parquet", "timeline.parquet", "summary.json", "scenario.lock.yaml"):
        first = (scenario.parent / "a" / name).read_bytes()
        assert first == (scenario.parent / "b" / "c" / name).read_bytes(), name
        assert first == (scenario.parent / "d" / name).read_bytes(), name
    kvsim_exits(0, "run", "s.yaml", "--out", "e", "--quiet", "--mode", "step")
    for name in ("requests.parquet", "timeline.parquet"):
        assert (scenario.parent / "a" / name).read_bytes() == (scenario.parent / "e" / name).read_bytes(), name


def test_json_on_the_screen_is_the_summary_file(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "run", "s.yaml", "--out", "a", "--format", "json", "--set", "seed=3")
    printed = capsys.readouterr().out
    assert printed == (scenario.parent / "a" / "summary.json").read_text()
    assert json.loads(printed)["kvsim"]["seed"] == 3


def test_overwrite_replaces_a_result(scenario: Path) -> None:
    kvsim_exits(0, "run", "s.yaml", "--out", "a", "--quiet")
    kvsim_exits(2, "run", "s.yaml", "--out", "a", "--quiet")
    kvsim_exits(0, "run", "s.yaml", "--out", "a", "--quiet", "--overwrite", "--set", "seed=9")
    assert json.loads((scenario.parent / "a" / "summary.json").read_text())["kvsim"]["seed"] == 9


def test_decisions_are_one_json_object_per_step(scenario: Path) -> None:
    synchronous = ("--quiet", "--set", "scheduler.async_scheduling=false")
    kvsim_exits(0, "run", "s.yaml", "--out", "a", *synchronous, "--decisions", "d.jsonl.gz")
    kvsim_exits(0, "run", "s.yaml", "--out", "b", *synchronous, "--decisions", "d.jsonl", "--set", "cluster.replicas=2")
    steps = [json.loads(line) for line in gzip.decompress(Path("d.jsonl.gz").read_bytes()).splitlines()]
    summary = json.loads(Path("a/summary.json").read_text())
    assert len(steps) == summary["kvsim"]["steps"]
    assert [step["step"] for step in steps] == list(range(len(steps)))
    assert sum(len(step.get("finished", [])) for step in steps) == 200
    assert "replica" not in steps[0]
    replicas = {json.loads(line)["replica"] for line in Path("d.jsonl").read_text().splitlines()}
    assert replicas == {0, 1}


def test_decisions_equal_a_recording_of_vllm(shared_data: Path, tmp_path: Path) -> None:
    case = shared_data / "vllm_decisions" / "c1_kv_pressure"
    config = json.loads((case / "config.json").read_text())["config"]
    rows = [line.split(",") for line in (case / "requests.csv").read_text().splitlines()[1:]]
    start_ns = int(rows[0][1])
    lines = [f"{(int(row[1]) - start_ns) / 1e9:.9f},{row[2]},{row[3]}\n" for row in rows]
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(lines))
    (tmp_path / "s.yaml").write_text(
        "workload: {trace: {path: t.csv}}\n"
        f"cluster: {{max_model_len: {config['max_model_len']}}}\n"
        f"scheduler: {{async_scheduling: false, max_num_seqs: {config['max_num_seqs']},\n"
        f"            max_num_batched_tokens: {config['max_num_batched_tokens']}}}\n"
        f"kv: {{block_size: {config['block_size']}, num_gpu_blocks_override: {config['num_gpu_blocks']},\n"
        "     enable_prefix_caching: false}\n"
        "cost: affine\n"
    )
    kvsim_exits(
        0, "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "o"), "-q", "--decisions", str(tmp_path / "d.jsonl")
    )
    mine = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    theirs = [json.loads(line) for line in gzip.decompress((case / "steps.jsonl.gz").read_bytes()).splitlines()]
    for step in theirs:
        step["start_ns"] -= start_ns
        step["end_ns"] -= start_ns
    assert mine == theirs


def test_a_run_that_gets_stuck_says_why_and_exits_with_1(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["kv.num_gpu_blocks_override=5", "cluster.reject_oversized=false"]
    kvsim_exits(1, "run", "s.yaml", "--out", "a", *(word for s in settings for word in ("--set", s)))
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: stuck: ")
    assert printed.err.count("\n") == 1
    assert printed.out.startswith("STUCK")
    assert (scenario.parent / "a" / "summary.json").exists()


# ---- other commands


def test_validate_reads_everything_and_runs_nothing(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "validate", "s.yaml", "--set", "cluster.replicas=2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["s.yaml: valid", "  workload  200 requests, generated"]
    assert "2 x a100-80gb-sxm" in lines[3]
    assert list(scenario.parent.iterdir()) == [scenario]


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_bundled_scenarios_are_valid(path: Path, tmp_path: Path) -> None:
    settings = []
    if path.stem == "azure":  # its trace is not bundled: any file in the same format will do here
        small = tmp_path / "azure.csv"
        small.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
        settings = ["--set", f"workload.trace.path={small}"]
    kvsim_exits(0, "validate", str(path), *settings)


def test_list_names_everything_that_a_scenario_can(capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "list", "gpus")
    assert capsys.readouterr().out.split()[0] == "a100-40gb-sxm"
    kvsim_exits(0, "list")
    printed = capsys.readouterr().out
    for name in ("llama-2-70b", "h100-sxm", "prefill_first", "least_tokens", "paged", "roofline", "burstgpt"):
        assert re.search(rf"^  {re.escape(name)} +\S", printed, re.MULTILINE), name


def test_schema_prints_the_file_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "schema")
    assert capsys.readouterr().out == (ROOT / "kvsim.schema.json").read_text()


def test_plot_draws_into_the_folder_that_is_named(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "run", "s.yaml", "--out", "a", "--quiet")
    capsys.readouterr()
    kvsim_exits(0, "plot", "a", "--out", "figures")
    drawn = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert {path.suffix for path in drawn} == {".png", ".svg"}
    assert all(path.stat().st_size > 1000 for path in drawn)


# ---- what is imported, and what a process does when it is stopped


def test_version() -> None:
    assert python("-m", "kvsim.cli", "--version").stdout == f"kvsim {kvsim.__version__}\n"


def imported_by(*args: str, cwd: Path = ROOT) -> set[str]:
    """Top-level packages that a process of ``kvsim`` has loaded when it ends."""
    code = f"import atexit, sys, kvsim.cli; atexit.register(lambda: print(*sys.modules)); kvsim.cli.main({args!r})"
    return {module.split(".")[0] for module in python("-c", code, cwd=cwd).stdout.splitlines()[-1].split()}


def test_help_imports_click_alone() -> None:
    loaded = imported_by("--help")
    assert "click" in loaded
    assert not loaded & {"numpy", "pydantic", "ruamel", "simpy", "rich", "pyarrow", "pandas", "matplotlib"}


def test_a_run_imports_neither_pandas_nor_matplotlib_and_rich_only_for_a_terminal(scenario: Path) -> None:
    loaded = imported_by("run", "s.yaml", cwd=scenario.parent)
    assert "simpy" in loaded
    assert not loaded & {"pandas", "matplotlib", "rich", "scipy"}


@dataclass(frozen=True)
class Interrupting(Affine):
    """Presses Ctrl-C when the first step is priced."""

    def start(self, model: object, gpu: object, tensor_parallel_size: int) -> AffineStep:
        class Step(AffineStep):
            def step_s(self, shape: object) -> float:
                os.kill(os.getpid(), signal.SIGINT)
                return 1.0

        return Step(self)


def test_ctrl_c_leaves_nothing_and_exits_with_130(scenario: Path) -> None:
    before = sorted(scenario.parent.rglob("*"))
    args = ["run", "s.yaml", "--out", "out", "--decisions", "d.jsonl", "--set", "cost=test_commands:Interrupting"]
    code = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from kvsim.cli import main; main({args!r})"
    ended = python("-c", code, cwd=scenario.parent)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nInterrupted.\n")
    assert sorted(scenario.parent.rglob("*")) == before


def test_a_reader_that_goes_away_is_no_error(scenario: Path) -> None:
    code = "import time, sys; from kvsim.cli import main; sys.stdin.read(); main(['list'])"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.close()  # now it prints, into a pipe that nobody reads
        assert process.stderr.read() == b""
    assert process.returncode == 0


# ---- memory


def test_memory_counts_what_each_gpu_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """DeepSeek-V3 on 32 GPUs, which no cost model can time yet: 26 GB of weights each, latent KV whole on each."""
    kvsim_exits(0, "memory", "deepseek-v3", "-tp", "8", "-dp", "4", "-ep")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "deepseek-v3: 671.03 B parameters (36.63 B per token), 61 layers"
    assert lines[2] == "  each GPU: 61 layers, 26.06 GB of weights, 70272 bytes of KV a token"
    assert lines[-1].endswith("tokens per data-parallel rank")


@pytest.mark.parametrize("share", ["nan", "inf", "0"])
def test_memory_of_a_share_that_is_none_is_refused(capsys: pytest.CaptureFixture[str], share: str) -> None:
    kvsim_exits(2, "memory", "llama-3.1-8b", "--gpu-memory-utilization", share)
    assert "--gpu-memory-utilization" in capsys.readouterr().err


def test_memory_counts_a_state_too(capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(0, "memory", "qwen3-next-80b-a3b", "-tp", "2")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Layers with a state of constant size: 19.8 MB per request and GPU.")


def test_memory_says_why_a_layout_is_impossible(capsys: pytest.CaptureFixture[str]) -> None:
    kvsim_exits(2, "memory", "llama-3.1-8b", "-tp", "3")
    assert capsys.readouterr().err == (
        "Error: tensor_parallel_size: llama-3.1-8b: 3 ranks cannot share 32 attention heads; it must divide them\n"
    )


# ---- calibrate


def test_calibrate_fits_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of all-reduces that reach half of the link, written as a user would."""
    pytest.importorskip("scipy")
    import pandas as pd

    from kvsim.core.surface import read_surfaces

    sizes = [2**power for power in range(8, 28)]
    rows = [
        {"num_gpus": ranks, "message_size": size, "backend": "mine_graph", "latency": ms}
        for ranks in (2, 4)
        for size in sizes
        for ms in [1e3 * 2 * (4 * size * (ranks - 1) / ranks / 450e9 + 3e-6)]
    ]
    folder = tmp_path / "profiles" / "h100_sxm" / "mine_1.0"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(folder / "custom_allreduce_perf.parquet")
    kvsim_exits(0, "calibrate", str(tmp_path / "profiles"), "--out", str(tmp_path / "out"), "--folds", "5")
    shown = capsys.readouterr().out
    assert "all_reduce/graph               h100-sxm             mine_1.0" in shown
    surface = read_surfaces(tmp_path / "out" / "h100-sxm.mine.json").surfaces["all_reduce/graph"]
    assert surface.utilisation.values[2:18, :2] == pytest.approx(0.5, rel=0.02)
    assert surface.spread < 0.02
    kvsim_exits(0, "calibrate", str(tmp_path / "profiles"), "--format", "json")
    assert [each["rows"] for each in json.loads(capsys.readouterr().out)] == [40]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "Error: nowhere: no such folder of measured profiles"),
        (["."], "Error: .: no folder of a measured GPU in it; known: a100_sxm, "),
        ([".", "--gpu", "h100"], "Error: unknown GPU 'h100'; did you mean 'h100-sxm'?"),
        ([".", "--gpu", "h100-sxm"], "Error: h100_sxm: no measurements of h100-sxm; needed: ENGINE_VERSION/gemm_perf"),
        ([".", "--transfer", "--out", "x"], "Error: --transfer writes nothing: leave out --out"),
    ],
)
def test_calibrate_refuses_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    kvsim_exits(2, "calibrate", *arguments)
    assert capsys.readouterr().err.startswith(message)
