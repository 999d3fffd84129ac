"""Layers of other kinds than full attention and a dense MLP: windows, latent attention, experts dealt out; against
counts of bytes and FLOPs, batches request by request, and the limits in which they are the plain ones."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvsim
from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency
from kvsim.core.layers import Attention, Experts, Mlp
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.calibrated import Calibrated
from kvsim.costs.pieces import PiecedStep
from kvsim.costs.rank import GENERIC
from kvsim.costs.roofline import Roofline
from kvsim.hardware import load_gpu
from kvsim.models import load_model

H100 = load_gpu("h100-sxm")
IDEAL = replace(H100, efficiency=dict.fromkeys(GENERIC, Efficiency(1.0, 1.0, 0.0)))
BARE = Roofline(host_step_s=0.0)
LLAMA = load_model("llama-3.1-8b")
V3 = load_model("deepseek-v3")


def batch(contexts: Sequence[int]) -> BatchShape:
    return BatchShape(
        decode_requests=len(contexts),
        decode_context_tokens=sum(contexts),
        decode_context_squares=sum(context**2 for context in contexts),
        sampled_requests=len(contexts),
    )


def chunk(tokens: int, context: int = 0, requests: int = 1) -> BatchShape:
    return BatchShape(
        prefill_tokens=requests * tokens,
        prefill_chunk_squares=requests * tokens**2,
        prefill_chunk_contexts=requests * tokens * context,
        prefill_context_tokens=requests * context,
        prefill_requests=requests,
    )


def with_window(window: int | None, chunked: bool = False) -> ModelSpec:
    """Llama-3.1-8B with a window in every layer."""
    layer = LLAMA.stack[0]
    assert isinstance(layer.mixer, Attention)
    mixer = replace(layer.mixer, window=window, chunked=chunked)
    return replace(LLAMA, stack=(replace(layer, mixer=mixer),) * LLAMA.layers)


# ---- windows

KV_BYTES = LLAMA.kv_bytes_per_token()


@pytest.mark.parametrize("cost", [Roofline(), Calibrated()])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_window_that_nobody_reaches_is_full_attention(cost: Roofline | Calibrated, chunked: bool) -> None:
    """With a roofline to the last digits; measured kernels with a window are others, and as fast within a tenth."""
    rel = 1e-9 if isinstance(cost, Roofline) else 0.1
    windowed, full = (cost.start(with_window(window, chunked), H100, 1) for window in (100_000, None))
    for shape in (batch([5, 700, 3000]), batch([9000] * 20), chunk(2048), chunk(300, 5000, requests=3)):
        assert windowed.step_s(shape) == pytest.approx(full.step_s(shape), rel=rel), shape


def test_one_decode_reads_its_window() -> None:
    """Bytes of KV beyond the data sheet's bandwidth: min(context + 1, window), or the rest of the chunk."""
    for chunked, contexts, read in (
        (False, (10, 4095, 4096, 100_000), (11, 4096, 4096, 4096)),
        (True, (10, 4095, 4096, 10_000), (11, 4096, 1, 10_000 % 4096 + 1)),
    ):
        cost = BARE.start(with_window(4096, chunked), IDEAL, 1)
        seconds = [cost.step_s(batch([context])) for context in contexts]
        expected = [(tokens - read[0]) * KV_BYTES / H100.hbm_bytes_per_s for tokens in read]
        assert [each - seconds[0] for each in seconds] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        mixer = with_window(4096, chunked).stack[0].mixer
        assert mixer is not None
        assert tuple(mixer.attended(context + 1) for context in contexts) == read


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("tokens", "context"), [(500, 0), (3000, 0), (512, 900), (512, 8000), (2048, 1500)])
def test_a_chunk_computes_a_band(tokens: int, context: int, chunked: bool) -> None:
    """The pairs of each query counted one by one; continuous pairs are short of half a pair a query."""
    mixer = with_window(1024, chunked).stack[0].mixer
    assert isinstance(mixer, Attention)
    exact = sum(mixer.attended(context + 1 + i) for i in range(tokens))
    assert mixer.pairs(context + tokens) - mixer.pairs(context) == pytest.approx(exact, abs=tokens)
    narrow = replace(IDEAL, bf16_flops_per_s=1e12)  # so that attention is bound by arithmetic
    windowed, full = (
        BARE.start(with_window(each, chunked), narrow, 1).step_s(chunk(tokens, context)) for each in (1024, None)
    )
    pair_s = LLAMA.layers * 4 * 32 * 128 / narrow.bf16_flops_per_s
    every = tokens * context + tokens**2 / 2
    assert full - windowed == pytest.approx((every - mixer.pairs(context + tokens) + mixer.pairs(context)) * pair_s)


LENGTHS = {
    "uniform": lambda rng, n: 2 * rng.random(n),
    "normal": lambda rng, n: np.maximum(rng.normal(1, 0.3, n), 0.01),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "log-normal": lambda rng, n: rng.lognormal(-0.5, 1, n),
}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_tokens_read_by_a_batch_with_a_window(lengths: str) -> None:
    """What the totals of a batch say about the tokens it reads, against the sum over its requests: mean |error|
    over batches of 64, whose mean context is an eighth to eight times the window."""
    rng, window = np.random.default_rng(1), 4096
    cost = BARE.start(with_window(window), IDEAL, 1)
    none_s = cost.step_s(batch([0] * 64))
    worst = 0.0
    for scale in 2.0 ** np.arange(-3, 4):
        errors = []
        for _ in range(50):
            contexts = np.round(window * scale * LENGTHS[lengths](rng, 64)).astype(int)
            read = np.minimum(contexts, window - 1).sum() * KV_BYTES / H100.hbm_bytes_per_s
            errors.append(abs((cost.step_s(batch(contexts.tolist())) - none_s) / read - 1))
        worst = max(worst, float(np.mean(errors)))
    print(f"{lengths}: at worst {worst:.1%}")
    assert worst < 0.14


@given(
    contexts=st.lists(st.integers(0, 9000), min_size=1, max_size=12),
    steps=st.one_of(st.integers(1, 8), st.integers(36, 60), st.integers(200, 300)),
    chunked=st.booleans(),
    measured=st.booleans(),
)
def test_a_stretch_is_its_steps_to_the_last_bit(contexts: list[int], steps: int, chunked: bool, measured: bool) -> None:
    cost = WINDOWED[chunked, measured]
    alone = [cost.step_s(batch([context + i for context in contexts])) for i in range(steps)]
    assert list(cost.steps_s(batch(contexts), steps)) == alone
    if cost.longest_last:
        assert sorted(alone) == alone


WINDOWED = {
    (chunked, measured): (Calibrated() if measured else Roofline()).start(with_window(2048, chunked), H100, 1)
    for chunked in (False, True)
    for measured in (False, True)
}


def test_literature_mistral_reads_half_of_8192_tokens_with_its_window() -> None:
    """Mistral-7B, arXiv 2310.06825: a rolling buffer of 4,096 tokens keeps and reads 8 times less at 32K tokens."""
    mistral = load_model("mistral-7b-v0.1")
    assert mistral.kv_bytes(32_768) * 8 == 32_768 * mistral.kv_bytes_per_token()
    cost = BARE.start(mistral, IDEAL, 1)
    short, window, long = (cost.step_s(batch([context])) for context in (0, 4095, 32_767))
    assert long == pytest.approx(window, rel=1e-12)
    assert window - short == pytest.approx(4095 * mistral.kv_bytes_per_token() / H100.hbm_bytes_per_s, rel=1e-9)


# ---- latent attention


def test_a_latent_decode_reads_576_values_a_token_once_for_all_heads() -> None:
    """DeepSeek-V3 on eight GPUs: 16 heads a rank, bound by memory; every rank reads the whole vector."""
    cost = BARE.start(V3, IDEAL, 8)
    more = cost.step_s(batch([8191] * 64)) - cost.step_s(batch([4095] * 64))  # both where a piece begins
    assert more == pytest.approx(64 * 4096 * 576 * 2 * 61 / H100.hbm_bytes_per_s, rel=1e-9)


def test_a_latent_decode_of_128_heads_is_bound_by_arithmetic_on_a_gpu_with_little_of_it() -> None:
    """2 x 128 x (576 + 512) FLOPs against 1,152 bytes: 242 FLOPs a byte."""
    assert pytest.approx(242, abs=0.5) == 2 * 128 * (576 + 512) / 1152
    slow = replace(IDEAL, bf16_flops_per_s=200 * IDEAL.hbm_bytes_per_s)
    cost = BARE.start(V3, replace(slow, fp8_flops_per_s=1e30), 1)
    more = cost.step_s(batch([8191] * 64)) - cost.step_s(batch([4095] * 64))
    assert more == pytest.approx(64 * 4096 * 2 * 128 * 1088 * 61 / slow.bf16_flops_per_s, rel=1e-9)


def test_a_prompt_restores_keys_and_values_of_each_head() -> None:
    """Attention of a prompt: keys of 192 and values of 128 per head; behind a context, its latent vectors are
    restored again: 2 x 512 x 128 x 256 FLOPs a token and layer."""
    flops = 1e12
    cost = BARE.start(V3, replace(IDEAL, bf16_flops_per_s=flops, fp8_flops_per_s=flops), 1)
    behind, alone = cost.step_s(chunk(1024, 8192)), cost.step_s(chunk(1024))
    pairs, restored = 2 * 128 * 320 * 1024 * 8192 * 61, 2 * 512 * 128 * 256 * 8192 * 61
    assert behind - alone == pytest.approx((pairs + restored) / flops, rel=1e-6)


def test_a_latent_step_computes_twice_the_active_parameters_per_token() -> None:
    """37 billion of DeepSeek-V3 (arXiv 2412.19437) are active per token, LM head included."""
    flops = 1e9  # so slow that bytes do not matter
    slow = replace(IDEAL, bf16_flops_per_s=flops, fp8_flops_per_s=flops)
    one, two = (BARE.start(V3, slow, 1).step_s(chunk(4096 * n, requests=1)) for n in (1, 2))
    attention = 2 * 128 * 320 * 61 * (8192**2 - 4096**2) / 2
    per_token = ((two - one) * flops - attention) / 4096 + 2 * 129280 * 7168
    assert per_token == pytest.approx(2 * V3.active_parameters(), rel=1e-3)
    assert V3.active_parameters() == pytest.approx(37e9, rel=0.02)


@pytest.mark.parametrize("gpu", ["h100-sxm", "b200-sxm", "l40s"])
def test_more_context_never_takes_less_time_with_latent_attention(gpu: str) -> None:
    cost = Calibrated().start(load_model("deepseek-v2-lite"), load_gpu(gpu), 1)
    for decodes in (1, 16, 200):
        seconds = [cost.step_s(batch([context] * decodes)) for context in range(0, 20_000, 500)]
        assert sorted(seconds) == seconds


# ---- experts


def test_dealt_out_experts_read_as_many_weights_as_slices() -> None:
    """DeepSeek-V3's experts on eight GPUs: an eighth of the bytes either way, but the inputs and outputs of the experts
    of others stay away."""
    dealt = Layout(8, enable_expert_parallel=True)
    slices, whole = (BARE.start(V3, IDEAL, 8, layout) for layout in (None, dealt))
    for tokens in (1, 5, 256):  # a rank has one expert whole or an eighth of eight; five whole; all of its own
        more = slices.step_s(batch([10] * tokens)) - whole.step_s(batch([10] * tokens))
        rows = 8 * tokens * 7 / 8
        assert more == pytest.approx(58 * rows * 7168 * (1 + 2) / H100.hbm_bytes_per_s, rel=0.02), tokens


def test_a_mixture_by_the_roofline_reads_the_experts_that_are_awake() -> None:
    """Mixtral: an expert has 3 x 4,096 x 14,336 weights in each of 32 layers; one token wakes two of the eight, four
    wake 8 (1 - 0.75^4) = 5.47 in the mean, if each chooses at random."""
    cost = BARE.start(load_model("mixtral-8x7b"), IDEAL, 1)
    one, four = (cost.step_s(batch([0] * n)) for n in (1, 4))
    more = 8 * (1 - 0.75**4) - 2
    assert four - one == pytest.approx(more * 3 * 4096 * 14336 * 2 * 32 / H100.hbm_bytes_per_s, rel=0.01)


def test_dense_layers_before_a_mixture_are_counted_as_such() -> None:
    model = load_model("deepseek-moe-16b")
    kinds = [(type(layer.mlp), count) for layer, count in model.groups()]
    assert sorted(kinds, key=str) == sorted([(Mlp, 1), (Experts, 27)], key=str)
    seconds = BARE.start(model, IDEAL, 1).step_s(batch([0] * 4096))
    read_s = 2 * (model.parameters() - model.vocab_size * model.hidden_size) / H100.hbm_bytes_per_s
    assert seconds > read_s


def test_experts_in_use_are_those_that_random_choice_finds() -> None:
    """The closed form against drawing: 24 tokens, each eight different experts of 128."""
    rng = np.random.default_rng(0)
    drawn = [len({int(e) for _ in range(24) for e in rng.choice(128, 8, replace=False)}) for _ in range(300)]
    assert float(operators.awake_experts(24, 8, 128)) == pytest.approx(float(np.mean(drawn)), rel=0.01)


@pytest.mark.parametrize("gpu", ["h100-sxm", "b200-sxm"])
def test_a_measured_mixture_of_its_own_reads_its_weights_at_most_twice_over(gpu: str) -> None:
    """Mixtral 8x7B's experts were measured: a full batch takes its weights' time at 45 to 100 % of the bandwidth."""
    model = load_model("mixtral-8x7b")
    seconds = Calibrated(host_step_s=0.0).start(model, load_gpu(gpu), 2).step_s(batch([10] * 64))
    bound_s = model.weight_bytes(Layout(2)) / load_gpu(gpu).hbm_bytes_per_s
    assert 0.95 < seconds / bound_s < 2.2


# ---- all kinds


@pytest.mark.parametrize("cost", [Roofline(), Calibrated()])
@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("mistral-7b-v0.1", 1),
        ("gemma-2-9b", 1),
        ("gemma-3-27b", 1),
        ("gpt-oss-20b", 1),
        ("gpt-oss-120b", 2),
        ("llama-4-scout", 8),
        ("opt-13b", 1),
        ("bloom-7b1", 1),
        ("phi-mini-moe", 1),
        ("smallthinker-21b-a3b", 1),
        ("deepseek-moe-16b", 1),
        ("deepseek-v2-lite", 1),
        ("deepseek-v3", 8),
        ("kimi-k2", 8),
        ("glm-4.5-air", 4),
    ],
)
def test_models_of_every_kind_take_at_least_their_bytes_and_not_ten_times_as_long(
    cost: Roofline | Calibrated, name: str, ranks: int
) -> None:
    model, gpu = load_model(name), load_gpu("h100-sxm")
    step = cost.start(model, gpu, ranks)
    layout = Layout(ranks)
    vocabulary = 2 * model.weights(layout)["embedding"] * (not model.tied_embeddings)
    bound_s = (model.weight_bytes(layout) - vocabulary + 256 * model.kv_bytes(2000, layout)) / gpu.hbm_bytes_per_s
    assert 1.0 < step.step_s(batch([2000] * 256)) / bound_s < 3.5
    bound_s = 2 * model.active_parameters() * 8192 / ranks / gpu.bf16_flops_per_s / 2  # half: weights of 8 bit
    assert 1.0 < step.step_s(chunk(8192)) / bound_s < 12


@pytest.mark.parametrize(("name", "cluster"), [
    ("gpt-oss-20b", {}),
    ("deepseek-v3", {"gpu": "h200-sxm", "tensor_parallel_size": 8, "enable_expert_parallel": True}),
    ("llama-4-scout", {"tensor_parallel_size": 8}),
])  # fmt: skip
def test_a_scenario_runs_step_by_step_as_it_leaps(tmp_path: Path, name: str, cluster: dict[str, object]) -> None:
    lines = [f"{i / 20},{200 + 300 * (i % 30)},{20 + 7 * (i % 11)}" for i in range(120)]
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    keys: dict[str, Any] = {
        "workload": {"trace": {"path": str(tmp_path / "t.csv")}},
        "model": name,
        "cluster": {"max_model_len": 16384, **cluster},
        "cost": "calibrated",
    }
    leap, step = (kvsim.run(kvsim.Scenario(**keys, engine={"mode": mode})).summary for mode in ("leap", "step"))
    same = {key for key in leap if key.startswith(("mean_", "p99_", "output_"))}
    assert same
    assert {key: leap[key] for key in same} == {key: step[key] for key in same}


# ---- links


def test_ranks_of_two_nodes_send_their_shares_over_the_network() -> None:
    """16 ranks on nodes of eight: an all-reduce within the node, then an eighth of the message per GPU to the other
    node and back in two hops."""
    one = replace(IDEAL, efficiency={**IDEAL.efficiency, "all_reduce": Efficiency(1.0, 1.0, 0.0)})
    rack = replace(one, gpus_per_node=16)
    model = load_model("llama-2-70b")
    near, far = (BARE.start(model, gpu, 16).step_s(chunk(4096)) for gpu in (rack, one))
    message = 4096 * 8192 * 2
    within = 2 * (15 / 16 - 7 / 8) * message / one.gpu_link_bytes_per_s  # what a larger ring sends more
    assert one.network_bytes_per_s is not None
    across = message / 8 / (0.9 * one.network_bytes_per_s) + 2 * 20e-6
    assert (far - near) / (2 * 80 + 1) == pytest.approx(across - within, rel=1e-6)  # two a layer, one of the embedding


@pytest.mark.parametrize("ranks", [2, 8])
def test_ranks_gather_the_logits_of_what_they_sample(ranks: int) -> None:
    """Each receives what the others computed: (n - 1) / n of 32,000 logits of 16 bit for each sample."""
    gpu = replace(IDEAL, efficiency={**IDEAL.efficiency, "all_reduce": Efficiency(1.0, 1.0, 0.0)})
    model = load_model("llama-2-70b")
    cost = BARE.start(model, gpu, ranks)
    sizes = {"prefill_tokens": 4096, "prefill_chunk_squares": 4096**2, "prefill_requests": 1}
    some, many = (cost.step_s(BatchShape(**sizes, sampled_requests=n)) for n in (1000, 2000))
    gathered_s = 1000 * 32_000 * 2 * (ranks - 1) / ranks / gpu.gpu_link_bytes_per_s
    computed_s = 1000 * 2 * 8192 * 32_000 / ranks / gpu.bf16_flops_per_s
    assert many - some == pytest.approx(gathered_s + computed_s, rel=1e-3)


def test_ranks_across_nodes_of_an_unknown_network_are_refused() -> None:
    model = load_model("llama-3.1-405b")
    with pytest.raises(InputError, match="16 ranks span nodes of 8 l40s, whose network_bytes_per_s is not known"):
        Roofline().start(model, load_gpu("l40s"), 16)
    with pytest.raises(InputError, match="4 ranks do not fill nodes of 3 h100-sxm"):
        Roofline().start(model, replace(H100, gpus_per_node=3), 4)
    Roofline().start(model, load_gpu("gb200"), 16)  # one NVLink domain


# ---- measured blocks that no fit has seen


def test_whole_attention_blocks_of_deepseek_as_vllm_runs_them(shared_data: Path) -> None:
    """Projections and latent decode attention together, priced from GEMMs of all models and attention kernels of
    another engine, against vLLM's own measurements of the block on an H100; from 1 ms on, where its launches, one by
    one from the host, no longer show."""
    table = pq.read_table(
        shared_data / "profiles/aiconfigurator/h100_sxm/vllm_0.24.0/mla_generation_module_perf.parquet"
    ).to_pylist()
    plain = replace(V3, quantization=None)
    deviations = []
    for heads in (16, 32, 64, 128):
        attention_only = replace(plain, stack=tuple(replace(layer, mlp=None, norms=0) for layer in plain.stack))
        step = Calibrated(host_step_s=0.0, cuda_graph_tokens=0).start(attention_only, H100, 128 // heads)
        for row in table:
            same = row["num_heads"] == heads and row["kv_cache_dtype"] == row["gemm_type"] == "bfloat16"
            if same and row["latency"] >= 1.0:
                requests, context = row["batch_size"], row["step"]
                shape = BatchShape(decode_requests=requests, decode_context_tokens=requests * context)
                reduced_s = _all_reduce_s(step, requests)
                deviations.append((step.step_s(shape) / 61 - reduced_s) / (row["latency"] / 1e3) - 1)
    mean = float(np.mean(np.abs(deviations)))
    print(f"{len(deviations)} blocks: mean |deviation| {mean:.1%}")
    assert len(deviations) > 50
    assert mean < 0.08


def _all_reduce_s(step: PiecedStep, tokens: int) -> float:
    """Seconds of the all-reduce at the end of a block, which the measurements are without."""
    seconds = step._rank.all_reduce_s(np.array([tokens]), step._rank.model.hidden_size)
    return float(seconds[0]) if isinstance(seconds, np.ndarray) else seconds
