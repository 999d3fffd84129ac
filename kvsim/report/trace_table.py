"""A trace in text: its statistics as a table, and its first requests."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from kvsim.core.trace import Trace

_DISTRIBUTION: Final = ("mean", "p50", "p90", "p99", "max", "min")


def trace_text(name: str, statistics: Mapping[str, Any]) -> str:
    """What ``describe`` found, for the terminal."""
    lines = [f"{name}: {statistics['format'] or 'trace'}"]
    for title, rows in _sections(statistics):
        lines += ["", title, *(f"  {label:<32}{value:>14}" for label, value in rows)]
    table = [(label, statistics[key]) for key, label in _TABLE.items() if statistics[key] is not None]
    for key, label in _SESSION_TABLE.items():
        found = (statistics["sessions"] or {}).get(key)
        if found is not None:
            table.append((label, found))
    lines += ["", "Distributions" + " " * 18 + "".join(f"{name:>12}" for name in _DISTRIBUTION)]
    lines += [
        f"  {label:<29}" + "".join(f"{_number(found[name]):>12}" for name in _DISTRIBUTION) for label, found in table
    ]
    return "\n".join(lines) + "\n"


_TABLE: Final = {
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
    "prompt_tokens_with_failed": "prompt, failed rows as well",
    "output_tokens_with_failed": "output, failed rows as well",
    "images": "images",
    "deadlines_s": "deadline (s)",
    "elapsed_s": "traced system took (s)",
}
_SESSION_TABLE: Final = {"turns": "turns per session", "length_s": "session length (s)", "think_s": "think time (s)"}


def _sections(statistics: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    rows, arrivals = statistics["rows"], statistics["arrivals"]
    counted = [("read", rows["read"]), ("replayed", rows["replayed"]), ("source failed", rows["source_failed"])]
    counted += [("dropped", rows["dropped"]), *((f"  {why}", n) for why, n in rows["dropped_by_reason"].items())]
    yield "Rows", [(label, f"{count:,}") for label, count in counted]
    labels = {
        "span_s": "span (s)",
        "requests_per_min": "requests per minute",
        "requests_per_min_min": "  quietest minute",
        "requests_per_min_max": "  busiest minute",
        "empty_minutes": "  empty minutes",
        "requests_per_s_max": "busiest second",
        "gap_cv": "CV of gaps",
        "longest_gap_s": "longest gap (s)",
        "tied": "arrivals tied with the one before",
        "distinct_times": "distinct times",
    }
    yield "Arrivals", [(label, _number(arrivals[key])) for key, label in labels.items()]
    if statistics["length_correlation"] is not None:
        yield "Lengths", [("correlation of prompt and output", f"{statistics['length_correlation']:.2f}")]
    sessions = statistics["sessions"]
    if sessions is not None:
        found = [
            ("sessions", _number(sessions["sessions"])),
            ("requests outside", _number(sessions["requests_outside"])),
        ]
        if sessions["sessions"]:
            found.append(("of a single turn", _percent(sessions["single_turn_frac"])))
            found.append(("CV of gaps within sessions", _number(sessions["gap_cv"])))
            found.append(("gaps above five minutes", _percent(sessions["gaps_over_300_s_frac"])))
        yield "Sessions", found
    if statistics["waits"] is not None:
        words = {"first": "start on their own", "after_one": "wait for one", "after_several": "wait for several"}
        yield "Request graph", [(words[key], _number(count)) for key, count in statistics["waits"].items()]
    for key, title in (("models", "Models"), ("tenants", "Tenants"), ("priorities", "Priorities")):
        if statistics[key] is not None:
            yield title, [(name[:31], _number(count)) for name, count in statistics[key].items()]
    prefix = statistics["prefix"]
    if prefix is not None:
        yield (
            f"Prefix blocks of {prefix['block_tokens']} tokens",
            [
                ("blocks", _number(prefix["blocks"])),
                ("distinct", _number(prefix["distinct_blocks"])),
                ("used once", _number(prefix["blocks_used_once"])),
                ("hit, unlimited cache: blocks", _percent(prefix["hit_blocks_frac"])),
                ("hit, unlimited cache: tokens", _percent(prefix["hit_tokens_frac"])),
                ("requests hit in full", _number(prefix["requests_hit_in_full"])),
                *(
                    (f"hit, LRU of {int(size):,} blocks", _percent(share))
                    for size, share in prefix["lru_hit_blocks_frac"].items()
                ),
            ],
        )


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.1f}" if abs(value) >= 100 else f"{value:,.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}".replace("%", " %")


def head_text(trace: Trace, rows: int) -> str:
    """The first requests as a table: the plain columns, and how many blocks and predecessors they have."""
    n = min(rows, len(trace))
    columns: dict[str, list[str]] = {
        "row": [str(i) for i in range(n)],
        "arrival_s": [f"{t / 1e9:.6f}" for t in trace.arrival_ns[:n].tolist()],
        "prompt_tokens": [str(value) for value in trace.prompt_tokens[:n].tolist()],
        "output_tokens": [str(value) for value in trace.output_tokens[:n].tolist()],
    }
    for name in ("session", "tenant", "model"):
        numbers, names = getattr(trace, name), getattr(trace, f"{name}_names")
        if numbers is not None:
            columns[name] = [
                "-" if k < 0 else str(names[k])[:24] if names is not None else str(k) for k in numbers[:n].tolist()
            ]
    for name in ("think_ns", "deadline_ns"):
        if getattr(trace, name) is not None:
            times = getattr(trace, name)[:n].tolist()
            columns[name.replace("_ns", "_s")] = ["-" if t < 0 else f"{t / 1e9:g}" for t in times]
    for name in ("priority", "images"):
        if getattr(trace, name) is not None:
            columns[name] = [str(value) for value in getattr(trace, name)[:n].tolist()]
    if trace.wait_for is not None:
        columns["wait_for"] = [",".join(map(str, trace.wait_for.row(i).tolist())) or "-" for i in range(n)]
    if trace.prefix_hashes is not None:
        columns["blocks"] = [str(len(trace.prefix_hashes.row(i))) for i in range(n)]
    widths = {name: max(len(name), *map(len, cells)) for name, cells in columns.items()}
    lines = ["  ".join(f"{name:>{widths[name]}}" for name in columns)]
    lines += ["  ".join(f"{cells[i]:>{widths[name]}}" for name, cells in columns.items()) for i in range(n)]
    return "\n".join(line.rstrip() for line in lines) + "\n"
