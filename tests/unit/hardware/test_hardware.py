"""The GPU catalogue, and that its constants are those that the calibration finds."""

from dataclasses import astuple
from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.costs.roofline import GENERIC
from kvsim.hardware import GPUS, calibration, load_gpu

BARE = "memory_bytes = 1000\nhbm_bytes_per_s = 1e12\nbf16_flops_per_s = 1e14\ngpu_link_bytes_per_s = 10\n"


def test_the_catalogue_covers_every_operator_and_names_its_sources() -> None:
    assert GPUS == ("a100-80gb-sxm", "h100-sxm", "l40s")
    for gpu in map(load_gpu, GPUS):
        assert set(gpu.efficiency) == set(GENERIC)
        assert set(gpu.source) == {
            "memory_bytes",
            "hbm_bytes_per_s",
            "bf16_flops_per_s",
            "gpu_link_bytes_per_s",
            "efficiency",
        }


def test_memory_is_what_the_driver_reports() -> None:
    assert {name: load_gpu(name).memory_bytes for name in GPUS} == {
        "a100-80gb-sxm": 85_100_068_864,
        "h100-sxm": 85_028_896_768,
        "l40s": 47_576_711_168,
    }


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
        "unknown GPU 'h100'; did you mean 'h100-sxm'? known: a100-80gb-sxm, h100-sxm, l40s, or a path to a .toml file"
    )


@pytest.mark.parametrize("name", GPUS)
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
    for kind, fitted, error, _ in calibration.calibrate(shared_data / "profiles", name):
        assert astuple(shipped[kind]) == pytest.approx(astuple(fitted), rel=0.01), kind
        assert error < largest_error[kind], kind
