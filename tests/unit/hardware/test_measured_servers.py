"""Whole runs against published measurements of vLLM: the figures of README's "How far to trust it".

Constant arrivals, as measured; every prompt is computed, where those servers had prefix caching on. Run with ``-s``
to see each stage. Source: github.com/inference-sim/sim-to-real-accuracy-validation.
"""

import csv
import re
from functools import cache
from pathlib import Path
from statistics import median

import pytest

import kvsim

MODELS = {
    "meta-llama/Llama-2-7b-hf": "llama-2-7b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "meta-llama/Llama-2-70b-hf": "llama-2-70b",
}
GPUS = {"H100": "h100-sxm", "A100-80GB": "a100-80gb-sxm", "L40S": "l40s"}
SPEC = re.compile(r"sys (\d+) \+ question (\d+) -> out (\d+)")


def test_mean_tpot_of_published_stages(shared_data: Path, tmp_path: Path) -> None:
    @cache
    def simulate(model: str, gpu: str, ranks: int, rate_per_s: float, prompt: int, output: int) -> float:
        rows = [f"{k / rate_per_s:.6f},{prompt},{output}" for k in range(round(150 * rate_per_s))]
        (tmp_path / "t.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
        scenario = kvsim.Scenario(
            workload={"trace": {"path": str(tmp_path / "t.csv")}},
            model=model,
            cluster={"gpu": gpu, "tensor_parallel_size": ranks, "max_model_len": 4096},
            scheduler={"name": "chunked_prefill", "max_num_seqs": 128, "max_num_batched_tokens": 2048},
            kv={"name": "paged", "gpu_memory_utilization": 0.9},
        )
        return float(kvsim.run(scenario).summary["mean_tpot_ms"])

    errors: dict[str, list[float]] = {"small": [], "70B H100": [], "70B A100-80GB": []}
    with open(shared_data / "ground_truth" / "blis_sim_to_real" / "actuals.csv", newline="") as file:
        for row in csv.DictReader(file):
            stage = int(row["stage_index"])
            spec = SPEC.search(row["workload_spec"])
            if stage < 0 or row["precision"] != "FP16" or row["model"] not in MODELS or spec is None:
                continue
            rate_per_s = float(re.findall(r"([\d.]+) rps", row["workload_spec"])[stage])
            system, question, output = map(int, spec.groups())
            model = MODELS[row["model"]]
            tpot_ms = simulate(model, GPUS[row["gpu"]], int(row["tp"]), rate_per_s, system + question, output)
            measured_ms = float(row["tpot_from_e2e_ms"])
            error = tpot_ms / measured_ms - 1
            errors[f"70B {row['gpu']}" if model == "llama-2-70b" else "small"].append(error)
            where = f"{model} on {row['tp']} x {row['gpu']}, {rate_per_s}/s"
            print(f"{where}: TPOT {tpot_ms:.2f} ms, measured {measured_ms:.2f} ({error:+.0%})")
    assert {name: len(each) for name, each in errors.items()} == {"small": 20, "70B H100": 5, "70B A100-80GB": 2}
    assert median(map(abs, errors["small"])) < 0.04
    for name, low, high in (("small", -0.04, 0.16), ("70B H100", 0.07, 0.39), ("70B A100-80GB", 0.20, 1.23)):
        assert [min(errors[name]), max(errors[name])] == pytest.approx([low, high], abs=0.01), name
