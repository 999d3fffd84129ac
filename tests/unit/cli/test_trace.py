"""``kvsim trace``, as a user types it; and every format through ``kvsim run``."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvsim.cli import main
from kvsim.scenario import Scenario, parse_set
from kvsim.scenario.resolve import resolve
from kvsim.workload.reading import read_trace
from tests.invariants.test_readers import FILES

BUNDLED = Path(__file__).parents[3] / "traces"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BAD = (
    BURSTGPT + "5,ChatGPT,10,2,12,API log\n6,ChatGPT,10,2,13,API log\n7,ChatGPT,0,0,0,API log\n8,GPT-4,1,1,2,API log\n"
)


def kvsim(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_info_and_head_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = kvsim(capsys, "trace", "info", BUNDLED / "burstgpt_like.csv")
    assert code == 0
    assert "replayed                                 1,962" in out
    assert "CV of gaps" in out
    code, out, _ = kvsim(capsys, "trace", "head", BUNDLED / "chat_sessions.csv", "-n", 2)
    assert code == 0
    assert out.splitlines()[0].split() == ["row", "arrival_s", "prompt_tokens", "output_tokens", "session", "think_s"]
    assert len(out.splitlines()) == 3
    path = tmp_path / "t.jsonl"
    path.write_bytes(FILES["mooncake"][0])
    code, out, _ = kvsim(capsys, "trace", "info", path, "--lru", "2", "--format", "json")
    assert (code, json.loads(out)["prefix"]["lru_hit_blocks_frac"]) == (0, {"2": 0.25})
    code, _, err = kvsim(capsys, "trace", "info", path, "--lru", "2,x")
    assert (code, err) == (2, "Error: --lru: '2,x' is not a list of sizes; for example --lru 1000,10000\n")


def test_validate_sets_bad_rows_aside(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(BAD)
    code, _, err = kvsim(capsys, "trace", "validate", "t.csv")
    assert (code, err) == (
        2,
        "Error: t.csv:3: Total tokens: '13' is not request + response tokens; correct or remove the row\n",
    )
    assert not Path("rejected_rows.csv").exists()
    code, out, _ = kvsim(capsys, "trace", "validate", "t.csv", "--on-bad-row", "quarantine")
    assert code == 1
    assert out.splitlines() == [
        "t.csv: burstgpt, 4 rows read",
        "  replayed       2",
        "  source failed  1",
        "  dropped        1: Total tokens is not request + response tokens",
        "  set aside      1: see rejected_rows.csv",
    ]
    assert [*csv.reader(Path("rejected_rows.csv").read_text().splitlines())] == [
        ["place", "column", "value", "reason"],
        ["line 3", "Total tokens", "13", "is not request + response tokens"],
    ]


def test_convert_there_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = BUNDLED / "burstgpt_like.csv"
    for name, *more in (("t.parquet",), ("t.jsonl",), ("t.csv",), ("b.csv", "--as", "burstgpt")):
        code, out, _ = kvsim(capsys, "trace", "convert", source, tmp_path / name, *more)
        left = "" if name in ("t.parquet", "b.csv") else ", 38 that failed in the traced system left out"
        assert (code, out) == (0, f"{tmp_path / name}: 1962 requests{left}\n")
    statistics = [
        json.loads(kvsim(capsys, "trace", "info", path, "--format", "json")[1])
        for path in (source, *(tmp_path / name for name in ("t.parquet", "b.csv", "t.jsonl", "t.csv")))
    ]
    assert all(each["prompt_tokens"] == statistics[0]["prompt_tokens"] for each in statistics)
    assert all(each["models"] == statistics[0]["models"] for each in statistics[:3])  # the others lack what failed
    assert statistics[2]["arrivals"] == statistics[1]["arrivals"] == statistics[0]["arrivals"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.csv", "t.csv", "t.jsonl", "t.parquet"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["convert", "{t}", "out.txt"], "OUT: 'out.txt' has no known ending; allowed: .parquet, .jsonl, .csv"),
        (["convert", "{t}", "s.csv"], "OUT: s.csv is there already; pass --overwrite to replace it"),
        (["convert", "{t}", "no/where.csv"], "no/where.csv: cannot be written: No such file or directory; name"),
        (["generate", "s.yaml", "out.txt"], "OUT: 'out.txt' has no known ending; allowed: .parquet, .jsonl, .csv"),
        (["generate", "s.yaml", "s.csv"], "OUT: s.csv is there already; pass --overwrite to replace it"),
        (["convert", "{t}", "out.parquet", "--as", "burstgpt"], "--as: BurstGPT's format is CSV; name OUT .csv"),
        (["info", "none.csv"], "none.csv: there is no such file; check the path of the trace"),
        (["info", "{t}", "--reader", "mooncak"], "unknown trace format 'mooncak'; did you mean 'mooncake'? known:"),
        (["info", "{t}", "--option", "x=1"], "--option.x: unknown key"),
        (["info", "{t}", "--option", "name=1"], "--option.name: unknown key"),
        (["info", "{t}", "--option", "name"], "--option: 'name' is not PATH=VALUE; for example --option hash_block"),
        (["info", "{t}", "--option", "a.b=1", "--option", "a=5"], "--option a: has keys already; give one of the two"),
        (["info", "{t}", "--option", "a=5", "--option", "a.b=1"], "--option a.b: is a value already; give one of"),
        (["info", "{t}", "--lru", "\u00b2"], "--lru: '\u00b2' is not a list of sizes; for example --lru 1000,10000"),
        (
            ["info", "clients"],
            "clients: holds clients of ServeGen, not requests; make a trace from them: workload",
        ),
        (["convert", "names.jsonl", "n.csv"], "a CSV does not hold the session 'a\\nb'; write .jsonl or .parquet"),
        (["info", "{t}", "--reader", "mooncake", "--option", "hash_block_tokens=0"], "hash_block_tokens: 0 is not a"),
        (["info", "{t}", "--reader", "mooncake", "--option", "hash_block_tokens=a"], "--option.hash_block_tokens: exp"),
        (["validate", "{t}", "--rejected", "x.csv"], "--rejected: needs --on-bad-row quarantine"),
        (["fetch", "burst"], "NAME: unknown trace 'burst'; did you mean 'burstgpt_3'? known: "),
        (["nope"], "No such command 'nope'"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trace = BUNDLED / "burstgpt_like.csv"
    Path("s.csv").touch()
    Path("clients").mkdir()
    Path("clients/chunk-0-dataset.json").write_text("{\n}")
    Path("clients/chunk-0-trace.csv").write_text("0,1,1,Gamma,1,1\n")
    Path("names.jsonl").write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "session_id": "a\\nb"}\n')
    code, out, err = kvsim(capsys, "trace", *(arg.replace("{t}", str(trace)) for arg in args))
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {message.replace('{t}', str(trace))}")
    assert err.count("\n") == 1


def test_generate_writes_what_a_scenario_plays(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Read back, the file is the scenario's trace, to the nanosecond, in all three forms."""
    parts = "arrivals: {name: poisson, rate_per_s: 5}, lengths: {prompt: 50, output: 3}"
    text = f"model: llama-3.1-8b\nworkload:\n  generate: {{requests: 100, {parts}}}\n"
    scenario = tmp_path / "s.yaml"
    scenario.write_text(f"{text}  transforms: [{{name: row_range, first: 20}}]\n")
    made = resolve(Scenario.load(scenario, [parse_set("seed=3")])).trace
    for name in ("t.parquet", "t.jsonl", "t.csv"):
        code, out, _ = kvsim(capsys, "trace", "generate", scenario, tmp_path / name, "--set", "seed=3")
        assert (code, out) == (0, f"{tmp_path / name}: 80 requests\n")
        again = read_trace(tmp_path / name)
        for column in ("arrival_ns", "prompt_tokens", "output_tokens"):
            assert (getattr(again, column) == getattr(made, column)).all(), (name, column)


def test_rows_set_aside_are_written_once_and_never_over_something(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(BAD)
    Path("s.yaml").write_text(
        "model: llama-3.1-8b\nworkload: {trace: {path: t.csv, on_bad_row: quarantine}}\ncluster: {gpu: l40s}\n"
    )
    aside = ", 1 set aside: see rejected_rows.csv\n"
    commands = (
        (["generate", "s.yaml", "out.parquet"], 0, f"out.parquet: 2 requests{aside}"),
        (["convert", "t.csv", "out.parquet", "--on-bad-row", "quarantine"], 0, f"out.parquet: 2 requests{aside}"),
        (
            ["validate", "t.csv", "--on-bad-row", "quarantine"],
            1,
            f"  set aside      1: see {Path('rejected_rows.csv')}\n",
        ),
    )
    for args, expected, end in commands:
        Path("rejected_rows.csv").write_text("mine")
        code, _, err = kvsim(capsys, "trace", *args)
        assert (code, "is there already; pass --overwrite" in err) == (2, True)
        assert Path("rejected_rows.csv").read_text() == "mine"
        code, out, _ = kvsim(capsys, "trace", *args, "--overwrite")
        assert (code, out.endswith(end)) == (expected, True), out
        assert Path("rejected_rows.csv").read_text().startswith("place,column,value,reason\nline 3,")


def test_plot_draws_one_figure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(FILES["mooncake"][0])
    for trace in (path, BUNDLED / "burstgpt_like.csv"):
        code, out, _ = kvsim(capsys, "trace", "plot", trace, "--out", tmp_path / "figures")
        assert (code, out) == (0, f"{tmp_path / 'figures' / 'trace.png'}\n")
        assert (tmp_path / "figures" / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_fetch_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = kvsim(capsys, "trace", "fetch")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][:2] == ["burstgpt_1", "burstgpt_2"]


@pytest.mark.parametrize("format", FILES)
def test_every_format_runs_with_every_row_accounted_for(
    format: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "trace").write_bytes(FILES[format][0])
    sessions = "closed" if format in ("kv_cache_tester", "bailian", "dynamo", "tracelab", "timed_trace") else "open"
    (tmp_path / "s.yaml").write_text(
        f"workload: {{trace: {{path: trace}}, sessions: {sessions}}}\nmodel: llama-2-7b\n"
        "cluster: {gpu: a100-80gb-sxm}\n"
    )
    code, _, err = kvsim(capsys, "run", tmp_path / "s.yaml", "--out", tmp_path / "out", "--check-laws")
    assert (code, err) == (0, "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = summary["kvsim"]["trace_rows"]
    assert rows["read"] == rows["replayed"] + rows["source_failed"] + rows["dropped"]
    assert summary["completed"] == rows["replayed"] == pq.read_table(tmp_path / "out" / "requests.parquet").num_rows
    code, _, err = kvsim(capsys, "run", tmp_path / "out" / "scenario.lock.yaml", "--out", tmp_path / "again")
    assert (code, err) == (0, "")
    assert (tmp_path / "again" / "summary.json").read_bytes() == (tmp_path / "out" / "summary.json").read_bytes()


def test_a_run_with_quarantine_and_a_map_of_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ts,in,out,who\n0,10,5,a\n1,x,5,a\n2,10,5,b\n")
    (tmp_path / "s.yaml").write_text(
        "workload:\n  trace:\n    path: t.csv\n    on_bad_row: quarantine\n"
        "    format: {name: plain, columns: {arrival_s: ts, prompt_tokens: in, output_tokens: out, tenant: who}}\n"
        "model: llama-2-7b\ncluster: {gpu: a100-80gb-sxm}\n"
    )
    code, out, _ = kvsim(capsys, "run", tmp_path / "s.yaml", "--out", tmp_path / "out")
    assert code == 0
    assert "prompt_tokens" not in out.partition("Requests")[0]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["kvsim"]["trace_rows"]["dropped_by_reason"] == {"in is not a whole number of at most 18 digits": 1}
    assert (tmp_path / "out" / "rejected_rows.csv").read_text().splitlines() == [
        "place,column,value,reason",
        "line 3,in,x,is not a whole number of at most 18 digits",
    ]
    table = pq.read_table(tmp_path / "out" / "requests.parquet")
    assert table["tenant"].to_pylist() == ["a", "b"]
    for change, message in (
        ("format.columns.prompt=in", "workload.trace.format.columns: unknown name 'prompt'; did you mean 'prompt_tok"),
        ("format.colums={}", "workload.trace.format.colums: unknown key; did you mean 'columns'"),
        ("format.name=mooncake", "workload.trace.format.columns: unknown key; known: hash_block_tokens"),
        ("on_bad_row=drop", "workload.trace.on_bad_row: "),
    ):
        code, _, err = kvsim(capsys, "run", tmp_path / "s.yaml", "--set", f"workload.trace.{change}")
        assert code == 2
        assert message in err


def test_an_address_is_read_through_a_file_system(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(BAD.replace("10,2,13", "10,2,12"))
    (tmp_path / "bad.csv").write_text(BAD)
    code, out, _ = kvsim(capsys, "trace", "validate", f"file://{tmp_path}/t.csv")
    assert (code, out.splitlines()[0]) == (0, f"file://{tmp_path}/t.csv: burstgpt, 4 rows read")
    (tmp_path / "s.yaml").write_text(
        f"workload: {{trace: {{path: 'file://{tmp_path}/t.csv'}}}}\n"
        "model: llama-2-7b\ncluster: {gpu: a100-80gb-sxm}\n"
    )
    assert kvsim(capsys, "run", tmp_path / "s.yaml", "--out", tmp_path / "out")[0] == 0
    assert kvsim(capsys, "run", tmp_path / "out" / "scenario.lock.yaml", "--out", tmp_path / "again")[0] == 0
    for address, message in (
        (f"file://{tmp_path}/bad.csv", f"file://{tmp_path}/bad.csv:3: Total tokens: '13' is not request"),
        (f"file://{tmp_path}/none.csv", f"file://{tmp_path}/none.csv: there is no such file"),
        ("ftp://x/y.csv", "ftp://x/y.csv: cannot be read: "),
    ):
        code, _, err = kvsim(capsys, "trace", "info", address)
        assert (code, err.startswith(f"Error: {message}")) == (2, True), err
