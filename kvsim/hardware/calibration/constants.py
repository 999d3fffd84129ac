"""Fits the three constants of every operator kind to measured operator times.

    python -m kvsim.hardware.calibration.constants PROFILES_DIR [GPU ...]

prints the ``[efficiency]`` tables of the catalogue's GPUs, each with its mean absolute relative error, from a folder of
published measurements (https://github.com/ai-dynamo/aiconfigurator at 095f58a5; https://github.com/microsoft/vidur at
7d475133; https://github.com/casys-kaist/LLMServingSim at 5daddb21). Needs scipy (a development dependency).
"""

import csv
import gzip
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvsim.core.hardware import Efficiency, Gpu
from kvsim.hardware import load_gpu

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """Where the measurements of one GPU are, and what is needed to recognise those that ran from its L2 cache.

    ``stream_bytes_per_s`` is the best memory bandwidth measured on the GPU. ``elementwise`` names the folder of
    elementwise measurements and the GPU they were taken on.
    """

    folder: str
    engine: str
    nccl: str
    ranks: tuple[int, ...]
    l2_bytes: float
    stream_bytes_per_s: float
    elementwise: str


PROFILES = {
    "a100-80gb-sxm": Profile("a100_sxm", "vllm_0.14.0", "nccl_2.27.3", (2, 4, 8), 40e6, 1.77e12, "vidur/a100"),
    "h100-sxm": Profile("h100_sxm", "vllm_0.24.0", "nccl_2.29.2", (2, 4, 8), 50e6, 3.17e12, "vidur/h100"),
    # All-reduce over more than 2 of these GPUs was measured on a host whose PCIe, not the GPU, sets the time.
    # Nobody published elementwise kernels of this GPU: those of the RTX 4090, the same architecture, stand in.
    "l40s": Profile("l40s", "vllm_0.24.0", "nccl_2.27.3", (2,), 96e6, 0.77e12, "llmservingsim/RTX4090"),
}
RTX_4090_BYTES_PER_S, RTX_4090_STREAM_BYTES_PER_S, RTX_4090_L2_BYTES = 1.008e12, 0.958e12, 72e6


class Samples(NamedTuple):
    """Measured calls of one operator kind, arrays of shape (n,); ``flops`` is 0 where memory alone counts."""

    flops: Floats
    bytes: Floats
    seconds: Floats
    bytes_per_s: float


def gemm(profiles: Path, profile: Profile, gpu: Gpu) -> Samples:
    """bfloat16 y[m, n] = x[m, k] W[n, k]^T with weights of 8 MiB to 512 MiB, the size of a layer's.

    The microbenchmark repeats one matrix; where that fits in L2 and m <= 64, a layer in a model, whose weights come
    from memory, cannot beat the best stream.
    """
    table = _parquet(profiles / "aiconfigurator" / profile.folder / profile.engine / "gemm_perf.parquet")
    weights = table["n"] * table["k"]
    rows = (table["gemm_dtype"] == "bfloat16") & (weights >= 2**22) & (weights <= 2**28)
    m, n, k = (table[name][rows].astype(np.float64) for name in "mnk")
    moved = 2 * (n * k + m * k + m * n)
    seconds = table["latency"][rows] / 1e3
    warm = (m <= 64) & (2 * n * k < profile.l2_bytes)
    cold = np.where(warm, np.maximum(seconds, moved / profile.stream_bytes_per_s), seconds)
    return Samples(2 * m * n * k, moved, cold, gpu.hbm_bytes_per_s)


def prefill_attention(profiles: Path, profile: Profile, gpu: Gpu) -> Samples:
    """Causal attention of whole prompts of 16 tokens and more; half of the score matrix is useful work."""
    table = _attention(profiles, profile, "context_attention_perf.parquet")
    rows = table["isl"] >= 16
    batch, length, heads, kv_heads, dim = (
        table[name][rows].astype(np.float64)
        for name in ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
    )
    flops = 2 * batch * heads * dim * length * length
    moved = 2 * batch * length * dim * (2 * kv_heads + 2 * heads)
    return Samples(flops, moved, table["latency"][rows] / 1e3, gpu.hbm_bytes_per_s)


def decode_attention(profiles: Path, profile: Profile, gpu: Gpu) -> Samples:
    """One new token per request. Memory-bound in every row, so the arithmetic has no say.

    Rows that read between 1 MB and the L2 cache's size are left out: repeated, they measure the L2, which in a model
    the weights of the layer have flushed.
    """
    table = _attention(profiles, profile, "generation_attention_perf.parquet")
    batch, before, heads, kv_heads, dim = (
        table[name].astype(np.float64)
        for name in ("batch_size", "step", "num_heads", "num_key_value_heads", "head_dim")
    )
    moved = 2 * batch * dim * (2 * kv_heads * (before + 1) + 2 * heads)
    rows = (moved <= 1e6) | (moved >= profile.l2_bytes)
    return Samples(np.zeros(int(rows.sum())), moved[rows], table["latency"][rows] / 1e3, gpu.hbm_bytes_per_s)


def elementwise(profiles: Path, profile: Profile, gpu: Gpu) -> Samples:
    """RMSNorm, rotary embedding, gated activation and residual addition: bytes in and out.

    Vidur's are kernels of early 2024 with a resolution of 1 us; LLMServingSim's are those of vLLM 0.19.
    """
    folder = profiles / profile.elementwise
    if profile.elementwise.startswith("vidur"):
        pairs = [pair for path in sorted(folder.glob("*/mlp.csv.gz")) for pair in _vidur_elementwise(path)]
        moved, seconds = (np.array(column) for column in zip(*pairs, strict=True))
        return Samples(np.zeros(len(moved)), moved, seconds, gpu.hbm_bytes_per_s)
    hidden, kv_width, intermediate = 4096, 1024, 14336  # Llama-3.1-8B
    values = {
        "layernorm": 4 * hidden,  # with the residual
        "rotary_emb": 2 * (hidden + kv_width),
        "act_fn": 3 * intermediate,
    }
    pairs = [
        (2.0 * values[row["layer"]] * int(row["tokens"]), float(row["time_us"]) / 1e6)
        for row in _csv(folder / "Llama-3.1-8B/bf16/tp1/dense.csv.gz")
        if row["layer"] in values
    ]
    moved, seconds = (np.array(column) for column in zip(*pairs, strict=True))
    cold = np.where(moved < RTX_4090_L2_BYTES, np.maximum(seconds, moved / RTX_4090_STREAM_BYTES_PER_S), seconds)
    return Samples(np.zeros(len(moved)), moved, cold, RTX_4090_BYTES_PER_S)


def all_reduce(profiles: Path, profile: Profile, gpu: Gpu) -> Samples:
    """Messages of 8 KiB to 256 MiB, by the faster of the engine's kernel (under CUDA graphs) and NCCL.

    ``bytes`` is what a ring sends over one link. ``message_size`` in the tables counts 2-byte elements.
    """
    root = profiles / "aiconfigurator" / profile.folder
    best: dict[tuple[int, int], float] = {}
    for path in (root / profile.nccl / "nccl_perf.parquet", root / profile.engine / "custom_allreduce_perf.parquet"):
        if not path.exists():
            continue
        table = _parquet(path)
        dtype = table["nccl_dtype"] if "nccl_dtype" in table else table["allreduce_dtype"]
        rows = (table["op_name"] == "all_reduce") & (dtype != "int8")
        if "backend" in table:
            rows &= table["backend"] == "vllm_graph"
        for ranks, size, ms in zip(
            table["num_gpus"][rows].tolist(),
            table["message_size"][rows].tolist(),
            table["latency"][rows].tolist(),
            strict=True,
        ):
            if ranks in profile.ranks and 2**13 <= 2 * size <= 2**28:
                best[ranks, size] = min(ms / 1e3, best.get((ranks, size), np.inf))
    moved = np.array([2 * size * 2 * (ranks - 1) / ranks for ranks, size in best])
    return Samples(np.zeros(len(best)), moved, np.array(list(best.values())), gpu.gpu_link_bytes_per_s)


KINDS = {
    "gemm": gemm,
    "prefill_attention": prefill_attention,
    "decode_attention": decode_attention,
    "elementwise": elementwise,
    "all_reduce": all_reduce,
}


def fit(samples: Samples, flops_per_s: float) -> tuple[Efficiency, float]:
    """The constants that minimise a robust loss of log(predicted / measured), and their mean |relative error|.

    Shares are bounded to (0.01, 1], the time per call to 1 us to 1 ms. Where nothing is bound by arithmetic
    ``compute`` cannot be seen and stays 1.
    """
    from scipy.optimize import least_squares

    flop_s = samples.flops / flops_per_s
    byte_s = samples.bytes / samples.bytes_per_s
    free = slice(0, 3) if flop_s.any() else slice(1, 3)  # compute, memory, fixed_s
    start, low, high = (0.6, 0.7, 5e-6), (0.01, 0.01, 1e-6), (1.0, 1.0, 1e-3)

    def seconds(logs: Floats) -> Floats:
        constants = np.ones(3)
        constants[free] = np.exp(logs)
        compute, memory, fixed_s = constants
        predicted: Floats = np.maximum(flop_s / compute, byte_s / memory) + fixed_s
        return predicted

    found = least_squares(
        lambda logs: np.log(seconds(logs) / samples.seconds),
        np.log(start[free]),
        bounds=(np.log(low[free]) - 1e-9, np.log(high[free]) + 1e-9),
        loss="soft_l1",
        f_scale=0.1,
    )
    constants = np.ones(3)
    constants[free] = np.exp(found.x)
    error = float(np.mean(np.abs(seconds(found.x) / samples.seconds - 1)))
    compute, memory, fixed_s = (float(value) for value in constants)
    return Efficiency(compute=min(compute, 1.0), memory=min(memory, 1.0), fixed_s=fixed_s), error


def calibrate(profiles: Path, gpu_name: str) -> Iterator[tuple[str, Efficiency, float, int]]:
    """For each operator kind of one GPU: kind, constants, mean |relative error|, number of measurements."""
    gpu = load_gpu(gpu_name)
    for kind, read in KINDS.items():
        samples = read(profiles, PROFILES[gpu_name], gpu)
        yield kind, *fit(samples, gpu.bf16_flops_per_s), len(samples.seconds)


def _attention(profiles: Path, profile: Profile, name: str) -> dict[str, NDArray[Any]]:
    """Rows with full attention, heads of 128, 16-bit KV and the engine's own kernel."""
    table = _parquet(profiles / "aiconfigurator" / profile.folder / profile.engine / name)
    rows = (table["head_dim"] == 128) & (table["kv_cache_dtype"] == "bfloat16")
    if "window_size" in table:
        rows &= table["window_size"] == 0
    return {column: values[rows] for column, values in table.items()}


def _vidur_elementwise(path: Path) -> Iterator[tuple[float, float]]:
    for row in _csv(path):
        ranks, tokens, hidden, heads = (
            int(row[name]) for name in ("num_tensor_parallel_workers", "num_tokens", "n_embd", "n_head")
        )
        rotary = 2 * (heads + int(row["n_kv_head"])) * (hidden // heads) / ranks
        activation = 3 * int(row["n_expanded_embd"]) / ranks
        for name, values in (
            ("input_layernorm", 2 * hidden),  # without the residual, which is "add"
            ("attn_rope", rotary),
            ("mlp_act", activation),
            ("add", 3 * hidden),
        ):
            ms = row.get(f"time_stats.{name}.median")
            if ms and float(ms) > 0:
                yield 2 * values * tokens, float(ms) / 1e3


def _parquet(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _csv(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def main(arguments: list[str]) -> None:
    """Print the ``[efficiency]`` tables of the named GPUs (all by default)."""
    if not arguments or not set(arguments[1:]) <= set(PROFILES):
        sys.exit(
            f"usage: python -m kvsim.hardware.calibration.constants PROFILES_DIR [GPU ...]   GPUs: {' '.join(PROFILES)}"
        )
    if not (Path(arguments[0]) / "aiconfigurator").is_dir():
        sys.exit(f"{arguments[0]}: no folder of measured profiles; it should hold aiconfigurator/ and vidur/")
    for gpu_name in arguments[1:] or PROFILES:
        print(f"# {gpu_name}")
        for kind, constants, error, count in calibrate(Path(arguments[0]), gpu_name):
            print(f"[efficiency.{kind}]  # mean |error| {error:.1%} over {count} measurements")
            print(f"compute = {constants.compute:.4g}\nmemory = {constants.memory:.4g}")
            print(f"fixed_s = {constants.fixed_s:.3e}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
