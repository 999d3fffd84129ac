"""From simulated runs to lines of the table: errors by load, data set and metric."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from kvsim.accuracy.predict import COSTS, Predicted
from kvsim.accuracy.served import METRICS, Served, Skipped

ALL: Final = "all"
OLD_SETS: Final = ("argonne_llm_inference_bench",)
"""Engines of another generation: simulated and shown, in no sum."""
LOADS: Final = {"below": "below saturation", "closed": "fixed concurrency", "saturated": "saturated"}


@dataclass(frozen=True)
class Errors:
    """|simulated / measured - 1| over some runs: how many, median, mean, 90th percentile; the mean with its sign; and
    the median over the configurations' own medians, to which many runs of one configuration count as one."""

    runs: int
    median: float
    mean: float
    p90: float
    bias: float
    by_configuration: float
    configurations: int = 1

    @classmethod
    def of(cls, errors: Sequence[float], configurations: Sequence[str] = ()) -> Errors | None:
        """Of relative errors with their sign, each of one configuration (none given: all of one); None of none."""
        if not errors:
            return None
        sizes = np.abs(errors)
        names = np.array(configurations or [""] * len(errors))
        medians = [float(np.median(sizes[names == name])) for name in set(names.tolist())]
        return cls(
            len(errors),
            float(np.median(sizes)),
            float(sizes.mean()),
            float(np.percentile(sizes, 90)),
            float(np.mean(errors)),
            float(np.median(medians)),
            len(medians),
        )


@dataclass(frozen=True)
class Line:
    """One line of the table. ``unseen`` and ``fitted``: column -> errors, on runs that fits may not and may use;
    ``others``: other tool -> errors, on the unseen runs that it published; ``noise``: how far repeats of the same run
    are from their mean."""

    load: str
    data_set: str
    metric: str
    unseen: Mapping[str, Errors]
    fitted: Mapping[str, Errors]
    others: Mapping[str, Errors]
    noise: Errors | None


def lines(predicted: Sequence[Predicted]) -> Iterator[Line]:
    """Lines by load; all sets of the generation together first, then each."""
    for load in LOADS:
        of_load = [each for each in predicted if each.served.regime == load]
        names = list(dict.fromkeys(each.served.data_set for each in of_load))
        current = [each for each in of_load if each.served.data_set not in OLD_SETS]
        groups = {ALL: current} if len(names) > 1 else {}
        groups |= {name: [each for each in of_load if each.served.data_set == name] for name in names}
        for name, group in groups.items():
            for metric in METRICS:
                line = _line(load, name, metric, group)
                if line.unseen or line.fitted:
                    yield line


def _line(load: str, name: str, metric: str, group: Sequence[Predicted]) -> Line:
    sides: dict[bool, dict[str, Errors]] = {False: {}, True: {}}
    for fitted, columns in sides.items():
        for column in COSTS:
            each = [(one.served.configuration, one.errors(column)) for one in group if one.served.fitted == fitted]
            priced = [(name, errors[metric]) for name, errors in each if metric in errors]
            found = Errors.of([error for _, error in priced], [name for name, _ in priced])
            if found is not None:
                columns[column] = found
    published: dict[str, list[float]] = defaultdict(list)
    for one in group:
        if not one.served.fitted and metric in one.errors("calibrated"):
            for tool, theirs in one.served.others.items():
                if metric in theirs:
                    published[tool].append(theirs[metric])
    others = {tool: errors for tool, values in published.items() if (errors := Errors.of(values)) is not None}
    return Line(load, name, metric, sides[False], sides[True], others, noise([one.served for one in group], metric))


def noise(runs: Iterable[Served], metric: str) -> Errors | None:
    """How far equal runs are from the mean of their group."""
    groups: dict[Any, list[float]] = defaultdict(list)
    for run in runs:
        if metric in run.measured:
            groups[run.identity].append(run.measured[metric])
    repeats = [np.array(values) for values in groups.values() if len(values) > 1]
    return Errors.of([float(error) for values in repeats for error in values / values.mean() - 1])


def refusals(predicted: Iterable[Predicted], column: str = "calibrated") -> Iterator[Skipped]:
    """Runs that a cost model could not price."""
    for each in predicted:
        if column in each.refused:
            yield Skipped(each.served.data_set, each.refused[column])


def together(skipped: Iterable[Skipped]) -> list[Skipped]:
    """Those of one set and one reason counted together."""
    counts: Counter[tuple[str, str]] = Counter()
    for each in skipped:
        counts[each.data_set, each.reason] += each.runs
    return [Skipped(data_set, reason, runs) for (data_set, reason), runs in counts.items()]
