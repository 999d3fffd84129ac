"""Which GPU is simulated: a catalogue of data files, and the calibration that fits their efficiencies.

Add a GPU: copy a file of ``data/`` and state where each figure was read; its name is the file's. Without an
``[efficiency]`` table (``Gpu.efficiency`` empty) a cost model falls back to generic constants and says so.
You may import: kvsim.core. Copy: ``data/h100-sxm.toml``. Check: ``pytest tests/unit/hardware``.
Who calls you: the scenario, once per run (``load_gpu``), and ``kvsim list gpus`` (``GPUS``). ``calibration/`` is run
by hand, on a folder of operator measurements; it writes ``data/surfaces/``.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvsim.core import catalogue
from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.hardware.host_links import HOST_LINKS

_DATA = Path(__file__).parent / "data"
_SURFACES = _DATA / "surfaces"

GPUS: tuple[str, ...] = catalogue.names(_DATA)
"""Names of the catalogue, sorted."""


def load_gpu(name_or_path: str, base_dir: Path = Path()) -> Gpu:
    """The GPU that a scenario names: a catalogue entry, or a ``.toml`` in the catalogue's format.

    Paths are relative to ``base_dir``. Raises InputError for an unknown name (with the nearest), a missing file, and
    an unknown, missing or wrong key.

    >>> load_gpu("a100-80gb-sxm").bf16_flops_per_s
    312000000000000.0
    """
    path = catalogue.locate("GPU", name_or_path, _DATA, base_dir, (".toml",))
    table = {"name": path.stem, **catalogue.read_toml(path)}
    efficiency = table.pop("efficiency", {})
    own_surfaces = table.pop("surfaces", {})
    if not isinstance(efficiency, dict):
        raise InputError(f"{efficiency!r} is not allowed", file=path, key="efficiency", hint="needed: a table")
    gpu = catalogue.build(Gpu, table, path)
    for key in ("hbm_bytes_per_s", "bf16_flops_per_s", "gpu_link_bytes_per_s"):
        if getattr(gpu, key) == 0:
            raise InputError("0 is not allowed", file=path, key=key, hint="needed: a number above 0")
    if not isinstance(own_surfaces, dict) or not all(isinstance(each, str) for each in own_surfaces.values()):
        raise InputError(f"{own_surfaces!r} is not allowed", file=path, key="surfaces", hint="needed: engine = a file")
    return replace(
        gpu,
        efficiency={kind: _efficiency(kind, constants, path) for kind, constants in efficiency.items()},
        surfaces=_shipped_surfaces(gpu, path) | {name: path.parent / each for name, each in own_surfaces.items()},
    )


def _shipped_surfaces(gpu: Gpu, path: Path) -> dict[str, Path]:
    """Engine -> file, for the GPU itself where it is of the catalogue, or the measured one that it names."""
    of = gpu.surfaces_of or (gpu.name if path.parent == _DATA else "")
    if gpu.surfaces_of and gpu.surfaces_of not in GPUS:
        raise InputError(
            f"{gpu.surfaces_of!r} is not a GPU", file=path, key="surfaces_of", hint=f"known: {', '.join(GPUS)}"
        )
    files = sorted(_SURFACES.glob(f"{of}.*.json")) if of else []
    return {file.name.removeprefix(f"{of}.").removesuffix(".json"): file for file in files}


def _efficiency(kind: str, constants: Mapping[str, Any], path: Path) -> Efficiency:
    key = f"efficiency.{kind}"
    if not isinstance(constants, dict):
        raise InputError(f"{constants!r} is not allowed", file=path, key=key, hint="needed: a table")
    fitted = catalogue.build(Efficiency, constants, path, within=key)
    for name in ("compute", "memory"):
        if not 0 < getattr(fitted, name) <= 1:
            raise InputError(
                f"{getattr(fitted, name)!r} is not allowed",
                file=path,
                key=f"{key}.{name}",
                hint="needed: a share of the data-sheet peak, above 0 and at most 1",
            )
    return fitted


__all__ = ["GPUS", "HOST_LINKS", "load_gpu"]
