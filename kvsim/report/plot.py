"""Figures of a run folder: latency distributions, occupancy over time, time to first token against prompt length.

Drawn on ``Figure`` objects, never through pyplot, so that nothing global changes; equal folders give equal bytes.
"""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.report.files import read_summary, read_table
from kvsim.report.terminal import VERDICTS, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS: Final = ("png", "svg", "pdf")
MANY_REPLICAS: Final = 6
"""Up to so many replicas are drawn as a line each; more become median and range."""
MANY_INSTANTS: Final = 4000
"""Up to so many instants of the timeline are drawn as sampled."""
MANY_POINTS: Final = 4000
"""Up to so many requests are drawn as points; more become a density."""

# Okabe and Ito's palette: told apart also with a colour vision deficiency, and in grey
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY: Final = "#555555"
_ALARM: Final = "#b00020"
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "kvsim",
}


@dataclass(frozen=True)
class _Run:
    """What the figures are drawn from."""

    summary: dict[str, Any]
    requests: dict[str, NDArray[Any]]
    timeline: dict[str, NDArray[Any]]

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Finished requests of the measured window."""
        start_s = self.summary["kvsim"]["measured_from_s"] or 0.0
        mask: NDArray[np.bool_] = (self.requests["status"] == "finished") & (self.requests["arrival_s"] >= start_s)
        return mask


def plot_run(
    run_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str] | None = None,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw ``latency``, ``timeline`` and ``ttft_by_prompt`` from the files of a run. Returns the paths written.

    ``out_dir`` is made if it is missing; None draws into the run folder. Raises InputError for a folder that is no
    run folder, an unknown format, or a folder that cannot be written.
    """
    _known(formats)
    run = _read(run_dir)
    target = Path(run_dir if out_dir is None else out_dir)
    figures: dict[str, Callable[[_Run], Figure]] = {
        "latency": _latency,
        "timeline": _timeline,
        "ttft_by_prompt": _ttft_by_prompt,
    }
    return drawn({name: partial(draw, run) for name, draw in figures.items()}, target, formats)


def _known(formats: Sequence[str]) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        asked = repr(unknown[0]) if unknown else "none"
        raise InputError(f"unknown format {asked}", key="formats", hint=f"known: {', '.join(FORMATS)}")


def drawn(figures: Mapping[str, Callable[[], "Figure"]], target: Path, formats: Sequence[str]) -> list[Path]:
    """Draw figures in the house's style and write each in each format. Returns the paths.

    Equal figures give equal bytes. Raises InputError for an unknown format, or a folder that cannot be written.
    """
    _known(formats)
    import matplotlib

    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # whatever the user's own style says
            matplotlib.rcParams.update(_STYLE)
            for name, draw in figures.items():
                figure = draw()
                for kind in formats:
                    path = target / f"{name}.{kind}"
                    # a date in the file would make equal runs differ
                    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
                    try:
                        figure.savefig(path, dpi=150, metadata=undated)
                    except BaseException:
                        path.unlink(missing_ok=True)  # half a figure, on a full disk or after Ctrl-C
                        raise
                    written.append(path)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written: {error.strerror}", key="out_dir", hint="name another folder"
        ) from error
    return written


def _read(run_dir: str | os.PathLike[str]) -> _Run:
    summary = read_summary(run_dir)
    tables = []
    for name in ("requests", "timeline"):
        table = read_table(run_dir, name)
        tables.append({column: table[column].to_numpy() for column in table.column_names})
    return _Run(summary, *tables)


def _new_figure(run: _Run, width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    verdict = VERDICTS.get(run.summary["kvsim"]["stability"])
    colour = _ALARM if verdict else "black"
    lines = [title(run.summary), *(textwrap.wrap(verdict, int(10.5 * width)) if verdict else [])]
    figure.suptitle("\n".join(lines), fontsize=11, color=colour)
    return figure


def say(axes: "Axes", text: str) -> None:
    """A panel with nothing to draw says why."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=_GREY)
    axes.set_xticks([])
    axes.set_yticks([])


def _latency(run: _Run) -> "Figure":
    """Cumulative distributions of TTFT, TPOT and end-to-end latency over the finished requests."""
    figure = _new_figure(run, 12, 4.5)
    panels = figure.subplots(1, 3, sharey=True)
    limits_ms = run.summary["kvsim"]["slo"] or {}
    for axes, (name, label, unit, scale) in zip(
        panels,
        (
            ("ttft", "Time to first token", "s", 1.0),
            ("tpot", "Time per output token (excl. 1st)", "ms", 1e3),
            ("e2el", "End-to-end latency", "s", 1.0),
        ),
        strict=True,
    ):
        values = run.requests[f"{name}_s"][run.measured].astype(float) * scale
        values = values[~np.isnan(values)]
        axes.set_title(f"{label}  (n = {len(values):,})")
        axes.set_xlabel(f"{name.upper()} ({unit})")
        if not len(values):
            say(axes, "no request finished" if name != "tpot" else "no finished request\nwith two tokens or more")
            continue
        shares = _cdf_shares(len(values))
        levels = np.percentile(values, shares * 100)
        axes.step(levels, shares * 100, where="post", color=COLOURS[0], linewidth=1.8)
        for percent, line in ((50, ":"), (90, "-."), (99, "--")):
            value = float(np.percentile(values, percent))
            axes.axvline(value, color=_GREY, linestyle=line, linewidth=0.9, label=f"p{percent}  {value:.4g} {unit}")
        if name in limits_ms:
            bound = limits_ms[name] / 1e3 * scale
            label = f"SLO  {bound:.4g} {unit}"
            if values.min() <= bound <= values.max():
                axes.axvline(bound, color=COLOURS[1], linewidth=1.4, label=label)
            else:  # named, but the axis belongs to the values
                axes.plot([], [], color=COLOURS[1], linewidth=1.4, label=f"{label} (outside)")
        log_if_wide(axes, "x", values)
        axes.set_ylim(0, 101)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    panels[0].set_ylabel("Requests (%)")
    return figure


def _cdf_shares(count: int) -> NDArray[np.float64]:
    """Where to evaluate the distribution: every request, or 1,000 shares and a fine tail when there are more."""
    if count <= 2000:
        return np.linspace(0, 1, max(count, 2))
    return np.unique(np.concatenate([np.linspace(0, 1, 1001), 1 - np.geomspace(1e-3, 1 / count, 200)]))


def _timeline(run: _Run) -> "Figure":
    """Waiting and running requests, tokens per step and KV occupancy over simulated time."""
    from matplotlib.ticker import MaxNLocator

    figure = _new_figure(run, 11, 9)
    panels = figure.subplots(4, 1, sharex=True)
    columns = (
        ("waiting", "Waiting\n(requests)", 1),
        ("running", "Running\n(requests)", 1),
        ("batch_tokens", "Step\n(tokens)", 1),
        ("kv_usage_frac", "KV blocks in use\n(%)", 100),
    )
    excluded, start_s = run.summary["kvsim"]["excluded_requests"], run.summary["kvsim"]["measured_from_s"]
    for axes, (column, label, scale) in zip(panels, columns, strict=True):
        axes.set_ylabel(label)
        if not len(run.timeline["time_s"]):
            say(axes, "the timeline is empty")
            continue
        _draw_replicas(axes, run, column, scale)
        axes.set_ylim(bottom=0, top=102 if column == "kv_usage_frac" else max(1.0, axes.get_ylim()[1]))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if excluded and start_s is not None:
            axes.axvspan(0, start_s, color="#eeeeee", zorder=0, label="warm-up")
    figure.align_ylabels(panels)
    panels[0].margins(x=0.01)
    panels[-1].set_xlabel("Simulated time (s)")
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    return figure


def _draw_replicas(axes: "Axes", run: _Run, column: str, scale: float) -> None:
    """One line per replica, or median and range per role when there are many.

    Tokens per step are points: the steps that were running at the instants sampled, whose sizes are far apart.
    """
    time_s, replica = run.timeline["time_s"], run.timeline["replica"]
    values = run.timeline[column].astype(float) * scale
    roles = run.summary["kvsim"]["replica_roles"]
    many, kinds = len(roles) > MANY_REPLICAS, list(dict.fromkeys(roles))
    if many:
        groups = {role: [k for k in range(len(roles)) if roles[k] == role] for role in kinds}
    else:
        groups = {f"replica {k}" + (f" ({role})" if len(kinds) > 1 else ""): [k] for k, role in enumerate(roles)}
    for (name, members), colour in zip(groups.items(), COLOURS, strict=False):
        instants, held = _held(time_s, replica, values, members)
        if column == "batch_tokens":
            stride = -(-held.size * len(groups) // MANY_POINTS)
            axes.plot(instants[::stride], held[::stride], "o", color=colour, markersize=2.2, alpha=0.5, mew=0)
        elif many:
            low, middle, high = held.min(axis=1), np.median(held, axis=1), held.max(axis=1)
            label = f"range of {len(members)} {name} replicas"
            axes.fill_between(instants, low, high, step="post", color=colour, alpha=0.2, linewidth=0, label=label)
            axes.step(instants, middle, where="post", color=colour, linewidth=1.2, label=f"median ({name})")
        else:
            axes.step(instants, held[:, 0], where="post", color=colour, linewidth=1.1, label=name)


def _held(
    time_s: NDArray[np.float64], replica: NDArray[np.int64], values: NDArray[np.float64], members: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Instants (m,) and values (m, len(members)): a sample holds until the replica's next one, 0 before its first.

    Every instant sampled, or MANY_INSTANTS of equal distance if there are more (a run may record each step).
    """
    instants = np.unique(time_s[np.isin(replica, members)])
    if len(instants) > MANY_INSTANTS:
        instants = np.linspace(instants[0], instants[-1], MANY_INSTANTS)
    columns = []
    for k in members:
        rows = replica == k
        last = np.searchsorted(time_s[rows], instants, side="right")
        columns.append(np.concatenate([[0.0], values[rows]])[last])
    return instants, np.column_stack(columns)


def _ttft_by_prompt(run: _Run) -> "Figure":
    """Time to first token of every finished request against its prompt length."""
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    figure = _new_figure(run, 8, 5)
    axes = figure.subplots()
    prompt = run.requests["prompt_tokens"][run.measured].astype(float)
    ttft_s = run.requests["ttft_s"][run.measured].astype(float)
    axes.set_xlabel("Prompt length (tokens)")
    axes.set_ylabel("Time to first token (s)")
    if not len(prompt):
        say(axes, "no request finished")
        return figure
    if len(prompt) <= MANY_POINTS:
        axes.scatter(prompt, ttft_s, s=10, color=COLOURS[0], alpha=0.5, linewidths=0, label="request")
    else:
        bins = axes.hexbin(
            prompt,
            ttft_s,
            gridsize=60,
            bins="log",
            mincnt=1,
            cmap=LinearSegmentedColormap.from_list("blues", colormaps["Blues"](np.linspace(0.3, 1, 256))),
            linewidths=0,
            xscale="log" if _is_wide(prompt) else "linear",
            yscale="log" if _is_wide(ttft_s) else "linear",
        )
        figure.colorbar(bins, ax=axes, label="Requests per cell", format="%g")
    axes.plot(*_median_by_length(prompt, ttft_s), color=COLOURS[1], linewidth=1.8, label="median")
    log_if_wide(axes, "x", prompt)
    log_if_wide(axes, "y", ttft_s)
    axes.set_title(f"Finished requests: {len(prompt):,}")
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
    return figure


def _median_by_length(prompt: NDArray[np.float64], ttft_s: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Median prompt length and median TTFT in up to 25 groups of equally many requests."""
    order = np.argsort(prompt, kind="stable")
    groups = np.array_split(order, min(25, max(1, len(order) // 20)))
    return [float(np.median(prompt[g])) for g in groups], [float(np.median(ttft_s[g])) for g in groups]


def _is_wide(values: NDArray[np.float64]) -> bool:
    """Positive values over more than a factor of 20: a linear axis would hide most of them."""
    return bool(values.min() > 0 and values.max() / values.min() > 20)


def log_if_wide(axes: "Axes", which: Literal["x", "y"], values: NDArray[np.float64]) -> None:
    """A logarithmic axis where a linear one would hide most values; plain numbers, every 1, 2, 5 if there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not _is_wide(values):
        return
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    roomy = values.max() / values.min() < 10**2.5
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if roomy else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
