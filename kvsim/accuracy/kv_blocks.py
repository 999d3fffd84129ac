"""KV blocks that engines logged when they started, against the memory ledger.

Source of the logs: kv_capacity/kv_blocks.csv, whose rows name theirs. Rows of DistServe are from a formula.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from kvsim.accuracy.sets.blis import MODELS
from kvsim.core.layout import Layout
from kvsim.core.model import Quantization
from kvsim.hardware import load_gpu
from kvsim.kv.memory import ENGINES, kv_ledger
from kvsim.models import load_model

GPUS = {"H100": "h100-sxm", "RTX 4090": "rtx-4090"}
BYTES = re.compile(r"\((\d+) B\)")
NAMES = MODELS | {"meta-llama/Llama-3.1-8B": "llama-3.1-8b"}


def errors(folder: Path) -> Iterator[tuple[str, float]]:
    """Configuration and ledger / logged - 1."""
    with open(folder / "kv_capacity" / "kv_blocks.csv", newline="") as lines:
        for row in csv.DictReader(lines):
            engine = row["engine"].lower().replace(" ", "@").rpartition(".")[0]
            if engine in ENGINES:
                yield _error(row, engine)


def _error(row: dict[str, str], engine: str) -> tuple[str, float]:
    gpu = load_gpu(next(name for begin, name in GPUS.items() if row["gpu"].startswith(begin)))
    logged = BYTES.search(row["gpu"])
    gpu = gpu if logged is None else replace(gpu, memory_bytes=int(logged[1]))
    model, layout = load_model(NAMES[row["model"]]), Layout(tensor_parallel_size=int(row["tp"]))
    if "FP8" in row["model"]:  # MLPs and experts in 8 bit; attention, ends, routers and encoder stay
        model = replace(model, quantization=Quantization("fp8", 1.0, ("mlp", "experts")))
    limits = (int(float(row["max_num_batched_tokens"])), int(float(row["max_num_seqs"])), int(row["block_size"]))
    ledger = kv_ledger(model, gpu, layout, float(row["gpu_mem_util"]), *limits, engine=ENGINES[engine])
    return f"{model.name} {row['tp']} x {gpu.name} {engine} {limits[0]}", ledger.num_gpu_blocks / int(
        row["kv_blocks"]
    ) - 1
