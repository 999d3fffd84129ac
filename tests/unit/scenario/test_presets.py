"""The defaults of vLLM 0.33.0, read in ``vllm/engine/arg_utils.py`` and ``vllm/config`` and here one by one by name."""

from typing import Any

import pytest

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.hardware import GPUS, load_gpu
from kvsim.scenario import Scenario
from kvsim.scenario.presets import GIB, PRESETS
from kvsim.scenario.resolve import resolve

VLLM = PRESETS["vllm@0.33"]


def gpu(memory_gib: float, name: str = "some-gpu") -> Gpu:
    return Gpu(name, int(memory_gib * GIB), 1e12, 1e14, 1e11)


@pytest.mark.parametrize(
    ("card", "limits"),
    [
        (gpu(180), (1024, 16384)),
        (gpu(79.2), (1024, 8192)),
        (gpu(79.3, "a100-80gb-sxm"), (256, 2048)),
        (gpu(119, "GB10"), (256, 2048)),
        (gpu(44.3), (256, 2048)),
    ],
)
def test_batch_limits_follow_the_gpu(card: Gpu, limits: tuple[int, int]) -> None:
    assert VLLM.batch(card, 131072, whole_prompts=False) == limits


def test_given_limits_stay_and_the_other_follows() -> None:
    card = gpu(44.3)
    assert VLLM.batch(card, 4096, whole_prompts=False, max_num_seqs=8) == (8, 2048)
    assert VLLM.batch(card, 64, whole_prompts=False, max_num_seqs=8) == (8, 512)  # tokens <= seqs * max_model_len
    assert VLLM.batch(card, 4096, whole_prompts=False, max_num_batched_tokens=100) == (100, 100)  # seqs <= tokens


def test_whole_prompts_need_a_budget_of_the_longest() -> None:
    assert VLLM.batch(gpu(44.3), 32768, whole_prompts=True) == (256, 32768)
    assert VLLM.batch(gpu(44.3), 1024, whole_prompts=True) == (256, 2048)
    assert VLLM.batch(gpu(44.3), 64, whole_prompts=True, max_num_seqs=8) == (8, 512)  # but no more than can be needed


API_SERVER = {
    "a100-40gb-sxm": (256, 2048),
    "a100-80gb-pcie": (256, 2048),
    "a100-80gb-sxm": (256, 2048),
    "a10g": (256, 2048),
    "a40": (256, 2048),
    "b200-sxm": (1024, 16384),
    "gb200": (1024, 16384),
    "gh200-96gb": (1024, 8192),
    "h100-pcie": (1024, 8192),
    "h100-sxm": (1024, 8192),
    "h20-sxm": (1024, 8192),
    "h200-sxm": (1024, 8192),
    "l4": (256, 2048),
    "l40s": (256, 2048),
    "mi300x": (1024, 16384),
    "rtx-4090": (256, 2048),
    "rtx-pro-6000-server": (1024, 8192),
    "v100-32gb-sxm": (256, 2048),
}
"""max_num_seqs, max_num_batched_tokens: from 160 GiB on, from 70 GiB on but for an A100, and below."""


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_of_the_catalogue_has_the_limits_of_its_memory(name: str) -> None:
    seqs, tokens = API_SERVER[name]
    assert VLLM.batch(load_gpu(name), 131072, whole_prompts=False) == (seqs, tokens)
    assert VLLM.batch(load_gpu(name), 131072, whole_prompts=False, doubled=True) == (2 * seqs, 2 * tokens)


def scenario(**sections: Any) -> Scenario:
    workload = {"generate": {"name": "lognormal_poisson", "n": 2}}
    return Scenario(**{"workload": workload, "model": "llama-3.1-8b"} | sections)


VLLMS_OWN = {
    "cluster.tensor_parallel_size": 1,
    "cluster.pipeline_parallel_size": 1,
    "cluster.data_parallel_size": 1,
    "cluster.enable_expert_parallel": False,
    "cluster.decode_context_parallel_size": 1,
    "cluster.prefill_context_parallel_size": 1,
    "cluster.max_model_len": 131072,  # config.json
    "cluster.quantization": None,
    "scheduler.max_num_seqs": 1024,  # an H100's
    "scheduler.max_num_batched_tokens": 8192,
    "scheduler.max_num_active_seqs": None,
    "scheduler.max_num_scheduled_tokens": None,
    "scheduler.max_num_queued_reqs": None,
    "scheduler.max_num_queued_tokens": None,
    "scheduler.enable_chunked_prefill": True,
    "scheduler.long_prefill_token_threshold": 0,
    "scheduler.long_prefill_token_threshold_adaptive": False,
    "scheduler.prefill_schedule_interval": 1,
    "scheduler.scheduler_reserve_full_isl": True,
    "scheduler.watermark": 0.0,
    "scheduler.policy": "fcfs",
    "scheduler.async_scheduling": True,
    "kv.gpu_memory_utilization": 0.92,
    "kv.kv_cache_memory_bytes": None,
    "kv.num_gpu_blocks_override": None,
    "kv.block_size": 16,
    "kv.kv_cache_dtype": "auto",
    "engine.performance_mode": "balanced",
}


@pytest.mark.parametrize("key", VLLMS_OWN)
def test_a_scenario_that_says_nothing_has_the_default_of_vllm(key: str) -> None:
    section, name = key.split(".")
    assert resolve(scenario()).keys[section][name] == VLLMS_OWN[key]


def test_all_parameters_of_scheduler_and_kv_are_vllms_or_said_to_differ() -> None:
    keys = resolve(scenario()).keys
    parameters = {f"{section}.{name}" for section in ("scheduler", "kv") for name in keys[section]}
    assert parameters - set(VLLMS_OWN) == {"scheduler.name", "kv.name", "kv.enable_prefix_caching"}
    assert keys["kv"]["enable_prefix_caching"] is False  # on in vLLM: a note says so
    assert "prefix caching: off (vLLM's default is on)" in resolve(scenario()).notes


def test_for_throughput_limits_are_twice_as_large_where_they_are_not_given() -> None:
    mode = {"performance_mode": "throughput"}
    assert limits(scenario(engine=mode)) == (2048, 16384)
    assert limits(scenario(engine=mode, scheduler={"max_num_seqs": 300})) == (300, 16384)
    assert limits(scenario(engine=mode, scheduler={"max_num_batched_tokens": 4096})) == (2048, 4096)
    assert limits(scenario(engine=mode, scheduler={"max_num_batched_tokens": 1000})) == (1000, 1000)
    assert limits(scenario(engine=mode, cluster={"max_model_len": 7})) == (2048, 7 * 2048)


def limits(of: Scenario) -> tuple[int, int]:
    scheduler = resolve(of).keys["scheduler"]
    return scheduler["max_num_seqs"], scheduler["max_num_batched_tokens"]


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        (
            {"performance_mode": "interactivity"},
            "is not modelled: step times do not depend on the sizes of CUDA graphs",
        ),
        ({"performance_mode": "fast"}, "performance_mode: 'fast' is not allowed"),
        ({"preset": "vllm@0.6", "performance_mode": "throughput"}, "vllm@0.6 has no mode 'throughput'; balanced"),
    ],
)
def test_modes_that_are_not_modelled_are_refused(engine: dict[str, str], problem: str) -> None:
    with pytest.raises(InputError) as refused:
        resolve(scenario(engine=engine))
    assert problem in str(refused.value)
