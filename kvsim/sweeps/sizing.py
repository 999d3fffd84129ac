"""How much does it take? The largest rate, or the fewest replicas, that keep the SLO with a stated confidence."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.metrics.figures import figures
from kvsim.metrics.noise import half_width, mean
from kvsim.scenario import Override, Scenario
from kvsim.scenario.axes import Question
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.scenario.source import Key, dotted
from kvsim.sweeps.design import points
from kvsim.sweeps.executors import Crew
from kvsim.sweeps.traces import SharedTraces
from kvsim.sweeps.work import Task, address_of

Find = Literal["rate", "replicas"]

UNSOUND: Final = ("overloaded", "burst", "stuck")
"""Verdicts on a run whose figures describe the length of the trace, not the system."""
DOUBLINGS: Final = 16
MOST_REPLICAS: Final = 1024

Interval = tuple[float, float]


@dataclass(frozen=True)
class Answer:
    """What one configuration takes.

    - ``value``: the largest rate (requests per second) or the fewest replicas at which the attainment, less its noise,
      is what was asked for; None: there is none, and ``reason`` says why
    - ``estimate``: the same without taking noise off; ``interval``: with noise taken off and added, so that the border
      itself lies inside with this confidence at each end
    - ``attainment``, ``attainment_interval``: at ``value``
    - ``usd_per_hour``, ``usd_per_million_tokens`` (prompt and output together), ``..._output_tokens``: None without a
      price for its GPUs. The intervals are over seeds, or over replicates of the trace
    - ``setting``: the key that was searched and its value at the answer; ``lock``: that scenario, ready to be run
    """

    point: Mapping[str, Any]
    find: Find
    value: float | None
    estimate: float | None = None
    interval: Interval | None = None
    attainment: float | None = None
    attainment_interval: Interval | None = None
    gpus: int | None = None
    usd_per_hour: float | None = None
    usd_per_million_tokens: float | None = None
    usd_per_million_tokens_interval: Interval | None = None
    usd_per_million_output_tokens: float | None = None
    requests_per_s: float | None = None
    setting: tuple[str, float] | None = None
    looked_at: tuple[tuple[float, float | None, str], ...] = ()
    reason: str | None = None
    lock: str | None = None


def capacity(
    scenario: str | os.PathLike[str] | Scenario,
    axes: Mapping[str, Any] | None = None,
    *,
    find: Find = "replicas",
    attainment: float = 0.99,
    confidence: float = 0.95,
    seeds: int = 5,
    tolerance: float = 0.005,
    key: str | None = None,
    prices: Mapping[str, float] | None = None,
    workers: int | None = None,
    executor: str | Executor | None = None,
    allow_plugins: bool = True,
    progress: Callable[[str], None] | None = None,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
) -> list[Answer]:
    """The largest ``rate`` or the fewest ``replicas`` at which a share ``attainment`` of the requests keeps the SLO.

    One answer for each point of ``axes`` (for instance ``{"cluster.gpu": ["h100-sxm", "l40s"]}``), found by bisection
    on the same ``seeds`` throughout; a rate within ``tolerance`` of the border. A generated workload is drawn anew
    with each seed; a recorded trace is resampled in blocks of time. A run that is overloaded, a burst that never
    settles, or cut short by a horizon does not count as keeping anything, and nothing is extrapolated: the answer has
    been simulated. ``key`` names what is searched (default: the workload's rate, or ``cluster.replicas``).
    ``prices``: USD per GPU and hour by GPU name; without one, that of the GPU's data file, if it has any. Raises
    InputError for a mistake in the scenario, or one without SLO.
    """
    if not 0 < attainment <= 1:
        raise InputError(f"{attainment} is not a share", key="attainment", hint="above 0, at most 1")
    if not 0.5 < confidence < 1:
        raise InputError(f"{confidence} is not a confidence", key="confidence", hint="between 0.5 and 1")
    if seeds < 2:
        raise InputError(f"{seeds} seeds show no noise", key="seeds", hint="at least 2")
    question = Question.load(scenario if isinstance(scenario, Scenario) else Path(scenario), axes, overrides)
    chosen = points(question.axes)
    scenarios = [question.scenario(point) for point in chosen]
    answers = []
    workers = workers or os.cpu_count() or 1
    crew = Crew(executor or ("here" if workers == 1 else None), workers)
    with tempfile.TemporaryDirectory(prefix="kvsim-capacity-") as folder, closing(crew):
        bench = _Bench(crew, Path(folder), allow_plugins)
        for point, each in zip(chosen, scenarios, strict=True):
            if not any(bound is not None for bound in each.slo.model_dump().values()):
                raise each.source.error(
                    "is missing: nothing is to be kept", ("slo",), "for example slo: {ttft_ms: 500}"
                )
            named = {dotted(axis): value for axis, value in point.items()}
            search = _Search(each, find, _key_of(each, find, key), attainment, confidence, seeds, tolerance, bench)
            try:
                answer = search.answer(named, prices or {}, progress)
            except InputError as error:
                if len(chosen) == 1:
                    raise
                answer = Answer(named, find, None, reason=str(error))
            answers.append(answer)
    return answers


def _key_of(scenario: Scenario, find: Find, key: str | None) -> Key:
    if key is not None:
        return tuple(int(part) if part.isdigit() else part for part in key.split("."))
    if find == "replicas":
        if scenario.cluster.pools is not None:
            raise scenario.source.error(
                "has several counts of replicas", ("cluster", "pools"), "name one, as cluster.pools.0.replicas"
            )
        return ("cluster", "replicas")
    if scenario.workload.trace is not None:
        return ("workload", "trace", "rate_scale")
    assert scenario.workload.generate is not None
    found = list(_named("rate_per_s", scenario.workload.generate.parameters, ("workload", "generate")))
    if len(found) != 1:
        raise scenario.source.error(
            f"has {len(found) or 'no'} rate_per_s", ("workload", "generate"), "write it out, or name the key to search"
        )
    return found[0]


def _named(name: str, node: Any, at: Key) -> Iterator[Key]:
    if isinstance(node, Mapping):
        for part, value in node.items():
            if part == name:
                yield (*at, part)
            yield from _named(name, value, (*at, part))


class _Bench:
    """Computes runs, each once."""

    def __init__(self, crew: Crew, folder: Path, allow_plugins: bool) -> None:
        self._crew, self._allow_plugins = crew, allow_plugins
        self._traces = SharedTraces(folder)
        self._known: dict[str, dict[str, Any]] = {}

    def resolve(self, scenario: Scenario) -> Resolved:
        return resolve(scenario, allow_plugins=self._allow_plugins, read=self._traces.read)

    def rows(self, wanted: Sequence[tuple[Scenario, int | None]]) -> list[dict[str, Any]]:
        """The figures of each scenario, on its own trace (None) or on a replicate of it.

        Raises InputError for a run that fails: a search cannot go round it.
        """
        addresses, tasks = [], {}
        for scenario, replicate in wanted:
            address = f"{address_of(self.resolve(scenario))}-{replicate}"
            addresses.append(address)
            if address not in self._known:
                files = dict(self._traces.files)
                tasks[address] = Task(address, scenario, os.getcwd(), files, self._allow_plugins, replicate)
        for task, outcome in self._crew.outcomes(tasks.values()):
            if "error" in outcome:
                raise InputError(f"a run failed: {outcome['error']}")
            self._known[task.address] = figures(outcome["summary"])
        return [self._known[address] for address in addresses]


@dataclass(frozen=True)
class _Level:
    """What was seen at one value: attainment, how far noise may have moved it, and whether it can be believed."""

    rows: tuple[dict[str, Any], ...]
    attainment: float
    half: float
    sound: bool
    all_sound: bool

    @property
    def verdict(self) -> str:
        return "sound" if self.all_sound else "sound, some replicates are not" if self.sound else _why(self.rows[0])


def _why(row: Mapping[str, Any]) -> str:
    return str(row["stability"]) if row["stability"] in UNSOUND else "censored: requests had not ended"


def _is_sound(row: Mapping[str, Any]) -> bool:
    return row["stability"] not in UNSOUND and not row["requests_by_status.unfinished"]


@dataclass
class _Search:
    scenario: Scenario
    find: Find
    key: Key
    wanted: float
    confidence: float
    seeds: int
    tolerance: float
    bench: _Bench

    def __post_init__(self) -> None:
        self.levels: dict[float, _Level] = {}
        self.recorded = self.scenario.workload.trace is not None

    def at(self, value: float) -> Scenario:
        return self.scenario.replace(**{dotted(self.key): value})

    def level(self, value: float) -> _Level:
        """The runs at one value, on the same seeds as at every other."""
        if value not in self.levels:
            scenario = self.at(value)
            if self.recorded:
                wanted: list[tuple[Scenario, int | None]] = [(scenario, None)]
                wanted += [(scenario, replicate) for replicate in range(self.seeds)]
            else:
                wanted = [(scenario.replace(seed=scenario.seed + k), None) for k in range(self.seeds)]
            rows = self.bench.rows(wanted)
            shares = [row["slo_attainment"] or 0.0 for row in rows]
            sound = [_is_sound(row) for row in rows]
            if self.recorded:  # noise of one trace: the spread of its replicates
                middle, half = shares[0], self._spread(shares[1:])
                one = sound[0]
            else:  # noise of a mean over independent runs
                middle, half = mean(shares), half_width(shares, self.confidence)
                one = all(sound)
            self.levels[value] = _Level(tuple(rows), middle, half, one, all(sound))
        return self.levels[value]

    def _spread(self, values: Sequence[float]) -> float:
        return half_width(values, self.confidence) * math.sqrt(len(values))

    def keeps(self, value: float, certainty: int) -> bool:
        """The SLO is kept at this value: even with bad luck (1), as measured (0), with good luck (-1)."""
        level = self.level(value)
        sound = level.all_sound if certainty > 0 else level.sound
        return sound and level.attainment - certainty * level.half >= self.wanted

    def answer(
        self, point: Mapping[str, Any], prices: Mapping[str, float], progress: Callable[[str], None] | None
    ) -> Answer:
        base = self._start()

        def border(certainty: int) -> Interval | None:
            if progress is not None:
                named = ", ".join(f"{value}" for value in point.values())
                progress(f"{named}: {len(self.levels)} values looked at")
            return self._fewest(base, certainty) if self.find == "replicas" else self._largest(base, certainty)

        found = border(1)
        if found is None:
            return Answer(point, self.find, None, looked_at=self._looked_at(), reason=self._reason())
        value = found[0]
        middle, lucky = (border(0) or found)[0], (border(-1) or found)[1]
        level = self.level(value)
        rate = mean([row["request_rate"] for row in level.rows if isinstance(row["request_rate"], float)] or [math.nan])
        if self.recorded:
            rate = level.rows[0]["request_rate"]
        scale = rate / value if self.find == "rate" and self.recorded else 1.0  # rate_scale is no rate
        low, high = sorted((value * scale, lucky * scale))
        resolved = self.bench.resolve(self.at(value))
        answer = Answer(
            point=point,
            find=self.find,
            value=value * scale,
            estimate=middle * scale,
            interval=(low, high),
            attainment=level.attainment,
            attainment_interval=(max(0.0, level.attainment - level.half), min(1.0, level.attainment + level.half)),
            gpus=resolved.gpus,
            requests_per_s=rate,
            setting=(dotted(self.key), value),
            looked_at=self._looked_at(),
            lock=resolved.lock,
        )
        return self._priced(answer, resolved, level, prices)

    def _start(self) -> float:
        """Where to begin: what the scenario says."""
        node: Any = self.scenario.model_dump()
        for part in self.key:
            node = node[int(part)] if isinstance(node, list) else node.get(part)
        if isinstance(node, bool) or not isinstance(node, int | float) or node <= 0:
            raise self.scenario.source.error("is no number to start from", self.key, "write one, as 1")
        return int(node) if self.find == "replicas" else float(node)

    def _largest(self, start: float, certainty: int) -> Interval | None:
        """The largest value that keeps the SLO and the smallest above it that does not: doubling (or halving) until
        the border lies between two values, then bisecting their ratio."""
        low = high = start
        if self.keeps(start, certainty):
            for _ in range(DOUBLINGS):
                low, high = high, high * 2
                if not self.keeps(high, certainty):
                    break
            else:
                raise InputError(
                    f"the SLO is kept at {high:g}, {2**DOUBLINGS} times what the scenario says",
                    key=dotted(self.key),
                    hint="is this the key that makes load?",
                )
        else:
            for _ in range(DOUBLINGS):
                low, high = low / 2, low
                if self.keeps(low, certainty):
                    break
            else:
                return None
        while high / low > 1 + self.tolerance:
            middle = float(f"{math.sqrt(low * high):.5g}")
            if not low < middle < high:
                break
            low, high = (middle, high) if self.keeps(middle, certainty) else (low, middle)
        return low, high

    def _fewest(self, start: float, certainty: int) -> Interval | None:
        """The fewest replicas that keep the SLO, twice."""
        low, high = 0, int(start)
        while not self.keeps(high, certainty):
            low, high = high, high * 2
            if high > MOST_REPLICAS or self._hopeless(low):
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.keeps(middle, certainty) else (middle, high)
        return high, high

    def _hopeless(self, replicas: int) -> bool:
        """More replicas than requests were ever in the system at once change nothing."""
        return replicas > max(int(row["max_concurrent_requests"] or 0) for row in self.level(replicas).rows)

    def _reason(self) -> str:
        best = max(self.levels.items(), key=lambda item: (item[1].sound, item[1].attainment))
        value, level = best
        return (
            f"the SLO is kept at no value of {dotted(self.key)}: at best {level.attainment:.4g} of the requests "
            f"keep it, at {value:g} ({level.verdict})"
        )

    def _looked_at(self) -> tuple[tuple[float, float | None, str], ...]:
        return tuple((value, level.attainment, level.verdict) for value, level in sorted(self.levels.items()))

    def _priced(self, answer: Answer, resolved: Resolved, level: _Level, prices: Mapping[str, float]) -> Answer:
        per_hour = 0.0
        for pool in resolved.pools:
            price = prices.get(pool.gpu.name, pool.gpu.price_usd_per_h)
            if price is None:
                return answer
            per_hour += price * pool.pool.replicas * pool.layout.gpus
        hours = [(row["duration"] or math.nan) / 3600 for row in level.rows]
        tokens = [row["total_input_tokens"] + row["total_output_tokens"] for row in level.rows]
        output = [row["total_output_tokens"] for row in level.rows]
        per_token = [per_hour * h / (n / 1e6) for h, n in zip(hours, tokens, strict=True)]
        per_output = [per_hour * h / (n / 1e6) for h, n in zip(hours, output, strict=True)]
        two_sided = (1 + self.confidence) / 2
        if self.recorded:
            middle, of_output = per_token[0], per_output[0]
            half = half_width(per_token[1:], two_sided) * math.sqrt(len(per_token) - 1)
        else:
            middle, of_output, half = mean(per_token), mean(per_output), half_width(per_token, two_sided)
        return replace(
            answer,
            usd_per_hour=per_hour,
            usd_per_million_tokens=middle,
            usd_per_million_tokens_interval=(middle - half, middle + half),
            usd_per_million_output_tokens=of_output,
        )


def best(answers: Sequence[Answer]) -> Answer | None:
    """The answer to prefer: the cheapest per token where all are priced, else the fewest GPUs, or the most load per
    GPU. None if nothing keeps the SLO."""
    kept = [answer for answer in answers if answer.value is not None]
    if not kept:
        return None

    def effort(answer: Answer) -> float:
        assert answer.gpus is not None
        assert answer.requests_per_s is not None
        if all(each.usd_per_million_tokens is not None for each in kept):
            assert answer.usd_per_million_tokens is not None
            return answer.usd_per_million_tokens
        return answer.gpus / answer.requests_per_s

    return min(kept, key=effort)


def write_answers(answers: Sequence[Answer], out: Path, asked: Mapping[str, Any]) -> list[Path]:
    """``capacity.json`` and one runnable scenario per answer. Equal answers give equal bytes.

    Raises InputError if they cannot be written.
    """
    documents: dict[str, str] = {}
    rows = []
    for idx, answer in enumerate(answers):
        row = asdict(answer)
        lock = row.pop("lock")
        if lock is not None:
            name = "-".join(str(value).replace("/", "_") for value in answer.point.values()) or "answer"
            row["scenario"] = f"{name}.yaml" if f"{name}.yaml" not in documents else f"{name}-{idx}.yaml"
            documents[row["scenario"]] = lock
        rows.append(row)
    head = {"kvsim": __version__, **asked, "answers": rows}
    documents["capacity.json"] = json.dumps(head, indent=1, allow_nan=False) + "\n"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in documents.items():
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}", key="--out", hint="name another") from error
    return [out / name for name in documents]
