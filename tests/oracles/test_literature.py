"""Published figures that follow from the shape of a model: KV bytes, FLOPs, and the times that bound them."""

import pytest

from kvsim.core.layers import Attention, KVFormat
from kvsim.core.layout import ONE_GPU
from kvsim.models import load_model

A100_FLOPS, A100_BYTES_PER_S = 312e12, 2e12


def yi_attention_flops(tokens: int) -> float:
    """Causal: each query meets half of the tokens on average, with 4 FLOPs per value of a query (QK and AV)."""
    yi = load_model("yi-34b")
    attention = yi.stack[0].mixer
    assert isinstance(attention, Attention)
    return 4 * attention.heads * attention.head_dim * yi.layers * attention.pairs(tokens)


def test_yi_34b_prefill_of_4k() -> None:
    """0.89 s on an A100: arithmetic of the weights (Fu, Long-Context Transformers, arXiv 2405.08944)."""
    assert 2 * load_model("yi-34b").active_parameters() * 4096 / A100_FLOPS == pytest.approx(0.89, rel=0.01)


def test_yi_34b_prefill_of_50k() -> None:
    """14.1 s there. That counts 2 FLOPs per pair and value of a query, where QK and AV take 4: 17.8 s."""
    weights = 2 * load_model("yi-34b").active_parameters() * 50_000
    assert (weights + yi_attention_flops(50_000) / 2) / A100_FLOPS == pytest.approx(14.1, rel=0.02)
    assert (weights + yi_attention_flops(50_000)) / A100_FLOPS == pytest.approx(17.8, rel=0.01)


@pytest.mark.parametrize(("context", "published_s"), [(4096, 8.5), (50_000, 9.8)])
def test_yi_34b_decode_of_a_screen(context: int, published_s: float) -> None:
    """250 tokens, each reading weights and KV once: 8.5 s at 4K, 9.8 s at 50K (same paper)."""
    yi = load_model("yi-34b")
    step_s = (yi.weight_bytes() + yi.kv_bytes(context)) / A100_BYTES_PER_S
    assert 250 * step_s == pytest.approx(published_s, rel=0.035)


def test_llama_2_7b_keeps_half_a_mebibyte_per_token() -> None:
    assert load_model("llama-2-7b").kv_bytes_per_token() == 2**19


@pytest.mark.parametrize(("bits", "published"), [(8, 0.26), (4, 0.13), (3, 0.10)])
def test_xquant_stores_the_input_of_a_layer(bits: int, published: float) -> None:
    """One vector of the hidden size instead of K and V, a 16 bit scale and zero per 128 (arXiv 2508.10395)."""
    llama = load_model("llama-2-7b")
    stored = llama.layers * llama.hidden_size * (bits + 32 / 128) / 8
    assert round(stored / llama.kv_bytes_per_token(), 2) == published


@pytest.mark.parametrize(("bits", "published"), [(4, 3.7), (3, 4.8), (2, 6.9)])
def test_kvquant_shrinks_kv(bits: int, published: float) -> None:
    """``bits`` a value, and 1 % outliers of 16 bit with a 16 bit index (arXiv 2401.18079)."""
    attention = load_model("llama-2-7b").stack[0].mixer
    assert isinstance(attention, Attention)
    quantised = attention.kv_bytes(ONE_GPU, KVFormat((bits + 0.01 * 32) / 8))
    assert round(attention.kv_bytes(ONE_GPU) / quantised, 1) == published


def test_swiftkv_halves_the_arithmetic_of_a_prompt_token() -> None:
    """Llama-3.1-70B: 302 to 154 GFLOP, 0.51, at 128K: half the layers compute K and V only (arXiv 2410.03960)."""
    llama, tokens = load_model("llama-3.1-70b"), 131072
    layer = llama.stack[0]
    attention = layer.mixer
    assert isinstance(attention, Attention)
    weights = layer.weights(llama.hidden_size, ONE_GPU)
    whole = 2 * (weights["attention"] + weights["mlp"]) + 4 * attention.heads * attention.head_dim * tokens / 2
    kv_only = 2 * llama.hidden_size * 2 * attention.kv_heads * attention.head_dim
    assert llama.layers * whole == pytest.approx(302e9, rel=0.03)
    assert (whole + kv_only) / (2 * whole) == pytest.approx(0.51, abs=0.01)


@pytest.mark.parametrize(
    ("name", "published_bytes"), [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama-3.1-405b", 516_096)]
)
def test_latent_attention_keeps_a_fraction(name: str, published_bytes: int) -> None:
    """Bytes of KV per token in bfloat16 (Zhao et al., Insights into DeepSeek-V3, arXiv 2505.09343, Table 1)."""
    assert load_model(name).kv_bytes_per_token() == published_bytes


def test_mistral_keeps_9600_tokens_of_8_bit_in_629_megabytes() -> None:
    model = load_model("mistral-7b").with_kv_cache_dtype("fp8")
    assert model.kv_bytes(9600) == pytest.approx(629e6, rel=1e-3)


def test_a_block_of_16_tokens_is_64_kib_in_a_layer() -> None:
    """Eight KV heads of 128 values in 16 bit, as Llama-3-8B has."""
    model = load_model("llama-3-8b")
    assert 16 * model.kv_bytes_per_token() / model.layers == 64 * 2**10
