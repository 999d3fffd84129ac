"""Factors on what operators and host take: laws of ``scale``, for both cost models that have it."""

from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.core.shape import BatchShape
from kvsim.costs.calibrated import Calibrated
from kvsim.costs.roofline import Roofline
from kvsim.costs.scale import KINDS
from kvsim.hardware import load_gpu
from kvsim.models import load_model

LLAMA, MIXTRAL, H100 = load_model("llama-3.1-8b"), load_model("mixtral-8x7b"), load_gpu("h100-sxm")
HOST = {"host_step_s": 1e-3, "host_request_s": 1e-5, "hidden_host_s": 2e-4}
SHAPES = [
    BatchShape(decode_requests=3, decode_context_tokens=5000, sampled_requests=3),
    BatchShape(
        prefill_tokens=700,
        prefill_chunk_squares=700**2,
        prefill_chunk_contexts=700 * 300,
        prefill_context_tokens=300,
        prefill_requests=1,
        decode_requests=40,
        decode_context_tokens=40_000,
        sampled_requests=41,
    ),
]
COSTS = [(Calibrated, LLAMA, 1), (Calibrated, LLAMA, 2), (Calibrated, MIXTRAL, 2), (Roofline, LLAMA, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("cost", "model", "ranks"), COSTS)
def test_a_step_is_the_sum_of_its_kinds(cost, model, ranks, shape) -> None:
    """What is added by doubling one kind is that kind's share, and the shares of all kinds make up the step."""

    def step_s(scale: dict[str, float] | None) -> float:
        return cost(**HOST, scale=scale).start(model, H100, ranks).step_s(shape)

    plain = step_s(None)
    parts = {kind: step_s({kind: 2.0}) - plain for kind in KINDS}
    together = parts.pop("operators")
    host = parts.pop("host")
    assert host == pytest.approx(1.2e-3 + 1e-5 * (shape.decode_requests + shape.prefill_requests), rel=1e-6)
    assert sum(parts.values()) == pytest.approx(together, rel=1e-9)
    assert together + host == pytest.approx(plain, rel=1e-9)
    assert step_s({"operators": 3.0, "gemm": 0.5}) - plain == pytest.approx(2 * together - 1.5 * parts["gemm"])


def test_no_factor_changes_no_bit() -> None:
    ones = dict.fromkeys(KINDS, 1.0)
    for cost in (Calibrated, Roofline):
        for shape in SHAPES:
            plain, scaled = (cost(scale=scale).start(LLAMA, H100, 1).step_s(shape) for scale in (None, ones))
            assert plain == scaled


def test_what_is_hidden_is_scaled_with_the_host() -> None:
    for cost in (Calibrated, Roofline):
        assert cost(**HOST, scale={"host": 1.5}).start(LLAMA, H100, 1).host_s == pytest.approx(3e-4)


def test_a_surface_says_how_sure_it_is_and_a_transfer_is_less_sure() -> None:
    measured, moved = (Calibrated().start(LLAMA, load_gpu(name), 1).spread for name in ("h100-sxm", "h200-sxm"))
    assert set(measured) == {"operators", "gemm", "prefill_attention", "decode_attention", "elementwise", "host"}
    assert 0.03 < measured["gemm"] < moved["gemm"] < 0.15
    assert measured["host"] == moved["host"]
    alone, shared = (set(Roofline().start(LLAMA, H100, ranks).spread) for ranks in (1, 2))
    assert shared - alone == {"all_reduce"}


@pytest.mark.parametrize("factors", [{"gem": 1.0}, {"gemm": 0.0}, {"host": -1.0}, {"gemm": float("inf")}])
def test_a_wrong_factor_is_named(factors: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"scale.{next(iter(factors))}"):
        Calibrated(scale=factors).start(LLAMA, H100, 1)


def test_a_server_file_is_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(
        "host_step_s = 2e-3\nhost_request_s = 1e-5\noperators = 1.25\nfrontend_s = 0.007\n"
        'host_spread = 0.1\noperators_spread = 0.02\nsource = "a test"\n'
    )
    told = Calibrated(host_step_s=2e-3, host_request_s=1e-5, scale={"operators": 1.25}).start(LLAMA, H100, 1)
    read = Calibrated(server=file).start(LLAMA, H100, 1)
    twice = Calibrated(server=file, scale={"operators": 0.8}).start(LLAMA, H100, 1)
    plain = Calibrated(host_step_s=2e-3, host_request_s=1e-5).start(LLAMA, H100, 1)
    for shape in SHAPES:
        assert read.step_s(shape) == told.step_s(shape)
        assert twice.step_s(shape) == pytest.approx(plain.step_s(shape), rel=1e-12)
    assert read.spread == {**plain.spread, "host": 0.1, "operators": 0.02}
    file.write_text("host_step_s = 2e-3\n")
    with pytest.raises(InputError, match=r"server.toml.*host_request_s"):
        Calibrated(server=file).start(LLAMA, H100, 1)
