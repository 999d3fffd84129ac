"""The summary as text: the table of ``vllm bench serve``, with what happened to every row and where memory went."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

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
    lines = [VERDICTS[own["stability"]]] if own["stability"] in VERDICTS else []
    if own["diagnosis"]:
        lines.append(own["diagnosis"])
    lines += [_rule(" Serving Benchmark Result ", "="), *_headline(summary)]
    for key, (name, title) in _LATENCIES.items():
        lines.append(_rule(title))
        for statistic in ("mean", "median", "p90", "p99"):
            lines.append(_row(f"{statistic.capitalize()} {name} (ms)", summary[f"{statistic}_{key}_ms"]))
    lines += [_rule("Requests"), *_requests(own)]
    lines += [_rule("KV Cache"), *(_row(label, _bytes(amount)) for label, amount in ledger)]
    lines += [
        _row("Peak KV usage (%)", _percent(own["peak_kv_usage_frac"])),
        _row("Mean KV usage (%)", _percent(own["mean_kv_usage_frac"])),
        _row("Preemptions", own["num_preemptions"]),
        *([_row("  swapped to host memory", swaps)] if (swaps := own["num_swaps"]) else []),
        *([_row("Prefix cache hits (% of tokens)", _percent(hits))] if (hits := own["prefix_cache_hit_frac"]) else []),
        "=" * WIDTH,
    ]
    lines += [f"Note: {note}" for note in (*notes, *own["approximation"])]
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


def _headline(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        _row("Successful requests", summary["completed"]),
        _row("Failed requests", summary["failed"]),
    ]
    if summary["max_concurrency"] is not None:
        rows.append(_row("Maximum request concurrency", summary["max_concurrency"]))
    rows += [
        _row("Request rate (req/s)", summary["request_rate"]),
        _row("Benchmark duration (s)", summary["duration"]),
        _row("Total input tokens", summary["total_input_tokens"]),
        _row("Total generated tokens", summary["total_output_tokens"]),
        _row("Request throughput (req/s)", summary["request_throughput"]),
    ]
    if summary["slo_attainment"] is not None:
        rows += [
            _row("Request goodput (req/s)", summary["request_goodput"]),
            _row("SLO attainment (%)", _percent(summary["slo_attainment"])),
        ]
        for name, share in summary["slo_attainment_by_metric"].items():
            rows.append(_row(f"  {name} <= {summary['kvsim']['slo'][name]:g} ms (%)", _percent(share)))
    if summary["kvsim"]["deadline_attainment"] is not None:
        rows.append(_row("Deadlines kept (%)", _percent(summary["kvsim"]["deadline_attainment"])))
    return [
        *rows,
        _row("Output token throughput (tok/s)", summary["output_throughput"]),
        _row("Peak output token throughput (tok/s)", summary["max_output_tokens_per_s"]),
        _row("Peak concurrent requests", summary["max_concurrent_requests"]),
        _row("Total token throughput (tok/s)", summary["total_token_throughput"]),
    ]


def _requests(own: Mapping[str, Any]) -> list[str]:
    """Where every row of the trace went; what can go wrong in silence is printed even when it is 0."""
    rows, ended = own["trace_rows"], own["requests_by_status"]
    lines = [
        _row("Trace rows read", rows["read"]),
        _row("  failed in the traced system", rows["source_failed"]),
        _row("  dropped", rows["dropped"]),
        *(_row(f"    {reason}", count) for reason, count in rows["dropped_by_reason"].items()),
        _row("  replayed", rows["replayed"]),
        _row("Rejected", ended["rejected"]),
        _row("Abandoned by the client", ended["abandoned"]),
        _row("Unfinished", ended["unfinished"]),
        *(_row(f"  {reason}", count) for reason, count in own["requests_by_reason"].items() if count),
        _row("Outputs clipped at the model's length", rows["clipped"]),
    ]
    if own["excluded_requests"]:
        lines.append(_row("Excluded as warm-up", own["excluded_requests"]))
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
