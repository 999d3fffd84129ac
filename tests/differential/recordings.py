"""The recordings of vLLM's scheduler that tests replay: 28 in the shared data, and eight small ones of our own.

``tools/record_vllm`` made those in ``tests/recordings`` from vLLM 0.33.0; they show what the shared ones leave out
(asynchronous scheduling, ends that cannot be foreseen, active and token limits, the prefill cadence) and need no data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvsim.core.shape import BatchShape
from kvsim.testing.conformance import Recording, load

FCFS_CASES = (
    "a_light",
    "b1_max_num_seqs",
    "b2_burst",
    "c1_kv_pressure",
    "c2_kv_pressure_no_reserve",
    "c3_kv_pressure_watermark",
    "c5_self_preemption",
    "c6_watermark_idle",
    "d1_chunk512",
    "d2_chunk2048",
    "d3_chunk512_lpt128",
    "d4_chunk2048_lpt256",
    "d5_chunk2048_lpt256_adaptive",
    "g1_edges",
    "g2_never_fits",
    "g3_outgrows_pool",
    "h1_no_chunked_prefill",
    "h2_no_chunked_prefill_pressure",
)
"""The shared cases of first come, first served without prefix caching."""

CASES = (
    *FCFS_CASES,
    "c4_kv_pressure_apc",
    "e1_shared_prefix",
    "e2_sessions_evict",
    "e3_full_hit",
    "e4_lru_order",
    "e5_sessions_preempt",
    "e6_copies",
    "f1_priority",
    "f2_priority_apc",
    "f3_priority_chunks",
)
"""All shared cases."""

OWN = Path(__file__).parents[1] / "recordings"
OWN_CASES = tuple(sorted(path.name for path in OWN.iterdir()))

SCHEDULER_FIELDS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "enable_chunked_prefill",
    "scheduler_reserve_full_isl",
    "watermark",
)


def shared(folder: Path, case: str) -> Recording:
    """A case of the shared data."""
    return load(folder / "vllm_decisions" / case)


def scheduler_of(recording: Recording) -> dict[str, Any]:
    return {name: recording.config[name] for name in SCHEDULER_FIELDS}


@dataclass(frozen=True)
class RecordedCost:
    """The step time of the recordings, summed in integer nanoseconds."""

    base_ns: int
    per_prefill_token_ns: int
    per_decode_request_ns: int
    per_context_token_ns: int

    def step_s(self, shape: BatchShape) -> float:
        ns = self.base_ns + self.per_prefill_token_ns * shape.prefill_tokens
        ns += self.per_decode_request_ns * shape.decode_requests
        ns += self.per_context_token_ns * (shape.prefill_context_tokens + shape.decode_context_tokens)
        return ns / 1e9
