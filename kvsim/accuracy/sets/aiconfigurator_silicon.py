"""Mean TTFT and TPOT at a fixed number of requests in flight, one engine for prefill and decode.

Source: github.com/ai-dynamo/aiconfigurator at 095f58a5 (Apache-2.0), silicon_sample.csv; vLLM, TensorRT-LLM and SGLang
on H100, H200 and B200. A run that is listed under several names counts once. Where no precision is given, the
checkpoint's own (16 bit) is taken. Ten prompts are sent per slot, at most 1,000; InferenceX draws lengths from 80 to
100 % of the nominal ones, so that requests do not end all at once.
"""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from kvsim.accuracy.served import Served, Skipped, scenario, varied_trace
from kvsim.core.trace import Trace

DATA_SET = "aiconfigurator_silicon"
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
}
MIXTURES = {
    "openai/gpt-oss-120b": ("gpt-oss-120b", ("nvfp4",)),
    "deepseek-ai/DeepSeek-V3": ("deepseek-v3", ("fp8", "fp8_block")),
    "deepseek-ai/DeepSeek-R1": ("deepseek-r1", ("fp8", "fp8_block")),
}
"""Catalogue name, and how the rows name the checkpoint's own format (mxfp4; fp8 in blocks)."""
GPUS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm", "b200_sxm": "b200-sxm", "gb200": "gb200", "l40s": "l40s"}
MEASURED_ENGINES = {"h100_sxm": ("vllm", "trtllm", "sglang"), "h200_sxm": ("vllm", "trtllm", "sglang")}
"""Whose kernels were measured; elsewhere vLLM's stand for them."""
REQUESTS_PER_SLOT, MOST_REQUESTS = 10, 1000


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per row that is no duplicate."""
    file = folder / DATA_SET / "silicon_sample.csv.gz"
    seen = set()
    skipped: Counter[str] = Counter()
    with gzip.open(file, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            same = (row["run_family"], row["concurrency"], row["silicon_ttft_ms"], row["silicon_tpot_ms"])
            if row["exact_duplicate"] == "True" or same in seen:
                continue
            seen.add(same)
            reason = _not_simulated(row)
            if reason:
                skipped[reason] += 1
            else:
                yield _run(row, file)
    for reason, count in skipped.items():
        yield Skipped(DATA_SET, reason, count)


def _not_simulated(row: dict[str, str]) -> str:
    if row["mode"] != "agg":
        return "prefill and decode in separate pools, of DeepSeek models almost always"
    if row["model_path"] not in MODELS | MIXTURES or row["system"] not in GPUS:
        return "models or GPUs that are not in the catalogue"
    if row["model_path"] in MIXTURES:
        _, formats = MIXTURES[row["model_path"]]
        if row["moe_quant_mode"] not in formats:
            return "mixtures in formats other than their checkpoint's"
        if row["attention_dp_size"] not in ("", "1.0") or row["pp_size"] not in ("", "1.0"):
            return "mixtures with attention in data parallel: cannot be timed yet"
        if row["backend"] not in MEASURED_ENGINES.get(row["system"], ("vllm",)):
            return "mixtures on kernels that were not measured on that GPU"
        if float(row["tp_size"]) not in (float(row["moe_ep_size"]), float(row["moe_tp_size"])):
            return "mixtures with experts both dealt out and sliced"
        if float(row["tp_size"]) > 64:
            return "attention heads that the ranks cannot share"
        return "" if row["concurrency"] else "no concurrency given"
    if row["gemm_quant_mode"] == "nvfp4":
        return "4 bit weights of a 16 bit model: the scenario has no key for them yet"
    if not row["concurrency"]:
        return "no concurrency given"
    if row["gemm_quant_mode"] == "fp8_block":
        return "fp8 in blocks of a 16 bit model: the scenario has no key for it yet"
    return ""


def _run(row: dict[str, str], file: Path) -> Served:
    mixture = row["model_path"] in MIXTURES
    model = MIXTURES[row["model_path"]][0] if mixture else MODELS[row["model_path"]]
    gpu, ranks = GPUS[row["system"]], int(float(row["tp_size"]))
    concurrency, isl, osl = int(float(row["concurrency"])), int(row["isl"]), int(row["osl"])
    fp8 = row["gemm_quant_mode"] == "fp8" and not mixture
    dealt = mixture and ranks > 1 and float(row["moe_ep_size"]) == ranks
    inference_x = "; model=" in row["silicon_data_source"]
    # Their pools would not hold these batches in 16 bit, and no request waited for one.
    kv = {"kv_cache_dtype": "fp8"} if fp8 and (inference_x or row["backend"] == "trtllm") else {}
    kernels = row["backend"] if row["backend"] in MEASURED_ENGINES.get(row["system"], ("vllm",)) else "vllm"
    asynchronous = inference_x or row["backend_version"] >= "0.14"  # its scripts ask for it, 0.14 turned it on
    spread = 0.2 if inference_x else 0.0
    return Served(
        DATA_SET,
        f"{row['id']} {row['backend']}",
        model,
        gpu,
        ranks,
        "closed",
        scenario(
            model,
            gpu,
            ranks,
            quantization="fp8" if fp8 else None,
            max_model_len=isl + osl + 16,
            kv=kv,
            enable_expert_parallel=dealt or None,
        ),
        partial(_trace, min(REQUESTS_PER_SLOT * concurrency, max(MOST_REQUESTS, 2 * concurrency)), isl, osl, spread),
        {"ttft": float(row["silicon_ttft_ms"]), "tpot": float(row["silicon_tpot_ms"])},
        max_concurrency=concurrency,
        engine=kernels,
        host=row["backend"] if row["backend"] != "vllm" or asynchronous else "vllm-sync",
        file=file,
    )


def _trace(requests: int, prompt_tokens: int, output_tokens: int, spread: float) -> Trace:
    """Lengths between (1 - spread) of the nominal ones and these."""
    rng = np.random.default_rng(0)
    lengths = (np.round(tokens * (1 - spread * rng.random(requests))) for tokens in (prompt_tokens, output_tokens))
    return varied_trace(np.zeros(requests, np.int64), *lengths)
