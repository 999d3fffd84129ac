"""RunLogs written by hand: give each request the times of its tokens, and everything else follows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import FINISHED, NEVER, UNFINISHED, Gaps, RunLog, Timeline, TokensBySecond, Transfers
from kvsim.core.trace import Trace

MS = 1_000_000


@dataclass(frozen=True)
class Row:
    """One request, times in ms. ``tokens``: when each token was delivered; ``None`` times never happened."""

    arrival: float | None
    tokens: tuple[float, ...] = ()
    prompt: int = 10
    output: int | None = None
    scheduled: float | None = None
    status: int = FINISHED
    reason: int = 0
    ended: float | None = None
    preemptions: int = 0
    swaps: int = 0
    swapped_tokens: int = 0
    client_queue: float = 0.0
    replica: int = 0


def _ns(value_ms: float | None) -> int:
    return NEVER if value_ms is None else round(value_ms * MS)


def tiny_log(rows: Sequence[Row], *, reasons: tuple[str, ...] = ("",), **facts: Any) -> RunLog:
    """A log of these requests; gaps, tokens per second and finish times follow from the tokens."""
    tokens_ns = [[_ns(t) for t in row.tokens] for row in rows]
    gaps_ns = [np.diff(t) for t in tokens_ns]
    pooled, count = np.unique(np.concatenate([np.zeros(0, np.int64), *gaps_ns]).astype(np.int64), return_counts=True)

    seconds = np.array([t // 10**9 for times in tokens_ns for t in times], np.int64)
    second, delivered = np.unique(seconds, return_counts=True)

    def column(values: Sequence[int]) -> NDArray[np.int64]:
        return np.array(values, dtype=np.int64)

    def finish(row: Row) -> float | None:
        if row.status == UNFINISHED:
            return None
        return row.tokens[-1] if row.status == FINISHED else row.ended

    scheduled = [row.scheduled if row.scheduled is not None or not row.tokens else row.arrival for row in rows]
    columns: dict[str, Any] = {
        "arrival_ns": column([_ns(row.arrival) for row in rows]),
        "client_queue_ns": column([_ns(row.client_queue) for row in rows]),
        "queued_ns": column([_ns(row.arrival) if not row.reason else NEVER for row in rows]),
        "first_scheduled_ns": column([_ns(time) for time in scheduled]),
        "first_token_ns": column([t[0] if t else NEVER for t in tokens_ns]),
        "finish_ns": column([_ns(finish(row)) for row in rows]),
        "prompt_tokens": column([row.prompt for row in rows]),
        "output_tokens": column([row.output or max(len(row.tokens), 1) for row in rows]),
        "generated_tokens": column([len(row.tokens) for row in rows]),
        "computed_tokens": column([row.prompt if row.tokens else 0 for row in rows]),
        "cached_tokens": column([0 for _ in rows]),
        "preemptions": column([row.preemptions for row in rows]),
        "swaps": column([row.swaps for row in rows]),
        "swapped_tokens": column([row.swapped_tokens for row in rows]),
        "max_gap_ns": column([int(g.max()) if len(g) else NEVER for g in gaps_ns]),
        "replica_prefill": column([row.replica if row.tokens else -1 for row in rows]),
        "replica_decode": column([row.replica if row.tokens else -1 for row in rows]),
        "status": column([row.status for row in rows]),
        "reason": column([row.reason for row in rows]),
        "reasons": reasons,
        "gaps": Gaps(pooled, count.astype(np.int64)),
        "timeline": timeline(),
        "transfers": Transfers(*(column([]) for _ in range(4))),
        "tokens_by_second": TokensBySecond(second, delivered),
        "steps": (7,),
        "stretches": (3,),
        "total_blocks": (100,),
        "peak_used_blocks": (50,),
        "copied_blocks": (0,),
        "copy_ns": (0,),
        "roles": ("mixed",),
        "events": 11,
        "clipped": 0,
        "end_ns": max((t for times in tokens_ns for t in times), default=0),
    }
    return RunLog(**(columns | facts))


def timeline(*samples: tuple[float, int, int, int, int], total_blocks: int = 100, step_ms: float = 5) -> Timeline:
    """Samples (time in ms, replica, waiting, running, used blocks)."""
    time, replica, waiting, running, used = np.array(samples, dtype=np.float64).reshape(-1, 5).T
    whole = {
        "time_ns": time * MS,
        "replica": replica,
        "step_ns": np.where(running > 0, step_ms * MS, NEVER),
        "waiting": waiting,
        "running": running,
        "batch_tokens": running,
        "prefill_tokens": 0 * running,
        "decode_requests": running,
        "kv_used_blocks": used,
        "kv_cached_blocks": 0 * used,
        "kv_free_blocks": total_blocks - used,
    }
    return Timeline(**{name: values.astype(np.int64) for name, values in whole.items()})


def trace_of(log: RunLog, **facts: Any) -> Trace:
    """The trace that this log could be a run of."""
    arrival_ns = np.maximum.accumulate(np.where(log.arrival_ns == NEVER, 0, log.arrival_ns))
    return Trace(arrival_ns, log.prompt_tokens, log.output_tokens, **facts)


def queue_log(arrival_ms: NDArray[np.float64], service_ms: float) -> RunLog:
    """First come first served, one at a time, ``service_ms`` each; two tokens, one halfway and one at the end."""
    rows, free = [], 0.0
    for arrival in arrival_ms.tolist():
        start = max(arrival, free)
        free = start + service_ms
        rows.append(Row(arrival, (start + service_ms / 2, free), scheduled=start))
    return tiny_log(rows)
