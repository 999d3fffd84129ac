"""What a scenario expects of itself, and whether it holds: pass, fail, or no verdict where noise is too large."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from kvsim import __version__
from kvsim.api import execute
from kvsim.core.errors import InputError
from kvsim.metrics.figures import SHORT, figures
from kvsim.metrics.noise import detectable, half_width, mean
from kvsim.scenario import Scenario
from kvsim.scenario.axes import Question
from kvsim.scenario.messages import nearest
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.scenario.source import Override, shown
from kvsim.sweeps.baseline import RENEW, Baseline, baseline_path, question_hash
from kvsim.sweeps.driver import run_sweep
from kvsim.sweeps.executors import for_few
from kvsim.workload import limit

Verdict = Literal["pass", "fail", "no verdict", "error"]
EXIT_CODES: Final[dict[Verdict, int]] = {"pass": 0, "fail": 1, "no verdict": 1, "error": 2}

COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": lambda value, limit: value <= limit,
    ">=": lambda value, limit: value >= limit,
    "==": lambda value, limit: value == limit,
    "!=": lambda value, limit: value != limit,
    "<": lambda value, limit: value < limit,
    ">": lambda value, limit: value > limit,
}
EQUALITIES: Final = ("==", "!=")
NUMBER: Final = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
TEXT: Final = r"(?!nan$|inf$)[A-Za-z][\w.:/@-]*"


@dataclass(frozen=True)
class Expectation:
    """``p99_ttft_ms < 800``: a figure, a comparison, and what it is compared with (a number, or a text with ==)."""

    name: str
    comparison: str
    limit: Any

    @classmethod
    def parse(cls, name: str, written: Any) -> Expectation:
        """From a scenario: ``"< 800"``, or a number or text that must be equalled. Raises ValueError."""
        if isinstance(written, bool) or not isinstance(written, int | float | str):
            raise ValueError(f"expected a comparison, found {shown(written)}")
        found = re.fullmatch(rf"\s*({'|'.join(COMPARISONS)})?\s*(?:({NUMBER})|({TEXT}))\s*", str(written))
        if found is None or (found[3] and (found[1] or "==") not in EQUALITIES):
            raise ValueError(f'{written!r} is no comparison; for example "< 800", ">= 0.95" or 0')
        return cls(name, found[1] or "==", found[3] or float(found[2]))

    def fits(self, value: Any) -> str | None:
        """What is wrong with comparing this figure, which has such a value; None: nothing."""
        if value is None or (isinstance(value, str) == isinstance(self.limit, str) and not isinstance(value, list)):
            return None
        return f"cannot be compared with {self.limit!r}: it is {shown(value)}"

    def __str__(self) -> str:
        limit = f"{self.limit:g}" if isinstance(self.limit, int | float) else self.limit
        return f"{self.name} {self.comparison} {limit}"

    def judge(self, values: Sequence[Any], confidence: float) -> Finding:
        """The verdict on this figure's value with each seed. == and != must hold with every seed; an order must hold
        for the mean over seeds, by more than noise explains."""
        if any(value is None for value in values):
            return Finding(str(self), "fail", "it has no value (nothing finished, or nothing bounds it)")
        wrong_kind = next((problem for value in values if (problem := self.fits(value))), None)
        if wrong_kind is not None:
            return Finding(str(self), "fail", wrong_kind)
        holds = COMPARISONS[self.comparison]
        if self.comparison in EQUALITIES:
            wrong = [value for value in values if not holds(value, self.limit)]
            found = ", ".join(sorted({_number(value) for value in wrong or values}))
            which = f" with {len(wrong)} of {len(values)} seeds" if wrong and len(values) > 1 else ""
            return Finding(str(self), "fail" if wrong else "pass", f"it is {found}{which}")
        middle, half = mean(values), half_width(values, confidence)
        verdict: Verdict = "no verdict"
        if holds(middle - half, self.limit) == holds(middle + half, self.limit):
            verdict = "pass" if holds(middle, self.limit) else "fail"
        said = f"it is {_number(middle)}{_give_or_take(half, len(values))}"
        if verdict == "no verdict":
            said += f"; with so many seeds a distance of {_number(detectable(values, confidence))} would be told apart"
        return Finding(str(self), verdict, said)


@dataclass(frozen=True)
class Change:
    """``vs_baseline: {mean_tpot_ms: "+3%"}``: how far a figure may move, up (+), down (-) or either way."""

    name: str
    direction: str
    allowed_frac: float

    @classmethod
    def parse(cls, name: str, written: Any) -> Change:
        """From a scenario: ``"+3%"``, ``"-3%"`` or ``"3%"``. Raises ValueError."""
        found = re.fullmatch(r"\s*([-+±]?)\s*(\d+\.?\d*|\.\d+)\s*%\s*", written) if isinstance(written, str) else None
        if not found:
            raise ValueError(f'{shown(written)} is no change; for example "+3%" (at most 3 % above), "-3%", "3%"')
        return cls(name, found[1].replace("±", ""), float(found[2]) / 100)

    def fits(self, value: Any) -> str | None:
        """What is wrong with a change of this figure, which has such a value; None: nothing."""
        return None if value is None or isinstance(value, int | float) else f"is no number: it is {shown(value)}"

    def __str__(self) -> str:
        return f"{self.name} {self.direction or '±'}{self.allowed_frac * 100:g}% of baseline"

    def judge(self, values: Sequence[Any], before: Sequence[Any], confidence: float, where: str) -> Finding:
        """The verdict on pairs of equal seeds: the mean difference, beyond noise, against what is allowed."""
        if any(not isinstance(value, int | float) for value in (*values, *before)):
            return Finding(str(self), "fail", f"it has no value here or in {where}")
        base = mean(before)
        changes = [value - old for value, old in zip(values, before, strict=True)]
        middle, half = mean(changes), half_width(changes, confidence)
        margin = self.allowed_frac * abs(base)
        worst = {"+": middle, "-": -middle, "": abs(middle)}[self.direction]
        verdict: Verdict = "pass" if worst + half <= margin else "fail" if worst - half > margin else "no verdict"
        said = (
            f"it is {_number(mean(values))}, {_percent(middle, base)} against {_number(base)} in {where}; "
            f"{self.direction or '±'}{self.allowed_frac * 100:g}% is allowed"
        )
        if len(changes) > 1 and half:
            said += f"; noise of the difference ±{_percent(half, base).lstrip('+')} ({len(changes)} seeds)"
        if verdict == "no verdict":
            said += f"; a change of {_percent(detectable(changes, confidence), base).lstrip('+')} would be told apart"
        return Finding(str(self), verdict, said)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(part: float, whole: float) -> str:
    return f"{part / abs(whole) * 100:+.2f}%" if whole else f"{part:+.4g}"


def _give_or_take(half: float, seeds: int) -> str:
    if half == float("inf"):
        return " (one seed: its noise is unknown)"
    return f" ± {_number(half)} ({seeds} seeds)" if half else ""


@dataclass(frozen=True)
class Finding:
    """One expectation, its verdict, and what was found."""

    expectation: str
    verdict: Verdict
    found: str

    def __str__(self) -> str:
        return f"{self.verdict.upper():<10} {self.expectation}: {self.found}"


@dataclass(frozen=True)
class Report:
    """What came of one scenario. ``notes`` say what one should know (a baseline of another version)."""

    scenario: str
    findings: tuple[Finding, ...]
    seeds: int = 0
    notes: tuple[str, ...] = ()
    line: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of the findings: error, fail, no verdict, pass."""
        order: tuple[Verdict, ...] = ("error", "fail", "no verdict")
        return next((v for v in order if any(finding.verdict == v for finding in self.findings)), "pass")

    def __str__(self) -> str:
        lines = [f"{self.scenario}: {self.verdict} ({self.seeds} seed{'s' if self.seeds != 1 else ''})"]
        lines += [f"  {finding}" for finding in self.findings]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Expectations:
    """The ``expect`` section of a scenario, read and checked."""

    scenario: Scenario
    bounds: tuple[Expectation, ...]
    changes: tuple[Change, ...]

    @classmethod
    def of(cls, resolved: Resolved) -> Expectations:
        """Raises InputError for an unknown figure, a comparison that cannot be read, or if nothing is expected."""
        scenario = resolved.scenario
        keys, source = scenario.expect, scenario.source
        if keys is None or not (keys.bounds or keys.vs_baseline):
            raise source.error(
                "is missing: nothing is expected", ("expect",), 'for example expect: {p99_ttft_ms: "< 800"}'
            )
        known = _known_figures(resolved)

        def parsed(kind: Any, section: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Any]:
            for name, written in section.items():
                figure = SHORT.get(name, name)
                if known and figure not in known:
                    near = nearest(name, [*known, *SHORT])
                    hint = f"did you mean {near!r}? " if near else ""
                    raise source.error(
                        "unknown figure",
                        (*at, name),
                        f"{hint}those of summary.json, such as p99_ttft_ms, slo_attainment",
                    )
                try:
                    asked = kind.parse(figure, written)
                except ValueError as error:
                    raise source.error(str(error), (*at, name)) from None
                problem = asked.fits(known.get(figure))
                if problem is not None:
                    raise source.error(problem, (*at, name))
                yield asked

        return cls(
            scenario,
            tuple(parsed(Expectation, keys.bounds, ("expect",))),
            tuple(parsed(Change, keys.vs_baseline or {}, ("expect", "vs_baseline"))),
        )


def _known_figures(resolved: Resolved) -> dict[str, Any]:
    """The figures that a run of this scenario has: those of a run of its first request.

    Empty if that fails: then the run fails, too, and says why.
    """
    try:
        return figures(execute(replace(resolved, trace=limit(resolved.trace, 1))).result.summary)
    except Exception:
        return {}


@dataclass
class Runs:
    """The figures of a scenario with one seed after the other, computed as they are asked for."""

    scenario: Scenario
    workers: int = 1
    executor: str | Executor | None = None
    allow_plugins: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)

    def upto(self, seeds: int) -> list[dict[str, Any]]:
        """Rows of figures for so many seeds, from the scenario's own on; an error is a row with ``error``."""
        wanted = [self.scenario.seed + k for k in range(len(self.rows), seeds)]
        if wanted:
            executor = for_few(self.executor, self.workers)
            question = Question.load(self.scenario, {"seed": wanted})
            found = run_sweep(question, workers=self.workers, executor=executor, allow_plugins=self.allow_plugins)
            self.rows += found.rows
        return self.rows[:seeds]

    @cached_property
    def exact(self) -> bool:
        """True if the seed changes nothing, so that there is no noise: two seeds give the same figures."""
        one, other = ({k: v for k, v in row.items() if k not in _OF_THE_SEED} for row in self.upto(2))
        return one == other


_OF_THE_SEED: Final = ("point", "seed", "address", "scenario_hash")


def check(
    scenario: str | os.PathLike[str] | Scenario,
    overrides: Mapping[str, Any] | Sequence[Override] = (),
    *,
    update_baseline: bool = False,
    workers: int = 1,
    executor: str | Executor | None = None,
    allow_plugins: bool = True,
) -> Report:
    """Run a scenario with as many seeds as a verdict needs (``expect.seeds`` to ``expect.max_seeds``) and judge it.

    More seeds are run while an expectation has no verdict; each look at the data takes its share of the error that
    ``expect.confidence`` allows (Bonferroni), so looking often does not make a verdict cheaper. A run that fails is an
    error, whatever is expected. With ``update_baseline`` the figures are stored as the new baseline instead.
    Raises InputError for a mistake in the scenario or a baseline that does not belong to it.
    """
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(Path(scenario), overrides)
    name = str(loaded.source.file or loaded.label)
    resolved = resolve(loaded, allow_plugins=allow_plugins)
    asked = Expectations.of(resolved)
    keys = loaded.expect
    assert keys is not None
    line = loaded.source.lines.get(("expect",))
    runs = Runs(loaded, workers, executor, allow_plugins)
    if update_baseline:
        rows = runs.upto(2 if runs.exact else keys.max_seeds)
        broken = _errors(rows)
        if broken:
            return Report(name, broken, len(rows), line=line)
        path = Baseline.of(resolved, rows).write(baseline_path(loaded))
        return Report(name, (), len(rows), (f"baseline written to {path}",), line)
    baseline = None
    notes: tuple[str, ...] = ()
    if asked.changes:
        baseline = Baseline.read(baseline_path(loaded), loaded)
        baseline.must_fit(question_hash(resolved), loaded, [change.name for change in asked.changes])
        if baseline.version != __version__:
            notes = (f"{baseline.path} was recorded by kvsim {baseline.version}, this is {__version__}",)
    exact = runs.exact and (baseline is None or len(baseline.seeds) <= 2)
    looks = [2] if exact else list(_looks(keys.seeds, keys.max_seeds))
    confidence = 1 - (1 - keys.confidence) / len(looks)
    findings: tuple[Finding, ...] = ()
    for seeds in looks:
        rows = runs.upto(seeds)
        findings = _errors(rows) or tuple(_judged(asked, rows, baseline, confidence))
        if not any(finding.verdict == "no verdict" for finding in findings):
            break
    return Report(name, findings, len(rows), notes, line)


def _looks(first: int, most: int) -> Iterator[int]:
    """3, 6, 12: each look at twice as many seeds."""
    while first < most:
        yield first
        first *= 2
    yield most


def _errors(rows: Sequence[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """A run that failed or got stuck, once for each way."""
    found: dict[str, int] = {}
    for row in rows:
        if row["error"] is not None:
            found.setdefault(row["error"], row["seed"])
        elif row["stability"] == "stuck":
            found.setdefault(f"the run got stuck: {row['diagnosis']}", row["seed"])
    return tuple(Finding(f"seed {seed} runs", "error", error) for error, seed in found.items())


def _judged(
    asked: Expectations, rows: Sequence[Mapping[str, Any]], baseline: Baseline | None, confidence: float
) -> Iterator[Finding]:
    for bound in asked.bounds:
        yield bound.judge([row.get(bound.name) for row in rows], confidence)
    if baseline is not None:
        for change in asked.changes:
            before = dict(zip(baseline.seeds, baseline.figures[change.name], strict=True))
            pairs = [(row.get(change.name), before[row["seed"]]) for row in rows if row["seed"] in before]
            if len(pairs) < 2:
                seeds = f"{rows[0]['seed']} to {rows[-1]['seed']}"
                raise InputError(f"is stale: it has {len(pairs)} of the seeds {seeds}", file=baseline.path, hint=RENEW)
            values, old = zip(*pairs, strict=True)
            yield change.judge(values, old, confidence, baseline.path.name)
