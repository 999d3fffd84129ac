"""What each rank of a layout holds: weights, KV, state; and layouts that a model cannot be shared by."""

import pytest

from kvsim.core.errors import InputError
from kvsim.core.layers import Experts
from kvsim.core.layout import Layout
from kvsim.models import MODELS, load_model

TP, PP, DP, EP = "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "enable_expert_parallel"
DCP, PCP = "decode_context_parallel_size", "prefill_context_parallel_size"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("stages", [2, 3, 7])
def test_stages_hold_the_whole_model(name: str, stages: int) -> None:
    """Nothing lost, nothing twice but tied embeddings, which the last stage needs as its LM head."""
    model, layout = load_model(name), Layout(pipeline_parallel_size=stages)
    again = model.vocab_size * model.hidden_size if model.tied_embeddings else 0
    assert sum(model.parameters(layout, stage) for stage in range(stages)) == model.parameters() + again
    assert sum(model.kv_bytes_per_token(layout, stage) for stage in range(stages)) == model.kv_bytes_per_token()
    assert sum(model.state_bytes(layout, stage) for stage in range(stages)) == model.state_bytes()
    assert sum((model.stage(layout, stage) for stage in range(stages)), ()) == model.stack


@pytest.mark.parametrize("name", MODELS)
def test_ranks_hold_the_whole_model(name: str) -> None:
    """Matrices are split without rest or copied: together the ranks hold at least the model, at most so many copies."""
    model = load_model(name)
    for layout in (Layout(2), Layout(4), Layout(8), Layout(8, data_parallel_size=4, enable_expert_parallel=True)):
        try:
            model.check(layout)
        except InputError:
            continue
        ranks = layout.gpus
        assert model.parameters() <= ranks * model.parameters(layout) <= ranks * model.parameters()
        whole, rank = model.weights(), model.weights(layout)
        counts = {layer.mlp.count for layer in model.stack if isinstance(layer.mlp, Experts)}
        if not any(count % ranks for count in counts):
            assert ranks * rank["experts"] == whole["experts"]
        assert rank["router"] == whole["router"]


@pytest.mark.parametrize(("ranks", "share"), [(2, 0.5), (4, 0.25), (8, 0.125)])
def test_tensor_parallel_ranks_share_the_weights(ranks: int, share: float) -> None:
    model = load_model("llama-2-70b")
    assert model.parameters(Layout(ranks)) == pytest.approx(share * model.parameters(), rel=1e-3)


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    model = load_model("qwen2.5-7b")  # 4 KV heads
    assert [model.kv_bytes_per_token(Layout(ranks)) for ranks in (1, 2, 4, 28)] == [57344, 28672, 14336, 14336]


def test_a_latent_vector_is_whole_on_each_rank() -> None:
    """(512 + 64) values of 16 bit in 61 layers, whatever the tensor parallelism; formats of its own in bytes."""
    model = load_model("deepseek-v3")
    assert [model.kv_bytes_per_token(Layout(ranks)) for ranks in (1, 8, 16)] == [576 * 2 * 61] * 3
    assert model.with_kv_cache_dtype("fp8_ds_mla").kv_bytes_per_token() == 656 * 61
    assert model.with_kv_cache_dtype("nvfp4_ds_mla").kv_bytes_per_token() == 352 * 61


def test_an_indexer_keeps_a_key_of_its_own() -> None:
    """128 values of 8 bit and a float32 scale, beside the latent vector."""
    assert load_model("deepseek-v3.2").kv_bytes_per_token() == (576 * 2 + 132) * 61


def test_a_window_bounds_what_is_kept_and_read() -> None:
    """Gemma-3-27B: 52 of 62 layers see 1,024 tokens; 16 KV heads of 128."""
    model, per_layer = load_model("gemma-3-27b"), 2 * 16 * 128 * 2
    assert model.kv_bytes(1000) == 62 * 1000 * per_layer
    assert model.kv_bytes(50_000) == (10 * 50_000 + 52 * 1024) * per_layer
    assert sorted({layer.mixer.attended(50_000) for layer in model.stack if layer.mixer}) == [1024, 50_000]


def test_a_chunk_is_read_from_its_start() -> None:
    chunked = load_model("llama-4-scout").stack[0].mixer
    assert chunked is not None
    assert chunked.kind == "chunked"
    assert [chunked.attended(n) for n in (1, 8192, 8193, 16384, 20_000)] == [1, 8192, 1, 8192, 20_000 - 16384]


def test_a_state_does_not_grow() -> None:
    """Qwen3-Next: 36 layers, 32 heads of 128 x 128 values, and 3 inputs of the convolution over 8,192 channels."""
    model = load_model("qwen3-next-80b-a3b")
    assert model.state_bytes() == 36 * (32 * 128 * 128 + 3 * 8192) * 2
    assert model.state_bytes(Layout(2)) == model.state_bytes() / 2
    assert model.kv_bytes_per_token() == 12 * 2 * 2 * 256 * 2


def test_a_rank_of_a_wide_expert_layout() -> None:
    """DeepSeek-V3 on 32 GPUs, DP 4 of TP 8 with expert parallelism, counted by hand from its config.json."""
    model, hidden, layers = load_model("deepseek-v3"), 7168, 61
    heads = 128 // 8
    attention = hidden * 1536 + 1536 * heads * 192 + hidden * 576 + 512 * heads * 256 + heads * 128 * hidden
    expert = 3 * hidden * 2048
    weights = model.weights(Layout(8, data_parallel_size=4, enable_expert_parallel=True))
    assert weights["attention"] == layers * attention
    assert weights["experts"] == 58 * (256 // 32) * expert
    assert weights["mlp"] == 58 * expert + 3 * 3 * hidden * 18432 // 8  # shared expert whole, dense layers split
    assert weights["embedding"] == weights["head"] == 129280 // 8 * hidden
    assert weights["router"] == 58 * hidden * 256


def test_without_expert_parallelism_every_rank_has_a_slice_of_every_expert() -> None:
    model = load_model("mixtral-8x7b")
    sliced = model.weights(Layout(2, data_parallel_size=2))
    dealt = model.weights(Layout(2, data_parallel_size=2, enable_expert_parallel=True))
    assert sliced["experts"] == dealt["experts"] == model.weights()["experts"] / 4
    assert sliced["attention"] == model.weights(Layout(2))["attention"]


def test_experts_that_do_not_divide_go_to_the_first_ranks() -> None:
    """128 experts over 96 ranks: some hold two."""
    model = load_model("qwen3-235b-a22b")
    layout = Layout(4, data_parallel_size=24, enable_expert_parallel=True)
    assert model.weights(layout)["experts"] == 2 / 128 * model.weights()["experts"]


def test_context_ranks_share_the_tokens() -> None:
    model = load_model("deepseek-v3")
    alone, shared = Layout(8), Layout(8, decode_context_parallel_size=8)
    assert model.kv_bytes(80_000, shared) == model.kv_bytes(80_000, alone) / 8
    assert shared.gpus == 8
    assert Layout(8, prefill_context_parallel_size=2).gpus == 16


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("deepseek-v3", 674),  # 671 B of 8 bit; embeddings, head and routers of 16 bit; block scales
        ("gpt-oss-120b", 65.2),  # 60.8 GiB, arXiv 2508.10925
        ("gpt-oss-20b", 13.7),  # 12.8 GiB
        ("llama-3.1-8b", 16.06),
    ],
)
def test_the_bytes_of_a_checkpoint(name: str, gigabytes: float) -> None:
    assert load_model(name).weight_bytes() == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_quantising_when_loading() -> None:
    """Layers in 8 bit, embeddings and LM head in 16 (vLLM's online fp8)."""
    model = load_model("llama-3.1-8b").with_quantization("fp8")
    ends = 2 * 128256 * 4096
    norms = 65 * 4096
    assert model.weight_bytes() == model.parameters() + ends + norms


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("llama-3.1-8b", {TP: 3}, f"{TP}: llama-3.1-8b: 3 ranks cannot share 32 attention heads; it must divide them"),
        ("qwen2.5-7b", {TP: 7}, f"{TP}: qwen2.5-7b: 7 ranks can neither share 4 KV heads nor hold equal copies; one "),
        ("qwen2.5-7b", {TP: 28}, f"{TP}: qwen2.5-7b: 28 ranks cannot share 18944 MLP columns"),
        ("llama-3.1-8b", {PP: 33}, f"{PP}: 33 stages cannot share the 32 layers of llama-3.1-8b; at most 32"),
        ("llama-3.1-8b", {DP: 2}, f"{DP}: llama-3.1-8b has no experts to share; copies of a model are replicas"),
        ("llama-3.1-8b", {EP: True}, f"{EP}: llama-3.1-8b has no experts to share; copies of a model are replicas"),
        ("mixtral-8x7b", {TP: 4, DP: 4, EP: True}, f"{EP}: mixtral-8x7b: 16 ranks share 8 experts, so some would have"),
        (
            "qwen3-30b-a3b",
            {TP: 4, DP: 128},
            f"{DP}: qwen3-30b-a3b: 512 ranks cannot share the 768 columns of an expert",
        ),
        ("llama-3.1-8b", {TP: 4, DCP: 3}, f"{DCP}: 3 does not divide tensor_parallel_size 4"),
        ("llama-3.1-8b", {TP: 8, DCP: 2}, f"{DCP}: llama-3.1-8b: 2 tensor-parallel ranks cannot share the tokens of a"),
        ("llama-3.1-8b", {TP: 32, DCP: 8}, f"{DCP}: llama-3.1-8b: 8 tensor-parallel ranks cannot share the tokens of"),
        ("deepseek-v3", {TP: 8, DCP: 8, PCP: 2}, f"{DCP}: 8 is not allowed with {PCP} 2; 1, 2 or 16"),
        ("qwen3-next-80b-a3b", {TP: 32}, f"{TP}: qwen3-next-80b-a3b: 32 ranks cannot share 16 attention heads"),
    ],
)
def test_a_layout_that_does_not_divide_is_refused(name: str, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(name).check(Layout(**sizes))  # type: ignore[arg-type]
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(8, pipeline_parallel_size=4, data_parallel_size=2, enable_expert_parallel=True),
        Layout(16, decode_context_parallel_size=16),
        Layout(4, prefill_context_parallel_size=4, decode_context_parallel_size=16),
    ],
)
def test_combinations_that_divide_are_allowed(layout: Layout) -> None:
    load_model("deepseek-v3").check(layout)


def test_copies_of_kv_heads_may_be_spread_over_tokens() -> None:
    """Four KV heads on eight ranks: two copies of each, so two ranks can share its tokens."""
    load_model("qwen3-235b-a22b").check(Layout(8, decode_context_parallel_size=2))


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int4", "kv_cache_dtype: 'int4' is not modelled; allowed: auto, bfloat16"),
        (
            "fp8_ds_mla",
            "kv_cache_dtype: fp8_ds_mla stores latent vectors of 512 + 64 values, and llama-2-7b has others",
        ),
    ],
)
def test_a_kv_format_that_does_not_exist_or_fit_is_refused(dtype: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model("llama-2-7b").with_kv_cache_dtype(dtype)
    assert str(refused.value).startswith(message)
