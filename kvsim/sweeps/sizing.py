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
from kvsim.core.files import write_whole
from kvsim.hardware import GPUS
from kvsim.metrics.figures import figures
from kvsim.metrics.noise import half_width, mean
from kvsim.scenario import Scenario
from kvsim.scenario.axes import Question
from kvsim.scenario.messages import nearest
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.scenario.source import Key, dotted
from kvsim.sweeps.design import points
from kvsim.sweeps.executors import Crew, for_few
from kvsim.sweeps.resampling import BLOCKS
from kvsim.sweeps.traces import SharedTraces
from kvsim.sweeps.work import Task, address_of

Find = Literal["rate", "replicas"]

UNSOUND: Final = ("overloaded", "burst", "stuck")
"""Verdicts on a run whose figures describe the length of the trace, not the system."""
DOUBLINGS: Final = 16
MOST_REPLICAS: Final = 1024
RATE_SCALE: Final[Key] = ("workload", "trace", "rate_scale")

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
    scenario: str | os.PathLike[str] | Scenario | Question,
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
    **keys: Any,
) -> list[Answer]:
    """The largest ``rate`` or the fewest ``replicas`` at which a share ``attainment`` of the requests keeps the SLO.

    One answer for each point of ``axes`` (for instance ``{"cluster.gpu": ["h100-sxm", "l40s"]}``), found by bisection
    on the same ``seeds`` throughout; a rate within ``tolerance`` of the border. A generated workload is drawn anew
    with each seed; a recorded trace is resampled in blocks of time. A run that is overloaded, a burst that never
    settles, or cut short by a horizon does not count as keeping anything, and nothing is extrapolated: the answer has
    been simulated. ``key`` names what is searched (default: the workload's rate, or ``cluster.replicas``).
    ``prices``: USD per GPU and hour by GPU name; without one, that of the GPU's data file, if it has any. ``keys``
    replace what the scenario says, as in ``kvsim.run``. Raises InputError for a mistake in the scenario, or one
    without SLO.
    """
    if not 0 < attainment <= 1:
        raise InputError(f"{attainment} is not a share", key="attainment", hint="above 0, at most 1")
    if not 0.5 < confidence < 1:
        raise InputError(f"{confidence} is not a confidence", key="confidence", hint="between 0.5 and 1")
    if seeds < 2:
        raise InputError(f"{seeds} seeds show no noise", key="seeds", hint="at least 2")
    prices = prices or {}
    question = scenario if isinstance(scenario, Question) else Question.load(scenario, axes, keys)
    chosen = points(question.axes)
    scenarios = [question.scenario(point) for point in chosen]
    answers = []
    workers = workers or os.cpu_count() or 1
    crew = Crew(for_few(executor, workers), workers)
    with tempfile.TemporaryDirectory(prefix="kvsim-capacity-") as folder, closing(crew):
        bench = _Bench(crew, Path(folder), allow_plugins)
        _check_prices(prices, scenarios, bench)
        for point, each in zip(chosen, scenarios, strict=True):
            if not any(bound is not None for bound in each.slo.model_dump().values()):
                raise each.source.error(
                    "is missing: nothing is to be kept", ("slo",), "for example slo: {ttft_ms: 500}"
                )
            named = {dotted(axis): value for axis, value in point.items()}
            searched = _key_of(each, find, key)
            if searched in point:
                raise each.source.error("is searched, and has several values", searched, "give it one, to start from")
            search = _Search(each, find, searched, attainment, confidence, seeds, tolerance, bench)
            try:
                answer = search.answer(named, prices, progress)
            except InputError as error:
                if len(chosen) == 1:
                    raise
                answer = Answer(named, find, None, reason=str(error))
            answers.append(answer)
    return answers


def _check_prices(prices: Mapping[str, float], scenarios: Sequence[Scenario], bench: _Bench) -> None:
    """Raises InputError for a price of a GPU that is neither in the catalogue nor in one of the scenarios."""
    for name in prices:
        if name not in GPUS:
            here = {pool.gpu.name for each in scenarios for pool in bench.resolve(each).pools}
            if name not in here:
                near = nearest(name, [*here, *GPUS])
                hint = f"did you mean {near!r}?" if near else "kvsim list gpus has their names"
                raise InputError(f"{name!r} is not a GPU", key="price", hint=hint)


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
        return RATE_SCALE
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


def _requests_per_s(row: Mapping[str, Any]) -> float | None:
    """The rate of the requests; what was served where a rate means nothing: all at once, or a closed loop."""
    rate = row["request_rate"]
    open_loop = isinstance(rate, float) and row["max_concurrency"] is None
    found: float | None = rate if open_loop else row["request_throughput"]
    return found


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
            sound = [_is_sound(row) for row in rows]
            middle, half = self._noise([row["slo_attainment"] or 0.0 for row in rows], self.confidence)
            self.levels[value] = _Level(
                tuple(rows), middle, half, sound[0] if self.recorded else all(sound), all(sound)
            )
        return self.levels[value]

    def _noise(self, values: Sequence[float], confidence: float) -> tuple[float, float]:
        """What the runs at one value say, and how far noise may have moved it: their mean where each is independent;
        where the others are replicates of the first, the first, and the spread of the others."""
        if self.recorded:
            return values[0], half_width(values[1:], confidence) * math.sqrt(len(values) - 1)
        return mean(values), half_width(values, confidence)

    def keeps(self, value: float, certainty: int) -> bool:
        """The SLO is kept at this value: even with bad luck (1), as measured (0), with good luck (-1)."""
        level = self.level(value)
        sound = level.all_sound if certainty > 0 else level.sound
        return sound and level.attainment - certainty * level.half >= self.wanted

    def answer(
        self, point: Mapping[str, Any], prices: Mapping[str, float], progress: Callable[[str], None] | None
    ) -> Answer:
        base = self._start()
        requests = len(self.bench.resolve(self.scenario).trace)
        if self.recorded and requests < BLOCKS:
            problem = f"has {requests} requests: too few to say how far another day would differ"
            raise self.scenario.source.error(problem, ("workload", "trace"), f"at least {BLOCKS}")

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
        rates = [rate for row in level.rows if (rate := _requests_per_s(row)) is not None]
        rate = self._noise(rates, self.confidence)[0] if len(rates) == len(level.rows) else None
        scale = rate / value if self.key == RATE_SCALE and rate is not None else 1.0  # it is no rate, but scales one
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
        try:
            for part in self.key:
                node = node[part]
        except (LookupError, TypeError):
            node = None
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
        answer = replace(answer, usd_per_hour=per_hour)
        if not all(row["duration"] and row["total_output_tokens"] for row in level.rows):
            return answer  # a run that made nothing has no price per token
        per_output = [row["duration"] / row["total_output_tokens"] for row in level.rows]  # s
        per_token = [row["duration"] / (row["total_input_tokens"] + row["total_output_tokens"]) for row in level.rows]
        usd_per_million = per_hour / 3600 * 1e6
        middle = usd_per_million * self._noise(per_token, self.confidence)[0]
        # of a ratio of positive numbers: symmetric in its logarithm, never below 0
        _, half = self._noise([math.log(seconds) for seconds in per_token], (1 + self.confidence) / 2)
        return replace(
            answer,
            usd_per_million_tokens=middle,
            usd_per_million_tokens_interval=(middle * math.exp(-half), middle * math.exp(half)),
            usd_per_million_output_tokens=usd_per_million * self._noise(per_output, self.confidence)[0],
        )


def best(answers: Sequence[Answer]) -> Answer | None:
    """The answer to prefer: the cheapest per token where all are priced, else the fewest GPUs, or the most load per
    GPU. None if nothing keeps the SLO."""
    kept = [answer for answer in answers if answer.value is not None]
    if not kept:
        return None

    def effort(answer: Answer) -> float:
        if all(each.usd_per_million_tokens is not None for each in kept):
            assert answer.usd_per_million_tokens is not None
            return answer.usd_per_million_tokens
        assert answer.gpus is not None
        return answer.gpus / answer.requests_per_s if answer.requests_per_s else math.inf

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
            write_whole(out / name, text.encode())
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}", key="--out", hint="name another") from error
    return [out / name for name in documents]
