"""The defaults of vLLM 0.33 (CONVENTIONS, section 8)."""

import pytest

from kvsim.core.hardware import Gpu
from kvsim.scenario.presets import GIB, PRESETS

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
