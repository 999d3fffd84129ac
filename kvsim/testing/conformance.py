"""Replays recordings of vLLM's own scheduler and says where a run first differs from one.

A recording is a folder: ``config.json`` (parameters and the cost of a step), ``requests.csv`` (inputs and outcome) and
``steps.jsonl.gz`` (every decision of every step). Everything is an integer; there is no tolerance. The format is
described in ``tools/record_vllm/README.md``, which also makes such folders.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.errors import InputError
from kvsim.core.runlog import NEVER, STATUS_NAMES, RunLog
from kvsim.core.trace import Ragged, Trace
from kvsim.costs.affine import Affine
from kvsim.engine import simulate
from kvsim.hardware import load_gpu
from kvsim.kv.paged import Paged
from kvsim.models import load_model
from kvsim.routers.round_robin import RoundRobin
from kvsim.scenario import seats
from kvsim.scenario.source import Source
from kvsim.schedulers.chunked_prefill import ChunkedPrefill

Mode = Literal["step", "leap"]

NEUTRAL: Final = {
    "pipeline_parallel_size": 1,
    "data_parallel_size": 1,
    "num_speculative_tokens": 0,
    "num_lookahead_tokens": 0,
    "kv_connector": None,
    "lora": False,
    "sliding_window": None,
    "model_runner_v2": False,
}
"""Parameters of a recording that are not modelled, and need not be as long as they have these values."""

SIZES: Final = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "usable_blocks")
"""Parameters that no recording is without."""

DERIVED: Final = ("num_gpu_blocks", "watermark_blocks")
"""What others say already."""

COST: Final = ("base_ns", "per_prefill_token_ns", "per_decode_request_ns", "per_context_token_ns")
MAX_COST_NS: Final = 10**12

MAX_TOKENS: Final = 2**31 - 1
MAX_NS: Final = 4 * 10**18
INPUTS: Final = {
    "id": (0, MAX_TOKENS),
    "arrival_ns": (0, MAX_NS),
    "prompt_tokens": (1, MAX_TOKENS),
    "max_tokens": (1, MAX_TOKENS),
    "priority": (-MAX_TOKENS, MAX_TOKENS),
}
"""Columns of the inputs, all of them numbers: least and most."""

SEGMENT: Final = re.compile(r"([^\[\];]+)\[(\d{1,10}):(\d{1,10})\]")
STEP: Final[dict[str, type]] = {
    **dict.fromkeys(("step", "start_ns", "end_ns"), int),
    **dict.fromkeys(("id", "n", "c"), list),
    "k": str,
    **dict.fromkeys(("prefill_tokens", "decode_requests", "context_tokens"), int),
    **dict.fromkeys(("waiting", "running", "free_blocks", "free_blocks_end"), int),
}
"""Fields that no step is without."""

WORDS: Final[dict[type, str]] = {int: "a whole number", list: "a list of whole numbers", str: "text"}

STATUS: Final = ("finished", "rejected", "stuck_waiting", "stuck_preempted")


@dataclass(frozen=True)
class Recording:
    """One case: ``config`` and ``cost`` as in its config.json, one mapping per request and per step."""

    name: str
    config: dict[str, Any]
    cost: dict[str, int]
    requests: list[dict[str, str]]
    steps: list[dict[str, Any]]

    @property
    def not_modelled(self) -> list[str]:
        """Parameters that are in force in the recording and unknown to kvsim, as ``name = value``."""
        known = {*_fields(ChunkedPrefill), *_fields(Paged), *SIZES, *DERIVED}
        return [
            f"{name} = {value}"
            for name, value in self.config.items()
            if name not in known and not (name in NEUTRAL and value == NEUTRAL[name])
        ]

    def step_ns(self, prefill_tokens: int, decode_requests: int, context_tokens: int) -> int:
        """How long the recording's clock ran in a step, ns."""
        base, per_prefill_token, per_decode, per_context_token = (self.cost[name] for name in COST)
        ns = base + per_prefill_token * prefill_tokens + per_decode * decode_requests
        return ns + per_context_token * context_tokens

    def trace(self) -> Trace:
        """The requests as the engine takes them."""

        def column(name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
            return np.array([int(row[name]) for row in self.requests], dtype=np.int64)

        return Trace(
            column("arrival_ns"),
            column("prompt_tokens"),
            column("max_tokens"),
            priority=column("priority"),
            segments=_segments([row["segments"] for row in self.requests]) if "segments" in self.requests[0] else None,
            ends_by_eos=np.array([row.get("ends") == "eos" for row in self.requests], np.int64),
        )

    def cluster(self) -> Cluster:
        """One replica with the recording's parameters. Raises InputError if one of them is not modelled."""
        lacking = self.not_modelled
        if lacking:
            raise InputError(f"{self.name} cannot be replayed: kvsim does not model {', '.join(lacking)}")
        config, cost = self.config, self.cost
        affine = Affine(  # asks neither the model nor the GPU
            base_s=cost["base_ns"] / 1e9,
            prefill_token_s=cost["per_prefill_token_ns"] / 1e9,
            decode_request_s=cost["per_decode_request_ns"] / 1e9,
            context_token_s=cost["per_context_token_ns"] / 1e9,
        )
        pool = Pool(
            role="mixed",
            replicas=1,
            scheduler=ChunkedPrefill(**{name: config[name] for name in _fields(ChunkedPrefill) & set(config)}),
            kv=Paged(**{name: config[name] for name in _fields(Paged) & set(config)}),
            kv_blocks=config["usable_blocks"],
            cost=affine.start(load_model("llama-2-7b"), load_gpu("a100-80gb-sxm"), 1),
            router=RoundRobin(),
        )
        return Cluster((pool,), config["max_model_len"], reject_oversized=False)


@dataclass(frozen=True)
class Difference:
    """The first place at which a run is not the recording, and what either side says there, field by field.

    A field that only one side has is None on the other.
    """

    where: str
    fields: dict[str, tuple[Any, Any]]

    def lines(self) -> list[str]:
        """As text: one line for the place, one per side and field."""
        return [
            f"{self.where}: {', '.join(self.fields)}",
            *(
                f"  {side:<9} {name}: {_shown(values[index])}"
                for name, values in self.fields.items()
                for index, side in enumerate(("recorded", "simulated"))
            ),
        ]


@dataclass(frozen=True)
class Comparison:
    """One recording, replayed in one mode. Without a ``difference`` all ``compared`` records are equal."""

    case: str
    mode: Mode
    compared: str
    difference: Difference | None


def cases(folder: Path) -> list[Path]:
    """The recordings in a folder: itself, or those right below it. Raises InputError if there is none."""
    if (folder / "config.json").is_file():
        return [folder]
    try:
        found = sorted(path for path in folder.iterdir() if (path / "config.json").is_file())
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=folder) from None
    if not found:
        raise InputError("no recording in it", file=folder, hint="a recording is a folder with config.json")
    return found


def load(folder: Path) -> Recording:
    """Reads one recording. Raises InputError if a file is missing, broken or lacks what a replay needs."""
    about_file, requests_file, steps_file = (folder / name for name in FILES)
    try:
        about = json.loads(about_file.read_text())
        with open(requests_file, newline="") as file:
            requests = list(csv.DictReader(file))
        with gzip.open(steps_file, "rt") as file:
            steps = [json.loads(line) for line in file]
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:  # text that is no UTF-8 or JSON, too
        raise InputError(f"is no recording: {error}", file=folder) from None
    _check_steps(steps, steps_file)
    config, cost = (_section(about, name, about_file) for name in ("config", "cost"))
    _check_config(config, about_file)
    _check_numbers(cost, COST, 0, MAX_COST_NS, about_file)
    _check_requests(requests, requests_file)
    return Recording(folder.name, config, cost, requests, steps)


FILES: Final = ("config.json", "requests.csv", "steps.jsonl.gz")


def replay(
    recording: Recording, mode: Mode, *, check_laws: bool = False, stretches: bool = False
) -> tuple[RunLog, list[dict[str, Any]]]:
    """What the engine does with a recording's requests: the log, and in step mode every step's decisions.

    ``stretches``: leaping, those of every stretch (a run of which nothing is recorded advances in a quicker loop).
    Raises InputError if the recording uses something that is not modelled.
    """
    decisions: list[dict[str, Any]] = []

    def record(replica: int, step: dict[str, Any]) -> None:
        decisions.append(step)

    options = RunOptions(mode=mode, check_laws=check_laws, decisions=record if stretches or mode == "step" else None)
    return simulate(recording.trace(), recording.cluster(), options), decisions


def compare(recording: Recording, mode: Mode) -> Comparison:
    """Replays a recording and compares every field of every step, and what became of each request.

    Leaping, a stretch is compared where something changes, at its beginning and its end, and the recording is looked
    through for anything that changes in between. What becomes of requests is compared with the usual run as well, of
    which nothing is recorded.
    """
    outcome = recorded_outcome(recording)
    log, decisions = replay(recording, mode, stretches=True)
    if mode == "step":
        compared = f"{len(recording.steps)} steps"
        difference = first_difference("step", recording.steps, decisions)
    else:
        compared = f"{len(decisions)} stretches of {len(recording.steps)} steps"
        difference = first_difference_leaping(recording.steps, decisions)
    difference = difference or first_difference("request", outcome, simulated_outcome(log))
    if mode == "leap":
        log, _ = replay(recording, mode)
        difference = difference or first_difference("request", outcome, simulated_outcome(log))
    return Comparison(recording.name, mode, f"{compared}, {len(recording.requests)} requests", difference)


def first_difference(
    what: str, recorded: Sequence[dict[str, Any]], simulated: Sequence[dict[str, Any]]
) -> Difference | None:
    """The first record that is not equal; ``what`` says what a record is."""
    for index, (theirs, ours) in enumerate(zip(recorded, simulated, strict=False)):
        if ours != theirs:
            names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
            return Difference(f"{what} {index}", {name: (theirs.get(name), ours.get(name)) for name in names})
    if len(recorded) != len(simulated):
        index = min(len(recorded), len(simulated))
        return Difference(f"{what} {index}", {f"number of {what}s": (len(recorded), len(simulated))})
    return None


AT_THE_END: Final = ("finished", "free_blocks_end", "cached_blocks")
"""Fields of a step that are written after its results; of a stretch, after those of its last step."""


def first_difference_leaping(
    recorded: Sequence[dict[str, Any]], stretches: Sequence[dict[str, Any]]
) -> Difference | None:
    """The first stretch that is not as recorded at its beginning and end, or that leaps over a change."""
    if not stretches or stretches[0]["step"]:
        return Difference("step 0", {"number of steps": (len(recorded), 0)})
    looked_at = 0
    firsts = [stretch["step"] for stretch in stretches]
    for ours, until in zip(stretches, [*firsts[1:], len(recorded)], strict=True):
        first = ours["step"]
        if not first < until <= len(recorded):
            return Difference(f"step {first}", {"number of steps": (len(recorded), max(first, until))})
        theirs = {name: value for name, value in recorded[first].items() if name not in (*AT_THE_END, "evicted")}
        theirs |= {name: recorded[until - 1][name] for name in AT_THE_END if name in recorded[until - 1]}
        evicted = sum(step.get("evicted", 0) for step in recorded[looked_at : first + 1])
        looked_at = first + 1
        if evicted:  # since the last plan
            theirs["evicted"] = evicted
        refused = theirs.get("alloc_failed")
        if "alloc_failed" not in ours and first and refused == recorded[first - 1].get("alloc_failed"):
            theirs.pop("alloc_failed", None)  # nothing has changed since, so nobody is asked
        difference = first_difference("step", [theirs], [ours])
        if difference is not None:
            at = until - 1 if set(difference.fields) <= set(AT_THE_END) else first
            return Difference(f"step {at}", difference.fields)
        batch = recorded[first]
        if "plan_ns" in batch and first:  # planned before the results of the step before were seen
            batch = batch | {"running": batch["running"] - len(recorded[first - 1].get("finished", ()))}
        between = [_unchanged(batch, steps) for steps in range(1, until - first)]
        for i, (expected, step) in enumerate(zip(between, recorded[first + 1 : until], strict=True), first + 1):
            found = {name: value for name, value in step.items() if name not in NOT_OF_THE_BATCH}
            if i < until - 1 and "finished" in step:
                found["finished"] = step["finished"]
            difference = first_difference("step", [found], [expected])
            if difference is not None:
                return Difference(f"step {i}, leapt over", difference.fields)
    return None


NOT_OF_THE_BATCH: Final = (*AT_THE_END, "step", "start_ns", "end_ns", "plan_ns", "free_blocks", "evicted")


def _unchanged(step: dict[str, Any], steps: int) -> dict[str, Any]:
    """The batch of a step so many steps later, if everybody decodes and nobody comes, leaves or loses blocks."""
    requests = len(step["id"])
    same = {name: step[name] for name in ("id", "alloc_failed", "waiting", "running") if name in step}
    return same | {
        "n": [1] * requests,
        "c": [context + steps for context in step["c"]],
        "k": "d" * requests,
        "prefill_tokens": 0,
        "decode_requests": requests,
        "context_tokens": sum(step["c"]) + steps * requests,
    }


def recorded_outcome(recording: Recording) -> list[dict[str, Any]]:
    """What became of each request, in the words of a log; None: it did not happen."""
    return [
        {
            "status": "unfinished" if row["status"].startswith("stuck") else row["status"],
            "generated_tokens": int(row["generated_tokens"] or 0),
            "preemptions": int(row["preemptions"] or 0),
            "cached_tokens": int(row["cached_tokens_total"] or 0),
            **{name: int(row[name]) if row[name] else None for name in _TIMES},
        }
        for row in recording.requests
    ]


def simulated_outcome(log: RunLog) -> list[dict[str, Any]]:
    """The same of a run. (A log also gives a rejected request a finish; a recording does not.)"""
    return list(_outcomes(log))


_TIMES: Final = ("first_scheduled_ns", "first_token_ns", "finish_ns")
_OUTCOMES: Final = ("status", "generated_tokens", "preemptions", "cached_tokens_total", *_TIMES)


def _outcomes(log: RunLog) -> Iterator[dict[str, Any]]:
    for i in range(len(log)):
        status = STATUS_NAMES[log.status[i]]
        times = {name: int(getattr(log, name)[i]) for name in _TIMES}
        if status != "finished":
            times["finish_ns"] = NEVER
        yield {
            "status": status,
            "generated_tokens": int(log.generated_tokens[i]),
            "preemptions": int(log.preemptions[i]),
            "cached_tokens": int(log.cached_tokens[i]),
            **{name: None if time_ns == NEVER else time_ns for name, time_ns in times.items()},
        }


def _segments(prompts: Sequence[str]) -> Ragged:
    """``name[a:b];...`` of each row as triples (stream, a, b - a); ``o7`` is what row 7 generates."""
    numbers: dict[str, int] = {}
    values: list[int] = []
    offsets = [0]
    for prompt in prompts:
        for name, first, end in SEGMENT.findall(prompt):
            row = _generated_by(name)
            stream = numbers.setdefault(name, len(numbers)) if row is None else -1 - row
            values += (stream, int(first), int(end) - int(first))
        offsets.append(len(values))
    return Ragged(np.array(values, np.int64), np.array(offsets, np.int64))


def _generated_by(stream: str) -> int | None:
    """The row whose output the stream is."""
    return int(stream[1:]) if re.fullmatch(r"o\d+", stream) else None


def _fields(policy: type) -> set[str]:
    return {field.name for field in dataclasses.fields(policy)}


def _section(about: Any, name: str, file: Path) -> dict[str, Any]:
    section = about.get(name) if isinstance(about, dict) else None
    if not isinstance(section, dict):
        raise InputError("is missing", file=file, key=name)
    return section


def _demand(section: Mapping[str, Any], names: Sequence[str], file: Path) -> None:
    for name in names:
        if name not in section:
            raise InputError("is missing", file=file, key=name)


def _check_numbers(section: Mapping[str, Any], names: Sequence[str], least: int, most: int, file: Path) -> None:
    _demand(section, names, file)
    for name in names:
        value = section[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{value!r} is not a whole number from {least} to {most}", file=file, key=name)


def _check_config(config: Mapping[str, Any], file: Path) -> None:
    """What the policies take is checked as in a scenario; limits fit together as vLLM demands."""
    _check_numbers(config, SIZES, 1, MAX_TOKENS, file)
    for policy in (ChunkedPrefill, Paged):
        parameters = seats.parameters_of(policy)
        given = {name: value for name, value in config.items() if name in parameters}
        seats.arguments(parameters, given, Source(file), ())
    for name, limit in (("max_num_seqs", "max_num_batched_tokens"), ("max_num_active_seqs", "max_num_seqs")):
        if (config.get(name) or 0) > config[limit]:
            problem = f"{config[name]} is not allowed: {limit} is {config[limit]}"
            raise InputError(problem, file=file, key=name, hint=f"at most {config[limit]}")


def _check_requests(rows: list[dict[str, str]], file: Path) -> None:
    if not rows:
        raise InputError("has no requests", file=file)
    _demand(rows[0], (*INPUTS, *_OUTCOMES), file)
    arrival_ns = 0
    for index, row in enumerate(rows):

        def refuse(problem: str, key: str, hint: str | None = None, line: int = index + 2) -> InputError:
            return InputError(problem, file=file, line=line, key=key, hint=hint)

        for name in (*INPUTS, *_OUTCOMES[1:]):
            text = row[name]
            least, most = INPUTS.get(name, (0, MAX_NS))
            if text == "" and name not in INPUTS:  # it did not happen
                continue
            if text is None or not re.fullmatch(r"-?\d{1,19}", text) or not least <= int(text) <= most:
                raise refuse(f"{text!r} is not a whole number from {least} to {most}", name)
        if row["status"] not in STATUS:
            raise refuse(f"{row['status']!r} is not a status", "status", f"allowed: {', '.join(STATUS)}")
        if row.get("ends", "") not in ("", "eos"):
            raise refuse(f"{row['ends']!r} is not an end", "ends", "allowed: eos, or nothing")
        if int(row["id"]) != index:
            raise refuse(f"{row['id']} is not allowed: ids count from 0", "id")
        if int(row["arrival_ns"]) < arrival_ns:
            raise refuse("requests must stand in order of arrival", "arrival_ns")
        arrival_ns = int(row["arrival_ns"])
        if "segments" in row:
            problem = _wrong_segments(row["segments"], int(row["prompt_tokens"]), len(rows))
            if problem:
                raise refuse(problem, "segments", "name[first:end] of a stream of tokens, joined by ;")


def _check_steps(steps: list[Any], file: Path) -> None:
    for line, step in enumerate(steps, start=1):
        if not isinstance(step, dict):
            raise InputError(f"{_shown(step)} is not a step", file=file, line=line)
        for name, kind in STEP.items():
            value = step.get(name)
            items = value if isinstance(value, list) else ()
            if type(value) is not kind or any(type(item) is not int for item in items):
                raise InputError(f"{_shown(value)} is not {WORDS[kind]}", file=file, line=line, key=name)


def _wrong_segments(prompt: str | None, tokens: int, rows: int) -> str | None:
    """What is wrong with a prompt in segments, if anything."""
    length = 0
    for segment in (prompt or "").split(";"):
        match = SEGMENT.fullmatch(segment)
        if not match or int(match[2]) >= int(match[3]):
            return f"{segment!r} is no segment"
        if (_generated_by(match[1]) or 0) >= rows:
            return f"{segment!r} is of a request that there is not"
        length += int(match[3]) - int(match[2])
    return None if length == tokens else f"{length} tokens, prompt_tokens is {tokens}"


def _shown(value: Any) -> str:
    return "-" if value is None else json.dumps(value, separators=(",", ":"))
