"""The GPU catalogue, its surfaces, and that its constants are those that the calibration finds."""

from dataclasses import astuple
from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.core.surface import read_surfaces
from kvsim.costs.rank import GENERIC
from kvsim.hardware import GPUS, load_gpu
from kvsim.hardware.calibration import constants

BARE = "memory_bytes = 1000\nhbm_bytes_per_s = 1e12\nbf16_flops_per_s = 1e14\ngpu_link_bytes_per_s = 10\n"


def test_every_gpu_names_its_sources() -> None:
    assert len(GPUS) == 18
    for gpu in map(load_gpu, GPUS):
        assert {"memory_bytes", "specification"} <= set(gpu.source)
        for figure in ("idle_w", "price_usd_per_h"):
            assert (getattr(gpu, figure) is None) == (figure not in gpu.source), (gpu.name, figure)


def test_data_sheets_are_consistent() -> None:
    """Tensor peaks double with every halving of the number format, within rounding; the rest is in its usual range."""
    for gpu in map(load_gpu, GPUS):
        for wide, narrow in (
            (gpu.bf16_flops_per_s, gpu.fp8_flops_per_s),
            (gpu.fp8_flops_per_s, gpu.fp4_flops_per_s),
        ):
            assert wide is None or narrow is None or narrow / wide == pytest.approx(2, rel=0.02), gpu.name
        assert 50 <= (gpu.sm_count or 0) <= 304
        assert 6e6 <= (gpu.l2_bytes or 0) <= 256e6
        assert 0 < (gpu.idle_w or 1) < (gpu.tdp_w or 0) / 3
        assert gpu.host_link_bytes_per_s in (15.75e9, 31.5e9, 63e9, 450e9)


@pytest.mark.parametrize("name", constants.PROFILES)
def test_measured_gpus_have_constants_for_every_operator(name: str) -> None:
    assert set(load_gpu(name).efficiency) == set(GENERIC)


@pytest.mark.parametrize("name", GPUS)
def test_surfaces_are_its_own_or_those_of_a_measured_relative(name: str) -> None:
    gpu = load_gpu(name)
    for path in gpu.surfaces.values():
        assert read_surfaces(path).gpu == (gpu.surfaces_of or name)
    assert bool(gpu.surfaces) == (name not in {"v100-32gb-sxm", "mi300x"})


def test_memory_is_what_the_driver_reports() -> None:
    measured = {
        "a100-80gb-sxm": 85_100_068_864,
        "h100-sxm": 85_028_896_768,
        "l40s": 47_576_711_168,
        "rtx-4090": 25_250_627_584,
    }
    assert {name: load_gpu(name).memory_bytes for name in measured} == measured


def test_surfaces_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(BARE + 'surfaces_of = "h100-sxm"\n[surfaces]\nvllm = "mine.json"\n')
    assert load_gpu("mine.toml", tmp_path).surfaces["vllm"] == tmp_path / "mine.json"


def test_a_file_of_ones_own_needs_no_efficiencies(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(BARE)
    assert load_gpu("mine.toml", tmp_path) == Gpu("mine", 1000, 1e12, 1e14, 10.0)


def test_a_file_of_ones_own_with_efficiencies(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(BARE + "[efficiency.gemm]\ncompute = 0.5\nmemory = 1\nfixed_s = 0\n")
    assert load_gpu("mine.toml", tmp_path).efficiency == {"gemm": Efficiency(0.5, 1.0, 0.0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory = 3\n" + BARE, "memory: unknown key; did you mean 'memory_bytes'? known: name, memory_bytes"),
        (BARE.replace("1000", "80e9"), "memory_bytes: 80000000000.0 is not allowed; needed: an integer above 0"),
        (BARE.replace("1e12", "'fast'"), "hbm_bytes_per_s: 'fast' is not allowed; needed: a number, not negative"),
        (BARE.replace("1e12", "nan"), "hbm_bytes_per_s: nan is not allowed; needed: a number, not negative"),
        (BARE.replace("1e12", "0"), "hbm_bytes_per_s: 0 is not allowed; needed: a number above 0"),
        ("memory_bytes = 5\n", "hbm_bytes_per_s: missing key; needed: a number, not negative"),
        (
            "source = {memory_bytes = 3}\n" + BARE,
            "source: {'memory_bytes': 3} is not allowed; needed: a table of texts",
        ),
        ('surfaces_of = "h1"\n' + BARE, "surfaces_of: 'h1' is not a GPU; known: a100-40gb-sxm, "),
        ("surfaces = {vllm = 1}\n" + BARE, "surfaces: {'vllm': 1} is not allowed; needed: engine = a file"),
        ("sm_count = 1.5\n" + BARE, "sm_count: 1.5 is not allowed; needed: an integer above 0"),
        ("efficiency = 1\n" + BARE, "efficiency: 1 is not allowed; needed: a table"),
        (BARE + "[efficiency]\ngemm = 1\n", "efficiency.gemm: 1 is not allowed; needed: a table"),
        (
            BARE + "[efficiency.gemm]\ncompute = 1.5\nmemory = 1\nfixed_s = 0\n",
            "efficiency.gemm.compute: 1.5 is not allowed; needed: a share of the data-sheet peak",
        ),
        (
            BARE + "[efficiency.gemm]\ncompute = 1\nmemory = 1\nfixed = 0\n",
            "efficiency.gemm.fixed: unknown key; did you mean 'fixed_s'? known: compute, memory, fixed_s",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError) as refused:
        load_gpu("mine.toml", tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/mine.toml: {message}")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError) as refused:
        load_gpu("h100")
    assert str(refused.value) == (
        f"unknown GPU 'h100'; did you mean 'h100-sxm'? known: {', '.join(GPUS)}, or a path to a .toml file"
    )


@pytest.mark.parametrize("name", constants.PROFILES)
def test_the_shipped_constants_are_the_fitted_ones(shared_data: Path, name: str) -> None:
    pytest.importorskip("scipy")
    shipped = load_gpu(name).efficiency
    largest_error = {
        "gemm": 0.12,
        "prefill_attention": 0.20,
        "decode_attention": 0.22,
        "elementwise": 0.36,
        "all_reduce": 0.16,
    }
    for kind, fitted, error, _ in constants.calibrate(shared_data / "profiles", name):
        assert astuple(shipped[kind]) == pytest.approx(astuple(fitted), rel=0.01), kind
        assert error < largest_error[kind], kind
