"""docs/workloads.md is run, not read: scenarios are resolved, Python is executed, names are those that there are; the
commands and columns of docs/traces.md are those that there are too."""

import re
from pathlib import Path

import pytest

from kvsim.cli.trace import trace as trace_command
from kvsim.core.trace import COLUMNS, RAGGED_COLUMNS
from kvsim.scenario import seats
from kvsim.scenario.resolve import resolve
from kvsim.scenario.scenario import Scenario

DOCS = Path(__file__).parents[3] / "docs"
TRACES = (DOCS / "traces.md").read_text(encoding="utf-8")
TEXT = (DOCS / "workloads.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_runs(number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    language, text = BLOCKS[number]
    if language == "yaml":
        (tmp_path / "s.yaml").write_text(text)
        trace = resolve(Scenario.load(tmp_path / "s.yaml")).trace
        assert trace.rows is not None
        assert trace.rows.replayed == len(trace) > 1000
    else:
        exec(text, {})
        assert "TraceRows(read=" in capsys.readouterr().out


def test_every_name_is_in_the_docs() -> None:
    names = {name for _, table in seats.parts().values() for name in table}
    for name in {*names, *seats.generators(), *seats.transforms()} - {"composed"}:
        assert f"`{name}`" in TEXT or f"name: {name}" in TEXT, name


def test_the_commands_and_options_in_the_docs_of_traces_are_there() -> None:
    found = re.findall(r"kvsim trace (\w+)([^`\n]*)", TRACES)
    assert {name for name, _ in found} >= {"info", "validate", "convert", "head", "plot", "fetch"}
    for name, rest in found:
        options = {option for each in trace_command.commands[name].params for option in each.opts}
        assert {*re.findall(r"--[a-z-]+", rest)} <= options, (name, rest)


def test_the_columns_in_the_docs_of_traces_are_there() -> None:
    for name in {*COLUMNS, *RAGGED_COLUMNS} - {"segments"}:  # only in memory
        assert f"`{name}`" in TRACES, name
