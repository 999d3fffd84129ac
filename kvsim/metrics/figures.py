"""The summary as one flat row of named figures: what tables, expectations and comparisons call them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from kvsim.core.runlog import Gaps, RunLog, Timeline, Transfers
from kvsim.core.trace import Trace
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise

SHORT: Final = {"preemptions": "num_preemptions"}
"""Other names under which a figure may be asked for."""

LESS_IS_BETTER: Final = ("_ms", "failed", "num_preemptions", "gpu_hours", "usd")
"""Endings of figures that one wants small; of all others one wants more."""


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of everything in a summary that is a number, a text or a list of texts.

    kvsim's own keys stand without ``kvsim.``; what is nested is joined by a dot.

    >>> figures({"duration": 2.0, "kvsim": {"stability": "stable", "trace_rows": {"read": 3}}})
    {'duration': 2.0, 'stability': 'stable', 'trace_rows.read': 3}
    """
    own = summary.get("kvsim", {})
    return dict(_flat({key: value for key, value in summary.items() if key != "kvsim"})) | dict(_flat(own))


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def known_figures(slo: Slo) -> tuple[str, ...]:
    """Names of the figures that any run under these objectives has: those of a run of nobody."""
    nothing = np.empty(0, np.int64)
    columns: dict[str, Any] = {
        name: nothing for name, field in RunLog.__dataclass_fields__.items() if "NDArray" in str(field.type)
    }
    log = RunLog(
        **columns,
        reasons=("",),
        gaps=Gaps(nothing, nothing),
        timeline=Timeline(**dict.fromkeys(Timeline.__dataclass_fields__, nothing)),
        transfers=Transfers(**dict.fromkeys(Transfers.__dataclass_fields__, nothing)),
        tokens_by_second={},
        steps=(),
        stretches=(),
        total_blocks=(),
        peak_used_blocks=(),
        roles=(),
        events=0,
        clipped=0,
        end_ns=0,
    )
    summary = summarise(log, Trace(nothing, nothing, nothing), version="", slo=slo)
    summary["slo_attainment_by_metric"] = slo.bounds() or None
    return tuple(figures(summary))
