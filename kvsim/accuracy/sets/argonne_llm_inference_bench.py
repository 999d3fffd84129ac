"""Time of a static batch of 1 to 64 equal requests, as many output tokens as input tokens.

Source: github.com/argonne-lcf/LLM-Inference-Bench at 4211f5d4 (BSD-3). vLLM 0.4 to 0.6 and TensorRT-LLM 0.9 to 0.1x of
2024, whose hosts took milliseconds a step; the kernels here are of 2026. Rows whose throughput is not 2 L batch /
latency within 5 % are left out, as mis-keyed.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvsim.accuracy.served import Served, Skipped, scenario, uniform_trace
from kvsim.core.trace import Trace

DATA_SET = "argonne_llm_inference_bench"
MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "meta-llama/Meta-Llama-3-70B": "llama-3.1-70b",
    "mistralai/Mistral-7B-v0.1": "mistral-7b",  # the same layers; its window of 4,096 is never full here
    "Qwen/Qwen2-7B": "qwen2.5-7b",
    "Qwen/Qwen2-72B": "qwen2.5-72b",
    "Qwen/Qwen1.5-7B": "qwen1.5-7b",
    "huggyllama/llama-7b": "llama-7b",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
}
GPUS = {"Nvidia A100 GPU": "a100-40gb-sxm", "Nvidia H100 GPU": "h100-sxm", "Nvidia GH200 GPU": "gh200-96gb"}
ENGINES = {"vLLM": ("vllm", "vllm-sync"), "TensorRT-LLM": ("trtllm", "trtllm")}
TOLERANCE = 0.05


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per row."""
    file = folder / DATA_SET / "static_batch_latency.csv.gz"
    skipped: Counter[str] = Counter()
    with gzip.open(file, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            length, batch, latency_s = int(row["Input Output Length"]), int(row["Batch Size"]), float(row["Latency"])
            identity = float(row["Throughput"]) * latency_s / (2 * length * batch)
            if row["Hardware"] not in GPUS or row["Framework"] not in ENGINES:
                skipped["GPUs and engines that were not measured"] += 1
            elif row["Model"] not in MODELS:
                skipped["models whose step times are not modelled yet"] += 1
            elif abs(identity - 1) > TOLERANCE:
                skipped["throughput and latency contradict each other"] += 1
            else:
                yield _run(row, file, length, batch, latency_s)
    for reason, count in skipped.items():
        yield Skipped(DATA_SET, reason, count)


def _run(row: dict[str, str], file: Path, length: int, batch: int, latency_s: float) -> Served:
    model, gpu, ranks = MODELS[row["Model"]], GPUS[row["Hardware"]], int(row["Num of Hardware"])
    engine, host = ENGINES[row["Framework"]]
    return Served(
        DATA_SET,
        f"{model} {ranks} x {gpu} {row['Framework']} {length} x {batch}",
        model,
        gpu,
        ranks,
        "closed",
        scenario(
            model,
            gpu,
            ranks,
            max_num_seqs=max(batch, 8),
            max_num_batched_tokens=8192,
            max_model_len=2 * length if 2 * length <= 2048 else None,
            kv={"gpu_memory_utilization": 0.95},
        ),
        partial(_trace, batch, length, length),
        {"e2e": 1e3 * latency_s},
        engine=engine,
        host=host,
        at_client=False,
        file=file,
    )


def _trace(requests: int, prompt_tokens: int, output_tokens: int) -> Trace:
    return uniform_trace(np.zeros(requests, np.int64), prompt_tokens, output_tokens)
