"""The table as Markdown, and as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kvsim.accuracy.errors import LOADS, Errors, Line
from kvsim.accuracy.predict import Predicted
from kvsim.accuracy.served import Skipped

AIMS = {
    ("below", "ttft"): 0.14,
    ("below", "tpot"): 0.05,
    ("below", "e2e"): 0.06,
    ("below", "throughput"): 0.04,
    ("saturated", "throughput"): 0.08,
}
"""Load, metric -> the median error that was aimed at, on unseen runs."""
AIMS_HEAD = "| load | metric | aim | runs: median | configurations: median | aim met | roofline: runs, configurations |"
HEAD = (
    "| load | runs of | metric | unseen runs | median | mean | p90 | bias | by configuration | fitted runs: median "
    "| roofline | data sheet | other tools | noise |"
)
BEGIN, END = "<!-- kvsim accuracy: begin -->", "<!-- kvsim accuracy: end -->"


def markdown(lines: Iterable[Line], kv: Sequence[tuple[str, float]], skipped: Iterable[Skipped]) -> Iterator[str]:
    """Lines of text: what was aimed at, the table, and what is not in it."""
    lines = list(lines)
    aims = list(_aims(lines))
    if aims:
        yield from (AIMS_HEAD, "|---|---|---|---|---|---|---|", *aims, "")
    yield HEAD
    yield "|" + "---|" * HEAD.count(" | ") + "---|"
    for line in lines:
        yield _row(line)
    blocks = Errors.of([error for _, error in kv], [name for name, _ in kv])
    if blocks is not None:
        yield f"| startup | kv_capacity | KV blocks | {' | '.join(_shown(blocks))} | - | - | - | - | - |"
    left_out = list(skipped)
    if left_out:
        yield ""
        yield "Not simulated:"
        yield ""
        for each in left_out:
            runs = f" ({each.runs} runs)" if each.runs else ""
            yield f"- {each.data_set}{runs}: {each.reason}"


def _aims(lines: Sequence[Line]) -> Iterator[str]:
    """A row for each aim: met is one that the median over runs and the median over configurations both meet."""
    for (load, metric), aim in AIMS.items():
        found = [line for line in lines if (line.load, line.metric) == (load, metric)]
        if not found or "calibrated" not in found[0].unseen:
            continue
        unseen = found[0].unseen  # of all sets, which come first
        errors, roofline = unseen["calibrated"], unseen.get("roofline")
        missed = [
            name
            for name, error in (("runs", errors.median), ("configurations", errors.by_configuration))
            if error > aim
        ]
        cells = [
            LOADS[load],
            _name(metric),
            f"<= {aim:.0%}",
            f"{errors.runs}: {errors.median:.1%}",
            f"{errors.configurations}: {errors.by_configuration:.1%}",
            f"**missed by {' and '.join(missed)}**" if missed else "yes",
            "-" if roofline is None else f"{roofline.median:.1%}, {roofline.by_configuration:.1%}",
        ]
        yield f"| {' | '.join(cells)} |"


def _name(metric: str) -> str:
    return metric.upper() if len(metric) < 5 else metric


def _row(line: Line) -> str:
    best = line.unseen.get("calibrated")
    cells = [LOADS[line.load], line.data_set, _name(line.metric)]
    cells += ["0", *["-"] * 5] if best is None else _shown(best)
    fitted = line.fitted.get("calibrated")
    cells.append("-" if fitted is None else f"{fitted.runs}: {fitted.median:.1%}")
    cells += [_median(line.unseen, column, best) for column in ("roofline", "data sheet")]
    cells.append(
        ", ".join(f"{tool} {errors.median:.1%} ({errors.runs})" for tool, errors in line.others.items()) or "-"
    )
    cells.append("-" if line.noise is None else f"{line.noise.median:.1%}, mean {line.noise.mean:.1%}")
    return f"| {' | '.join(cells)} |"


def _shown(errors: Errors) -> list[str]:
    sizes = map(_percent, (errors.mean, errors.p90))
    return [
        str(errors.runs),
        f"**{errors.median:.1%}**",
        *sizes,
        f"{errors.bias:+.1%}",
        _percent(errors.by_configuration),
    ]


def _median(columns: Mapping[str, Errors], column: str, beside: Errors | None) -> str:
    errors = columns.get(column)
    if errors is None:
        return "-"
    fewer = f" ({errors.runs})" if beside is None or errors.runs != beside.runs else ""
    return _percent(errors.median) + fewer


def _percent(value: float) -> str:
    return f"{value:.1%}"


def plain(
    predicted: Sequence[Predicted], lines: Iterable[Line], kv: Sequence[tuple[str, float]], skipped: Iterable[Skipped]
) -> dict[str, Any]:
    """All of it as plain data: the lines, every run with its errors, the KV blocks, and what was left out."""
    runs = [
        {
            "data_set": each.served.data_set,
            "name": each.served.name,
            "configuration": each.served.configuration,
            "fitted": each.served.fitted,
            "load": LOADS[each.served.regime],
            "measured": dict(each.served.measured),
            "simulated": {column: dict(values) for column, values in each.values.items()},
            "refused": dict(each.refused),
            "others": {tool: dict(errors) for tool, errors in each.served.others.items()},
        }
        for each in predicted
    ]
    return {
        "lines": [asdict(line) for line in lines],
        "runs": runs,
        "kv_blocks": dict(kv),
        "skipped": [asdict(each) for each in skipped],
    }


def inserted(text: str, table: str, first: str = BEGIN, last: str = END) -> str:
    """A document with the table between its two marks in place of what was there. Raises ValueError without marks."""
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the marks {first} and {last} are missing")
    return f"{before}{begin}\n\n{table}\n\n{end}{after}"
