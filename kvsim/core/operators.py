"""The operators of a transformer layer: what one call moves and computes, and the axes its utilisation depends on.

Each function takes numbers or arrays of calls and returns a ``Call``: the bound that the data sheet sets
(``max(flops / peak, bytes / bandwidth)`` plus a constant for starting a kernel), and coordinates for a ``Surface``.
What is constant here only shapes the surface: the fit divides by it, the prediction multiplies with it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.surface import Call, Floats, Numbers

START_S: Final = 3e-6
"""Seconds that even an empty kernel takes, back to back: a floor under the bounds, about what every GPU measures."""

ATTENTION_START_S: Final = 10e-6
"""The same for an attention call, whose kernels set up, split and combine; 3, 6 and 10 us were tried, and 10 us leaves
the smallest errors on unseen heads and on GPUs left out."""

QUERY_ROWS: Final = 64
"""Queries that one SM holds in prefill attention. With 64, fits to prompts without context predict measured chunks
behind a context with 8.5 % mean error (RTX PRO 6000; 17 % without blocks, 30 to 44 % with blocks but without their
walk; 128 is as good)."""

TILES: Final = ((64, 128), (128, 64), (128, 128), (128, 256), (256, 128))
"""Output tiles (rows, columns) whose last, partly idle wave over the SMs shows in measured GEMM times."""

TILE_ROWS: Final = (64, 128, 256)
"""Heights of tiles that are filled up with nothing when m is no multiple of them."""


class NumberFormat(NamedTuple):
    """How a GEMM's operands are stored, in bytes per value, and which peak of the GPU it computes with."""

    weight_bytes: float
    input_bytes: float
    peak: str


FORMATS: Final[Mapping[str, NumberFormat]] = MappingProxyType(
    {
        "bfloat16": NumberFormat(2, 2, "bf16_flops_per_s"),
        "fp8": NumberFormat(1, 1, "fp8_flops_per_s"),  # one scale per tensor or row
        "fp8_block": NumberFormat(1 + 4 / 128**2, 1 + 4 / 128, "fp8_flops_per_s"),  # 128 x 128 and 1 x 128 scales
        "nvfp4": NumberFormat(0.5 + 1 / 16, 0.5 + 1 / 16, "fp4_flops_per_s"),  # an 8-bit scale per 16 values
        "int8": NumberFormat(1, 1, "int8_ops_per_s"),
        "int8_weight": NumberFormat(1, 2, "bf16_flops_per_s"),
        "int4_weight": NumberFormat(0.5 + 2 / 128, 2, "bf16_flops_per_s"),  # a 16-bit scale per 128 values
        "mxfp4_weight": NumberFormat(0.5 + 1 / 32, 2, "bf16_flops_per_s"),  # an 8-bit scale per 32 values
    }
)
"""Number formats of weights and inputs. Sources of the block sizes: OCP MX 1.0, NVIDIA NVFP4, DeepSeek-V3 (arXiv
2412.19437) for fp8_block, AWQ and GPTQ's usual group of 128 for int4."""


def figure(gpu: Gpu, name: str) -> float:
    """A figure of the data sheet that not every data file has. Raises InputError if this one has not."""
    value: float | None = getattr(gpu, name)
    if value is None:
        raise InputError(f"{gpu.name} has no {name}", hint="add it to the GPU's data file, or choose another format")
    return value


def gemm(gpu: Gpu, m: Numbers, n: Numbers, k: Numbers, number_format: str = "bfloat16") -> Call:
    """y[m, n] = x[m, k] W[n, k]^T: 2 m n k FLOPs; weights, input and 16-bit output cross the memory once.

    Coordinates beside m, n and k: ``waves_AxB`` and ``ragged_AxB``, how often tiles of A rows and B columns fill the
    SMs, and by how much the last, partly idle wave stretches that (1 to 2; 1 below half a wave); ``padded_A``, the
    rows of whole tiles over m (1 to 2; 1 if one tile holds them).
    """
    form = FORMATS[number_format]
    sizes: list[Floats] = [np.asarray(size, np.float64) for size in (m, n, k)]
    rows, columns, depth = np.broadcast_arrays(*sizes)
    moved = form.weight_bytes * columns * depth + form.input_bytes * rows * depth + 2 * rows * columns
    arithmetic_s = 2 * rows * columns * depth / figure(gpu, form.peak)
    sm_count = figure(gpu, "sm_count")
    coordinates: dict[str, Floats] = {"m": rows, "n": columns, "k": depth}
    for high, wide in TILES:
        waves = np.ceil(rows / high) * np.ceil(columns / wide) / sm_count
        coordinates[f"waves_{high}x{wide}"] = waves
        coordinates[f"ragged_{high}x{wide}"] = np.where(waves > 0.5, np.ceil(waves) / waves, 1.0)
    for high in TILE_ROWS:
        coordinates[f"padded_{high}"] = np.where(rows > high, np.ceil(rows / high) * high / rows, 1.0)
    return Call(np.maximum(arithmetic_s, moved / gpu.hbm_bytes_per_s) + START_S, coordinates)


def prefill_attention(
    gpu: Gpu,
    pairs: Floats,
    query_tokens: Floats,
    kv_tokens: Floats,
    requests: Floats,
    heads: Numbers,
    kv_heads: Numbers,
    head_dim: Numbers,
    kv_value_bytes: Numbers = 2,
    window: Numbers = np.inf,
) -> Call:
    """Chunks of prompts against themselves and what lies before them, in 16-bit arithmetic.

    ``pairs``: query-key pairs that causality and a ``window`` leave, summed over the requests (all keys: chunk x
    context + chunk^2 / 2); each is two multiply-adds per head and dimension. ``kv_tokens``: those of context and chunk
    that are read. KV, queries and outputs cross the memory once. Queries come in blocks of ``QUERY_ROWS``, filled up
    with nothing, each on one SM, so a call takes at least the walk of one block over all its keys: a short chunk behind
    a long context leaves most SMs idle. Coordinates: ``span``, mean keys of a query; ``blocks`` of all heads;
    ``group``, query heads per KV head.
    """
    blocks = np.ceil(query_tokens / requests / QUERY_ROWS)
    padded = blocks * QUERY_ROWS * requests / query_tokens
    walk = QUERY_ROWS * np.minimum(kv_tokens / requests, window + QUERY_ROWS) * figure(gpu, "sm_count")
    arithmetic_s = 4 * head_dim * np.maximum(heads * pairs * padded, walk) / gpu.bf16_flops_per_s
    moved = 2 * kv_value_bytes * kv_heads * head_dim * kv_tokens + 4 * heads * head_dim * query_tokens
    coordinates = {
        "span": pairs / query_tokens,
        "blocks": requests * heads * blocks,
        "group": np.broadcast_to(np.asarray(heads / np.asarray(kv_heads, np.float64)), np.shape(kv_tokens)),
    }
    return Call(np.maximum(arithmetic_s, moved / gpu.hbm_bytes_per_s) + ATTENTION_START_S, coordinates)


def decode_attention(
    gpu: Gpu,
    kv_tokens: Floats,
    requests: Floats,
    heads: Numbers,
    kv_heads: Numbers,
    head_dim: Numbers,
    kv_value_bytes: Numbers = 2,
) -> Call:
    """One query per request against its KV, summed over the requests: bound by reading KV.

    Coordinates: ``span``, mean keys per request; ``sequences``, requests x KV heads; ``group``, query heads per KV
    head; ``cache``, KV bytes over the size of the L2 cache.
    """
    kv_bytes = 2 * kv_value_bytes * kv_heads * head_dim * kv_tokens
    moved = kv_bytes + 4 * heads * head_dim * requests
    coordinates = {
        "span": kv_tokens / requests,
        "sequences": requests * kv_heads,
        "group": np.broadcast_to(np.asarray(heads / np.asarray(kv_heads, np.float64)), np.shape(kv_tokens)),
        "requests": requests,
        "kv_heads": np.broadcast_to(np.asarray(kv_heads, np.float64), np.shape(kv_tokens)),
        "cache": kv_bytes / figure(gpu, "l2_bytes"),
    }
    return Call(moved / gpu.hbm_bytes_per_s + ATTENTION_START_S, coordinates)


def latent_decode_attention(
    gpu: Gpu,
    kv_tokens: Floats,
    requests: Floats,
    heads: Numbers,
    kv_rank: Numbers,
    rope_dim: Numbers,
    kv_value_bytes: Numbers = 2,
) -> Call:
    """Absorbed latent attention: one query per request and head against the latent vectors themselves, each read once
    for all heads, as key (``kv_rank`` + ``rope_dim`` values) and as value (``kv_rank``).

    With 128 heads it is as much bound by arithmetic as by memory (242 FLOPs a byte). Source: DeepSeek-V2, arXiv
    2405.04434. Coordinates: ``span``, mean vectors per request; ``sequences``, requests; ``heads``; ``cache``, bytes
    over the size of the L2 cache.
    """
    width = 2 * kv_rank + rope_dim
    kv_bytes = kv_value_bytes * (kv_rank + rope_dim) * kv_tokens
    moved = kv_bytes + 2 * heads * width * requests
    arithmetic_s = 2 * heads * width * kv_tokens / gpu.bf16_flops_per_s
    coordinates = {
        "span": kv_tokens / requests,
        "sequences": requests,
        "heads": np.broadcast_to(np.asarray(heads, np.float64), np.shape(kv_tokens)),
        "cache": kv_bytes / figure(gpu, "l2_bytes"),
    }
    return Call(np.maximum(arithmetic_s, moved / gpu.hbm_bytes_per_s) + ATTENTION_START_S, coordinates)


def experts(
    gpu: Gpu,
    tokens: Numbers,
    hidden_size: Numbers,
    expert_size: Numbers,
    experts_per_token: Numbers,
    experts: Numbers,
    ranks: Numbers = 1,
    skew: Numbers = 0.0,
    number_format: str = "bfloat16",
    awake: Numbers | None = None,
) -> Call:
    """Fused gated MLPs of the experts on one of ``ranks`` expert-parallel GPUs: gate, up and down GEMMs per token.

    ``tokens`` are those of all ranks; ``expert_size`` columns of an expert's MLP on this rank. Each token goes to
    ``experts_per_token`` experts, and ``awake`` of all experts are in use (None: as in benchmarks, the experts of
    different tokens are distinct until every expert has one). ``skew`` is the exponent of the power law by which
    experts are chosen (0: evenly); the busiest rank's time is meant.
    Weights of the experts in use, inputs and outputs cross the memory once.

    Coordinates: ``per_expert``, tokens that an expert in use works on; ``active``, experts in use on a rank;
    ``width`` and ``hidden``, the sizes; ``ranks``; ``skew`` + 1.
    """
    form = FORMATS[number_format]
    arguments = (tokens, hidden_size, expert_size, experts_per_token, experts, ranks, skew)
    floats: list[Floats] = [np.asarray(each, np.float64) for each in arguments]
    count, hidden, width, choices, all_experts, parts, exponent = np.broadcast_arrays(*floats)
    routed = count * choices
    in_use = np.ceil(np.minimum(routed, all_experts) / parts) if awake is None else awake / parts
    active = np.maximum(in_use, 1.0)
    rows = np.maximum(routed / parts, active)
    weights = 3 * hidden * width
    moved = active * weights * form.weight_bytes + rows * hidden * (form.input_bytes + 2)
    arithmetic_s = 2 * rows * weights / figure(gpu, form.peak)
    coordinates: dict[str, Floats] = {
        "per_expert": rows / active,
        "active": active,
        "width": width,
        "hidden": hidden,
        "ranks": parts,
        "skew": 1.0 + exponent,
    }
    return Call(np.maximum(arithmetic_s, moved / gpu.hbm_bytes_per_s) + START_S, coordinates)


def awake_experts(tokens: Numbers, experts_per_token: int, experts: int) -> Floats:
    """How many experts have work if each token chooses its own at random: experts x (1 - (1 - share)^tokens), (n,).

    Few tokens of a real model share experts by chance: 32 tokens of gpt-oss-120b wake 82 of its 128, not 128.

    >>> awake_experts(np.array([1, 4, 1000]), 2, 8).tolist()   # Mixtral
    [2.0, 5.46875, 8.0]
    """
    left = np.asarray(tokens, np.int64)
    idle: Floats = np.ones(left.shape)
    power = 1.0 - experts_per_token / experts
    while left.any():  # by squaring, so that no logarithm of the machine is asked
        idle = np.where(left % 2 == 1, idle * power, idle)
        left, power = left // 2, power * power
    return experts * (1.0 - idle)


def collective(gpu: Gpu, message_bytes: Numbers, ranks: Numbers, ring_passes: float = 2.0) -> Call:
    """A collective over the GPUs of a node: a ring sends ``ring_passes`` x (ranks - 1) / ranks of the message over each
    link (all-reduce 2, all-gather and reduce-scatter and all-to-all 1). Coordinates: ``bytes``, ``ranks``."""
    floats: list[Floats] = [np.asarray(each, np.float64) for each in (message_bytes, ranks)]
    message, parts = np.broadcast_arrays(*floats)
    sent = ring_passes * message * (parts - 1) / parts
    return Call(sent / gpu.gpu_link_bytes_per_s + START_S, {"bytes": message, "ranks": parts})
