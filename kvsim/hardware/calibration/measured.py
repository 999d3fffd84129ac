"""Measured operator times: which rows of a table are used, and what each call moved and computed.

The layout is that of https://github.com/ai-dynamo/aiconfigurator (Apache-2.0), ``GPU/ENGINE_VERSION/TABLE.parquet``
with ``latency`` in ms of one kernel on one GPU.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.surface import Call, Floats

SOURCE = "https://github.com/ai-dynamo/aiconfigurator at 095f58a5"

FOLDERS: Mapping[str, str] = {
    "a100-80gb-sxm": "a100_sxm",
    "h100-sxm": "h100_sxm",
    "l40s": "l40s",
    "rtx-pro-6000-server": "rtx_pro_6000_server",
    "b200-sxm": "b200_sxm",
    "gb200": "gb200",
}
"""GPU of the catalogue -> its folder of measurements."""

FOLDS = 5
"""Shapes are dealt into so many groups; a group is predicted by a fit to the others."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """Measured calls of one operator and variant. ``fold`` (n,) is the group of a call's shape, 0 to ``FOLDS`` - 1:
    all batch sizes and lengths of a layer's shape share it, so that a left-out layer is new in every row."""

    call: Call
    seconds: Floats
    fold: NDArray[np.int64]

    def where(self, rows: NDArray[np.bool_]) -> "Samples":
        """The calls at which ``rows`` (n,) is True."""
        coordinates = {name: values[rows] for name, values in self.call.coordinates.items()}
        return Samples(Call(self.call.bound_s[rows], coordinates), self.seconds[rows], self.fold[rows])


def folds(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """The group of each row's shape: md5 of its numbers, joined with commas, modulo ``FOLDS``."""
    shapes = list(zip(*(column.tolist() for column in columns), strict=True))
    group = {
        shape: int(hashlib.md5(",".join(map(str, shape)).encode(), usedforsecurity=False).hexdigest(), 16) % FOLDS
        for shape in set(shapes)
    }
    return np.array([group[shape] for shape in shapes], dtype=np.int64)


def gemm(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """Every linear layer, by number format; a shape is (n, k)."""
    for measured, name in GEMM_FORMATS.items():
        rows = table["gemm_dtype"] == measured
        if rows.any():
            m, n, k = (table[column][rows] for column in "mnk")
            call = operators.gemm(gpu, m, n, k, name)
            yield f"gemm/{name}", Samples(call, table["latency"][rows] / 1e3, folds(n, k))


GEMM_FORMATS = {
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "sq": "int8",
    "int8_wo": "int8_weight",
    "int4_wo": "int4_weight",
}


def prefill_attention(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """Whole prompts in 16-bit arithmetic, by head size and KV format, those with a window apart; a shape is the heads.

    A query sees ``min(its position, window)`` keys, a prompt of L tokens W L - W^2 / 2 pairs of them beyond a window W.
    """
    for variant, part, window in _by_head(_rows(table, table["attn_dtype"] == "bfloat16")):
        batch, length, heads, kv_heads, dim, kv_value_bytes = _attention_columns(part)
        seen = np.minimum(length, window)
        pairs = batch * (length * seen - seen**2 / 2)
        tokens = batch * length
        call = operators.prefill_attention(
            gpu, pairs, tokens, tokens, batch, heads, kv_heads, dim, kv_value_bytes, window
        )
        yield variant.format("prefill_attention"), Samples(call, part["latency"] / 1e3, folds(heads, kv_heads))


def decode_attention(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """One new token per request, by head size and KV format, those with a window apart; a shape is the heads."""
    for variant, part, window in _by_head(table):
        batch, _, heads, kv_heads, dim, kv_value_bytes = _attention_columns(part)
        span = np.minimum(part["step"] + 1.0, window)
        call = operators.decode_attention(gpu, batch * span, batch, heads, kv_heads, dim, kv_value_bytes)
        yield variant.format("decode_attention"), Samples(call, part["latency"] / 1e3, folds(heads, kv_heads))


LATENT = {"kv_rank": 512, "rope_dim": 64, "nope_dim": 128, "value_dim": 128}
"""Sizes of latent attention in all tables: DeepSeek V2 to V3's."""


def latent_prefill_attention(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """Whole prompts against keys and values restored from latent vectors, in 16 bit; a shape is the heads of a rank.

    Keys have 192 values and values 128, so a pair costs as much as with heads of 160.
    """
    part = _rows(table, table["kv_cache_dtype"] == "bfloat16")
    batch, length, heads = (part[name].astype(np.float64) for name in ("batch_size", "isl", "num_heads"))
    dim = (LATENT["nope_dim"] + LATENT["rope_dim"] + LATENT["value_dim"]) / 2
    tokens = batch * length
    call = operators.prefill_attention(gpu, tokens * length / 2, tokens, tokens, batch, heads, heads, dim)
    yield "latent_prefill_attention/bfloat16", Samples(call, part["latency"] / 1e3, folds(heads))


def latent_decode_attention(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """One new token per request against latent vectors, by KV format; a shape is the heads of a rank."""
    for kv_format, value_bytes in (("bfloat16", 2), ("fp8", 1)):
        part = _rows(table, table["kv_cache_dtype"] == kv_format)
        if len(part["latency"]) < FEWEST_ROWS:
            continue
        batch, heads = (part[name].astype(np.float64) for name in ("batch_size", "num_heads"))
        call = operators.latent_decode_attention(
            gpu, batch * (part["step"] + 1.0), batch, heads, LATENT["kv_rank"], LATENT["rope_dim"], value_bytes
        )
        yield f"latent_decode_attention/{kv_format}", Samples(call, part["latency"] / 1e3, folds(heads))


def experts(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """Fused expert MLPs of one rank, by number format and all kernels that an engine chose for it; a shape is what a
    rank of a model's layout computes (hidden size, expert size, experts per token, experts, ranks of both kinds).

    Engines tune these kernels by hand for some models, which no axis shows: each model that was measured gets a surface
    of its own beside, over evenly spread tokens (``FORMAT/HIDDENxWIDTHxCHOSENxEXPERTS``). There a shape is a layout.
    """
    for measured, name in MOE_FORMATS.items():
        rows = table["moe_dtype"] == measured
        if rows.sum() >= FEWEST_ROWS and getattr(gpu, operators.FORMATS[name].peak) is not None:
            part = _rows(table, rows)
            yield f"experts/{name}", _expert_samples(part, gpu, name)
            models = list(zip(*(part[column].tolist() for column in EXPERT_MODEL), strict=True))
            for model in sorted(set(models)):
                of_model = np.array([each == model for each in models]) & (part["distribution"] == "balanced")
                if of_model.sum() >= FEWEST_OF_MODEL:
                    own = f"experts/{name}/{'x'.join(map(str, map(int, model)))}"
                    yield own, _expert_samples(_rows(part, of_model), gpu, name)


EXPERT_MODEL = ("hidden_size", "inter_size", "topk", "num_experts")
FEWEST_OF_MODEL = 150
"""A model with fewer measurements of its experts gets no surface of its own."""


def _expert_samples(part: Columns, gpu: Gpu, name: str) -> Samples:
    hidden, width, choices, count = (part[column] for column in EXPERT_MODEL)
    tokens, tensor_ranks, ranks = (part[column] for column in ("num_tokens", "moe_tp_size", "moe_ep_size"))
    skew = part["distribution"] != "balanced"  # exponents 1.01 and 1.2 differ by less than their noise
    call = operators.experts(gpu, tokens, hidden, width / tensor_ranks, choices, count, ranks, skew, name)
    return Samples(call, part["latency"] / 1e3, folds(hidden, width, choices, count, tensor_ranks, ranks))


MOE_FORMATS = {
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int4_wo": "int4_weight",
    "w4a16_mxfp4": "mxfp4_weight",
}


def all_reduce(table: Columns, gpu: Gpu) -> Iterator[tuple[str, Samples]]:
    """The engine's own all-reduce, under CUDA graphs and launched one by one; a shape is the message size, of which
    the table counts 2-byte elements."""
    graph = table["backend"] if "backend" in table else np.full(len(table["latency"]), "graph")
    for variant in ("graph", "eager"):
        rows = np.array([name.endswith(variant) for name in graph.tolist()], dtype=np.bool_)
        if rows.any():
            size = table["message_size"][rows]
            call = operators.collective(gpu, 2 * size, table["num_gpus"][rows])
            yield f"all_reduce/{variant}", Samples(call, table["latency"][rows] / 1e3, folds(size))


def _by_head(table: Columns) -> Iterator[tuple[str, Columns, Floats]]:
    """Variants by head size, KV format and whether there is a window: a pattern of the name, its rows, their windows
    (infinite: none)."""
    windows = table["window_size"] if "window_size" in table else np.zeros(len(table["latency"]))
    for dim in np.unique(table["head_dim"]).tolist():
        for kv_format in ("bfloat16", "fp8"):
            for prefix, chosen, fewest in (("", windows == 0, FEWEST_ROWS), ("window_", windows > 0, FEWEST_WINDOWED)):
                rows = (table["head_dim"] == dim) & (table["kv_cache_dtype"] == kv_format) & chosen
                if rows.sum() >= fewest:
                    window = np.where(windows[rows] > 0, windows[rows], np.inf).astype(np.float64)
                    yield f"{prefix}{{}}/{dim}/{kv_format}", _rows(table, rows), window


FEWEST_ROWS = 1000
"""A variant with fewer measurements gets no surface of its own."""

FEWEST_WINDOWED = 400
"""The same with a window: heads of 256 were measured with one window and few heads, which is better than none."""


def _attention_columns(table: Columns) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim")
    batch, length, heads, kv_heads, dim = (table[name].astype(np.float64) for name in names)
    return batch, length, heads, kv_heads, dim, np.where(table["kv_cache_dtype"] == "fp8", 1.0, 2.0)


def _rows(table: Columns, rows: NDArray[np.bool_]) -> Columns:
    return {name: values[rows] for name, values in table.items()}


Reader = Callable[[Columns, Gpu], Iterator[tuple[str, Samples]]]

READERS: Mapping[str, Reader] = {
    "gemm_perf": gemm,
    "context_attention_perf": prefill_attention,
    "generation_attention_perf": decode_attention,
    "context_mla_perf": latent_prefill_attention,
    "generation_mla_perf": latent_decode_attention,
    "moe_perf": experts,
    "custom_allreduce_perf": all_reduce,
}
"""Table -> what it holds: pairs of operator/variant and measured calls."""


def measured_gpus(profiles: Path) -> tuple[str, ...]:
    """GPUs of which the folder holds measurements. Raises InputError if there are none."""
    root = _root(profiles)
    found = tuple(name for name, folder in FOLDERS.items() if (root / folder).is_dir())
    if not found:
        known = ", ".join(FOLDERS.values())
        raise InputError("no folder of a measured GPU in it", file=profiles, hint=f"known: {known}; or name one: --gpu")
    return found


def engines(profiles: Path, gpu_name: str, only: Sequence[str] = ()) -> dict[str, Path]:
    """Engine -> its folder of measurements, the newest version; of ``only`` those. Raises InputError if none is."""
    folder = _root(profiles) / FOLDERS.get(gpu_name, gpu_name)
    found: dict[str, Path] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir(), key=lambda path: _version(path.name)):
            if any((path / f"{table}.parquet").is_file() for table in READERS):
                found[path.name.partition("_")[0]] = path
    chosen = {name: path for name, path in found.items() if not only or name in only}
    if not chosen:
        known = f"known: {', '.join(found)}" if found else "needed: ENGINE_VERSION/gemm_perf.parquet"
        raise InputError(
            f"no measurements of {gpu_name}{' with ' + ', '.join(only) if only else ''}", file=folder, hint=known
        )
    return chosen


def samples(folder: Path, gpu: Gpu, only: str = "") -> Iterator[tuple[str, Samples]]:
    """All that a folder holds whose name begins with ``only``: ``kind/variant`` and its measured calls."""
    for table, read in READERS.items():
        path = _table(folder, table)
        kind = read.__name__
        kind = f"window_{kind}" if only.startswith("window_") else kind
        if path.is_file() and (kind.startswith(only) or only.startswith(kind)):
            for name, each in read(_parquet(path), gpu):
                if name.startswith(only):
                    yield name, each


LATENT_FROM: Mapping[str, tuple[str, ...]] = {
    "context_mla_perf": ("trtllm",),
    "generation_mla_perf": ("sglang", "trtllm"),
}
"""Whose kernels stand for latent attention. Prompts: TensorRT-LLM's, which restores keys and values as engines do,
where SGLang's table holds the absorbed form. Decodes, unless an engine is listed itself: SGLang's FlashAttention 3,
FlashInfer and Triton kernels, which vLLM has as well; vLLM's own tables hold 100 us and more of launches (0.14), or the
block with its projections (later)."""


def _table(folder: Path, table: str) -> Path:
    """Where a table of an engine's folder is, or the newest one of the engine whose kernels stand for its own."""
    engines = LATENT_FROM.get(table, ())
    own = folder.name.partition("_")[0]
    if engines and folder.parent.is_dir():
        for engine in (own,) if own in engines else engines:
            for other in sorted(folder.parent.glob(f"{engine}_*"), key=lambda each: _version(each.name), reverse=True):
                if (other / f"{table}.parquet").is_file():
                    return other / f"{table}.parquet"
        return folder / "none"
    return folder / f"{table}.parquet"


def stream_share(folder: Path, gpu: Gpu) -> float:
    """Share of the data sheet's memory bandwidth that GEMMs of up to 16 rows reach (95th percentile) with weights four
    times the L2 cache."""
    for _, each in samples(folder, gpu, "gemm/bfloat16"):
        at = each.call.coordinates
        weight_bytes = 2 * at["n"] * at["k"]
        rows = (at["m"] <= 16) & (weight_bytes >= 4 * operators.figure(gpu, "l2_bytes"))
        if rows.any():
            return float(np.percentile(weight_bytes[rows] / each.seconds[rows], 95)) / gpu.hbm_bytes_per_s
    return DEFAULT_STREAM_SHARE


DEFAULT_STREAM_SHARE = 0.88
"""Where no large GEMMs were measured: the middle of the GPUs where they were."""


def _root(profiles: Path) -> Path:
    inner = profiles / "aiconfigurator"
    root = inner if inner.is_dir() else profiles
    if not root.is_dir():
        raise InputError("no such folder of measured profiles", file=profiles)
    return root


def _version(folder: str) -> tuple[int, ...]:
    """1.3.0rc20 -> (1, 3, 0, 20)."""
    version = folder.partition("_")[2].replace("rc", ".")
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    rows = columns["latency"] > 0  # below the timer's resolution
    return _rows(columns, rows)
