"""The summary as text: the table of ``vllm bench serve``, with what happened to every row and where memory went."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kvsim.metrics.figures import figures

WIDTH: Final = 58
_LABEL: Final = 44

VERDICTS: Final = {
    "overloaded": "OVERLOADED: arrivals outpace completions. "
    "Percentiles describe the length of the trace, not the system.",
    "burst": "BURST: arrivals end before the system settles. "
    "Percentiles describe how this burst drains, not a steady load.",
    "stuck": "STUCK: nothing could move any more and requests were left.",
}
"""What is said first, by ``kvsim.stability``; a stable run says nothing."""

_LATENCIES: Final = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}


def summary_text(summary: Mapping[str, Any], ledger: Sequence[tuple[str, int]] = (), notes: Sequence[str] = ()) -> str:
    """The whole report as plain text, ASCII unless a name in it is not.

    ``ledger``: rows (label, bytes) of the KV memory ledger, negative for what is subtracted. ``notes``: what the
    user should know and the summary does not hold.
    """
    own = summary["kvsim"]
    shown = _Shown(summary)
    lines = [VERDICTS[own["stability"]]] if own["stability"] in VERDICTS else []
    if own["diagnosis"]:
        lines.append(own["diagnosis"])
    lines += [_rule(" Serving Benchmark Result ", "="), *_headline(summary, shown)]
    for key, (name, title) in _LATENCIES.items():
        lines.append(_rule(title))
        for statistic in ("mean", "median", "p90", "p99"):
            lines.append(_row(f"{statistic.capitalize()} {name} (ms)", shown(f"{statistic}_{key}_ms")))
    lines += [_rule("Requests"), *_requests(own, shown)]
    lines += [_rule("KV Cache"), *(_row(label, _bytes(amount)) for label, amount in ledger)]
    lines += [
        _row("Peak KV usage (%)", shown("peak_kv_usage_frac", 100)),
        _row("Mean KV usage (%)", shown("mean_kv_usage_frac", 100)),
        _row("Preemptions", shown("num_preemptions")),
        *([_row("  swapped to host memory", shown("num_swaps"))] if own["num_swaps"] else []),
        *(
            [_row("Prefix cache hits (% of tokens)", shown("prefix_cache_hit_frac", 100))]
            if own["prefix_cache_hit_frac"]
            else []
        ),
        "=" * WIDTH,
    ]
    lines += [f"Note: {note}" for note in (*_about_intervals(own), *notes, *own["approximation"])]
    return "\n".join(lines) + "\n"


def short_text(summary: Mapping[str, Any]) -> str:
    """The run in a dozen lines: the verdict, what was served, and the table of latencies."""
    verdict = VERDICTS.get(summary["kvsim"]["stability"])
    facts = [f"{name} {value}" for name, value in headline_facts(summary)]
    table = ["".join(cell.rjust(12) for cell in row) for row in latency_table(summary)]
    return "\n".join([title(summary), *([verdict] if verdict else []), ", ".join(facts), *table])


def title(summary: Mapping[str, Any]) -> str:
    """What was run, in one line."""
    return ", ".join(["kvsim run", *(str(summary[key]) for key in ("label", "model_id") if summary[key])])


def headline_facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of the few figures one looks at first; those that are unknown are left out."""
    own = summary["kvsim"]
    facts = {
        "finished": f"{summary['completed']} of {summary['num_prompts']}",
        "duration (s)": summary["duration"],
        "requests/s": summary["request_throughput"],
        "goodput (requests/s)": summary["request_goodput"],
        "output tokens/s": summary["output_throughput"],
        "peak KV usage (%)": _percent(own["peak_kv_usage_frac"]),
        "preemptions": own["num_preemptions"],
    }
    return [(name, _value(value)) for name, value in facts.items() if value is not None]


def latency_table(summary: Mapping[str, Any]) -> list[list[str]]:
    """Rows of cells, the header first: mean, median and percentiles of each latency in ms."""
    statistics = ("mean", "median", "p90", "p95", "p99")
    rows = [["", *statistics]]
    for key, (name, _) in _LATENCIES.items():
        rows.append([f"{name} (ms)", *(_value(summary[f"{statistic}_{key}_ms"]) for statistic in statistics)])
    return rows


def print_summary(
    summary: Mapping[str, Any], ledger: Sequence[tuple[str, int]] = (), notes: Sequence[str] = ()
) -> None:
    """Print ``summary_text`` to stdout; on a terminal the verdict is red, rules and notes are dim."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in summary_text(summary, ledger, notes).splitlines():
        style = ""
        if line.startswith(("OVERLOADED", "STUCK", "BURST")):
            style = "bold red"
        elif line.startswith(("---", "===", "Note:")):
            style = "dim"
        console.print(Text(line, style=style))


class _Shown:
    """Figures as text, each with the interval that it lies in if coefficients and seeds were redrawn."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        self._values = figures(summary)
        self._intervals: Mapping[str, Any] = summary["kvsim"].get("uncertainty", {}).get("intervals", {})

    def __call__(self, name: str, times: int = 1) -> str:
        """``times`` 100: in per cent. Without an interval: no draw changes this figure."""
        value = self._values[name]
        interval = self._intervals.get(name)
        text = _value(float(value) * times if times != 1 and value is not None else value)
        if interval is None or interval == [value, value]:
            return text
        return f"{text} [{', '.join(_value(bound * times) for bound in interval)}]"


def _about_intervals(own: Mapping[str, Any]) -> list[str]:
    about = own.get("uncertainty")
    if about is None:
        return []
    spread = {kind: max(pool.get(kind, 0.0) for pool in about["spread"].values()) for kind in _kinds(about["spread"])}
    what = ", ".join(f"{kind} {sigma:.0%}" for kind, sigma in spread.items()) or "seeds alone: the cost has no spread"
    return [f"[low, high]: {about['confidence']:.0%} intervals from {about['draws']} draws ({what})"]


def _kinds(spread: Mapping[str, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(kind for pool in spread.values() for kind in pool))


def _headline(summary: Mapping[str, Any], shown: _Shown) -> list[str]:
    rows = [
        _row("Successful requests", shown("completed")),
        _row("Failed requests", shown("failed")),
    ]
    if summary["max_concurrency"] is not None:
        rows.append(_row("Maximum request concurrency", summary["max_concurrency"]))
    rows += [
        _row("Request rate (req/s)", shown("request_rate")),
        _row("Benchmark duration (s)", shown("duration")),
        _row("Total input tokens", shown("total_input_tokens")),
        _row("Total generated tokens", shown("total_output_tokens")),
        _row("Request throughput (req/s)", shown("request_throughput")),
    ]
    if summary["slo_attainment"] is not None:
        rows += [
            _row("Request goodput (req/s)", shown("request_goodput")),
            _row("SLO attainment (%)", shown("slo_attainment", 100)),
        ]
        for name in summary["slo_attainment_by_metric"]:
            share = shown(f"slo_attainment_by_metric.{name}", 100)
            rows.append(_row(f"  {name} <= {summary['kvsim']['slo'][name]:g} ms (%)", share))
    if summary["kvsim"]["deadline_attainment"] is not None:
        rows.append(_row("Deadlines kept (%)", shown("deadline_attainment", 100)))
    return [
        *rows,
        _row("Output token throughput (tok/s)", shown("output_throughput")),
        _row("Peak output token throughput (tok/s)", shown("max_output_tokens_per_s")),
        _row("Peak concurrent requests", shown("max_concurrent_requests")),
        _row("Total token throughput (tok/s)", shown("total_token_throughput")),
    ]


def _requests(own: Mapping[str, Any], shown: _Shown) -> list[str]:
    """Where every row of the trace went; what can go wrong in silence is printed even when it is 0."""
    lines = [
        _row("Trace rows read", shown("trace_rows.read")),
        _row("  failed in the traced system", shown("trace_rows.source_failed")),
        _row("  dropped", shown("trace_rows.dropped")),
        *(_row(f"    {reason}", count) for reason, count in own["trace_rows"]["dropped_by_reason"].items()),
        _row("  replayed", shown("trace_rows.replayed")),
        _row("Rejected", shown("requests_by_status.rejected")),
        _row("Abandoned by the client", shown("requests_by_status.abandoned")),
        _row("Unfinished", shown("requests_by_status.unfinished")),
        *(_row(f"  {reason}", count) for reason, count in own["requests_by_reason"].items() if count),
        _row("Outputs clipped at the model's length", shown("trace_rows.clipped")),
    ]
    if own["excluded_requests"]:
        lines.append(_row("Excluded as warm-up", shown("excluded_requests")))
    return lines


def _rule(title: str, line: str = "-") -> str:
    return title.center(WIDTH, line)


def _row(label: str, value: float | str | None) -> str:
    return f"{label + ':':<{_LABEL}} {_value(value)}"


def _value(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else float(share) * 100


def _bytes(amount: int) -> str:
    return f"{amount / 2**30:.2f} GiB"
