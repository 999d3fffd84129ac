"""Mistakes of a user: one line on stderr, exit code 2, no traceback, nothing written."""
# ruff: noqa: E501  (a table of cases: one per line)

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvsim.cli import main

GOOD = "workload:\n  trace: {path: t.csv}\n"
HEADER = "arrival_s,prompt_tokens,output_tokens\n"
TRACE = HEADER + "0,100,10\n1,50,5\n"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run ``kvsim`` on a scenario and a trace; returns what was refused, after checking how."""
    monkeypatch.chdir(tmp_path)

    def run(scenario: str = GOOD, trace: str | None = TRACE, *args: str) -> str:
        (tmp_path / "s.yaml").write_text(scenario)
        if trace is not None:
            (tmp_path / "t.csv").write_text(trace)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(["run", "s.yaml", *(args or ("--out", "out"))])
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        assert printed.err.startswith("Error: ")
        assert printed.err.count("\n") == 1
        assert "Traceback" not in printed.err
        assert sorted(tmp_path.rglob("*")) == before
        return printed.err.removeprefix("Error: ").rstrip("\n")

    return run


def test_the_scenario_that_the_cases_break_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(GOOD)
    (tmp_path / "t.csv").write_text(TRACE)
    with pytest.raises(SystemExit) as ended:
        main(["run", "s.yaml", "--out", "out", "--quiet"])
    assert ended.value.code == 0
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_misspelt_key(refused: Refused) -> None:
    assert (
        refused("workload:\n  trace: {path: t.csv, limt: 3}\n")
        == "s.yaml:2: workload.trace.limt: unknown key; did you mean 'limit'? known: format, limit, on_bad_row, path, rate_scale"
    )


def test_a_wrong_type(refused: Refused) -> None:
    assert (
        refused(GOOD + "cluster:\n  replicas: two\n")
        == "s.yaml:4: cluster.replicas: expected a whole number, found 'two'"
    )


def test_unreadable_yaml(refused: Refused) -> None:
    assert (
        refused(GOOD + "cluster: {gpu: [\n")
        == "s.yaml:4: not valid YAML: expected the node content, but found '<stream end>'"
    )


def test_duplicate_keys(refused: Refused) -> None:
    assert (
        refused(GOOD + "seed: 1\nseed: 2\n") == 's.yaml:4: not valid YAML: found duplicate key "seed"; keep one of them'
    )


def test_a_missing_scenario(refused: Refused) -> None:
    assert refused(GOOD, TRACE, "--out", "out", "../s.yaml").startswith("Got unexpected extra argument")
    with pytest.raises(SystemExit, match="2"):
        main(["run", "nowhere.yaml"])


def test_an_override_without_a_value(refused: Refused) -> None:
    assert (
        refused(GOOD, TRACE, "--set", "seed") == "--set: 'seed' is not PATH=VALUE; for example --set cluster.replicas=2"
    )


def test_a_missing_trace(refused: Refused, tmp_path: Path) -> None:
    assert (
        refused(GOOD, None)
        == f"s.yaml:2: workload.trace.path: {tmp_path}/t.csv does not exist; a relative path starts at the scenario file"
    )


@pytest.mark.parametrize(
    ("trace", "parts"),
    [
        (LFS, ["t.csv", "Git LFS", "git lfs pull"]),
        ("", ["t.csv", "empty"]),
        (HEADER, ["t.csv", "no "]),
        (HEADER + "0,100,10\n1,-5,5\n", ["t.csv:3", "prompt_tokens", "-5"]),
        (HEADER + "0,100,10\nNaN,5,5\n", ["t.csv:3", "arrival_s", "NaN"]),
        (HEADER + "0,100,nan\n", ["t.csv:2", "output_tokens", "nan"]),
        (HEADER + "0,100,10\n" * 298 + "1,many,5\n", ["t.csv:300", "prompt_tokens", "many"]),
        ("time,in,out\n0,1,1\n", ["t.csv:1", "plain", "burstgpt"]),
    ],
)
def test_a_trace_that_cannot_be_played_names_file_row_and_value(refused: Refused, trace: str, parts: list[str]) -> None:
    message = refused(GOOD, trace)
    assert [part for part in parts if part not in message] == [], message


def test_an_unknown_model(refused: Refused) -> None:
    assert refused(GOOD + "model: lama-3.1-8b\n").startswith(
        "s.yaml:3: model: unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'? kvsim list "
    )


def test_a_model_that_does_not_fit_says_how_much_is_missing_and_what_would_do(refused: Refused) -> None:
    message = refused(GOOD + "model: llama-3.1-70b\ncluster: {gpu: a100-80gb-sxm}\n")
    assert message.startswith(
        "s.yaml:3: model: llama-3.1-70b does not fit on a100-80gb-sxm with tensor_parallel_size 1: "
    )
    assert "GB" in message
    assert "missing" in message
    assert "tensor_parallel_size 2 would fit" in message


def test_an_output_folder_that_is_not_empty_is_a_file_or_cannot_be_made(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert (
        refused(GOOD, TRACE, "--out", "full")
        == f"output.dir: {tmp_path}/full is not empty; pass --overwrite to replace a result in it, or name another"
    )
    assert refused(GOOD, TRACE, "--out", "t.csv") == f"output.dir: {tmp_path}/t.csv is a file; name a folder"
    assert refused(GOOD, TRACE, "--out", "/proc/kvsim").startswith("output.dir: /proc/kvsim cannot be written: ")


def test_decisions_that_cannot_be_written(refused: Refused) -> None:
    assert (
        refused(GOOD, TRACE, "--out", "out", "--decisions", "no/d.jsonl")
        == "--decisions: no/d.jsonl cannot be written: No such file or directory; name another file"
    )
    assert "--decisions: . cannot be written: Is a directory" in refused(
        GOOD, TRACE, "--out", "out", "--decisions", "."
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_under_the_decisions(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    open_file = Path.open

    def open_full(path: Path, *args: Any, **options: Any) -> Any:
        return open_file(Path("/dev/full") if ".kvsim-tmp-" in path.name else path, *args, **options)

    monkeypatch.setattr(Path, "open", open_full)
    assert refused(GOOD, TRACE, "--out", "out", "--decisions", "d.jsonl") == (
        "--decisions: d.jsonl cannot be written: No space left on device; name another file"
    )


def test_plugins_are_refused_on_request(refused: Refused) -> None:
    assert (
        refused(GOOD + "router: a.b:C\n", TRACE, "--out", "out", "--no-plugins")
        == "s.yaml:3: router.name: router 'a.b:C' is a plug-in, and plug-ins are refused; drop --no-plugins to allow it"
    )


def test_usage_errors_are_one_line_too(refused: Refused) -> None:
    assert refused(GOOD, TRACE, "--nonsense").startswith("No such option")
    assert refused(GOOD, TRACE, "--format", "xml").startswith(
        "Invalid value for '--format': 'xml' is not one of 'table', 'json'"
    )


def test_an_error_in_the_middle_of_a_run_leaves_nothing(refused: Refused, tmp_path: Path) -> None:
    for name, header in (("linear", "num_tokens"), ("prefill", "chunk_tokens")):
        (tmp_path / f"{name}.csv").write_text(
            f"{header},ms_all_layers\n" + "".join(f"{8 * n},1\n" for n in range(1, 20))
        )
    (tmp_path / "decode.csv").write_text("batch_size,kv_tokens_mean_ceil64,ms_all_layers\n1,64,1\n")
    table = "cost: {name: table, linear_csv: linear.csv, decode_csv: decode.csv, prefill_csv: prefill.csv}\n"
    message = refused(GOOD + table, TRACE, "--out", "new/and/out", "--decisions", "d.jsonl")
    assert "decode.csv" in message
