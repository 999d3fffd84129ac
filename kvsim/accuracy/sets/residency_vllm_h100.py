"""Rate sweeps of vLLM 0.23 with Qwen3-14B on one H100: Poisson arrivals for 600 s, prompts that share nothing.

Source: github.com/inference-sim/residency-vllm at 2641b576 (figures). The client never has more than 256 requests in
flight, so the highest rates are a closed loop; what the server then took per second is its plateau.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvsim.accuracy.served import Served, Skipped, poisson, scenario, uniform_trace, varied_trace
from kvsim.core.trace import Trace

IN_FLIGHT = 256
MOST_REQUESTS = 6000


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per row."""
    file = folder / "residency_vllm_h100" / "runs.csv"
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    kv = {"enable_prefix_caching": True, "num_gpu_blocks_override": int(rows[0]["kv_blocks"])}
    for row in rows:
        capped = row["client_capped_at_256"] == "True"
        yield Served(
            "residency_vllm_h100",
            f"{row['sweep']} {row['cell']} ({'stock' if 'stock' in row['server'] else 'patched'})",
            "qwen3-14b",
            "h100-sxm",
            1,
            "saturated" if capped else "below",
            scenario(
                "qwen3-14b",
                "h100-sxm",
                1,
                max_num_seqs=int(row["max_num_seqs"]),
                max_num_batched_tokens=int(row["max_num_batched_tokens"]),
                max_model_len=8192,
                kv=kv,
            ),
            partial(
                _trace,
                float(row["actual_rate_rps"]),
                min(int(row["n_requests"]), MOST_REQUESTS),
                float(row["server_prompt_tokens_mean"]),
                int(row["output_tokens"]),
                mixed="/" in row["prompt_tokens"],
            ),
            {
                "ttft": float(row["ttft_mean_ms"]),
                "tpot": float(row["tpot_from_e2e_ms"]),
                "e2e": float(row["e2e_mean_ms"]),
                "throughput": float(row["effective_send_rate_rps"]),
            },
            max_concurrency=IN_FLIGHT,
            file=file,
        )


def _trace(rate_per_s: float, requests: int, prompt_tokens: float, output_tokens: int, mixed: bool) -> Trace:
    """Prompts of one length; ``mixed``: half of them 16 times as long as the others, of the same mean."""
    arrivals = poisson(rate_per_s, requests)
    if not mixed:
        return uniform_trace(arrivals, round(prompt_tokens), output_tokens)
    short = 2 * prompt_tokens / 17
    long = np.random.default_rng(1).random(requests) < 0.5
    return varied_trace(arrivals, np.where(long, round(16 * short), round(short)), np.full(requests, output_tokens))
