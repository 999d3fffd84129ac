"""Bundled traces and whole recipes: same bytes, and the statistics they are fitted to."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.core.trace import TraceRows
from kvsim.workload import read_trace
from kvsim.workload.generate import burstgpt_like_rows, chat_sessions, lognormal_poisson
from kvsim.workload.generate.__main__ import main

BUNDLED = Path(__file__).parents[3] / "traces"
COMMANDS = re.findall(r"^python -m kvsim\.workload\.generate (.*)$", (BUNDLED / "README.md").read_text(), re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_bundled_traces_are_what_their_readme_says(command: str, tmp_path: Path) -> None:
    *arguments, out = command.split()
    assert main([*arguments, str(tmp_path / "t")]) == 0
    assert (tmp_path / "t").read_bytes() == (BUNDLED.parent / out).read_bytes()


def test_bundled_files_are_these_two() -> None:
    assert {command.split()[-1] for command in COMMANDS} == {f"traces/{path.name}" for path in BUNDLED.glob("*.csv")}
    assert all(path.stat().st_size < 300_000 for path in BUNDLED.iterdir())


def test_bundled_burstgpt_like() -> None:
    trace = read_trace(BUNDLED / "burstgpt_like.csv")
    assert (trace.format, trace.rows) == ("burstgpt", TraceRows(read=2000, source_failed=38))
    assert trace.arrival_ns[-1] == 11_852 * 10**9
    rows = list(csv.DictReader((BUNDLED / "burstgpt_like.csv").open()))
    assert Counter(row["Model"] for row in rows) == {"ChatGPT": 1741, "GPT-4": 259}
    assert Counter(row["Log Type"] for row in rows) == {"API log": 1692, "Conversation log": 308}
    assert sum(row["Response tokens"] == "0" for row in rows) == 38


def test_bundled_chat_sessions_grow_and_wait() -> None:
    trace = read_trace(BUNDLED / "chat_sessions.csv")
    assert (trace.format, trace.rows) == ("plain", TraceRows(read=316))
    assert trace.session is not None
    assert trace.think_ns is not None
    for session in range(100):
        turns = np.flatnonzero(trace.session == session)
        history = (trace.prompt_tokens + trace.output_tokens)[turns]
        assert (trace.prompt_tokens[turns][1:] > history[:-1]).all()
        assert (np.diff(trace.arrival_ns[turns]) >= trace.think_ns[turns][1:]).all()
        assert trace.think_ns[turns[0]] == 0
        assert (trace.think_ns[turns[1:]] > 0).all()


def test_the_command_line_stops_after_so_many_rows_or_days(tmp_path: Path) -> None:
    files = tmp_path / "rows.csv", tmp_path / "days.csv"
    assert main(["burstgpt-like", "--rows", "5000", "--seed", "2", "--out", str(files[0])]) == 0
    assert main(["burstgpt-like", "--days", "3", "--seed", "2", "--out", str(files[1])]) == 0
    by_rows, by_days = (file.read_text().splitlines() for file in files)
    assert len(by_rows) == 5001
    assert len(by_days) == 1 + len(burstgpt_like_rows(3, seed=2))
    assert by_rows == by_days[:5001]


def test_chat_sessions_have_the_statistics_of_their_sources() -> None:
    trace = chat_sessions(20_000, seed=4)
    assert trace.session is not None
    assert trace.think_ns is not None
    turns = np.bincount(trace.session)
    assert float((turns == 1).mean()) == pytest.approx(0.44, abs=0.01)
    assert float(turns.mean()) == pytest.approx(2.9, rel=0.03)
    assert turns.max() == 24
    think_s = trace.think_ns[trace.think_ns > 0] / 1e9
    assert np.percentile(think_s, [50, 90]) == pytest.approx([116, 1372], rel=0.06)
    assert np.percentile(trace.output_tokens, [50, 90]) == pytest.approx([100, 479], rel=0.05)


def test_lognormal_poisson_is_the_recipe_of_w2(shared_data: Path) -> None:
    ours, theirs = lognormal_poisson(10_000, 5.8, seed=0), read_trace(shared_data / "peer_runs/w2.csv")
    for name, percentiles in (("prompt_tokens", (50, 90)), ("output_tokens", (50, 90))):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert float(a.mean()) == pytest.approx(float(b.mean()), rel=0.005)
        assert np.percentile(a, percentiles) == pytest.approx(np.percentile(b, percentiles), rel=0.05)
        assert int(a.max()) == int(b.max())
    assert float(ours.arrival_ns[-1]) == pytest.approx(float(theirs.arrival_ns[-1]), rel=0.05)


def test_lognormal_poisson_keeps_its_mean_and_bounds_at_any_size() -> None:
    trace = lognormal_poisson(50_000, 100.0, prompt_mean=300, prompt_range=(50, 1000), seed=9)
    assert float(trace.prompt_tokens.mean()) == pytest.approx(300, abs=1)
    assert (int(trace.prompt_tokens.min()), int(trace.prompt_tokens.max())) == (50, 1000)
    assert 49_999e9 / float(trace.arrival_ns[-1]) == pytest.approx(100, rel=0.02)
    gaps = np.diff(trace.arrival_ns)
    assert float(gaps.std() / gaps.mean()) == pytest.approx(1, rel=0.02)
    assert len(lognormal_poisson(1)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["burstgpt-like", "--rows", "0"], "rows: 0 is too few; allowed: whole numbers from 1"),
        (["burstgpt-like", "--rate", "nan"], "rate: nan is not a positive number"),
        (["burstgpt-like", "--start-hour", "24"], "start_hour: 24 is not an hour; allowed: whole numbers from 0 to 23"),
        (["chat-sessions", "--sessions", "-1"], "sessions: -1 is too few; allowed: whole numbers from 1"),
        (["lognormal-poisson", "--rate", "0"], "rate_per_s: 0.0 is not a positive number"),
    ],
)
def test_command_line_names_mistakes(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "t.csv")]) == 2
    assert capsys.readouterr().err == f"python -m kvsim.workload.generate: {message}\n"
    assert not (tmp_path / "t.csv").exists()


def test_command_line_writes_parquet_and_reports_a_folder_it_cannot_write_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lognormal-poisson", "--rows", "50", "--out", str(tmp_path / "t.parquet")]) == 0
    assert (tmp_path / "t.parquet").read_bytes().startswith(b"PAR1")
    assert len(read_trace(tmp_path / "t.parquet")) == 50
    assert main(["lognormal-poisson", "--out", str(tmp_path / "none" / "t.csv")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_mean_outside_its_bounds_is_refused() -> None:
    with pytest.raises(InputError, match=r"mean 5 is not in 16\.\.3072"):
        lognormal_poisson(10, prompt_mean=5)
