"""Figures of a trace: arrivals over time, hour-of-day profile, joint density of lengths, prefix reuse."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged, Trace
from kvsim.metrics.trace_stats import LRU_BLOCKS, MOST_BLOCKS_TO_REPLAY, leading_hits, lru_hits
from kvsim.report.plot import COLOURS, drawn, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BARS: Final = 240
"""Arrivals over time are counted in at most so many intervals of a round length."""
_ROUND_S: Final = (0.001, 0.01, 0.1, 1, 5, 10, 30, 60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400)
_UNITS: Final = ((2 * 86_400, 86_400.0, "days"), (2 * 3600, 3600.0, "hours"), (300, 60.0, "minutes"), (0, 1.0, "s"))


def plot_trace(
    trace: Trace, out_dir: str | os.PathLike[str] = ".", formats: Sequence[str] = ("png",), name: str = "trace"
) -> list[Path]:
    """Draw ``trace.png``, four panels, into ``out_dir`` (made if it is missing). Returns the paths written.

    Raises InputError for an unknown format or a folder that cannot be written.
    """
    return drawn({name: lambda: _draw(trace)}, Path(out_dir), formats)


def _draw(trace: Trace) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    title = Path(trace.path).name if trace.path else "generated trace"
    figure.suptitle(f"{title}  ({trace.format or 'trace'}, {len(trace):,} requests)", fontsize=11)
    panels = figure.subplots(2, 2)
    _arrivals(panels[0, 0], trace)
    _hours(panels[0, 1], trace)
    _lengths(figure, panels[1, 0], trace)
    _prefixes(panels[1, 1], trace)
    return figure


def _arrivals(axes: "Axes", trace: Trace) -> None:
    """Requests per second in intervals of a round length, and their mean."""
    span_s = float(trace.arrival_ns[-1]) / 1e9
    axes.set_title("Arrivals over time")
    if not span_s:
        say(axes, "all requests arrive at once")
        return
    width_s = next((each for each in _ROUND_S if span_s / each <= BARS), span_s / BARS)
    number = trace.arrival_ns // round(width_s * 1e9)
    counts = np.bincount(number)
    unit_s, unit = next((length, word) for least, length, word in _UNITS if span_s >= least)
    edges = np.arange(len(counts) + 1) * width_s / unit_s
    axes.stairs(counts / width_s, edges, fill=True, color=COLOURS[0], alpha=0.35)
    axes.stairs(counts / width_s, edges, color=COLOURS[0], linewidth=0.9)
    axes.axhline(len(trace) / span_s, color=COLOURS[1], linestyle="--", linewidth=1.2, label="mean")
    axes.set_xlabel(f"time since the first request ({unit})")
    axes.set_ylabel(f"requests/s (per {_duration(width_s)})")
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, counts.max() / width_s * 1.15)  # room for the legend
    axes.legend(loc="upper right")


def _duration(time_s: float) -> str:
    for length, word in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if time_s >= length:
            return f"{time_s / length:g} {word}"
    return f"{time_s * 1e3:g} ms"


def _hours(axes: "Axes", trace: Trace) -> None:
    """Requests per hour in each hour of the day; hours that the trace does not reach are empty."""
    axes.set_title("Hour of the day")
    span_s = float(trace.arrival_ns[-1]) / 1e9
    if trace.origin_ns is None:
        say(axes, "the format does not tell the time of day")
        return
    hour_ns = 3600 * 10**9
    hours = (trace.arrival_ns + trace.origin_ns) // hour_ns
    covered = np.arange(hours[0], hours[-1] + 1)
    requests = np.bincount(hours % 24, minlength=24)
    times = np.bincount(covered % 24, minlength=24)
    rate = np.divide(requests, times, out=np.zeros(24), where=times > 0)
    axes.bar(np.arange(24) + 0.5, rate, width=0.9, color=COLOURS[2])
    axes.set_xlim(0, 24)
    axes.set_xticks(range(0, 25, 3))
    covers = f"{span_s / 86_400:.1f} days" if span_s >= 2 * 86_400 else f"{span_s / 3600:.1f} h"
    axes.set_xlabel(f"hour (the trace covers {covers})")
    axes.set_ylabel("requests per hour")


def _lengths(figure: "Figure", axes: "Axes", trace: Trace) -> None:
    """Requests by prompt and output tokens, both logarithmic."""
    from matplotlib.colors import LogNorm

    axes.set_title("Lengths")
    prompt, output = trace.prompt_tokens, trace.output_tokens
    columns, rows = _log_edges(prompt), _log_edges(output)
    counts, _, _ = np.histogram2d(prompt, output, bins=(columns, rows))
    shade = axes.pcolormesh(
        columns, rows, np.ma.masked_equal(counts.T, 0), norm=LogNorm(1, max(2, counts.max())), cmap="viridis_r"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    for value, draw in ((np.median(prompt), axes.axvline), (np.median(output), axes.axhline)):
        draw(float(value), color=COLOURS[1], linestyle="--", linewidth=1.2)
    axes.set_xlabel(f"prompt tokens (median {np.median(prompt):,.0f})")
    axes.set_ylabel(f"output tokens (median {np.median(output):,.0f})")
    figure.colorbar(shade, ax=axes, label="requests")


def _log_edges(values: NDArray[np.int64]) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max()) + 1
    edges = np.geomspace(low, high, 41)
    whole = np.unique(np.ceil(edges))  # no bin between two whole numbers
    return whole if len(whole) > 1 else np.array([low, high])


def _prefixes(axes: "Axes", trace: Trace) -> None:
    """Share of prompt blocks that a cache finds: one that keeps everything, and LRU caches by size."""
    hashes = trace.prefix_hashes
    axes.set_title("Prefix reuse")
    if hashes is None or not len(hashes.values):
        say(axes, "the trace does not tell what prompts share")
        return
    blocks = len(hashes.values)
    unlimited = float(leading_hits(hashes).sum()) / blocks * 100
    axes.axhline(unlimited, color=COLOURS[1], linestyle="--", linewidth=1.4, label=f"unlimited: {unlimited:.1f} %")
    if blocks <= MOST_BLOCKS_TO_REPLAY:
        sizes = [size for size in (100, 300, *LRU_BLOCKS, 100_000, 300_000) if size < 3 * int(hashes.values.max() + 1)]
        shares = [float(lru_hits(hashes, size).sum()) / blocks * 100 for size in sizes]
        axes.plot(sizes, shares, marker="o", color=COLOURS[0], label="LRU")
        axes.set_xscale("log")
        axes.set_xlabel(f"cache size (blocks of {trace.hash_block_tokens} tokens)")
    else:
        _by_position(axes, hashes, trace.hash_block_tokens or 1)
    axes.set_ylabel("blocks found (%)")
    axes.set_ylim(0, 100)
    axes.legend(loc="best")


def _by_position(axes: "Axes", hashes: Ragged, block_tokens: int) -> None:
    """For traces too large to replay: share found by position in the prompt, unlimited cache."""
    found = leading_hits(hashes)
    counts = hashes.counts
    positions = np.unique(np.geomspace(1, counts.max(), 60).astype(np.int64)) - 1
    share = [float((found > k).sum()) / float((counts > k).sum()) * 100 for k in positions.tolist()]
    axes.plot((positions + 1) * block_tokens, share, color=COLOURS[0], label="unlimited, by position")
    axes.set_xscale("log")
    axes.set_xlabel("position in the prompt (tokens)")
