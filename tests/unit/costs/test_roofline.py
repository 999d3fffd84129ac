"""The roofline against closed forms, published measurements and common sense."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.rank import GENERIC
from kvsim.costs.roofline import Roofline
from kvsim.hardware import load_gpu
from kvsim.models import load_model

A100 = load_gpu("a100-80gb-sxm")
LLAMA_2_7B = load_model("llama-2-7b")
NO_HOST = Roofline(host_step_s=0.0, host_request_s=0.0)
IDEAL = Efficiency(compute=1.0, memory=1.0, fixed_s=0.0)


def step(
    chunks: tuple[tuple[int, int], ...] = (), contexts: tuple[int, ...] = (), sampled: int | None = None
) -> BatchShape:
    """Chunks as (tokens, context before), decodes as contexts."""
    return BatchShape(
        prefill_tokens=sum(tokens for tokens, _ in chunks),
        prefill_chunk_squares=sum(tokens * tokens for tokens, _ in chunks),
        prefill_chunk_contexts=sum(tokens * context for tokens, context in chunks),
        prefill_context_tokens=sum(context for _, context in chunks),
        prefill_requests=len(chunks),
        decode_requests=len(contexts),
        decode_context_tokens=sum(contexts),
        decode_context_squares=sum(context * context for context in contexts),
        sampled_requests=len(chunks) + len(contexts) if sampled is None else sampled,
    )


def test_a_lone_decode_on_an_ideal_gpu_reads_weights_and_kv_once() -> None:
    gpu = Gpu("ideal", 2**40, 1e12, 1e18, 1e12, dict.fromkeys(GENERIC, IDEAL))
    model = ModelSpec.dense("tiny", 2, 64, 4, 2, 16, 128, 1000, 4096)
    cost = NO_HOST.start(model, gpu, 1)
    weights = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128) + 1000 * 64
    gemm_io = 2 * ((64 + 128) + (64 + 64) + (64 + 256) + (128 + 64)) + (64 + 1000)
    elementwise = 2 * (2 * 4 * 64 + 2 * (64 + 32) + 4 * 32 + 3 * 128)
    attention = 2 * (2 * 32 * (100 + 1) + 2 * 64)
    values = weights + gemm_io + elementwise + attention
    assert cost.step_s(step(contexts=(100,))) == pytest.approx(2 * values / 1e12, rel=1e-12)


def test_a_long_prompt_on_an_ideal_gpu_is_its_arithmetic() -> None:
    gpu = Gpu("ideal", 2**40, 1e18, 1e12, 1e12, dict.fromkeys(GENERIC, IDEAL))
    model = ModelSpec.dense("tiny", 2, 64, 4, 2, 16, 128, 1000, 4096)
    cost = NO_HOST.start(model, gpu, 1)
    gemms = 2 * 100 * 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128) + 2 * 1 * 1000 * 64
    attention = 2 * 4 * 64 * (100 * 300 + 100 * 100 / 2)
    elementwise_bytes = 2 * 100 * 2 * (2 * 4 * 64 + 2 * (64 + 32) + 4 * 32 + 3 * 128)
    expected = (gemms + attention) / 1e12 + elementwise_bytes / 1e18
    assert cost.step_s(step(chunks=((100, 300),))) == pytest.approx(expected, rel=1e-12)


def test_a_lone_decode_of_llama_2_7b_takes_its_weights_over_the_bandwidth() -> None:
    seconds = Roofline().start(LLAMA_2_7B, A100, 1).step_s(step(contexts=(512,)))
    read_weights_s = 2 * LLAMA_2_7B.parameters() / A100.hbm_bytes_per_s
    assert 1.2 < seconds / read_weights_s < 1.8


def test_a_prompt_of_2048_tokens_reaches_half_to_all_of_the_fitted_peak() -> None:
    seconds = Roofline().start(LLAMA_2_7B, A100, 1).step_s(step(chunks=((2048, 0),)))
    flops = 2 * 2048 * (LLAMA_2_7B.parameters() - 2 * 32000 * 4096)
    assert 0.5 < flops / seconds / A100.bf16_flops_per_s < A100.efficiency["gemm"].compute


def test_two_gpus_nearly_halve_large_batches_and_pay_the_all_reduce() -> None:
    one, two = (Roofline().start(LLAMA_2_7B, A100, ranks).step_s(step(chunks=((2048, 0),))) for ranks in (1, 2))
    assert 0.5 < two / one < 0.65


@given(
    chunks=st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 3000)), max_size=4),
    contexts=st.lists(st.integers(0, 4000), max_size=20),
    more=st.integers(1, 500),
)
def test_more_tokens_or_more_context_never_take_less_time(
    chunks: list[tuple[int, int]], contexts: list[int], more: int
) -> None:
    cost = Roofline().start(LLAMA_2_7B, A100, 1)
    base = cost.step_s(step(tuple(chunks), tuple(contexts)))
    assert cost.step_s(step((*chunks, (more, 0)), tuple(contexts))) > base
    assert cost.step_s(step(tuple(chunks), (*contexts, more))) > base
    if chunks:
        (tokens, context), *others = chunks
        assert cost.step_s(step(((tokens + more, context), *others), tuple(contexts))) >= base
        assert cost.step_s(step(((tokens, context + more), *others), tuple(contexts))) > base
    if contexts:
        assert cost.step_s(step(tuple(chunks), (contexts[0] + more, *contexts[1:]))) > base


def test_host_time_is_added_per_step_and_request() -> None:
    shape = step(chunks=((10, 0),), contexts=(5, 6))
    without = NO_HOST.start(LLAMA_2_7B, A100, 1).step_s(shape)
    assert Roofline(2e-3, 1e-4).start(LLAMA_2_7B, A100, 1).step_s(shape) == pytest.approx(without + 2e-3 + 3e-4)


def test_a_gpu_without_measurements_gets_generic_constants_and_says_so() -> None:
    bare = replace(A100, efficiency={})
    assert Roofline().start(LLAMA_2_7B, A100, 1).generic_operators == ()
    assert Roofline().start(LLAMA_2_7B, bare, 1).generic_operators == tuple(GENERIC)


def test_what_cannot_be_priced_is_refused() -> None:
    with pytest.raises(InputError) as refused:
        Roofline().start(LLAMA_2_7B, A100, 3)
    assert str(refused.value) == (
        "tensor_parallel_size: llama-2-7b: 3 ranks cannot share 32 attention heads; it must divide them"
    )
    with pytest.raises(InputError, match=r"efficiency.gem: a100-80gb-sxm: unknown operator kind"):
        Roofline().start(LLAMA_2_7B, replace(A100, efficiency={"gem": IDEAL}), 1)


def test_linear_operators_against_vidurs_of_the_same_model_and_gpu(shared_data: Path) -> None:
    """Vidur's table has GEMMs, norms, rotary embedding and activation of all layers, no LM head."""
    cost = NO_HOST.start(LLAMA_2_7B, A100, 1)
    with open(shared_data / "peer_runs" / "vidur_cost_linear_ops.csv", newline="") as file:
        rows = [(int(row["num_tokens"]), float(row["ms_all_layers"]) / 1e3) for row in csv.DictReader(file)]
    attention_fixed_s = 32 * A100.efficiency["prefill_attention"].fixed_s
    deviations = []
    for tokens, measured in rows:
        # One token attends next to nothing; the rest of the step is linear in the tokens.
        chunks = tuple((1, 0) for _ in range(tokens))
        deviations.append((cost.step_s(step(chunks, sampled=0)) - attention_fixed_s) / measured - 1)
    mean = sum(abs(deviation) for deviation in deviations) / len(deviations)
    print(f"mean |deviation| {mean:.1%}, from {min(deviations):+.1%} to {max(deviations):+.1%}")
    assert mean < 0.05
