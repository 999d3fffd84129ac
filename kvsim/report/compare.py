"""Runs of the same requests side by side: paired per request, with intervals, verdicts, and their distributions."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.report.files import read_summary, read_table

Verdict = Literal["same", "better", "worse", "unclear"]
LATENCIES: Final = {"ttft": "TTFT", "tpot": "TPOT", "e2el": "E2EL"}
SHARES: Final = {"SLO attainment": "good", "Deadlines kept": "deadline_met"}
LEVELS: Final = (50, 90, 99)
BLOCKS: Final = 30
"""Parts of a run that are drawn anew: neighbours in time share their queue, so single requests are not independent."""
DRAWS: Final = 400

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One figure of one run against the first run.

    ``change_frac`` is (value - base) / base, ``low_frac`` and ``high_frac`` its confidence interval. None where the
    base is 0 or missing.
    """

    run: str
    figure: str
    base: float | None
    value: float | None
    change_frac: float | None
    low_frac: float | None
    high_frac: float | None
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Run:
    name: str
    latencies_s: dict[str, Floats]
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]]
    finished: NDArray[np.bool_]
    shares: dict[str, Floats]
    measured: NDArray[np.bool_]


def compare_runs(
    run_dirs: Sequence[str | os.PathLike[str]], margin_frac: float = 0.03, confidence: float = 0.95
) -> list[Comparison]:
    """Every run against the first: mean and percentiles of latencies over the requests that both finished, the share
    of requests that finished, SLO attainment, and the share of deadlines kept.

    Intervals come from a paired block bootstrap: the same blocks of consecutive requests are drawn from both runs
    (Künsch 1989, doi 10.1214/aos/1176347265). ``same``: the interval lies within the margin. ``worse``, ``better``: it
    lies beyond it. ``unclear``: it reaches across. Raises InputError for a folder that is no run, and for runs of
    different requests.
    """
    if len(run_dirs) < 2:
        raise InputError("one run cannot be compared", hint="name two run folders or more")
    first, *others = [_read(Path(folder)) for folder in run_dirs]
    found: list[Comparison] = []
    for other in others:
        _same_requests(first, other)
        found += _compared(first, other, margin_frac, confidence)
    return found


def _read(folder: Path) -> _Run:
    summary, table = read_summary(folder), read_table(folder, "requests")

    def column(name: str) -> Any:
        return table[name].to_numpy()

    start_s = summary["kvsim"]["measured_from_s"] or 0.0
    arrival_s = column("arrival_s")
    shares = {"Finished": column("status") == "finished"}
    for figure, name in SHARES.items():
        if name in table.column_names and table[name].null_count < len(table):
            shares[figure] = column(name)
    return _Run(
        name=str(folder),
        latencies_s={name: column(f"{name}_s").astype(np.float64) for name in LATENCIES},
        tokens=(column("prompt_tokens"), column("output_tokens")),
        finished=column("status") == "finished",
        shares={figure: share.astype(np.float64) for figure, share in shares.items()},  # null: nan
        measured=np.isnan(arrival_s) | (arrival_s >= start_s),
    )


def _same_requests(first: _Run, other: _Run) -> None:
    if len(first.finished) != len(other.finished):
        raise InputError(
            f"{first.name} has {len(first.finished)} requests, {other.name} has {len(other.finished)}",
            hint="only runs of the same requests can be compared",
        )
    for kind, mine, theirs in zip(("prompt", "output"), first.tokens, other.tokens, strict=True):
        differ = np.flatnonzero(mine != theirs)
        if len(differ):
            row = int(differ[0])
            raise InputError(
                f"request {row} has {mine[row]} {kind} tokens in {first.name}, {theirs[row]} in {other.name}",
                hint="only runs of the same requests can be compared",
            )


def _compared(first: _Run, other: _Run, margin_frac: float, confidence: float) -> list[Comparison]:
    both = first.finished & other.finished & first.measured & other.measured
    draws = np.random.default_rng(0).multinomial(BLOCKS, [1 / BLOCKS] * BLOCKS, size=DRAWS)
    found = []
    for name, label in LATENCIES.items():
        mine, theirs = first.latencies_s[name], other.latencies_s[name]
        rows = both & ~np.isnan(mine) & ~np.isnan(theirs)
        block = _blocks(int(rows.sum()))
        pair = (mine[rows] * 1e3, theirs[rows] * 1e3)
        for statistic, value_of in _statistics():
            found.append(
                _judged(other.name, f"{statistic} {label} (ms)", pair, block, value_of, draws, margin_frac, confidence)
            )
    for figure, mine in first.shares.items():
        if figure not in other.shares:
            continue
        theirs = other.shares[figure]
        rows = first.measured & other.measured & ~np.isnan(mine) & ~np.isnan(theirs)
        block = _blocks(int(rows.sum()))
        pair = (mine[rows], theirs[rows])
        found.append(
            _judged(other.name, figure, pair, block, _weighted_mean, draws, margin_frac, confidence, more=True)
        )
    return found


Statistic = Callable[[Floats, NDArray[Any]], float]


def _statistics() -> list[tuple[str, Statistic]]:
    percentiles: list[tuple[str, Statistic]] = [
        (f"P{level}", lambda values, weights, level=level: _weighted_percentile(values, weights, level))  # type: ignore[misc]
        for level in LEVELS
    ]
    return [("Mean", _weighted_mean), *percentiles]


def _blocks(n: int) -> NDArray[np.int64]:
    """The block of each of n requests in order."""
    return (np.arange(n) * BLOCKS) // max(n, 1)


def _weighted_mean(values: Floats, weights: NDArray[Any]) -> float:
    return float((values * weights).sum() / weights.sum())


def _weighted_percentile(values: Floats, weights: NDArray[Any], level: float) -> float:
    """numpy's ``linear`` percentile of the values, each as often as its weight says."""
    order = np.argsort(values, kind="stable")
    upto = np.cumsum(weights[order])
    position = (int(upto[-1]) - 1) * level / 100
    low, high = values[order[np.searchsorted(upto, [np.floor(position), np.ceil(position)], side="right")]]
    return float(low + (high - low) * (position - np.floor(position)))


def _judged(
    run: str,
    figure: str,
    pair: tuple[Floats, Floats],
    block: NDArray[np.int64],
    statistic: Statistic,
    draws: NDArray[Any],
    margin_frac: float,
    confidence: float,
    more: bool = False,
) -> Comparison:
    if not len(block):
        return Comparison(run, figure, None, None, None, None, None, "unclear")
    ones = np.ones(len(block), np.int64)
    base, value = (statistic(values, ones) for values in pair)
    if not base:
        verdict: Verdict = "same" if value == base else "better" if (value > base) == more else "worse"
        return Comparison(run, figure, base, value, None, None, None, verdict)
    if len(block) == 1:  # one request says nothing about others
        verdict = "same" if value == base else "unclear"
        return Comparison(run, figure, base, value, value / base - 1, None, None, verdict)
    changes = []
    for counts in draws:
        weights = counts[block]
        if weights.any():
            before, after = (statistic(values, weights) for values in pair)
            if before:
                changes.append(after / before - 1)
    tail = (1 - confidence) / 2 * 100
    low, high = (float(edge) for edge in np.percentile(changes, [tail, 100 - tail]))
    bad_low, bad_high = (-high, -low) if more else (low, high)
    if -margin_frac <= bad_low and bad_high <= margin_frac:
        verdict = "same"
    elif bad_low > margin_frac:
        verdict = "worse"
    elif bad_high < -margin_frac:
        verdict = "better"
    else:
        verdict = "unclear"
    return Comparison(run, figure, base, value, value / base - 1, low, high, verdict)


def comparison_table(found: Sequence[Comparison], base: str) -> str:
    """Plain text: a table per run."""
    lines = []
    for run in dict.fromkeys(comparison.run for comparison in found):
        rows = [c for c in found if c.run == run]
        lines.append(f"{run} against {base}")
        lines.append(f"  {'':<16} {'base':>10} {'this':>10} {'change':>9} {'interval':<20} verdict")
        for c in rows:
            change = "-" if c.change_frac is None else f"{c.change_frac:+.1%}"
            interval = "" if c.low_frac is None else f"[{c.low_frac:+.1%}, {c.high_frac:+.1%}]"
            lines.append(
                f"  {c.figure:<16} {_value(c.base):>10} {_value(c.value):>10} {change:>9} {interval:<20} {c.verdict}"
            )
    return "\n".join(lines) + "\n"


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def plot_comparison(
    run_dirs: Sequence[str | os.PathLike[str]], out_dir: str | os.PathLike[str] = ".", formats: Sequence[str] = ("png",)
) -> list[Path]:
    """Draw ``compare``: the distribution of each latency, one line per run. Returns the paths written.

    Raises InputError as ``compare_runs``, and for a folder that cannot be written.
    """
    from kvsim.report.plot import COLOURS, drawn, log_if_wide

    runs = [_read(Path(folder)) for folder in run_dirs]

    def draw() -> Any:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.8), layout="constrained")
        panels = figure.subplots(1, len(LATENCIES), sharey=True)
        styles = ("-", "--", "-.", ":")
        for axes, (name, label) in zip(panels, LATENCIES.items(), strict=True):
            seen = []
            for idx, run in enumerate(runs):
                values = run.latencies_s[name][run.finished & run.measured]
                values = np.sort(values[~np.isnan(values)]) * 1e3
                axes.step(
                    values,
                    np.arange(1, len(values) + 1) / max(len(values), 1) * 100,
                    where="post",
                    label=Path(run.name).name,
                    color=COLOURS[idx % len(COLOURS)],
                    linestyle=styles[idx % len(styles)],
                )
                seen.append(values)
            axes.set(xlabel=f"{label} (ms)", ylim=(0, 101))
            both = np.concatenate(seen)
            if len(both):
                log_if_wide(axes, "x", both)
        panels[0].set_ylabel("Requests (%)")
        panels[-1].legend(loc="lower right")
        return figure

    return drawn({"compare": draw}, Path(out_dir), formats)
