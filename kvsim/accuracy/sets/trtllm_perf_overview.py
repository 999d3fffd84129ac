"""Output tokens per second of TensorRT-LLM with a batch of 1,000 to 30,000 requests that all come at once.

Source: NVIDIA/TensorRT-LLM documentation at 00f37686 (v1.0) and 03e27c7d (Apache-2.0), performance overview. Dense
models in fp8 with fp8 KV. The limits of a step are not published: 2,048 requests and 8,192 tokens here.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvsim.accuracy.served import Served, Skipped, scenario, uniform_trace
from kvsim.core.trace import Trace

DATA_SET = "trtllm_perf_overview"
MODELS = {"Llama 3.1 8B": "llama-3.1-8b", "Llama 3.3 70B": "llama-3.3-70b", "Llama 3.1 405B": "llama-3.1-405b"}
GPUS = {"H100": "h100-sxm", "H200": "h200-sxm"}
MOST_REQUESTS = 6000


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per row."""
    file = folder / DATA_SET / "max_throughput.csv"
    skipped: Counter[str] = Counter()
    with open(file, newline="") as lines:
        for row in csv.DictReader(lines):
            if row["model"] not in MODELS:
                skipped["mixtures of experts in layouts, formats or with attention that cannot be timed yet"] += 1
            elif row["precision"] != "FP8":
                skipped["4 bit weights of a 16 bit model: the scenario has no key for them yet"] += 1
            else:
                yield _run(row, file)
    for reason, count in skipped.items():
        yield Skipped(DATA_SET, reason, count)


def _run(row: dict[str, str], file: Path) -> Served:
    model, gpu = MODELS[row["model"]], GPUS[row["gpu"]]
    ranks = int(re.findall(r"TP(\d+)", row["parallel"])[0])
    isl, osl = int(row["isl"]), int(row["osl"])
    return Served(
        DATA_SET,
        f"{row['model']} {row['gpu']} {row['parallel']} {isl}/{osl}",
        model,
        gpu,
        ranks,
        "saturated",
        scenario(
            model,
            gpu,
            ranks,
            max_num_seqs=2048,
            max_num_batched_tokens=8192,
            max_model_len=isl + osl + 16,
            quantization="fp8",
            kv={"kv_cache_dtype": "fp8", "gpu_memory_utilization": 0.95},
        ),
        partial(_trace, min(int(row["num_requests"]), MOST_REQUESTS), isl, osl),
        {"throughput": float(row["output_tokens_per_s_total"])},
        counts_tokens=True,
        engine="trtllm",
        host="trtllm",
        at_client=False,
        file=file,
    )


def _trace(requests: int, prompt_tokens: int, output_tokens: int) -> Trace:
    return uniform_trace(np.zeros(requests, np.int64), prompt_tokens, output_tokens)
