"""Small scenarios with exact results: they say whether numbers move, and which.

Each case is one of the project's scenarios, cut short. ``NAME.json`` beside this file is its summary, the steps,
stretches and events of the engine, and a checksum of every request's times in ns. ``make golden``
(``python -m tests.golden``) writes them anew and prints what moved; that print belongs in the change note.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from math import isclose
from pathlib import Path
from typing import Any

import numpy as np

import kvsim
from kvsim.core.runlog import RunLog

HERE = Path(__file__).parent
SCENARIOS = HERE.parents[1] / "scenarios"

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "burstgpt": ("burstgpt.yaml", {"workload.trace.limit": 400}),
    "sessions": ("sessions.yaml", {}),
    "disaggregated": ("disaggregated.yaml", {"workload.trace.limit": 400}),
    "prefill_first": (
        "compare_schedulers.yaml",
        {"workload.generate.n": 200, "kv.num_gpu_blocks_override": 1000, "measure.warmup_s": 5.0},
    ),
    "replicas_3": (
        "burstgpt.yaml",
        {"workload.trace": {"limit": 600, "rate_scale": 400}, "cluster.replicas": 3, "router": "least_tokens"},
    ),
    "closed_loop": ("closed_loop.yaml", {"workload.generate.n": 300, "workload.client_timeout_s": 20}),
}
"""Name -> scenario file, and what is changed in it."""

NOT_KEPT = ("version", "scenario_hash")
"""Parts of a summary that move without a number moving."""


def measure(name: str) -> dict[str, Any]:
    """Run a case and return what its file holds."""
    file, keys = CASES[name]
    result = kvsim.run(SCENARIOS / file, **keys)
    assert result.log is not None
    summary = {**result.summary, "kvsim": {k: v for k, v in result.summary["kvsim"].items() if k not in NOT_KEPT}}
    engine = {"steps": list(result.log.steps), "stretches": list(result.log.stretches), "events": result.log.events}
    measured = {"summary": summary, "engine": engine, "requests_sha256": _checksum(result.log)}
    plain: dict[str, Any] = json.loads(json.dumps(measured))
    return plain


def _checksum(log: RunLog) -> str:
    """SHA-256 of every per-request column, in the order of the log's fields."""
    digest = hashlib.sha256()
    for name in log.__dataclass_fields__:
        column = getattr(log, name)
        if isinstance(column, np.ndarray):
            digest.update(name.encode() + column.astype("<i8").tobytes())
    return digest.hexdigest()


def recorded(name: str) -> dict[str, Any]:
    """What the file of a case holds; empty if there is none yet."""
    path = HERE / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def record(name: str, measured: Mapping[str, Any]) -> None:
    """Write the file of a case."""
    (HERE / f"{name}.json").write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def moved(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, one line each: ``key: old -> new``.

    Floats may differ by one part in 10^12: numpy adds in an order that depends on the processor.
    """
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        a, b = before.get(key, "nothing"), after.get(key, "nothing")
        if isinstance(a, float) and isinstance(b, float):
            if not isclose(a, b, rel_tol=1e-12):
                lines.append(f"{key}: {a!r} -> {b!r}" + (f" ({b / a - 1:+.3%})" if a else ""))
        elif a != b or type(a) is not type(b):
            lines.append(f"{key}: {a!r} -> {b!r}")
    return lines


def _flat(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, tree
