"""Whether measured figures lie in the intervals that ``kvsim run --uncertainty`` gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import md5
from typing import Final

import numpy as np

from kvsim.accuracy.errors import LOADS, OLD_SETS
from kvsim.accuracy.predict import COSTS, figures, resolved, scenario_of, trace_of
from kvsim.accuracy.served import METRICS, Served
from kvsim.core.errors import InputError
from kvsim.sweeps.executors import Processes
from kvsim.sweeps.uncertainty import interval, redrawn

MOST: Final = 3
"""Runs of one configuration, load and data set: those whose name has the smallest md5."""
HEAD: Final = "| load | metric | runs | inside | by configuration | configurations | median half-width |"
BEGIN, END = "<!-- kvsim accuracy --uncertainty: begin -->", "<!-- kvsim accuracy --uncertainty: end -->"


@dataclass(frozen=True)
class Covered:
    """A measured run, and metric -> the interval that ``cost: calibrated`` gives for it."""

    served: Served
    intervals: Mapping[str, tuple[float, float]]


def chosen(runs: Iterable[Served]) -> list[Served]:
    """A few runs of every configuration that no fit has seen."""
    groups: dict[tuple[str, ...], list[Served]] = defaultdict(list)
    for run in runs:
        if not run.fitted and run.data_set not in OLD_SETS:
            groups[run.data_set, run.configuration, run.engine, run.host, run.regime].append(run)
    return [
        run
        for group in groups.values()
        for run in sorted(group, key=lambda run: md5(run.name.encode()).hexdigest())[:MOST]
    ]


def coverage(runs: Iterable[Served], draws: int, workers: int = 1) -> Iterator[Covered]:
    """Simulate each run so many times, in worker processes and in order; what kvsim cannot model is left out."""
    tasks = [(run, draws) for run in runs]
    if workers == 1:
        found = map(_covered, tasks)
        yield from (each for each in found if each is not None)
        return
    pool = Processes(workers)
    try:
        yield from (each for each in pool.map(_covered, tasks) if each is not None)
    finally:
        pool.stop()


def _covered(task: tuple[Served, int]) -> Covered | None:
    served, draws = task
    trace = trace_of(served)
    try:
        run = resolved(scenario_of(served, COSTS["calibrated"]), trace)
    except InputError:
        return None
    drawn = [figures(served, resolved(redrawn(run, draw), trace)) for draw in range(1, draws + 1)]
    intervals = {}
    for metric in served.measured:
        found = interval([each.get(metric) for each in drawn])
        if found is not None:
            intervals[metric] = (found[0], found[1])
    return Covered(served, intervals)


def markdown(covered: Sequence[Covered]) -> Iterator[str]:
    """Lines of the table: the share of measured figures inside their interval, by load and metric."""
    yield HEAD
    yield "|" + "---|" * (HEAD.count("|") - 1)
    for load, title in LOADS.items():
        for metric in METRICS:
            inside: dict[str, list[bool]] = defaultdict(list)
            widths = []
            for each in covered:
                if each.served.regime == load and metric in each.intervals:
                    low, high = each.intervals[metric]
                    inside[each.served.configuration].append(low <= each.served.measured[metric] <= high)
                    widths.append((high - low) / (high + low))
            if inside:
                shares = [float(np.mean(each)) for each in inside.values()]
                share = float(np.mean([one for each in inside.values() for one in each]))
                cells = [title, metric.upper() if len(metric) < 5 else metric, str(len(widths)), f"**{share:.0%}**"]
                cells += [f"{np.mean(shares):.0%}", str(len(inside)), f"{np.median(widths):.1%}"]
                yield f"| {' | '.join(cells)} |"
