"""The flat summary of a run, ``summary.json``: vLLM's keys first, then SGLang's, then kvsim's own under one key."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import FINISHED, NEVER, STATUS_NAMES, UNFINISHED, RunLog
from kvsim.core.trace import Trace, TraceRows
from kvsim.metrics import histogram
from kvsim.metrics.latency import e2el_s, finished, tpot_s, ttft_s
from kvsim.metrics.laws import peak_in_system
from kvsim.metrics.slo import Slo, deadline_met, good, met
from kvsim.metrics.stability import stability
from kvsim.metrics.window import Window, window

SCHEMA_VERSION: Final = 1
"""Of the result files together; raised when a name or a unit changes, not when something is added."""

LEVELS: Final = (50, 90, 95, 99)


def summarise(
    log: RunLog,
    trace: Trace,
    *,
    version: str,
    slo: Slo | None = None,
    warmup_s: float = 0.0,
    gpus: int | None = None,
    label: str | None = None,
    model_id: str | None = None,
    max_concurrency: int | None = None,
    seed: int = 0,
    scenario_hash: str | None = None,
    engine_preset: str | None = None,
    approximation: Sequence[str] = (),
) -> dict[str, Any]:
    """The summary as a dict ready for JSON: no NaN, empty is None; latencies in ms, rates per second.

    ``gpus``: GPUs provisioned in all pools together (None: ``gpu_hours`` is None). ``approximation``: what the
    caller knows to be modelled roughly; the log's notes and the limits of a warm-up cut are added to it.

    - Only finished requests of the measured window enter latencies, tokens and throughputs;
      ``completed + failed + excluded_requests = num_prompts``
    - ``request_rate``: what the clients asked for, (n - 1) / (last - first ready time), where ready is arrival less
      the wait for a free slot; ``"inf"`` if all were ready at once; None with fewer than two requests.
      ``burstiness`` is None: arrivals come from a trace, not from a distribution
    - ``slo_attainment``: good / all measured requests that arrived, finished or not
    - ``deadline_attainment``: of the measured requests that arrived and have a deadline of their own, the share that
      finished by it; ``deadline_goodput``: those that did, per second. None if nobody has one
    - ``gpu_hours``: GPUs x duration, so that a throughput divided by it is per provisioned GPU
    - ``num_swaps``: those of ``num_preemptions`` that kept the KV in host memory; ``swapped_tokens``: of KV copied
      there; ``swap_s``: by how much the steps of the whole run took longer for copies, there and back;
      ``recomputed_tokens``: computed once more, after the other preemptions
    - ``mean_kv_usage_frac``: mean over the timeline's samples in the window, replicas weighted by their blocks;
      ``peak_kv_usage_frac``: fullest replica of the whole run

    Sources: ``vllm bench serve`` (names and definitions), SGLang's ``bench_serving`` (concurrency).
    """
    slo = slo or Slo()
    cut = window(log, warmup_s)
    done = finished(log) & cut.measured
    completed = int(done.sum())
    arrived = cut.measured & (log.arrival_ns != NEVER)
    input_tokens, output_tokens = int(log.prompt_tokens[done].sum()), int(log.output_tokens[done].sum())
    duration_s = cut.duration_s

    def per_second(amount: float) -> float | None:
        return amount / duration_s if duration_s else None

    is_good = good(log, slo)
    good_measured = None if is_good is None else is_good & cut.measured
    good_output = None if good_measured is None else int(log.output_tokens[good_measured].sum())
    good_input = None if good_measured is None else int(log.prompt_tokens[good_measured].sum())
    arrived_count = int(arrived.sum())
    due, in_time = _deadlines(log, trace, arrived)

    summary: dict[str, Any] = {
        "backend": "kvsim",
        "label": label,
        "model_id": model_id,
        "tokenizer_id": None,
        "num_prompts": len(log),
        "request_rate": _request_rate(log, arrived),
        "burstiness": None,
        "max_concurrency": max_concurrency,
        "duration": duration_s,
        "completed": completed,
        "failed": int(cut.measured.sum()) - completed,
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": per_second(completed),
        "request_goodput": None if good_measured is None else per_second(int(good_measured.sum())),
        "output_throughput": per_second(output_tokens),
        "total_token_throughput": per_second(input_tokens + output_tokens),
        "max_output_tokens_per_s": _busiest_second(log, cut),
        "max_concurrent_requests": None if cut.from_ns is None else peak_in_system(log, cut.from_ns),
    }
    summary |= _statistics("ttft", ttft_s(log)[done])
    summary |= _statistics("tpot", tpot_s(log)[done])
    summary |= _pooled_itl(log)
    end_to_end_s = e2el_s(log)[done]
    summary |= _statistics("e2el", end_to_end_s)
    keeps = met(log, slo)
    summary |= {
        "slo_attainment": None
        if good_measured is None or not arrived_count
        else int(good_measured.sum()) / arrived_count,
        "slo_attainment_by_metric": {n: int((ok & cut.measured).sum()) / arrived_count for n, ok in keeps.items()}
        if keeps and arrived_count
        else None,
        "concurrency": per_second(float(end_to_end_s.sum())) if completed else None,
        "kvsim": {
            "schema_version": SCHEMA_VERSION,
            "version": version,
            "seed": seed,
            "scenario_hash": scenario_hash,
            "trace_sha256": trace.sha256,
            "engine_preset": engine_preset,
            "stability": stability(log, cut, max_concurrency),
            "diagnosis": log.diagnosis,
            "percentile_method": "linear",
            "measured_from_s": None if cut.from_ns is None else cut.from_ns / 1e9,
            "measured_to_s": None if cut.to_ns is None else cut.to_ns / 1e9,
            "excluded_requests": cut.excluded,
            "num_preemptions": int(log.preemptions[cut.measured].sum()),
            "num_swaps": int(log.swaps[cut.measured].sum()),
            "recomputed_tokens": int(_recomputed_tokens(log)[cut.measured].sum()),
            "swapped_tokens": int(log.swapped_tokens[cut.measured].sum()),
            "swap_s": sum(log.copy_ns) / 1e9,
            "prefix_cache_hit_frac": _hit_frac(log, arrived),
            "peak_kv_usage_frac": _peak_kv_usage_frac(log),
            "mean_kv_usage_frac": _mean_kv_usage_frac(log, cut),
            "gpu_hours": None if gpus is None or duration_s is None else gpus * duration_s / 3600,
            "slo": slo.bounds() or None,
            "token_goodput": None
            if good_input is None or good_output is None
            else per_second(good_input + good_output),
            "goodput_output_throughput": None if good_output is None else per_second(good_output),
            "deadline_attainment": in_time / due if due else None,
            "deadline_goodput": per_second(in_time) if due else None,
            "trace_rows": trace_rows(log, trace),
            "requests_by_status": {name: int((log.status == index).sum()) for index, name in enumerate(STATUS_NAMES)},
            "requests_by_reason": {
                name: int((log.reason == index).sum()) for index, name in enumerate(log.reasons) if name
            },
            "replica_roles": list(log.roles),
            "steps": sum(log.steps),
            "events": log.events,
            "approximation": [*approximation, *log.notes, *_limits_of_the_cut(log, cut)],
        },
    }
    return summary


def trace_rows(log: RunLog, trace: Trace) -> dict[str, Any]:
    """Where every row of the trace file went: ``replayed + source_failed + dropped = read``.

    ``clipped`` is part of replayed. A trace made in Python, not read from a file, was read as it is.
    """
    rows = trace.rows or TraceRows(read=len(trace))
    return {
        "read": rows.read,
        "replayed": rows.replayed,
        "source_failed": rows.source_failed,
        "dropped": sum(rows.dropped.values()),
        "clipped": rows.clipped + log.clipped,
        "dropped_by_reason": dict(sorted(rows.dropped.items())),
    }


def _statistics(name: str, values_s: NDArray[np.float64]) -> dict[str, float | None]:
    values_s = values_s[~np.isnan(values_s)]
    if not len(values_s):
        return _named(name, None, None, [None] * len(LEVELS))
    mean_s, std_s = float(values_s.mean()), float(values_s.std())
    levels = np.percentile(values_s, LEVELS, method="linear", overwrite_input=True).tolist()
    return _named(name, mean_s, std_s, levels)


def _pooled_itl(log: RunLog) -> dict[str, float | None]:
    gaps_s, count = log.gaps.gap_ns / 1e9, log.gaps.count
    if not len(gaps_s):
        return _named("itl", None, None, [None] * len(LEVELS))
    levels = histogram.percentiles(gaps_s, count, LEVELS)
    return _named("itl", histogram.mean(gaps_s, count), histogram.std(gaps_s, count), levels)


def _named(
    name: str, mean_s: float | None, std_s: float | None, levels_s: Sequence[float | None]
) -> dict[str, float | None]:
    """Seconds under vLLM's names, in milliseconds and in its order."""
    keys = (f"mean_{name}_ms", f"median_{name}_ms", f"std_{name}_ms", *(f"p{p}_{name}_ms" for p in LEVELS[1:]))
    values_s = (mean_s, levels_s[0], std_s, *levels_s[1:])
    return {key: None if value is None else value * 1e3 for key, value in zip(keys, values_s, strict=True)}


def _request_rate(log: RunLog, arrived: NDArray[np.bool_]) -> float | str | None:
    ready_ns = (log.arrival_ns - log.client_queue_ns)[arrived]
    if len(ready_ns) < 2:
        return None
    span_ns = int(ready_ns.max() - ready_ns.min())
    return (len(ready_ns) - 1) / (span_ns / 1e9) if span_ns else "inf"


def _busiest_second(log: RunLog, cut: Window) -> float | None:
    if cut.from_ns is None:
        return None
    first = cut.from_ns // 10**9
    tokens = log.tokens_by_second.tokens[log.tokens_by_second.second >= first]
    return float(tokens.max()) if len(tokens) else None


def _hit_frac(log: RunLog, arrived: NDArray[np.bool_]) -> float | None:
    """Tokens found in the cache / tokens found or computed in prefill, resumed requests included; None if never any."""
    looked_up = arrived & (log.first_scheduled_ns != NEVER)
    hits = int(log.cached_tokens[looked_up].sum())
    return hits / (hits + int(log.computed_tokens[looked_up].sum())) if hits else None


def _deadlines(log: RunLog, trace: Trace, arrived: NDArray[np.bool_]) -> tuple[int, int]:
    """How many of those that arrived have a deadline, and how many keep it."""
    if trace.deadline_ns is None:
        return 0, 0
    return int((arrived & (trace.deadline_ns >= 0)).sum()), int((arrived & deadline_met(log, trace.deadline_ns)).sum())


def _recomputed_tokens(log: RunLog) -> NDArray[np.int64]:
    """Tokens computed once more, per request, shape (n,): what was found or computed beyond the prompt."""
    computed: NDArray[np.int64] = log.computed_tokens + log.cached_tokens - log.prompt_tokens
    return np.where(log.preemptions > log.swaps, np.maximum(computed, 0), 0)


def _peak_kv_usage_frac(log: RunLog) -> float | None:
    usage = [peak / total for peak, total in zip(log.peak_used_blocks, log.total_blocks, strict=True) if total]
    return max(usage, default=None)


def _mean_kv_usage_frac(log: RunLog, cut: Window) -> float | None:
    if cut.from_ns is None or cut.to_ns is None:
        return None
    timeline = log.timeline
    rows = (timeline.time_ns >= cut.from_ns) & (timeline.time_ns <= cut.to_ns)
    total = int(np.array(log.total_blocks, dtype=np.int64)[timeline.replica[rows]].sum())
    return int(timeline.kv_used_blocks[rows].sum()) / total if total else None


def _limits_of_the_cut(log: RunLog, cut: Window) -> list[str]:
    """What the summary cannot separate, in words."""
    limits = []
    if cut.excluded:
        limits.append(
            "itl, max_output_tokens_per_s and peak_kv_usage_frac are pooled over all requests, "
            "also those that arrived during the warm-up"
        )
    cut_short = int(((log.status != FINISHED) & (log.generated_tokens > 1)).sum())
    if cut_short:
        limits.append(f"itl includes the gaps of requests that did not finish ({cut_short})")
    unended = int((log.status == UNFINISHED).sum())
    if unended:
        limits.append(f"latencies leave out the requests that had not ended when the run did ({unended})")
    return limits
