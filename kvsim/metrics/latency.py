"""Times of each request, (n,) float64 seconds in the order of the trace; NaN where the quantity does not exist.

Definitions are those of ``vllm bench serve``. A difference is taken in integer nanoseconds and divided once.
"""

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import FINISHED, NEVER, RunLog, seconds

Seconds = NDArray[np.float64]


def _between(
    earlier_ns: NDArray[np.int64], later_ns: NDArray[np.int64], valid: NDArray[np.bool_] | None = None
) -> Seconds:
    exists = (earlier_ns != NEVER) & (later_ns != NEVER)
    if valid is not None:
        exists &= valid
    between: Seconds = (later_ns - earlier_ns) / 1e9
    between[~exists] = np.nan
    return between


def finished(log: RunLog) -> NDArray[np.bool_]:
    """Requests that delivered all their tokens, shape (n,)."""
    mask: NDArray[np.bool_] = log.status == FINISHED
    return mask


def ttft_s(log: RunLog) -> Seconds:
    """Time to first token: first token delivered - arrival. Also known for requests that did not finish later."""
    return _between(log.arrival_ns, log.first_token_ns)


def e2el_s(log: RunLog) -> Seconds:
    """End-to-end latency: last token delivered - arrival; NaN unless finished."""
    return _between(log.arrival_ns, log.finish_ns, finished(log))


def tpot_s(log: RunLog) -> Seconds:
    """Time per output token: (e2el - ttft) / (output_tokens - 1); NaN for one token, and unless finished."""
    return decode_s(log) / np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)


def max_itl_s(log: RunLog) -> Seconds:
    """Largest gap between two successive tokens of the request; NaN with fewer than two tokens."""
    return seconds(log.max_gap_ns)


def queue_s(log: RunLog) -> Seconds:
    """First scheduled - queued at the replica. Waiting again after a preemption is not added."""
    return _between(log.queued_ns, log.first_scheduled_ns)


def prefill_s(log: RunLog) -> Seconds:
    """First token - first scheduled; a preemption in between is inside."""
    return _between(log.first_scheduled_ns, log.first_token_ns)


def decode_s(log: RunLog) -> Seconds:
    """Last token - first token; NaN unless finished. Preemptions and the handoff are inside."""
    return _between(log.first_token_ns, log.finish_ns, finished(log))


def inference_s(log: RunLog) -> Seconds:
    """Last token - first scheduled = prefill + decode; NaN unless finished."""
    return _between(log.first_scheduled_ns, log.finish_ns, finished(log))


def normalized_tpot_s(log: RunLog) -> Seconds:
    """End-to-end latency / output_tokens (llmperf's "inter-token latency"); NaN unless finished."""
    return e2el_s(log) / log.output_tokens


def client_queue_s(log: RunLog) -> Seconds:
    """Wait in the client for a free slot, before arrival; part of no other time. NaN if never sent."""
    return np.where(log.arrival_ns != NEVER, log.client_queue_ns, np.nan) / 1e9
