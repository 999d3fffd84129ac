"""Costs from efficiency surfaces: against bounds and the roofline, laws over shapes, and a run from a scenario."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kvsim
from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.layers import Attention
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.core.surface import Factor, Surface, SurfaceFile, read_surfaces, write_surfaces
from kvsim.costs.calibrated import Calibrated
from kvsim.costs.roofline import Roofline
from kvsim.hardware import GPUS, load_gpu
from kvsim.models import load_model

LLAMA = load_model("llama-3.1-8b")
H100 = load_gpu("h100-sxm")
NO_HOST = Calibrated(host_step_s=0.0, cuda_graph_tokens=0)


def decodes(count: int, context: int) -> BatchShape:
    return BatchShape(decode_requests=count, decode_context_tokens=count * context, sampled_requests=count)


def chunk(tokens: int, context: int = 0, requests: int = 1) -> BatchShape:
    return BatchShape(
        prefill_tokens=requests * tokens,
        prefill_chunk_squares=requests * tokens * tokens,
        prefill_chunk_contexts=requests * tokens * context,
        prefill_context_tokens=requests * context,
        prefill_requests=requests,
    )


def ideal(folder: Path) -> Path:
    """A surface file that says: every bound is reached."""

    def one(*axes: str) -> Surface:
        return Surface(Factor(dict.fromkeys(axes, (1.0, 1e6)), np.ones([2] * len(axes))))

    surfaces = {
        "gemm/bfloat16": one("m", "n", "k"),
        "prefill_attention/128/bfloat16": one("span", "blocks", "group"),
        "decode_attention/128/bfloat16": one("span", "sequences", "group"),
    }
    path = folder / "ideal.json"
    path.write_text(write_surfaces(SurfaceFile("h100-sxm", "none", "made up", 1.0, surfaces)))
    return path


def prompt_attention_s(tokens: int, context: int = 0) -> float:
    """The bound of one chunk, all layers."""
    pairs, keys = tokens * context + tokens**2 / 2, tokens + context
    one, two, three, four = (np.array([float(each)]) for each in (pairs, tokens, keys, 1))
    return LLAMA.layers * float(operators.prefill_attention(H100, one, two, three, four, 32, 8, 128).bound_s[0])


def test_at_full_utilisation_attention_takes_its_bound(tmp_path: Path) -> None:
    cost = replace(NO_HOST, surfaces=ideal(tmp_path)).start(LLAMA, H100, 1)
    longer, shorter = (cost.step_s(decodes(64, context)) for context in (8191, 4095))  # both where a piece begins
    kv_bytes = 64 * 4096 * LLAMA.kv_bytes_per_token()
    assert longer - shorter == pytest.approx(kv_bytes / H100.hbm_bytes_per_s, rel=1e-9)
    behind, alone = (cost.step_s(chunk(1024, context)) for context in (8192, 0))
    pairs = 1024 * 8192
    assert behind - alone == pytest.approx(4 * 32 * 128 * 32 * pairs / H100.bf16_flops_per_s, rel=1e-9)
    assert behind - alone == pytest.approx(prompt_attention_s(1024, 8192) - prompt_attention_s(1024), rel=1e-9)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_gpu_without_surfaces_is_priced_as_the_roofline_does_and_says_so(tp: int) -> None:
    gpu = load_gpu("mi300x")
    host_step_s = Roofline().host_step_s
    cost = Calibrated(cuda_graph_tokens=0, host_step_s=host_step_s).start(LLAMA, gpu, tp)
    roofline = Roofline().start(LLAMA, gpu, tp)
    for shape in (decodes(1, 1), decodes(17, 1000), decodes(256, 8000), chunk(2048), chunk(512, 4096), chunk(64, 0, 9)):
        assert cost.step_s(shape) == pytest.approx(roofline.step_s(shape), rel=1e-9), shape
    assert cost.notes == ("no measured surfaces of mi300x: three constants per operator",)
    assert set(cost.generic_operators) == set(roofline.generic_operators)


@given(
    gpu=st.sampled_from(["a100-80gb-sxm", "h100-sxm", "l40s"]),
    count=st.integers(1, 300),
    contexts=st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)),
)
def test_more_context_never_takes_less_time(gpu: str, count: int, contexts: tuple[int, int]) -> None:
    cost = STARTED[gpu]
    less, more = (
        cost.step_s(BatchShape(decode_requests=count, decode_context_tokens=c, sampled_requests=count))
        for c in sorted(contexts)
    )
    assert less <= more


STARTED = {name: Calibrated().start(LLAMA, load_gpu(name), 1) for name in ("a100-80gb-sxm", "h100-sxm", "l40s")}


@given(count=st.integers(1, 130), context=st.integers(0, 9000), steps=st.integers(1, 300))
def test_a_stretch_is_its_steps_to_the_last_bit(count: int, context: int, steps: int) -> None:
    cost = STARTED["h100-sxm"]
    first = BatchShape(decode_requests=count, decode_context_tokens=context, sampled_requests=count)
    alone = [
        cost.step_s(
            BatchShape(decode_requests=count, decode_context_tokens=context + i * count, sampled_requests=count)
        )
        for i in range(steps)
    ]
    assert list(cost.steps_s(first, steps)) == alone


@pytest.mark.parametrize(
    ("tokens", "graph"), [(1, 1), (3, 4), (5, 8), (9, 16), (250, 256), (257, 272), (500, 512), (513, 513)]
)
def test_small_batches_compute_the_next_captured_size(tmp_path: Path, tokens: int, graph: int) -> None:
    """Sizes of vLLM: 1, 2, 4, every 8 up to 256, then every 16."""
    surfaces = ideal(tmp_path)
    padded = Calibrated(surfaces=surfaces).start(LLAMA, H100, 1)
    bare = Calibrated(surfaces=surfaces, cuda_graph_tokens=0).start(LLAMA, H100, 1)
    linear_s = padded.step_s(chunk(tokens)) - prompt_attention_s(tokens)
    assert linear_s == pytest.approx(bare.step_s(chunk(graph)) - prompt_attention_s(graph), rel=1e-9)


def test_weights_come_from_memory_not_from_the_cache_of_a_benchmark() -> None:
    """One token of Llama-2-7B on an L40S, whose L2 would hold each matrix of a layer."""
    model, gpu = load_model("llama-2-7b"), load_gpu("l40s")
    seconds = NO_HOST.start(model, gpu, 1).step_s(decodes(1, 16))
    weights = 2 * (model.parameters() - model.vocab_size * model.hidden_size)  # one row of the embedding is read
    share = read_surfaces(gpu.surfaces["vllm"]).stream_share
    assert 1.0 < seconds / (weights / (gpu.hbm_bytes_per_s * share)) < 1.25


def test_a_gpu_known_by_its_data_sheet_takes_the_utilisation_of_a_relative() -> None:
    h100, h200 = (NO_HOST.start(LLAMA, load_gpu(name), 1) for name in ("h100-sxm", "h200-sxm"))
    assert "h200-sxm: utilisation measured on h100-sxm, bounds of its own data sheet" in h200.notes
    memory_bound = decodes(200, 4000)
    assert 1.3 < h100.step_s(memory_bound) / h200.step_s(memory_bound) < 4.8 / 3.35
    compute_bound = chunk(8192)
    assert h100.step_s(compute_bound) / h200.step_s(compute_bound) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", GPUS)
def test_every_gpu_of_the_catalogue_can_be_priced(name: str) -> None:
    cost = Calibrated().start(LLAMA, load_gpu(name), 1)
    assert 0 < cost.step_s(decodes(1, 100)) < cost.step_s(decodes(64, 1000)) < cost.step_s(chunk(8192)) < 10


def test_an_engine_that_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match=r"engine: 'lmdeploy' was not measured on h100-sxm; known: .*vllm"):
        Calibrated(engine="lmdeploy").start(LLAMA, H100, 1)


def test_an_engine_that_nobody_measured_is_refused_without_surfaces_too() -> None:
    with pytest.raises(InputError, match=r"engine: 'typo' was not measured; known: .*vllm"):
        Calibrated(engine="typo", host="vllm").start(LLAMA, replace(H100, surfaces={}), 1)


def test_constants_of_an_operator_that_does_not_exist_are_refused() -> None:
    gpu = replace(H100, efficiency={"gem": H100.efficiency["gemm"]})
    with pytest.raises(InputError, match=r"efficiency.gem: h100-sxm: unknown operator kind"):
        Calibrated().start(LLAMA, gpu, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as surfaces"),
        ("[]", "not a surface"),
        ('{"surfaces": {"gemm/bfloat16": {"utilisation": {"axes": {"m": [2, 1]}, "values": [1, 1]}}}}', "axis m needs"),
        ('{"surfaces": {"gemm/bfloat16": {"utilisation": {"axes": {"m": [1, 2]}, "values": [1, 0]}}}}', "above 0"),
        ('{"surfaces": {"gemm/bfloat16": {}}}', "surfaces.gemm/bfloat16: not a surface: KeyError('utilisation')"),
    ],
)
def test_a_broken_surface_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        Calibrated(surfaces=path).start(LLAMA, H100, 1)
    assert str(path) in str(refused.value)
    assert message in str(refused.value)


def test_a_scenario_can_name_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,1000,20\n0.1,500,30\n")
    scenario = {
        "workload": {"trace": {"path": str(tmp_path / "t.csv")}},
        "model": "llama-3.1-8b",
        "cluster": {"gpu": "h200-sxm"},
    }
    own = kvsim.run(kvsim.Scenario(**scenario, cost={"name": "calibrated", "engine": "vllm"})).summary
    file = kvsim.run(
        kvsim.Scenario(**scenario, cost={"name": "calibrated", "surfaces": str(H100.surfaces["vllm"])})
    ).summary
    assert own["mean_tpot_ms"] == file["mean_tpot_ms"]
    assert 2 < own["mean_tpot_ms"] < 10


# ---- fewer bits


@pytest.mark.parametrize(
    ("stored", "shape", "least", "most"),
    [
        (LLAMA.with_quantization("fp8"), chunk(8192), 0.5, 0.75),  # GEMMs twice as fast, attention as before
        (
            LLAMA.with_quantization("fp8"),
            decodes(1, 1),
            0.55,
            0.75,
        ),  # half the bytes of weights; head and small kernels stay
        (LLAMA.with_kv_cache_dtype("fp8"), decodes(64, 16384), 0.5, 0.65),  # half the bytes of KV
        (LLAMA.with_kv_cache_dtype("fp8"), decodes(1, 1), 0.99, 1.01),
    ],
)
def test_fewer_bits_take_less_time(stored: ModelSpec, shape: BatchShape, least: float, most: float) -> None:
    """What halves is halved at best, and what stays in 16 bit stays: bounds from counts of bytes and operations."""
    full_s = NO_HOST.start(LLAMA, H100, 1).step_s(shape)
    assert least < NO_HOST.start(stored, H100, 1).step_s(shape) / full_s < most


@pytest.mark.parametrize(
    ("cost", "gpu", "stored"),
    [
        (Calibrated(), "a100-80gb-sxm", LLAMA.with_quantization("fp8")),  # has no 8-bit arithmetic in floating point
        (Calibrated(), "a100-80gb-sxm", LLAMA.with_kv_cache_dtype("fp8")),
        (Calibrated(), "h100-sxm", LLAMA.with_kv_cache_dtype("nvfp4")),
        (Calibrated(), "h100-sxm", load_model("mixtral-8x7b").with_kv_cache_dtype("nvfp4")),
    ],
)
def test_formats_without_measurements_are_refused(cost: Calibrated, gpu: str, stored: ModelSpec) -> None:
    with pytest.raises(InputError, match="which the cost model cannot time yet") as refused:
        cost.start(stored, load_gpu(gpu), 1)
    assert refused.value.key == "model"


MIXTRAL = load_model("mixtral-8x7b")


def test_a_mixture_reads_the_experts_that_its_tokens_wake() -> None:
    """One token wakes two of Mixtral's eight experts, four wake 5.5 by chance, 64 all; on two GPUs each reads half of
    every one."""
    a_layer = 3 * 4096 * 14336 * 2 / (0.9115 * H100.hbm_bytes_per_s)  # s for one expert, at the best measured stream
    one, four, many = (replace(NO_HOST).start(MIXTRAL, H100, 2).step_s(decodes(n, 1)) for n in (1, 4, 64))
    bound_s = 32 * a_layer / 2
    assert one > 2 * bound_s
    assert four > 5.46 * bound_s
    assert many > 8 * bound_s
    assert four - one == pytest.approx(3.47 * bound_s, rel=0.35)
    alone = replace(NO_HOST).start(MIXTRAL, replace(H100, memory_bytes=2 * H100.memory_bytes), 1).step_s(decodes(4, 1))
    assert 1.5 * four < alone < 2 * four


def test_a_mixture_is_refused_where_its_experts_were_not_measured() -> None:
    for gpu, model, what in (
        ("a100-80gb-sxm", MIXTRAL.with_quantization("fp8"), "fp8 weights"),
        (
            "a100-80gb-sxm",
            load_model("gpt-oss-20b"),
            "a mixture of experts, not measured on a100-80gb-sxm in mxfp4_weight",
        ),
        ("h100-sxm", load_model("deepseek-v3.2"), "sparse attention"),
        ("h100-sxm", load_model("qwen3-next-80b-a3b"), "linear attention"),
    ):
        with pytest.raises(InputError, match=what):
            Calibrated().start(model, load_gpu(gpu), 2)
    mixer = MIXTRAL.stack[0].mixer
    assert isinstance(mixer, Attention)
    layer = replace(MIXTRAL.stack[0], mixer=replace(mixer, heads=30, kv_heads=6))
    with pytest.raises(InputError, match="3 ranks cannot share the 14336 columns of an expert"):
        Calibrated().start(replace(MIXTRAL, stack=(layer,) * 32), H100, 3)


def test_a_gpu_that_reaches_more_of_its_data_sheet_than_its_relative_is_faster() -> None:
    gpu = load_gpu("rtx-4090")
    same = replace(gpu, transfer_memory=1.0, transfer_compute=1.0)
    for shape, gain in ((decodes(64, 2000), gpu.transfer_memory), (chunk(2048), gpu.transfer_compute)):
        slow, fast = (NO_HOST.start(LLAMA, each, 1).step_s(shape) for each in (same, gpu))
        assert slow / gain < fast < slow
        assert fast == pytest.approx(slow / gain, rel=0.06)


def test_what_a_gpu_reaches_more_of_holds_for_the_relative_it_names_alone(tmp_path: Path) -> None:
    """With surfaces of another GPU, or of its own, the data sheet counts as it stands."""
    gpu, cost = load_gpu("rtx-4090"), replace(NO_HOST, surfaces=ideal(tmp_path))
    same = replace(gpu, transfer_memory=1.0, transfer_compute=1.0)
    mine, shape = replace(gpu, name="mine"), decodes(64, 2000)
    assert cost.start(LLAMA, gpu, 1).step_s(shape) == cost.start(LLAMA, same, 1).step_s(shape)
    of_its_relative = NO_HOST.start(LLAMA, gpu, 1).step_s(shape)
    assert NO_HOST.start(LLAMA, mine, 1).step_s(shape) == of_its_relative
    path = tmp_path / "own.json"
    path.write_text(ideal(tmp_path).read_text().replace("h100-sxm", "rtx-4090"))
    cost = replace(NO_HOST, surfaces=path)
    assert cost.start(LLAMA, mine, 1).step_s(shape) == cost.start(LLAMA, same, 1).step_s(shape)
