"""Per-request replays of vLLM 0.19 on RTX GPUs: 300 ShareGPT requests at 10 per second, output lengths forced.

Source: github.com/casys-kaist/LLMServingSim at 5daddb21 (MIT), bench/examples. TTFT counts from the engine's queue,
so no frontend is in it. Asynchronous scheduling and prefix caching were on.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvsim.accuracy.served import Served, Skipped, scenario
from kvsim.core.trace import Ragged, Trace

GPUS = {"RTX4090": "rtx-4090", "RTXPRO6000": "rtx-pro-6000-server"}
MODELS = {
    "Llama-3.1-8B": ("llama-3.1-8b", "prompt_blocks_llama3.1.jsonl.gz"),
    "Qwen3-30B-A3B-Instruct-2507": ("qwen3-30b-a3b-2507", "prompt_blocks_qwen3.jsonl.gz"),
}
SUMMARY = re.compile(r"(TTFT|TPOT|Latency) Mean +([\d.]+) +([\d.]+)")


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per folder GPU/MODEL."""
    for file in sorted(folder.glob("llmservingsim_bench/*/*/requests.csv")):
        gpu, (model, blocks) = GPUS[file.parts[-3]], MODELS[file.parts[-2]]
        meta = json.loads((file.parent / "meta.json").read_text())
        engine = meta["engine_kwargs"]
        if engine["data_parallel_size"] > 1:
            yield Skipped("llmservingsim_bench", "attention in data parallel, experts shared")
            continue
        with open(file, newline="") as lines:
            rows = list(csv.DictReader(lines))
        ends_s = max(float(row["last_token_ts"]) for row in rows) - min(float(row["queued_ts"]) for row in rows)
        measured = {
            "ttft": 1e3 * float(np.mean([float(row["ttft_s"]) for row in rows])),
            "tpot": float(np.mean([float(row["tpot_ms"]) for row in rows])),
            "e2e": 1e3 * float(np.mean([float(row["e2e_s"]) for row in rows])),
            "throughput": sum(int(row["output_toks"]) for row in rows) / ends_s,
        }
        simulated = {name: (float(theirs), float(real)) for name, real, theirs in _summary(file.parent)}
        names = {"TTFT": "ttft", "TPOT": "tpot", "Latency": "e2e"}
        errors = {names[name]: abs(theirs / real - 1) for name, (theirs, real) in simulated.items()}
        logged = meta.get("kv_cache", {}).get("num_gpu_blocks")
        kv = {"enable_prefix_caching": True, "gpu_memory_utilization": 0.9, "num_gpu_blocks_override": logged}
        limits = {name: engine[name] for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
        yield Served(
            "llmservingsim_bench",
            f"{model} on {gpu}",
            model,
            gpu,
            engine["tensor_parallel_size"],
            "saturated",
            scenario(model, gpu, engine["tensor_parallel_size"], **limits, kv={k: v for k, v in kv.items() if v}),
            partial(_trace, file, file.parents[2] / blocks),
            measured,
            counts_tokens=True,
            at_client=False,
            file=file,
            others={"LLMServingSim": errors},
        )


def _summary(folder: Path) -> list[tuple[str, str, str]]:
    text = (folder / "sim_vs_vllm_summary.txt").read_text()
    return [(name, real, theirs) for name, real, theirs in SUMMARY.findall(text)]


def _trace(file: Path, blocks: Path) -> Trace:
    """The requests as they reached the engine's queue, with the ids of their prompts' blocks."""
    with open(file, newline="") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: float(row["queued_ts"]))
    with gzip.open(blocks, "rt") as lines:
        prompts = {record["request_id"]: record for record in map(json.loads, lines)}
    queued_s = np.array([float(row["queued_ts"]) for row in rows])
    ids = [prompts[row["request_id"]]["hash_ids"] for row in rows]
    counts = np.array([len(each) for each in ids])
    flat, _ = np.unique(np.concatenate(ids), return_inverse=True)
    number = {old: new for new, old in enumerate(flat.tolist())}
    values = np.array([number[each] for row in ids for each in row], np.int64)
    return Trace(
        np.round((queued_s - queued_s[0]) * 1e9).astype(np.int64),
        np.array([int(row["input_toks"]) for row in rows], np.int64),
        np.array([int(row["output_toks"]) for row in rows], np.int64),
        prefix_hashes=Ragged(values, np.concatenate(([0], np.cumsum(counts))).astype(np.int64)),
        hash_block_tokens=16,
    )
