"""The memory ledger against KV pools that vLLM logged."""

import csv
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from kvsim.core.errors import InputError
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec, Quantization
from kvsim.hardware import load_gpu
from kvsim.kv.memory import ENGINES, KVLedger, kv_ledger
from kvsim.models import load_model

H100 = load_gpu("h100-sxm")
VLLM = ENGINES["vllm@0.33"]
GPUS = {
    "H100-80GB-HBM3": H100,
    "RTX 4090 (25250627584 B)": replace(H100, name="rtx-4090", memory_bytes=25_250_627_584),
}
SCOUT = "RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic"


def scout_fp8() -> ModelSpec:
    """The checkpoint's matrices of 8 bit: MLPs and experts; attention, ends, routers and encoder stay."""
    model = load_model("llama-4-scout")
    return replace(model, quantization=Quantization("fp8", 1.0, ("mlp", "experts")))


MODELS = {
    "meta-llama/Llama-2-7b-hf": load_model("llama-2-7b"),
    "meta-llama/Llama-2-70b-hf": load_model("llama-2-70b"),
    "meta-llama/Llama-3.1-8B": load_model("llama-3.1-8b"),
    "Qwen/Qwen2.5-7B-Instruct": load_model("qwen2.5-7b"),
    "Qwen/Qwen3-14B": load_model("qwen3-14b"),
    "mistralai/Mistral-Nemo-Instruct-2407": load_model("mistral-nemo"),
    SCOUT: scout_fp8(),
}


def ledger(model: str | ModelSpec = "llama-2-7b", ranks: int | Layout = 1, **options: int) -> KVLedger:
    layout = ranks if isinstance(ranks, Layout) else Layout(ranks)
    spec = load_model(model) if isinstance(model, str) else model
    return kv_ledger(spec, H100, layout, 0.9, 2048, 128, 16, engine=VLLM, **options)


def test_every_byte_is_accounted_for() -> None:
    found = ledger("llama-2-70b", 4)
    rows = {row.label: row.bytes for row in found.rows()}
    assert rows == {
        "GPU memory": 85_028_896_768,
        "usable": 76_526_007_092,
        "weights": -34_490_302_464,
        "peak activation": -194_084_864,
        "CUDA runtime": -160_000_000,
        "rotary table": -4096 * 128 * 2,
        "communication": -360_000_000,
        "CUDA graphs": -462_000_000,
        "KV cache": 40_858_571_188,
        "fragmentation": -807_348,
    }
    taken = ("weights", "peak activation", "CUDA runtime", "rotary table", "communication", "CUDA graphs")
    assert rows["usable"] + sum(rows[label] for label in taken) == rows["KV cache"]
    assert found.block_bytes == 16 * 81_920
    assert rows["KV cache"] + rows["fragmentation"] == found.num_gpu_blocks * found.block_bytes
    assert (found.num_gpu_blocks, found.blocks, found.tokens) == (31_172, 31_171, 498_736)


def test_pools_that_vllm_logged(shared_data: Path) -> None:
    """All nine, at the utilisation that is stated for them.

    Qwen3-14B (vLLM 0.23) is impossible with its 0.9, as weights and pool exceed it; with 0.92 the ledger is 1.5 % off.
    Scout is 11 % off: 1.4 GB that vLLM kept for it are not explained.
    """
    with open(shared_data / "ground_truth" / "kv_capacity" / "kv_blocks.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["engine"].startswith("vLLM")]
    deviations = {}
    for row in rows:
        version = ".".join(row["engine"].removeprefix("vLLM ").split(".")[:2])
        found = kv_ledger(
            MODELS[row["model"]],
            GPUS[row["gpu"]],
            Layout(int(row["tp"])),
            float(row["gpu_mem_util"]),
            int(float(row["max_num_batched_tokens"])),
            int(float(row["max_num_seqs"])),
            int(row["block_size"]),
            engine=ENGINES[f"vllm@{version}"],
        )
        deviation = found.num_gpu_blocks / int(row["kv_blocks"]) - 1
        deviations[row["model"], row["tp"], row["max_num_batched_tokens"]] = abs(deviation)
        print(f"{row['model']} x{row['tp']}: {found.num_gpu_blocks} for {row['kv_blocks']} ({deviation:+.2%})")
    assert len(deviations) == 9
    assert median(deviations.values()) < 0.005
    explained = [value for (model, *_), value in deviations.items() if model not in (SCOUT, "Qwen/Qwen3-14B")]
    assert len(explained) == 7
    assert max(explained) < 0.01
    assert max(deviations.values()) < 0.12


def test_an_older_engine_samples_with_more_memory() -> None:
    """The peak of vLLM 0.15 is 61 bytes per logit, and it does not subtract CUDA graphs."""
    model = load_model("qwen2.5-7b")
    old, new = (
        kv_ledger(model, H100, Layout(), 0.9, 2048, 128, 16, engine=ENGINES[name])
        for name in ("vllm@0.15", "vllm@0.33")
    )
    assert old.activation_bytes - new.activation_bytes == 128 * 152_064 * (61 - 31)
    assert old.cuda_graph_bytes == 0


def test_the_tightest_stage_decides() -> None:
    """32 layers in 5 stages are 6, 6, 7, 7, 6: those of 7 have room for the fewest blocks."""
    found = ledger("llama-3.1-8b", Layout(pipeline_parallel_size=5))
    assert found.stage == 2
    assert found.block_bytes == 16 * 7 * 4096
    assert found.weight_bytes == load_model("llama-3.1-8b").weight_bytes(Layout(pipeline_parallel_size=5), 2)


def test_ranks_that_share_tokens_hold_more_of_them() -> None:
    alone = ledger("deepseek-v3", Layout(16))
    shared = ledger("deepseek-v3", Layout(16, decode_context_parallel_size=16))
    assert shared.blocks == alone.blocks
    assert shared.tokens == 16 * alone.tokens


def test_kv_of_8_bit_doubles_the_blocks() -> None:
    half = ledger(load_model("llama-2-7b").with_kv_cache_dtype("fp8"))
    assert half.num_gpu_blocks // 2 == ledger().num_gpu_blocks


def test_experts_of_a_token_need_room() -> None:
    """Two experts a token: gate and up of both (wider than the output) and their products, on two ranks."""
    found = ledger(load_model("mixtral-8x7b"), 2)
    assert found.activation_bytes == 2048 * 2 * (2 * 4096 + 2 * (2 * 7168 + 7168))


def test_a_state_of_constant_size_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"model: qwen3-next-80b-a3b has layers with a state of constant size \(39.5 MB"
    ):
        ledger("qwen3-next-80b-a3b", 4)


def test_a_layout_that_does_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="tensor_parallel_size: llama-2-7b: 3 ranks cannot share 32 attention heads"):
        ledger("llama-2-7b", 3)


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
