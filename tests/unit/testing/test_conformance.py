"""A comparison that cannot fail is none: each kind of record is altered, and the difference has to be found."""

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from kvsim.cli import main
from kvsim.core.errors import InputError
from kvsim.testing.conformance import (
    Difference,
    cases,
    compare,
    first_difference,
    first_difference_leaping,
    load,
    replay,
)

PRESSURE = Path(__file__).parents[2] / "recordings" / "pressure"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PRESSURE, tmp_path / "pressure"))


def alter_step(folder: Path, index: int, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "steps.jsonl.gz"
    steps = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    change(steps[index])
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, steps)).encode()))


def alter_request(folder: Path, index: int, name: str, value: str) -> None:
    with open(folder / "requests.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[index][name] = value
    with open(folder / "requests.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0] | {name: value}))
        table.writeheader()
        table.writerows(rows)


def alter_config(folder: Path, section: str, name: str, value: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    about[section][name] = value
    (folder / "config.json").write_text(json.dumps(about))


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["conformance", *map(str, arguments)])
    return int(str(ended.value.code))


def test_a_recording_of_vllm_is_replayed_exactly(recording: Path) -> None:
    for mode in ("step", "leap"):
        assert compare(load(recording), mode).difference is None  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["start_ns", "n", "c", "k", "waiting", "running", "free_blocks", "free_blocks_end"])
def test_one_altered_field_of_one_step_is_found(recording: Path, name: str) -> None:
    def change(step: dict[str, Any]) -> None:
        value = step[name]
        step[name] = value + 1 if isinstance(value, int) else value[:-1]

    alter_step(recording, 100, change)
    difference = compare(load(recording), "step").difference
    assert difference is not None
    assert difference.where == "step 100"
    assert list(difference.fields) == [name]


@pytest.mark.parametrize("name", ["arrived", "admitted", "preempted", "alloc_failed", "finished"])
def test_an_event_that_only_one_side_has_is_found(recording: Path, name: str) -> None:
    steps = load(recording).steps
    index = next(index for index, step in enumerate(steps) if name in step)
    alter_step(recording, index, lambda step: step.pop(name))
    difference = compare(load(recording), "step").difference
    assert difference == Difference(f"step {index}", {name: (None, steps[index][name])})


@pytest.mark.parametrize("name", ["arrived", "admitted", "preempted", "alloc_failed", "finished"])
@pytest.mark.parametrize("mine", [True, False], ids=["recorded", "simulated"])
def test_leaping_over_it_is_found_as_well(recording: Path, name: str, mine: bool) -> None:
    """An event at the beginning of a stretch, or at its end, and one in its middle that only the recording has."""
    steps = load(recording).steps
    index = next(index for index, step in enumerate(steps) if name in step and index > 100)
    if mine:
        alter_step(recording, index, lambda step: step.pop(name))
        difference = compare(load(recording), "leap").difference
        where = ""
        fields = {name: (None, steps[index][name])}
    else:
        firsts = [stretch["step"] for stretch in replay(load(recording), "leap", stretches=True)[1]]
        middle = next(first + 2 for first, until in pairwise(firsts) if until - first > 4)
        event = steps[index][name]
        alter_step(recording, middle, lambda step: step.update({name: event}))
        difference = compare(load(recording), "leap").difference
        index, where = middle, ", leapt over"
        fields = {name: (event, None)}
    assert difference == Difference(f"step {index}{where}", fields)


@pytest.mark.parametrize("name", ["n", "c", "k", "waiting", "running"])
def test_no_batch_changes_in_a_stretch(recording: Path, name: str) -> None:
    firsts = [stretch["step"] for stretch in replay(load(recording), "leap", stretches=True)[1]]
    middle = next(first + 2 for first, until in pairwise(firsts) if until - first > 4)

    def change(step: dict[str, Any]) -> None:
        value = step[name]
        step[name] = value + 1 if isinstance(value, int) else value[:-1]

    alter_step(recording, middle, change)
    difference = compare(load(recording), "leap").difference
    assert difference is not None
    assert (difference.where, list(difference.fields)) == (f"step {middle}, leapt over", [name])


def test_stretches_cover_every_step(recording: Path) -> None:
    steps, stretches = load(recording).steps, replay(load(recording), "leap", stretches=True)[1]
    assert len(stretches) < len(steps) / 2
    assert first_difference_leaping(steps, stretches) is None
    assert first_difference_leaping(steps, []) == Difference("step 0", {"number of steps": (357, 0)})
    late = first_difference_leaping(steps, stretches[1:])
    assert late == Difference("step 0", {"number of steps": (357, 0)})
    assert first_difference_leaping(steps[:-1], stretches) is not None
    assert first_difference_leaping(steps, stretches[:-1]) is not None


@pytest.mark.parametrize("mode", ["step", "leap"])
@pytest.mark.parametrize("name", ["first_scheduled_ns", "first_token_ns", "finish_ns", "preemptions"])
def test_one_altered_outcome_of_one_request_is_found(recording: Path, name: str, mode: Any) -> None:
    was = int(load(recording).requests[7][name])
    alter_request(recording, 7, name, str(was + 1))
    difference = compare(load(recording), mode).difference
    assert difference == Difference("request 7", {name: (was + 1, was)})


def test_a_missing_record_is_found() -> None:
    steps = [{"step": 0}, {"step": 1}]
    assert first_difference("step", steps, steps) is None
    assert first_difference("step", steps, steps[:1]) == Difference("step 1", {"number of steps": (2, 1)})


def test_another_parameter_decides_otherwise(recording: Path) -> None:
    """The rules that the recording shows are in force: with a watermark the first difference is an admission."""
    altered = load(recording)
    altered.config["watermark"] = 0.3
    difference = compare(altered, "step").difference
    assert difference is not None
    assert "alloc_failed" in difference.fields


def test_the_command_prints_the_first_difference_with_both_sides(
    recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recording) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pressure: step: 357 steps, 60 requests: equal",
        "pressure: leap: 169 stretches of 357 steps, 60 requests: equal",
        "1 equal",
    ]
    alter_step(recording, 3, lambda step: step.update(free_blocks=99))
    assert run(recording, "--mode", "step") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pressure: step: 357 steps, 60 requests: DIFFERENT"
    assert lines[1:4] == [
        "  step 3: free_blocks",
        "    recorded  free_blocks: 99",
        f"    simulated free_blocks: {FREE}",
    ]
    assert lines[4] == "0 equal, 1 different"


FREE = load(PRESSURE).steps[3]["free_blocks"]


def test_a_recording_that_is_not_modelled_is_no_success(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alter_config(recording, "config", "kv_connector", "any")
    assert run(recording.parent) == 1
    assert "pressure: not modelled: kv_connector = any" in capsys.readouterr().out
    with pytest.raises(InputError, match="does not model kv_connector = any"):
        compare(load(recording), "leap")


def test_a_parameter_that_nobody_knows_is_not_modelled(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alter_config(recording, "config", "newparam", 3)
    alter_config(recording, "config", "pipeline_parallel_size", 1)
    assert run(recording) == 1
    assert capsys.readouterr().out == "pressure: not modelled: newparam = 3\n0 equal, 1 not modelled\n"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("policy", "lifo", "'lifo' is not allowed; allowed: fcfs, priority"),
        ("prefill_schedule_interval", 0, "0 is not allowed; it must be at least 1"),
        ("prefill_schedule_interval", None, "expected a whole number, found null"),
        ("max_num_active_seqs", 0, "0 is not allowed; it must be at least 1"),
        ("max_num_active_seqs", 9999, "9999 is not allowed: max_num_seqs is "),
        ("max_num_seqs", 9999, "9999 is not allowed: max_num_batched_tokens is "),
        ("max_num_seqs", True, "True is not a whole number from 1 to "),
        ("usable_blocks", 10**20, "100000000000000000000 is not a whole number from 1 to "),
        ("watermark", None, "expected a number, found null"),
        ("watermark", "x", "expected a number, found 'x'"),
        ("watermark", 1, "1.0 is not allowed; it must be less than 1"),
        ("enable_prefix_caching", "yes", "expected true or false, found 'yes'"),
    ],
)
def test_a_parameter_that_vllm_refuses_is_refused(recording: Path, name: str, value: object, problem: str) -> None:
    alter_config(recording, "config", name, value)
    with pytest.raises(InputError) as refused:
        load(recording)
    assert f"config.json: {name}: {problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("segments", "", "'' is no segment; name[first:end] of a stream of tokens, joined by ;"),
        ("segments", "foo", "'foo' is no segment"),
        ("segments", "sys0[0:x]", "'sys0[0:x]' is no segment"),
        ("segments", "[0:24]", "'[0:24]' is no segment"),
        ("segments", "s[0:24];", "'' is no segment"),
        ("segments", "s[24:24]", "'s[24:24]' is no segment"),
        ("segments", "s[0:24]t[0:1]", "'s[0:24]t[0:1]' is no segment"),
        ("segments", "o99[0:24]", "'o99[0:24]' is of a request that there is not"),
        ("segments", "s[0:9999]", "9999 tokens, prompt_tokens is "),
        ("prompt_tokens", "0", "'0' is not a whole number from 1 to 2147483647"),
        ("prompt_tokens", "9" * 20, f"'{'9' * 20}' is not a whole number from 1 to "),
        ("max_tokens", "-1", "'-1' is not a whole number from 1 to "),
        ("arrival_ns", "-1", "'-1' is not a whole number from 0 to "),
        ("generated_tokens", "x", "'x' is not a whole number from 0 to "),
        ("finish_ns", "x", "'x' is not a whole number from 0 to "),
        ("first_token_ns", "1.5", "'1.5' is not a whole number from 0 to "),
        ("status", "lost", "'lost' is not a status; allowed: finished, rejected, "),
        ("ends", "soon", "'soon' is not an end; allowed: eos, or nothing"),
    ],
)
def test_a_request_that_cannot_be_is_refused(recording: Path, name: str, value: str, problem: str) -> None:
    alter_request(recording, 3, name, value)
    with pytest.raises(InputError) as refused:
        load(recording)
    assert f"requests.csv:5: {name}: {problem}" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("end_ns", "1", '"1" is not a whole number'),
        ("c", [0.5], "[0.5] is not a list of whole"),
        ("k", None, "- is not"),
    ],
)
def test_a_field_that_a_step_needs_is_demanded(recording: Path, name: str, value: object, problem: str) -> None:
    alter_step(recording, 3, lambda step: step.update({name: value}))
    with pytest.raises(InputError) as refused:
        load(recording)
    assert f"steps.jsonl.gz:4: {name}: {problem}" in str(refused.value)


def test_steps_that_are_none_are_refused(recording: Path) -> None:
    file = recording / "steps.jsonl.gz"
    packed = file.read_bytes()
    for content, problem in (
        (gzip.compress(b"[1]\n"), "steps.jsonl.gz:1: [1] is not a step"),
        (gzip.compress(b"{"), "is no recording: Expecting property name"),
        (packed[: len(packed) // 2], "is no recording: Compressed file ended"),
        (packed[:40] + b"xxxx" + packed[44:], "is no recording: "),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError) as refused:
            load(recording)
        assert problem in str(refused.value)


def test_a_folder_without_recordings_and_broken_files_are_user_mistakes(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cases(recording) == cases(recording.parent) == [recording]
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty") == 2
    assert "a recording is a folder with config.json" in capsys.readouterr().err
    assert run(recording.parent, "--case", "presure") == 2
    assert "no recording presure in it; there are: pressure" in capsys.readouterr().err
    assert run(tmp_path / "nowhere") == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    alter_request(recording, 3, "arrival_ns", "soon")
    assert run(recording) == 2
    assert "requests.csv:5: arrival_ns: 'soon' is not a whole number" in capsys.readouterr().err
    (recording / "steps.jsonl.gz").write_bytes(b"no gzip")
    assert run(recording) == 2
    assert "is no recording" in capsys.readouterr().err
    alter_config(recording, "cost", "base_ns", "4 ms")
    alter_request(recording, 3, "arrival_ns", "0")
    (recording / "steps.jsonl.gz").write_bytes(gzip.compress(b""))
    assert run(recording) == 2
    assert "config.json: base_ns: '4 ms' is not a whole number from 0 to 1000000000000" in capsys.readouterr().err
    (recording / "config.json").write_text('{"config": {}}')
    assert run(recording) == 2
    (recording / "config.json").write_text("{")
    assert run(recording) == 2
