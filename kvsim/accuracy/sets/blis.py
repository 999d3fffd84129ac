"""Load stages of vLLM 0.15 with constant arrivals: seven models on H100, A100 and L40S.

Sources (figures): github.com/inference-sim/sim-to-real-accuracy-validation at dcec3fd and 7f3b2702, inference-sim/
training at ed5c1d26. The client sends a fixed set of prompts over and over and prefix caching was on, so after the
first round each request computes the last few tokens of its prompt (the engine's own steps say 1 to 16). Tracing was
on. A client gives up after 300 s.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kvsim.accuracy.served import Served, Skipped, constant, scenario, uniform_trace
from kvsim.core.trace import Trace

DATA_SET = "blis_sim_to_real"
MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "codellama/CodeLlama-34b-Instruct-hf": "codellama-34b",
    "mistralai/Mistral-Nemo-Instruct-2407": "mistral-nemo",
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "mixtral-8x22b",
    "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic": "llama-4-scout",
}
GPUS = {"H100": "h100-sxm", "A100-80GB": "a100-80gb-sxm", "L40S": "l40s"}
SPEC = re.compile(r"sys (\d+) \+ question (\d+) -> out (\d+)")
STAGE = re.compile(r"([\d.]+) rps x(\d+)s")
PROMPTS = re.compile(r"(\d+) prompts x (\d+) user")
EXTRA_TOKENS = 26
"""By which logged prompts exceed system prompt and question (25.6 codegen, 27.9 general, 35.8 roleplay)."""
LONGEST_S = 300.0
"""Stages are steady, so that half of their 600 to 1,200 s says the same."""
TOOLS = {"blis-trained-physics": "BLIS trained", "blis-evolved": "BLIS evolved", "blis-roofline": "BLIS roofline"}
TOOLS |= {"aiconfigurator-estimate": "aiconfigurator", "llm-optimizer-estimate": "llm-optimizer", "vidur": "Vidur"}
METRICS = {"e2e_mean": "e2e", "ttft_mean": "ttft", "itl_mean": "tpot"}


def runs(folder: Path) -> Iterator[Served | Skipped]:
    """One run per stage, those that are in both sets once."""
    tools = _other_tools(folder / "blis_sim_to_real" / "other_tools_errors.csv.gz")
    file = folder / "blis_sim_to_real" / "actuals.csv"
    seen = set()
    with open(file, newline="") as lines:
        for row in csv.DictReader(lines):
            if row["stage_index"] != "-1" and row["e2e_mean_ms"][:12] not in seen:
                seen.add(row["e2e_mean_ms"][:12])
                yield _stage(row, file, tools)
    file = folder / "blis_vllm_h100" / "stage_metrics.csv"
    with open(file, newline="") as lines:
        for row in csv.DictReader(lines):
            if f"{1e3 * float(row['e2e_mean_s'])}"[:12] not in seen:
                yield _overloaded(row, file)


def _stage(row: dict[str, str], file: Path, tools: Any) -> Served:
    model, gpu, ranks = MODELS[row["model"]], GPUS[row["gpu"]], int(row["tp"])
    spec, prompts = SPEC.search(row["workload_spec"]), PROMPTS.search(row["workload_spec"])
    stage = int(row["stage_index"])
    rate_per_s, duration_s = map(float, STAGE.findall(row["workload_spec"])[stage])
    assert spec is not None, f"{file}: workload_spec {row['workload_spec']!r}"
    shared, question, output = map(int, spec.groups())
    groups, each = map(int, prompts.groups()) if prompts else (9, 5)
    kv = {
        "enable_prefix_caching": True,
        "gpu_memory_utilization": float(row["gpu_mem_util"] or 0.9),
        "num_gpu_blocks_override": int(float(row["total_kv_blocks"])) if row["total_kv_blocks"] else None,
    }
    return Served(
        DATA_SET,
        f"{row['experiment']} stage {stage}",
        model,
        gpu,
        ranks,
        "below",
        scenario(
            model,
            gpu,
            ranks,
            max_num_seqs=128,
            max_num_batched_tokens=int(row["max_num_batched_tokens"]),
            max_model_len=4096,
            quantization="fp8" if row["precision"] == "FP8" else None,
            kv={name: value for name, value in kv.items() if value is not None},
        ),
        partial(_trace, rate_per_s, min(duration_s, LONGEST_S), shared, question, output, groups, each),
        {
            "ttft": float(row["ttft_mean_ms"]),
            "tpot": float(row["tpot_from_e2e_ms"]),
            "e2e": float(row["e2e_mean_ms"]),
        },
        file=file,
        others=tools.get((row["experiment"], stage), {}),
    )


def _overloaded(row: dict[str, str], file: Path) -> Served | Skipped:
    """A stage that is in the second set alone: the reasoning workload at 4 per second, of which most time out."""
    model, ranks = MODELS[row["model"]], int(row["tp"])
    failed = int(row["n_fail"]) > 0
    keys = scenario(
        model,
        "h100-sxm",
        ranks,
        max_num_seqs=int(row["max_num_seqs"]),
        max_num_batched_tokens=int(row["max_num_batched_tokens"]),
        max_model_len=int(row["max_model_len"]),
        kv={"enable_prefix_caching": True, "gpu_memory_utilization": 0.9},
    )
    measured = {"throughput": float(row["requests_per_s"])}
    if not failed:
        times = {"ttft": "ttft_mean_s", "tpot": "tpot_true_mean_s", "e2e": "e2e_mean_s"}
        measured |= {metric: 1e3 * float(row[name]) for metric, name in times.items()}
    lengths = (int(row[name]) for name in ("system_prompt_len", "question_len", "requested_output_len"))
    prompts = (int(row[name]) for name in ("num_unique_system_prompts", "num_users_per_system_prompt"))
    return Served(
        "blis_vllm_h100",
        f"{row['experiment']} stage {row['stage']}",
        model,
        "h100-sxm",
        ranks,
        "saturated" if failed else "below",
        keys,
        partial(_trace, float(row["rate_rps"]), float(row["duration_s"]), *lengths, *prompts),
        measured,
        client_timeout_s=300.0 if failed else None,
        file=file,
    )


def _trace(
    rate_per_s: float, duration_s: float, shared: int, question: int, output: int, groups: int, each: int
) -> Trace:
    prompt = shared + question + EXTRA_TOKENS
    return uniform_trace(constant(rate_per_s, duration_s), prompt, output, (groups, each, shared))


def _other_tools(file: Path) -> dict[tuple[str, int], dict[str, dict[str, float]]]:
    """Experiment and stage -> tool -> metric -> |error|."""
    found: dict[tuple[str, int], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    with gzip.open(file, "rt", newline="") as lines:
        for row in csv.DictReader(lines):
            metric = METRICS.get(row["metric_name"])
            if metric is not None and row["simulator"] in TOOLS:
                of_stage = found[row["experiment"], int(row["stage_index"])]
                of_stage[TOOLS[row["simulator"]]][metric] = float(row["mape"]) / 100
    return {stage: {tool: dict(errors) for tool, errors in tools.items()} for stage, tools in found.items()}
