"""GPUs and links as a simulator sees them: memory, bandwidth, arithmetic, and how much of each is reached."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Efficiency:
    """How one kind of operator uses the hardware: three constants fitted to measurements.

    An operator takes ``max(flops / (peak * compute), bytes / (bandwidth * memory)) + fixed_s``.
    ``compute`` and ``memory`` are shares of the data-sheet peak in (0, 1]; ``fixed_s`` is seconds per call.
    """

    compute: float
    memory: float
    fixed_s: float


@dataclass(frozen=True)
class Gpu:
    """One accelerator.

    ``memory_bytes`` is the total that the driver reports, not the nominal size. Bandwidths are data-sheet
    values in one direction; peaks are dense (no sparsity). None means not known, or not there: a GPU without 8-bit
    floating point has no ``fp8_flops_per_s``. ``efficiency`` maps an operator kind (see ``kvsim/costs/roofline.py``)
    to its fitted constants; ``surfaces`` maps an engine's name to its file of efficiency surfaces, which were measured
    on the GPU ``surfaces_of`` where this one was not. ``transfer_memory`` and ``transfer_compute`` then say by how much
    larger a share of its data-sheet bandwidth and arithmetic this GPU reaches than that one. ``gpus_per_node`` are
    joined by ``gpu_link_bytes_per_s``, nodes by ``network_bytes_per_s``, one GPU's share in one direction. ``source``
    maps each figure to where it was read or measured.
    """

    name: str
    memory_bytes: int
    hbm_bytes_per_s: float
    bf16_flops_per_s: float
    gpu_link_bytes_per_s: float
    efficiency: Mapping[str, Efficiency] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)
    arch: str = ""
    sm_count: int | None = None
    l2_bytes: int | None = None
    fp8_flops_per_s: float | None = None
    fp4_flops_per_s: float | None = None
    int8_ops_per_s: float | None = None
    host_link_bytes_per_s: float | None = None
    network_bytes_per_s: float | None = None
    gpus_per_node: int = 8
    tdp_w: float | None = None
    idle_w: float | None = None
    price_usd_per_h: float | None = None
    surfaces_of: str = ""
    transfer_memory: float = 1.0
    transfer_compute: float = 1.0
    surfaces: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """A path that KV bytes take between pools; transfers that run together share it fairly.

    ``bytes_per_s`` is whole bytes per second (an integer keeps shares exact); ``latency_s`` is added once
    per transfer and is not shared.
    """

    bytes_per_s: int
    latency_s: float = 0.0
