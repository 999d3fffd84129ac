"""The published data sets, one module each: from its files to ``Served`` runs and what has to be left out.

A module has ``runs(folder)``, which yields ``Served`` and ``Skipped``; files are read with ``csv`` alone.
Called by: ``kvsim/accuracy/predict.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from kvsim.accuracy.served import Served, Skipped

SETS: Final = (
    "llmservingsim_bench",
    "residency_vllm_h100",
    "blis",
    "aiconfigurator_silicon",
    "trtllm_perf_overview",
    "argonne_llm_inference_bench",
)
"""Modules here, in the order of the table."""

NOT_SIMULATED: Final = {
    "mlperf_inference_v5_1": "the layout and the distribution of lengths are not in the logs",
    "apex_plus_8xh100": "vLLM 0.6 and SGLang of 2024: engines of another generation, mostly overloaded",
    "ml_energy": "input lengths are not listed",
    "mooncake_pd": "A10 servers, and early code for handing over KV; transfer times are a link's parameters here",
}
"""Set -> why none of it is simulated."""


def served_runs(folder: Path, names: tuple[str, ...] = SETS) -> Iterator[Served | Skipped]:
    """Every run of these sets below a folder in the layout of the project's ``ground_truth``."""
    for name in names:
        yield from import_module(f"{__name__}.{name}").runs(folder)
    for name, reason in NOT_SIMULATED.items():
        if names == SETS and (folder / name).is_dir():
            yield Skipped(name, reason, 0)
