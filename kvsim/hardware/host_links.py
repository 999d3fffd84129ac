"""Paths between a GPU and its host's memory."""

from collections.abc import Mapping
from types import MappingProxyType

HOST_LINKS: Mapping[str, float] = MappingProxyType(
    {
        "pcie-3-x16": 15.75e9,
        "pcie-4-x16": 31.5e9,
        "pcie-5-x16": 63e9,
        "nvlink-c2c": 450e9,
    }
)
"""Name -> bytes per second in one direction, of the data sheet: copies reach less.

Sources. PCIe: 8, 16 and 32 GT/s on 16 lanes less the 128b/130b code (PCI-SIG). NVLink-C2C: NVIDIA's Grace Hopper
architecture white paper, 900 GB/s for both directions together.
"""
