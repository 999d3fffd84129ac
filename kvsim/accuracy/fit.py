"""Fitting a cost model to a served run: the simulator in the loop, the known spread of each coefficient as its prior.

Which coefficients a run can tell apart depends on it. A step of few decodes is weights and host alike; prompts of
different lengths tell the efficiency from what is added to each, and batches of different sizes the host's time per
request from that per step. What a run says nothing about stays where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim import __version__
from kvsim.accuracy.bench import Bench, Floats
from kvsim.api import execute
from kvsim.core.errors import InputError
from kvsim.costs.hosts import host_of
from kvsim.costs.scale import HOST, spreads
from kvsim.metrics.latency import e2el_s, finished, tpot_s, ttft_s
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import resolve

BLOCKS: Final = 10
"""A run is cut into so many blocks of successive requests; the fit sees every other one."""
BINS: Final = 8
"""Groups of requests, by prompt (TTFT) and by requests in flight (TPOT), of which the median error is looked at: a
single request's TTFT also depends on how the steps before it happened to fall, which no model foresees."""
FEWEST_IN_BIN: Final = 5
PRIOR_REQUEST_S: Final = 2e-5
PRIOR_OPERATORS: Final = 0.15
NAMES: Final = ("host_step_s", "host_request_s", "operators", "frontend_s")
LOWEST: Final = (-1.0, 0.0, -4.0, -1.0)
DESIGN: Final = np.array([(a, b, c, a * b * c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], np.float64)
"""Half of the corners of a cube in four dimensions: the effect of each coefficient is a mean of four against four."""
ROUNDS: Final = 8
NARROWEST: Final = 0.4
"""Size of the last box: in a smaller one, single batches that come out otherwise outweigh the coefficients."""
LEAST_NOISE: Final = 0.003
NOT_FINISHED: Final = 3.0
HEADER: Final = """\
# A server as its clients measured it. In a scenario:
#   cost: {name: calibrated, server: THIS_FILE}
#   engine: {frontend_s: ...}    # the figure below, where times are the client's
#
# host_step_s     s of a step beyond its operators      host_request_s  s of it per request
# operators       factor on the time of all operators   frontend_s      s between client and scheduler
# ..._spread      how sure that is: standard deviation of the logarithm"""


@dataclass(frozen=True)
class Coefficients:
    """What is fitted: host time per step and per request in it, in s; a factor on all operators; client to scheduler
    and back, in s."""

    host_step_s: float
    host_request_s: float
    operators: float
    frontend_s: float


@dataclass(frozen=True)
class Metric:
    """One latency over the requests that were kept out of the fit: means in s, and the median of |error| of each."""

    name: str
    measured_s: float
    before_s: float
    after_s: float
    before_error: float
    after_error: float


@dataclass(frozen=True)
class Fit:
    """What was found. ``sigma``: standard deviation of each coefficient; ``told``: the same as a share of what was
    known before (near 1: the runs say nothing of it)."""

    before: Coefficients
    after: Coefficients
    sigma: Coefficients
    told: Mapping[str, float]
    held_out: tuple[Metric, ...]


def fit(scenario: Scenario, benches: Sequence[Bench], allow_plugins: bool = True) -> Fit:
    """The coefficients with which ``scenario``, a server, takes as long as was measured.

    Minimises, over groups of requests, the squares of (median of log(simulated / measured)) / (its standard error), for
    TTFT and TPOT, and a prior: host per step and frontend as they are known from other servers, each give or take
    itself; nothing per request, give or take 20 us; operators give or take 15 %. The errors are taken to be linear in
    the coefficients within a box, which is simulated at half of its corners, moved to the best point and made smaller.

    Raises InputError if the scenario's cost is not ``calibrated``, or the runs are of several models. Source: response
    surface method, Box and Wilson 1951.
    """
    _check(scenario, benches)
    play = _Player(scenario, benches, allow_plugins)
    host = host_of(play.host)
    known = np.array([host.step_s, 0.0, 0.0, host.frontend_s])
    prior = np.array([host.step_s, PRIOR_REQUEST_S, PRIOR_OPERATORS, host.frontend_s])
    lowest = np.array(LOWEST)

    def coefficients(x: Floats) -> Coefficients:
        step_s, request_s, log_operators, frontend_s = (known + x * prior).tolist()
        return Coefficients(step_s, request_s, math.exp(log_operators), frontend_s)

    best, radius = np.maximum(np.zeros(4), lowest), 1.0
    covariance = np.eye(4)
    for _ in range(ROUNDS):
        middle = np.maximum(best, lowest + radius)
        corners = middle + radius * DESIGN
        found = [play.groups(coefficients(x)) for x in corners]
        errors = np.array([median for median, _ in found])
        noise = np.mean([each for _, each in found], axis=0)
        slopes, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(corners)), corners - middle]), errors, rcond=None)
        aim, covariance = _solved(slopes[1:].T / noise[:, None], slopes[0] / noise, middle, lowest)
        moved = np.clip(aim, best - 2 * radius, best + 2 * radius)
        if np.abs(moved - middle).max() <= radius:
            radius /= 2
        best = moved
        if radius < NARROWEST:
            break
    after = coefficients(best)
    told = np.sqrt(np.diag(covariance))
    sigma = Coefficients(*(told * prior * [1, 1, after.operators, 1]).tolist())
    return Fit(play.before, after, sigma, dict(zip(NAMES, told.tolist(), strict=True)), tuple(play.held_out(after)))


def _solved(slopes: Floats, at_middle: Floats, middle: Floats, lowest: Floats) -> tuple[Floats, Floats]:
    """The x that minimises |at_middle + slopes (x - middle)|^2 + |x|^2, none below its lowest value; its covariance."""
    free = np.ones(len(middle), np.bool_)
    x = lowest.copy()
    information = slopes.T @ slopes + np.eye(len(middle))
    while True:
        rest = at_middle + slopes @ (np.where(free, 0.0, lowest) - middle)
        x[free] = np.linalg.solve(information[np.ix_(free, free)], -slopes[:, free].T @ rest)
        below = free & (x < lowest)
        if not below.any():
            return x, np.asarray(np.linalg.inv(information), np.float64)
        free &= ~below
        x[below] = lowest[below]


def fitted_scenario(scenario: Scenario, found: Coefficients) -> dict[str, Any]:
    """Keys that make the scenario's server the fitted one."""
    scale = {**(scenario.cost.parameters.get("scale") or {}), "operators": found.operators}
    cost = {"host_step_s": found.host_step_s, "host_request_s": found.host_request_s, "scale": scale}
    return {"cost": cost, "engine": {"frontend_s": found.frontend_s}}


class _Player:
    """Simulates the runs with given coefficients, each set of them once."""

    def __init__(self, scenario: Scenario, benches: Sequence[Bench], allow_plugins: bool) -> None:
        self._benches = benches
        self._allow_plugins = allow_plugins
        self._scenarios = [_playing(scenario, bench) for bench in benches]
        self._known: dict[Coefficients, list[Floats]] = {}
        cost = scenario.cost.parameters
        self.host = str(cost.get("host") or cost.get("engine") or "vllm")
        step_s = cost.get("host_step_s")
        self.before = Coefficients(
            host_of(self.host).step_s if step_s is None else step_s,
            cost.get("host_request_s", 0.0),
            (cost.get("scale") or {}).get("operators", 1.0),
            scenario.engine.frontend_s,
        )
        blocks = [np.arange(len(bench.trace)) * BLOCKS // len(bench.trace) for bench in benches]
        self.fitted = np.concatenate(blocks) % 2 == 0
        self._groups = list(self._grouped())

    def _grouped(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """0 (TTFT) or 1 (TPOT), and the requests of a group, all of one run."""
        first = 0
        for bench in self._benches:
            here = np.arange(len(bench.trace))
            seen = here[self.fitted[first : first + len(here)]]
            with_gaps = seen[~np.isnan(bench.tpot_s[seen])]
            for which, rows, by in ((0, seen, bench.trace.prompt_tokens), (1, with_gaps, bench.in_flight())):
                order = rows[np.argsort(by[rows], kind="stable")]
                bins = min(BINS, len(order) // FEWEST_IN_BIN)
                for group in np.array_split(order, bins) if bins else ():
                    yield which, first + group
            first += len(here)

    def groups(self, found: Coefficients) -> tuple[Floats, Floats]:
        """Median of log(simulated / measured) in each group, and its standard error."""
        logs = []
        for simulated, measured in zip(self._latencies(found)[:2], self._measured()[:2], strict=True):
            ratio = np.log(simulated / measured)
            logs.append(np.where(np.isfinite(ratio), ratio, NOT_FINISHED))
        medians = np.array([np.median(logs[which][rows]) for which, rows in self._groups])
        return medians, np.array([_error_of_median(logs[which][rows]) for which, rows in self._groups])

    def held_out(self, found: Coefficients) -> Iterator[Metric]:
        """How far TTFT, TPOT and end-to-end latency are from what was measured, without and with the fit."""
        every = zip(
            ("TTFT", "TPOT", "E2E"), self._measured(), self._latencies(self.before), self._latencies(found), strict=True
        )
        for name, measured, before, after in every:
            seen = ~self.fitted & ~np.isnan(measured)
            real, old, new = measured[seen], before[seen], after[seen]
            yield Metric(
                name,
                float(real.mean()),
                float(np.nanmean(old)),
                float(np.nanmean(new)),
                float(np.nanmedian(np.abs(old / real - 1))),
                float(np.nanmedian(np.abs(new / real - 1))),
            )

    def _measured(self) -> list[Floats]:
        return [
            np.concatenate(each)
            for each in zip(*((bench.ttft_s, bench.tpot_s, bench.e2e_s) for bench in self._benches), strict=True)
        ]

    def _latencies(self, found: Coefficients) -> list[Floats]:
        """TTFT, TPOT and end-to-end latency in s, nan for what did not finish."""
        if found not in self._known:
            played = [self._played(*each, found) for each in zip(self._scenarios, self._benches, strict=True)]
            self._known[found] = [np.concatenate(each) for each in zip(*played, strict=True)]
        return self._known[found]

    def _played(self, scenario: Scenario, bench: Bench, found: Coefficients) -> tuple[Floats, Floats, Floats]:
        trace = replace(bench.trace, path=str(bench.file), sha256="0" * 64)
        fitted = scenario.replace(**fitted_scenario(scenario, found))
        resolved = resolve(fitted, allow_plugins=self._allow_plugins, read=lambda *_, **__: trace)
        log = execute(resolved).result.log
        assert log is not None
        done = finished(log)
        ttft, tpot, e2e = (np.where(done, of(log), np.nan) for of in (ttft_s, tpot_s, e2el_s))
        return ttft, tpot, e2e


def _playing(scenario: Scenario, bench: Bench) -> Scenario:
    """The server, asked what the client asked."""
    trace = {"path": str(bench.file.resolve()), "format": {"name": "canonical"}}
    workload = {"trace": trace, "max_concurrency": bench.max_concurrency}
    data = scenario.model_dump(exclude_unset=True) | {"workload": workload}
    data.pop("measure", None)
    return Scenario.of(data, scenario.source, {"measure.timeline_instants": 1})


def _check(scenario: Scenario, benches: Sequence[Bench]) -> None:
    if scenario.cost.name != "calibrated":
        hint = "write cost: {name: calibrated}"
        raise scenario.source.error(f"{scenario.cost.name or 'the default'} cannot be fitted", ("cost", "name"), hint)
    if scenario.cost.parameters.get("server") is not None:
        hint = "leave it out: the fit begins without it"
        raise scenario.source.error("the cost has been fitted already", ("cost", "server"), hint)
    if scenario.cluster.pools is not None and any(pool.cost is not None for pool in scenario.cluster.pools):
        raise scenario.source.error("pools with costs of their own cannot be fitted", ("cluster", "pools"))
    models = {bench.model for bench in benches if bench.model}
    if len(models) > 1:
        raise InputError(f"the runs are of several models: {', '.join(sorted(models))}", key="--from-bench")


def _error_of_median(values: Floats) -> float:
    """Standard error, from the middle of the values, as of a normal distribution."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return max(1.2533 * deviation / math.sqrt(len(values)), LEAST_NOISE)


def server_file(scenario: Scenario, benches: Sequence[Bench], found: Fit) -> str:
    """The text of a file for ``cost: {name: calibrated, server: FILE}``; equal fits give equal bytes."""
    runs = ", ".join(f"{bench.file.name} ({len(bench.trace)} requests, {bench.client})" for bench in benches)
    source = json.dumps(f"kvsim {__version__} calibrate --from-bench: {scenario.model}, {runs}", ensure_ascii=False)
    figures = {name: getattr(found.after, name) for name in NAMES}
    # Of the host's time per step: of its logarithm as far as that is small, and no more than another server's.
    figures["host_spread"] = min(
        found.sigma.host_step_s / max(found.after.host_step_s, 1e-9), spreads()["calibrated"]["kinds"][HOST]
    )
    figures["operators_spread"] = found.sigma.operators / found.after.operators
    values = "\n".join(f"{name} = {value:.4g}" for name, value in figures.items())
    return f"{HEADER}\n{values}\nsource = {source}\n"
