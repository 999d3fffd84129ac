"""Reads the recordings of vLLM's scheduler: the inputs of a case, its requests and its steps."""

import csv
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.core.shape import BatchShape
from kvsim.core.trace import Trace

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
"""The cases of first come, first served without prefix caching."""

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
"""All cases."""

SCHEDULER_FIELDS = (
    "max_num_seqs",
    "max_num_batched_tokens",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "enable_chunked_prefill",
    "scheduler_reserve_full_isl",
    "watermark",
)


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


@dataclass(frozen=True)
class Recording:
    config: dict[str, Any]
    cost: dict[str, int]
    requests: list[dict[str, str]]
    steps: list[dict[str, Any]]

    @property
    def scheduler(self) -> dict[str, Any]:
        return {name: self.config[name] for name in SCHEDULER_FIELDS}

    @property
    def trace(self) -> Trace:
        def column(name: str) -> np.ndarray:
            return np.array([int(row[name]) for row in self.requests], dtype=np.int64)

        return Trace(column("arrival_ns"), column("prompt_tokens"), column("max_tokens"))

    def outcome(self) -> list[tuple[int | str | None, ...]]:
        """Per request: status, generated tokens, first scheduled, first token, finish (ns) and preemptions."""
        rows: list[tuple[int | str | None, ...]] = []
        for row in self.requests:
            status = "unfinished" if row["status"].startswith("stuck") else row["status"]
            times = [int(row[name]) if row[name] else None for name in ("first_scheduled_ns", "first_token_ns")]
            finish = int(row["finish_ns"]) if row["finish_ns"] else None
            generated, preemptions = int(row["generated_tokens"] or 0), int(row["preemptions"] or 0)
            rows.append((status, generated, *times, finish, preemptions))
        return rows


def load(folder: Path, case: str) -> Recording:
    about = json.loads((folder / case / "config.json").read_text())
    with open(folder / case / "requests.csv", newline="") as file:
        requests = list(csv.DictReader(file))
    with gzip.open(folder / case / "steps.jsonl.gz", "rt") as file:
        steps = [json.loads(line) for line in file]
    return Recording(about["config"], about["cost"], requests, steps)
