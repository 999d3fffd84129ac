"""How sure a prediction is: the scenario over and over, with other coefficients and seeds, and the figures' spread."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import closing
from math import exp
from pathlib import Path
from typing import Any, Final

import numpy as np

from kvsim.core.errors import InputError
from kvsim.costs.scale import FRONTEND, KINDS, spreads
from kvsim.metrics.figures import figures
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, ResolvedPool, resolve
from kvsim.sweeps.executors import Crew, for_few
from kvsim.sweeps.traces import SharedTraces
from kvsim.sweeps.work import Task

CONFIDENCE: Final = 0.9
FEWEST: Final = 19
"""Draws, so that 1 in 20 lies below the smallest and 1 in 20 above the largest of them: a 90 % interval."""
NO_FIGURES: Final = ("schema_version", "seed")

Progress = Callable[[int], None]
"""Called with the number of draws that are done."""


def uncertainty(
    scenario: Scenario,
    draws: int,
    *,
    workers: int | None = None,
    executor: str | Executor | None = None,
    allow_plugins: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate ``draws`` times; what ``summary.json`` holds under ``kvsim.uncertainty``.

    Each time every coefficient whose spread is known (``StepCost.spread``, ``frontend``) is multiplied by a log-normal
    factor of median 1, independent of the others and the same in all pools, and the seed is another one. Draw k depends
    on the scenario's seed and on k alone. ``intervals``: figure -> [low, high]; a new draw lies below, within or above
    with probability 5, 90 and 5 %; null if some draw has no such value. ``spread``: pool -> kind -> standard
    deviation of the factor's logarithm. Raises InputError for fewer than 19 draws, if nothing could differ between
    draws, and if one of them fails.
    """
    if draws < FEWEST:
        raise InputError(f"{draws} draws make no 90 % interval", key="uncertainty", hint=f"at least {FEWEST}")
    workers = workers or os.cpu_count() or 1
    with (
        tempfile.TemporaryDirectory(prefix="kvsim-draws-") as place,
        closing(Crew(for_few(executor, workers), workers)) as crew,
    ):
        traces = SharedTraces(Path(place))
        resolved = resolve(scenario, allow_plugins=allow_plugins, read=traces.read)
        spread = spread_of(resolved)
        if not spread and not _random(resolved):
            named = ", ".join(sorted({str(built.keys["cost"]["name"]) for built in resolved.pools}))
            problem = f"there is nothing to redraw: cost {named} has no spread, the requests are fixed, routing is too"
            raise InputError(problem, key="uncertainty", hint="cost: calibrated and roofline have one")
        tasks = (
            Task(str(draw), redrawn(resolved, draw), os.getcwd(), dict(traces.files), allow_plugins)
            for draw in range(1, draws + 1)
        )
        found: dict[int, Mapping[str, Any]] = {}
        for task, outcome in crew.outcomes(tasks):
            if "error" in outcome:
                raise InputError(f"draw {task.address} failed: {outcome['error']}", key="uncertainty")
            found[int(task.address)] = figures(outcome["summary"])
            if progress is not None:
                progress(len(found))
    rows = [found[draw] for draw in sorted(found)]
    names = [name for name, value in rows[0].items() if _is_number(value) or value is None]
    return {
        "draws": draws,
        "confidence": CONFIDENCE,
        "spread": spread,
        "intervals": {name: interval([row.get(name) for row in rows]) for name in names if name not in NO_FIGURES},
    }


def spread_of(resolved: Resolved) -> dict[str, dict[str, float]]:
    """Role of a pool -> kind -> standard deviation of the logarithm of its factor, ``frontend`` among them if there is
    one. Pools whose cost model knows none are left out."""
    frontend = dict(spreads()[FRONTEND]) if resolved.scenario.engine.frontend_s else {}
    known = {built.pool.role: getattr(built.pool.cost, "spread", None) for built in resolved.pools}
    return {role: {**spread, **frontend} for role, spread in known.items() if spread}


def redrawn(resolved: Resolved, draw: int) -> Scenario:
    """The scenario with the factors and the seed of one draw."""
    scenario = resolved.scenario
    rng = np.random.default_rng([scenario.seed, draw])
    normal = dict(zip((*KINDS, FRONTEND), rng.standard_normal(len(KINDS) + 1).tolist(), strict=True))
    spread = spread_of(resolved)
    keys: dict[str, Any] = {"seed": int(rng.integers(2**31))}  # of neighbouring seeds no two draws are the same
    for built in resolved.pools:
        factors = {kind: exp(sigma * normal[kind]) for kind, sigma in spread.get(built.pool.role, {}).items()}
        if FRONTEND in factors:
            keys["engine.frontend_s"] = scenario.engine.frontend_s * factors.pop(FRONTEND)
        if factors:
            keys[_cost_key(scenario, built)] = _scaled(built.keys["cost"], factors)
    return scenario.replace(**keys)


def _cost_key(scenario: Scenario, built: ResolvedPool) -> str:
    pools = scenario.cluster.pools
    if pools is None:
        return "cost"
    return f"cluster.pools.{[pool.role for pool in pools].index(built.pool.role)}.cost"


def _scaled(cost: Mapping[str, Any], factors: Mapping[str, float]) -> dict[str, Any]:
    own = cost.get("scale") or {}
    return {**cost, "scale": {kind: own.get(kind, 1.0) * factors.get(kind, 1.0) for kind in {**own, **factors}}}


def _random(resolved: Resolved) -> bool:
    """Whether a seed could make a difference."""
    workload = resolved.scenario.workload
    routed = any(built.pool.replicas > 1 for built in resolved.pools)
    return workload.generate is not None or bool(workload.transforms) or routed


def interval(values: list[Any]) -> list[float] | None:
    """The 5 % and 95 % quantiles for a value that is still to be drawn: of n values each gap between neighbours, and
    each end, has probability 1 / (n + 1). None if a value is missing.

    Source: order statistics of exchangeable values (Weibull's plotting positions).

    >>> interval(list(range(1, 20)))
    [1.0, 19.0]
    """
    if not all(_is_number(value) for value in values):
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="weibull").tolist()
    return [low, high]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
