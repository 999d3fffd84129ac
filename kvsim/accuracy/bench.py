"""What a load generator wrote about each of its requests: ``vllm bench serve`` and AIPerf.

Sources: vLLM ``vllm/benchmarks/serve.py`` (``--save-result --save-detailed``; ``start_times`` since late 2025), AIPerf
``docs/tutorials/working-with-profile-exports.md`` (``profile_export.jsonl``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace

Floats = NDArray[np.float64]

MOST_FAILED: Final = 0.05
"""Share of the requests that may have failed: the rest then says what an unbroken server does."""
FEWEST: Final = 20
MOST_TOKENS: Final = 10_000_000
"""In a prompt or an output: no model takes as many."""
LONGEST_S: Final = 1e7
"""From the first request sent to the last, and for a request: four months."""
AIPERF: Final = ("input_sequence_length", "output_sequence_length", "time_to_first_token", "request_latency")
UNITS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}


@dataclass(frozen=True)
class Bench:
    """One measured run, seen from the client.

    ``trace``: the requests that succeeded, in the order in which they were sent; their prompts share nothing.
    ``sent_s``, ``ttft_s`` and ``e2e_s``, (n,): when each was sent after the first, and from there to its first and last
    token.
    ``max_concurrency``: the client kept so many requests in flight, None: it sent them at the times of the trace.
    ``failed``: requests that are left out.
    """

    file: Path
    client: str
    model: str
    trace: Trace
    sent_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    max_concurrency: int | None = None
    failed: int = 0

    @property
    def tpot_s(self) -> Floats:
        """Time per output token after the first, (n,); nan for outputs of one token."""
        gaps = self.trace.output_tokens - 1
        return np.where(gaps > 0, (self.e2e_s - self.ttft_s) / np.maximum(gaps, 1), np.nan)

    def in_flight(self) -> Floats:
        """Requests that the server had while each one was halfway through, (n,)."""
        half_s = self.sent_s + self.e2e_s / 2
        begun = np.searchsorted(np.sort(self.sent_s), half_s, side="right")
        ended = np.searchsorted(np.sort(self.sent_s + self.e2e_s), half_s)
        in_flight: Floats = (begun - ended).astype(np.float64)
        return in_flight


def read_bench(path: Path) -> Bench:
    """A result of either client. Raises InputError for a file that is neither, lacks something or has many failures."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", file=path) from None
    try:
        documents = [json.loads(text)]
    except (ValueError, RecursionError):
        documents = _lines(text, path)
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise InputError("is not a benchmark result", file=path, hint="JSON of vllm bench serve, or AIPerf's JSONL")
    if "metadata" in documents[0] and "metrics" in documents[0]:
        return _aiperf(documents, path)
    if len(documents) > 1:
        hint = "one file per run: leave out --append-result"
        raise InputError(f"holds {len(documents)} results", file=path, hint=hint)
    return _vllm(documents[0], path)


def _lines(text: str, path: Path) -> list[Any]:
    documents = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                documents.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"is not JSON: {error}", file=path, line=number) from None
    return documents


def _vllm(result: Mapping[str, Any], path: Path) -> Bench:
    columns = {}
    for name in ("input_lens", "output_lens", "ttfts", "itls", "errors"):
        if not isinstance(result.get(name), list):
            hint = "vllm bench serve --save-result --save-detailed writes it"
            raise InputError("is missing, or is not a list", file=path, key=name, hint=hint)
        columns[name] = result[name]
    n = len(columns["input_lens"])
    for name, column in columns.items():
        if len(column) != n:
            raise InputError(f"has {len(column)} values, input_lens has {n}", file=path, key=name)
    ttft_s = _numbers(columns["ttfts"], path, "ttfts")
    for idx, gaps in enumerate(columns["itls"]):
        if not isinstance(gaps, list) or not all(_is_number(gap) and gap >= 0 for gap in gaps):
            raise InputError(f"value {idx} must be a list of numbers, none below 0", file=path, key="itls")
    generated_s = _numbers([sum(gaps) for gaps in columns["itls"]], path, "itls")
    prompts, outputs = (_numbers(columns[name], path, name) for name in ("input_lens", "output_lens"))
    # The error of a failed request may be empty, as its server's reason was; its output is then 0.
    good = np.array([not error for error in columns["errors"]]) & (outputs != 0)
    slots = result.get("max_concurrency")
    if slots is not None and (not isinstance(slots, int) or isinstance(slots, bool) or slots < 1):
        raise InputError(f"{slots!r} is not allowed", file=path, key="max_concurrency", hint="an integer above 0")
    starts = result.get("start_times")
    unpaced = result.get("request_rate") == "inf"
    if isinstance(starts, list) and len(starts) == n:
        sent_s = _numbers(starts, path, "start_times")
    elif unpaced:
        sent_s = np.zeros(n)
    else:
        hint = "a vLLM from 2026 writes it; older ones do with --request-rate inf"
        raise InputError("is missing: when were the requests sent?", file=path, key="start_times", hint=hint)
    return _bench(
        path, "vllm bench serve", str(result.get("model_id", "")), good, sent_s, prompts, outputs, ttft_s,
        ttft_s + generated_s, slots if unpaced else None,
    )  # fmt: skip


def _aiperf(records: Sequence[Mapping[str, Any]], path: Path) -> Bench:
    rows, lines = [], []
    for number, record in enumerate(records, 1):
        about, metrics = record.get("metadata"), record.get("metrics")
        if not isinstance(about, Mapping) or not isinstance(metrics, Mapping):
            raise InputError(
                "has no metadata and metrics", file=path, line=number, hint="profile_export.jsonl of AIPerf"
            )
        if about.get("benchmark_phase", "profiling") != "profiling":
            continue  # warm-up
        good = not record.get("error") and not about.get("was_cancelled")
        start_ns = about.get("request_start_ns")
        if not isinstance(start_ns, int) or not _is_number(start_ns):
            raise InputError("is missing, or no time", file=path, line=number, key="metadata.request_start_ns")
        values = [_metric(metrics, name, path, number) if good else math.nan for name in AIPERF]
        lines.append(number)
        rows.append([float(good), start_ns / 1e9, *values])
    if not rows:
        raise InputError("has no requests of the profiling phase", file=path)
    good, sent_s, prompts, outputs, ttft_s, e2e_s = np.array(rows).T
    return _bench(path, "AIPerf", "", good > 0, sent_s, prompts, outputs, ttft_s, e2e_s, None, lines)


def _metric(metrics: Mapping[str, Any], name: str, path: Path, line: int) -> float:
    found = metrics.get(name)
    if not isinstance(found, Mapping) or not _is_number(found.get("value")):
        hint = "AIPerf writes it with --streaming" if name == "time_to_first_token" else None
        raise InputError("is missing", file=path, line=line, key=f"metrics.{name}", hint=hint)
    unit = found.get("unit")
    if name.endswith("_length"):
        return float(found["value"])
    if not isinstance(unit, str) or unit not in UNITS:
        raise InputError(f"unknown unit {unit!r}", file=path, line=line, key=f"metrics.{name}", hint=", ".join(UNITS))
    return float(found["value"]) * UNITS[unit]


def _bench(
    path: Path,
    client: str,
    model: str,
    good: NDArray[np.bool_],
    sent_s: Floats,
    prompts: Floats,
    outputs: Floats,
    ttft_s: Floats,
    e2e_s: Floats,
    max_concurrency: int | None,
    lines: Sequence[int] | None = None,
) -> Bench:
    """The requests that are ``good``, (n,); ``lines``: of the file, in which each stands."""
    failed = int((~good).sum())
    if failed > MOST_FAILED * len(good):
        hint = f"at most {MOST_FAILED:.0%} may fail: the load of the others is not known otherwise"
        raise InputError(f"{failed} of {len(good)} requests failed", file=path, hint=hint)
    if len(good) - failed < FEWEST:
        raise InputError(f"{len(good) - failed} requests are too few", file=path, hint=f"at least {FEWEST}")
    sent_s = sent_s - sent_s[good].min()
    for what, fine in (
        (f"a prompt of 1 to {MOST_TOKENS} tokens", _countable(prompts)),
        (f"an output of 1 to {MOST_TOKENS} tokens", _countable(outputs)),
        ("a first token after it was sent", ttft_s > 0),
        (f"a last token not before the first, within {LONGEST_S:.0e} s", (e2e_s >= ttft_s) & (e2e_s <= LONGEST_S)),
        (f"a start within {LONGEST_S:.0e} s of the first", sent_s <= LONGEST_S),
    ):
        wrong = np.flatnonzero(good & ~fine)
        if len(wrong):
            first = int(wrong[0])
            line = None if lines is None else lines[first]
            raise InputError(f"request {first} needs {what}", file=path, line=line)
    order = np.flatnonzero(good)[np.argsort(sent_s[good], kind="stable")]
    arrival_s = np.zeros(len(order)) if max_concurrency else sent_s[order]
    trace = Trace(
        np.round(arrival_s * 1e9).astype(np.int64), prompts[order].astype(np.int64), outputs[order].astype(np.int64)
    )
    return Bench(path, client, model, trace, sent_s[order], ttft_s[order], e2e_s[order], max_concurrency, failed)


def _numbers(values: Sequence[Any], path: Path, key: str) -> Floats:
    for idx, value in enumerate(values):
        if not _is_number(value):
            raise InputError(f"value {idx} is {value!r:.40}", file=path, key=key, hint="needed: finite numbers")
    return np.array(values, dtype=np.float64)


def _countable(tokens: Floats) -> NDArray[np.bool_]:
    countable: NDArray[np.bool_] = (tokens >= 1) & (tokens <= MOST_TOKENS) & (tokens == np.floor(tokens))
    return countable


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False
