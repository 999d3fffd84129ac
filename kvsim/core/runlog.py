"""What happened in a run, as columns. The engine writes it; metrics read it; it knows neither."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NEVER = -1
"""In a column of nanoseconds: it did not happen. ``seconds`` turns it into NaN."""

FINISHED, REJECTED, ABANDONED, UNFINISHED = 0, 1, 2, 3
STATUS_NAMES = ("finished", "rejected", "abandoned", "unfinished")


def seconds(time_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nanoseconds to float64 seconds, shape kept; NEVER becomes NaN.

    >>> seconds(np.array([1_500_000_000, NEVER]))
    array([1.5, nan])
    """
    out: NDArray[np.float64] = time_ns / 1e9
    out[time_ns == NEVER] = np.nan
    return out


@dataclass(frozen=True)
class Gaps:
    """Every gap between successive tokens of one request, pooled over requests, as an exact histogram.

    ``gap_ns`` (m,) int64 strictly increasing; ``count`` (m,) int64, how often each occurred.
    """

    gap_ns: NDArray[np.int64]
    count: NDArray[np.int64]


@dataclass(frozen=True)
class TokensBySecond:
    """Tokens delivered in each second of the run in which there were any, all replicas together.

    ``second`` (m,) int64 strictly increasing, counted from 0; ``tokens`` (m,) int64.
    """

    second: NDArray[np.int64]
    tokens: NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """Samples of every replica at common instants, columns of shape (rows,), ordered by time, then replica.

    The sample at t shows the state after everything that happened at or before t: the step in progress (if any),
    its batch, and the blocks held including that step's growth.
    """

    time_ns: NDArray[np.int64]
    replica: NDArray[np.int64]
    step_ns: NDArray[np.int64]
    waiting: NDArray[np.int64]
    running: NDArray[np.int64]
    batch_tokens: NDArray[np.int64]
    prefill_tokens: NDArray[np.int64]
    decode_requests: NDArray[np.int64]
    kv_used_blocks: NDArray[np.int64]
    kv_cached_blocks: NDArray[np.int64]
    kv_free_blocks: NDArray[np.int64]


@dataclass(frozen=True)
class Transfers:
    """KV sent between pools, one row per transfer in order of start; shape (m,) int64 each."""

    request: NDArray[np.int64]
    start_ns: NDArray[np.int64]
    end_ns: NDArray[np.int64]
    bytes: NDArray[np.int64]


@dataclass(frozen=True)
class RunLog:
    """One run. Per-request columns have shape (n,), row i is row i of the trace; times are ns or NEVER; int64 but for
    replicas (int32), ``status`` and ``reason`` (int8).

    A column that would say the same as another, or as the trace, is that one: a log is read, never written to. A column
    of zeros takes no memory as long as nobody writes to it (the operating system's zeroed pages).

    - ``arrival_ns``: sent by the client (in a closed loop think time after the last end that it waits for; NEVER: it
      was never sent); ``client_queue_ns``: wait for a free slot under ``max_concurrency`` before that
    - ``queued_ns``: handed to the replica that prefills it; ``first_scheduled_ns``: start of the first step with it
    - ``first_token_ns``, ``finish_ns``: first and last token delivered (``finish_ns``: also the time of rejection
      or abandonment)
    - ``output_tokens``: what the request was to generate, after the cut at the model's length; ``generated_tokens``:
      what it did; ``computed_tokens``: prompt and recomputed tokens that went through prefill; ``cached_tokens``
    - ``preemptions``: how often it lost its blocks; ``swaps``: how often of these its KV was kept in host memory, and
      ``swapped_tokens``: the tokens of KV copied there
    - ``max_gap_ns``: largest gap between two of its tokens (NEVER with fewer than two)
    - ``replica_prefill``, ``replica_decode``: replica ids or -1; ``status``: index in STATUS_NAMES; ``reason``: index
      in ``reasons`` (0 is the empty reason)

    Whole-run facts: ``gaps``, ``tokens_by_second``; ``steps`` and ``stretches`` per replica (a stretch is what one
    leap covered); ``events``: SimPy events; ``total_blocks`` and ``peak_used_blocks`` per replica; ``copied_blocks``
    and ``copy_ns`` per replica: blocks copied to host memory and back, and by how much steps took longer for it;
    ``end_ns``: last moment simulated; ``diagnosis``: why nothing could move any more, or None.
    """

    arrival_ns: NDArray[np.int64]
    client_queue_ns: NDArray[np.int64]
    queued_ns: NDArray[np.int64]
    first_scheduled_ns: NDArray[np.int64]
    first_token_ns: NDArray[np.int64]
    finish_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    generated_tokens: NDArray[np.int64]
    computed_tokens: NDArray[np.int64]
    cached_tokens: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    swaps: NDArray[np.int64]
    swapped_tokens: NDArray[np.int64]
    max_gap_ns: NDArray[np.int64]
    replica_prefill: NDArray[np.int32]
    replica_decode: NDArray[np.int32]
    status: NDArray[np.int8]
    reason: NDArray[np.int8]
    reasons: tuple[str, ...]
    gaps: Gaps
    timeline: Timeline
    transfers: Transfers
    tokens_by_second: TokensBySecond
    steps: tuple[int, ...]
    stretches: tuple[int, ...]
    total_blocks: tuple[int, ...]
    peak_used_blocks: tuple[int, ...]
    copied_blocks: tuple[int, ...]
    copy_ns: tuple[int, ...]
    roles: tuple[str, ...]
    events: int
    clipped: int
    end_ns: int
    diagnosis: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.arrival_ns)
