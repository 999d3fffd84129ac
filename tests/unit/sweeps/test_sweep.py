"""Sweeps: one table, the same bytes however it came about, and nothing lost when something dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

import kvsim
from kvsim.cli import main
from kvsim.core.trace import FailedRows, Trace
from kvsim.sweeps.store import merge
from kvsim.sweeps.traces import SharedTraces, read_arrow, write_arrow
from kvsim.sweeps.work import own_code
from kvsim.workload import read_trace

ROOT = Path(__file__).parents[3]
SCENARIO = f"""\
workload:
  trace: {{path: {ROOT}/traces/burstgpt_like.csv, rate_scale: {{choices: [50, 100, 200, 400]}}}}
model: llama-2-7b
cluster: {{gpu: a100-80gb-sxm, replicas: {{choices: [1, 2, 3, 4]}}, max_model_len: 4096}}
slo: {{ttft_ms: 500, tpot_ms: 50}}
"""
FILES = ("results.parquet", "sweep.json")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted sweep."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "s.yaml").write_text(SCENARIO)
    kvsim.sweep(folder / "s.yaml", out=folder / "o", executor=ThreadPoolExecutor(1))
    return folder / "o"


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def start(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "kvsim.cli", "sweep", "s.yaml", "--workers", "2", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_points(folder: Path, count: int) -> None:
    for _ in range(600):
        if len(list(folder.glob("points/*.json"))) >= count:
            return
        time.sleep(0.02)
    pytest.fail("the sweep does not advance")


def exits(code: int, *args: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == code


def test_rows_are_runs(here: Path) -> None:
    frame = kvsim.sweep(
        "s.yaml", {"seed": [3]}, workload={"trace": {"rate_scale": 100}}, executor=ThreadPoolExecutor(2)
    )
    assert frame["cluster.replicas"].tolist() == [1, 2, 3, 4]
    alone = kvsim.run("s.yaml", seed=3, cluster={"replicas": 2}, **{"workload.trace.rate_scale": 100}).summary
    row = frame.iloc[1]
    assert row["p99_ttft_ms"] == alone["p99_ttft_ms"]
    assert row["num_preemptions"] == alone["kvsim"]["num_preemptions"]
    assert row["trace_rows.source_failed"] == alone["kvsim"]["trace_rows"]["source_failed"]
    assert pd.isna(row["error"])
    assert row["seed"] == 3


def test_repetitions_are_paired_seeds_from_the_scenarios_own_on(here: Path) -> None:
    frame = kvsim.sweep(
        kvsim.Scenario(workload={"generate": {"name": "lognormal_poisson", "n": 20, "rate_per_s": 5}}, seed=7),
        {"cluster.replicas": [1, 2]},
        repetitions=3,
        executor=ThreadPoolExecutor(1),
    )
    assert frame["seed"].tolist() == [7, 8, 9, 7, 8, 9]
    assert frame["point"].tolist() == [0, 0, 0, 1, 1, 1]
    assert frame["total_input_tokens"].tolist()[:3] == frame["total_input_tokens"].tolist()[3:]


def test_a_failure_is_a_row_and_is_tried_again(here: Path) -> None:
    policy = here / "policy_for_sweeps.py"
    policy.write_text(
        "from dataclasses import dataclass\n"
        "from kvsim.costs.affine import Affine\n"
        "@dataclass(frozen=True)\n"
        "class Cost(Affine):\n"
        "    bad: bool = False\n"
        "    def start(self, model, gpu, tensor_parallel_size):\n"
        "        return Step(self) if self.bad else super().start(model, gpu, tensor_parallel_size)\n"
        "class Step:\n"
        "    def __init__(self, cost): pass\n"
        "    def step_s(self, shape): raise RuntimeError('no price')\n"
        "    def steps_s(self, shape, steps): raise RuntimeError('no price')\n"
    )
    sys.path.insert(0, str(here))
    try:
        frame = kvsim.sweep(
            kvsim.Scenario(
                workload={"generate": {"name": "lognormal_poisson", "n": 20, "rate_per_s": 5}},
                cost={"name": "policy_for_sweeps:Cost"},
            ),
            {"cost.bad": [False, True], "cluster.tensor_parallel_size": [1, 3]},
            out="o",
            executor=ThreadPoolExecutor(1),
        )
    finally:
        sys.path.remove(str(here))
    fine, odd_ranks, no_price, both = frame["error"].fillna("").tolist()
    assert fine == ""
    assert odd_ranks == both
    assert "3 ranks cannot share 32 attention heads" in odd_ranks
    assert no_price.startswith("RuntimeError: no price (policy_for_sweeps.py:")
    assert len(list((here / "o" / "points").iterdir())) == 1


def test_processes_and_threads_give_the_same_bytes(here: Path, whole: Path) -> None:
    exits(0, "sweep", "s.yaml", "--out", "o", "--workers", "2", "--quiet")
    assert same(here / "o", whole)
    assert sorted(path.name for path in (here / "o").iterdir()) == ["points", "results.parquet", "sweep.json"]


def test_parts_merge_to_the_whole(here: Path, whole: Path) -> None:
    for part in (3, 1, 2):
        kvsim_shard(here, part)
    exits(0, "merge", "p2", "p1", "p3", "--out", "m", "--quiet")
    assert same(here / "m", whole)
    assert {p.name for p in (here / "m/points").iterdir()} == {p.name for p in (whole / "points").iterdir()}


def kvsim_shard(here: Path, part: int) -> None:
    (here / "threads_for_tests.py").write_text(
        "from concurrent.futures import ThreadPoolExecutor\ndef one():\n    return ThreadPoolExecutor(1)\n"
    )
    exits(
        0, "sweep", "s.yaml", "--out", f"p{part}", "--shard", f"{part}/3", "--executor", "threads_for_tests:one", "-q"
    )


def test_what_does_not_fit_together_is_not_merged(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in (1, 2):
        kvsim_shard(here, part)
    capsys.readouterr()
    exits(2, "merge", "p1", "p2", "--out", "m")
    assert "5 of 16 runs are missing in p1 (1/3), p2 (2/3)" in capsys.readouterr().err
    manifest = json.loads(Path("p2/sweep.json").read_text())
    for key, value, message in (
        ("kvsim", "0.0.9", f"p1 was computed by kvsim {kvsim.__version__}, p2 by kvsim 0.0.9"),
        ("code", "ff", "by a copy of kvsim with checksum"),
        ("question", "other", "for question"),
    ):
        Path("p2/sweep.json").write_text(json.dumps(manifest | {key: value}))
        exits(2, "merge", "p1", "p2", "--out", "m")
        assert message in capsys.readouterr().err
    moved = json.loads(json.dumps(manifest))
    moved["runs"][0]["trace_sha256"] = "ff"
    Path("p2/sweep.json").write_text(json.dumps(moved))
    exits(2, "merge", "p1", "p2", "--out", "m")
    assert "one with ff; use the same file everywhere" in capsys.readouterr().err
    exits(2, "merge", "p1", "nowhere", "--out", "m")
    assert "nowhere: sweep.json is missing; finish the sweep there first" in capsys.readouterr().err
    assert not Path("m").exists()


def test_after_kill_9_of_a_worker_and_of_the_driver_the_bytes_are_the_same(here: Path, whole: Path) -> None:
    driver = start("--out", "k")
    wait_for_points(here / "k", 2)
    workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.parent().pid != driver.pid]
    assert len(workers) == 2
    workers[0].kill()
    wait_for_points(here / "k", 6)
    below = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive, "workers outlive their driver"
    kept = set((here / "k/points").iterdir())
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert start("--out", "k").wait(60) == 0
    assert same(here / "k", whole)
    assert times == {path: path.stat().st_mtime_ns for path in kept}, "what was done is not done again"


def test_a_worker_that_dies_every_time_is_one_row(here: Path) -> None:
    (here / "deadly.py").write_text(
        "import os\n"
        "from dataclasses import dataclass\n"
        "from kvsim.costs.affine import Affine\n"
        "@dataclass(frozen=True)\n"
        "class Deadly(Affine):\n"
        "    def start(self, model, gpu, tensor_parallel_size):\n"
        "        if os.environ.get('DRIVER') != str(os.getpid()) and self.base_s == 2.0:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return super().start(model, gpu, tensor_parallel_size)\n"
    )
    code = (
        "import os; os.environ['DRIVER'] = str(os.getpid())\n"
        "import kvsim\n"  # no __main__ guard: a script as people write them
        "s = kvsim.Scenario(workload={'generate': {'name': 'lognormal_poisson', 'n': 20, 'rate_per_s': 5}},\n"
        "                   cost={'name': 'deadly:Deadly'})\n"
        "frame = kvsim.sweep(s, {'cost.base_s': [0.1, 2.0, 0.3]}, workers=2)\n"
        "print(frame['error'].fillna('').tolist())\n"
    )
    (here / "script.py").write_text(code)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    died = "the worker process died 3 times in this run (killed, or out of memory)"
    assert done.stdout == f"['', {died!r}, '']\n", done.stderr


def test_ctrl_c_ends_at_once_and_keeps_what_is_done(here: Path, whole: Path) -> None:
    driver = start("--out", "k")
    wait_for_points(here / "k", 3)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=20)
    assert (driver.returncode, out) == (130, "")
    assert err.strip() == "Interrupted."
    assert list((here / "k").glob("points/*.json"))
    assert not (here / "k/sweep.json").exists()


def test_sigterm_leaves_nothing_behind(here: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    temporary = tmp_path_factory.mktemp("tmp")
    command = [sys.executable, "-m", "kvsim.cli", "capacity", "s.yaml", "--set", "workload.trace.rate_scale=50"]
    driver = subprocess.Popen(
        [*command, "--set", "cluster.replicas=1", "--find", "rate", "--workers", "2"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    process = psutil.Process(driver.pid)
    for _ in range(600):
        below = process.children(recursive=True)
        if len(below) >= 4:  # fork server, resource tracker, two workers
            break
        time.sleep(0.02)
    assert list(temporary.glob("kvsim-capacity-*"))
    driver.terminate()
    _, err = driver.communicate(timeout=20)
    assert (driver.returncode, err) == (143, "")
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    assert not list(temporary.glob("kvsim-capacity-*"))


def test_a_full_disk_is_one_line_and_loses_nothing(
    here: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(list(here.glob("o/points/*.json"))) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    exits(2, "sweep", "s.yaml", "--out", "o", "-q")
    error = capsys.readouterr().err
    assert (
        "cannot be written: No space left on device; free some space and run it again; 3 finished runs are kept"
        in error
    )
    assert error.count("\n") == 1
    monkeypatch.undo()
    os.chdir(here)
    exits(0, "sweep", "s.yaml", "--out", "o", "-q")
    assert same(here / "o", whole)


def test_parts_have_folders_of_their_own_and_what_a_killed_sweep_left_is_removed(here: Path) -> None:
    folder = here / "runs/s-sweep-2-of-3"
    folder.mkdir(parents=True)
    (folder / ".trace-0123456789abcdef.arrow").touch()
    exits(0, "sweep", "s.yaml", "--shard", "2/3", "--executor", "here", "-q")
    assert sorted(path.name for path in folder.iterdir()) == ["points", "results.parquet", "sweep.json"]


def test_a_folder_with_something_else_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "o").mkdir()
    (here / "o/thesis.tex").touch()
    exits(2, "sweep", "s.yaml", "--out", "o")
    assert capsys.readouterr().err == (
        f"Error: --out: {here}/o holds something else than a sweep; "
        "name a new folder, or one of an earlier sweep to go on with it\n"
    )


def test_two_sweeps_do_not_share_a_folder(here: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = start("--out", "k")
    wait_for_points(here / "k", 1)
    exits(2, "sweep", "s.yaml", "--out", "k")
    assert f"another sweep is at work in {here}/k; wait for it, or name another folder" in capsys.readouterr().err
    assert driver.wait(60) == 0
    assert same(here / "k", whole)


def test_a_change_of_kvsims_own_code_is_another_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who works on a built-in policy must not be shown what it did before."""
    kvsim.sweep("s.yaml", {"seed": [0]}, out="o", executor="here", **{"workload.trace.rate_scale": 100})
    monkeypatch.setattr("kvsim.sweeps.work.own_code", lambda: "edited")
    kvsim.sweep("s.yaml", {"seed": [0]}, out="o", executor="here", **{"workload.trace.rate_scale": 100})
    assert len(list(Path("o/points").iterdir())) == 8


def test_own_code_is_told_apart_by_any_of_its_files(tmp_path: Path) -> None:
    package = Path(kvsim.__file__).parent
    say = "from kvsim.sweeps.work import own_code; print(own_code())"
    shutil.copytree(package, tmp_path / "kvsim", ignore=shutil.ignore_patterns("__pycache__"))

    def said() -> str:
        done = subprocess.run([sys.executable, "-c", say], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    before = said()
    assert before == own_code()
    with (tmp_path / "kvsim/hardware/data/l4.toml").open("a") as file:
        file.write("# another figure\n")
    assert said() != before


def test_a_damaged_point_is_computed_again(here: Path, whole: Path) -> None:
    exits(0, "sweep", "s.yaml", "--out", "o", "-q")
    next((here / "o/points").iterdir()).write_text("{")
    exits(0, "sweep", "s.yaml", "--out", "o", "-q")
    assert same(here / "o", whole)


def test_a_shared_trace_is_the_trace(tmp_path: Path) -> None:
    for name in ("burstgpt_like.csv", "chat_sessions.csv"):
        trace = read_trace(ROOT / "traces" / name)
        write_arrow(trace, tmp_path / f"{name}.arrow")
        mapped = read_arrow(tmp_path / f"{name}.arrow")
        assert isinstance(mapped, Trace)
        parts = [(trace, mapped, field) for field in Trace.__dataclass_fields__ if field != "source_failed"]
        parts += [(trace.source_failed, mapped.source_failed, field) for field in FailedRows.__dataclass_fields__]
        for one, other, field in parts:
            mine, theirs = getattr(one, field, None), getattr(other, field, None)
            if isinstance(mine, np.ndarray):
                assert mine.dtype == theirs.dtype
                assert np.array_equal(mine, theirs)
                assert not theirs.flags.owndata
            else:
                assert list(mine) == list(theirs) if field == "session_names" and mine else mine == theirs, field


def test_a_trace_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    assert len(SharedTraces(tmp_path).read(path, "auto", True)) == 1
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n0,1,1\n")
    assert len(SharedTraces(tmp_path).read(path, "auto", True)) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--vary", "cluster.replicas=2"), "has one value"),
        (
            ("--executor", "dusk"),
            "executor: unknown executor 'dusk'; known: processes, here, ray, or package.module:factory",
        ),
        (("--executor", "os:getcwd"), "os:getcwd gave a str, not a concurrent.futures.Executor"),
        (("--shard", "4/3"), "--shard: '4/3' is not I/N"),
        (("--method", "lhs"), "lhs needs the number of points"),
        (("--vary", "cluster.replcas=[1,2]"), "cluster.replcas: unknown key; did you mean 'replicas'?"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    exits(2, "sweep", "s.yaml", "--out", "o", *args)
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_merge_is_public(here: Path, whole: Path) -> None:
    merge([whole], "copy")
    assert same(here / "copy", whole)
