"""The memory ledger against KV pools that vLLM logged."""

import csv
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from kvsim.core.errors import InputError
from kvsim.core.model import ModelSpec
from kvsim.hardware import load_gpu
from kvsim.kv.memory import KVLedger, kv_ledger
from kvsim.models import load_model

H100 = load_gpu("h100-sxm")
MODELS = {
    "meta-llama/Llama-2-7b-hf": load_model("llama-2-7b"),
    "meta-llama/Llama-2-70b-hf": load_model("llama-2-70b"),
    "meta-llama/Llama-3.1-8B": load_model("llama-3.1-8b"),
    "Qwen/Qwen2.5-7B-Instruct": load_model("qwen2.5-7b"),
    "mistralai/Mistral-Nemo-Instruct-2407": ModelSpec("nemo", 40, 5120, 32, 8, 128, 14336, 131072, 1024000),
}
GPUS = {
    "H100-80GB-HBM3": H100,
    "RTX 4090 (25250627584 B)": replace(H100, name="rtx-4090", memory_bytes=25_250_627_584),
}


def ledger(model: str = "llama-2-7b", ranks: int = 1, **options: int) -> KVLedger:
    return kv_ledger(load_model(model), H100, ranks, 0.9, 2048, 128, 16, **options)


def test_every_byte_is_accounted_for() -> None:
    found = ledger("llama-2-70b", 4)
    rows = {row.label: row.bytes for row in found.rows()}
    assert rows == {
        "GPU memory": 85_028_896_768,
        "usable": 76_526_007_092,
        "weights": -34_490_302_464,
        "peak activation": -194_084_864,
        "other": -521_048_576,
        "CUDA graphs": -462_000_000,
        "KV cache": 40_858_571_188,
    }
    assert sum(rows.values()) - rows["GPU memory"] == 2 * found.kv_bytes
    assert found.block_bytes == 16 * 81_920
    assert (found.num_gpu_blocks, found.blocks, found.tokens) == (31_172, 31_171, 498_736)


def test_pools_that_vllm_logged(shared_data: Path) -> None:
    with open(shared_data / "ground_truth" / "kv_capacity" / "kv_blocks.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] in MODELS and row["engine"].startswith("vLLM")]
    deviations = []
    for row in rows:
        found = kv_ledger(
            MODELS[row["model"]],
            GPUS[row["gpu"]],
            int(row["tp"]),
            float(row["gpu_mem_util"]),
            int(float(row["max_num_batched_tokens"])),
            int(float(row["max_num_seqs"])),
            int(row["block_size"]),
            cuda_graphs=False,  # these are versions before 0.21
        )
        deviations.append(found.num_gpu_blocks / int(row["kv_blocks"]) - 1)
        print(f"{row['model']} x{row['tp']}: {found.num_gpu_blocks} for {row['kv_blocks']} ({deviations[-1]:+.2%})")
    assert len(deviations) == 7
    assert max(map(abs, deviations)) < 0.015
    assert median(map(abs, deviations)) < 0.01


def test_the_number_that_an_engine_logged() -> None:
    found = ledger(num_gpu_blocks_override=7425)
    assert (found.num_gpu_blocks, found.blocks, found.kv_bytes) == (7425, 7424, 7425 * 16 * 524_288)
    assert [(row.label, row.bytes) for row in found.rows()] == [
        ("GPU memory", 85_028_896_768),
        ("weights", -13_476_831_232),
        ("KV cache", 7425 * 16 * 524_288),
    ]


def test_a_pool_of_given_bytes() -> None:
    assert ledger(kv_cache_memory_bytes=10**9).num_gpu_blocks == 10**9 // (16 * 524_288)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            "llama-2-70b",
            {},
            "model: llama-2-70b does not fit on h100-sxm with tensor_parallel_size 1: "
            "62.48 GB per GPU are missing; tensor_parallel_size 2 would fit",
        ),
        (
            "llama-2-7b",
            {"num_gpu_blocks_override": 20_000},
            "num_gpu_blocks_override: llama-2-7b does not fit on h100-sxm with tensor_parallel_size 1: "
            "96.22 GB per GPU are missing; tensor_parallel_size 4 would fit",
        ),
        (
            "llama-2-7b",
            {"num_gpu_blocks_override": 1},
            "num_gpu_blocks_override: 1 blocks are too few: one is the null block, which holds no tokens; "
            "a block has 8388608 bytes here",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(model: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as refused:
        ledger(model, **options)
    assert str(refused.value) == message


def test_more_ranks_leave_more_blocks() -> None:
    blocks = [ledger("llama-3.1-70b", ranks).blocks for ranks in (4, 8)]
    assert blocks[0] < blocks[1] / 2
