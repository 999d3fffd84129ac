"""How well surfaces predict what they have not seen: layers left out, and whole GPUs left out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvsim.core.hardware import Gpu
from kvsim.core.surface import Floats, Surface, SurfaceFile
from kvsim.hardware import load_gpu
from kvsim.hardware.calibration import fitting, measured
from kvsim.hardware.calibration.measured import FOLDS, Samples


@dataclass(frozen=True)
class Errors:
    """Relative errors of one surface: means of |predicted / measured - 1|.

    ``unseen``: every shape predicted by a fit without it. ``seen``: by the fit to all. ``within_10`` is the share of
    unseen calls within 10 %, ``p90`` the error that nine of ten unseen calls stay below.
    """

    gpu: str
    engine: str
    surface: str
    rows: int
    unseen: float
    seen: float
    p90: float
    within_10: float


def layout_of(name: str) -> fitting.Layout:
    """The knots of a surface by its name, ``kind/variant``."""
    kind, _, variant = name.partition("/")
    return fitting.AXES["experts_of_model" if kind == "experts" and "/" in variant else kind]


def left_out(samples: Samples, layout: fitting.Layout, groups: int = FOLDS) -> Floats:
    """Relative errors of the calls in the first ``groups`` groups of shapes, each predicted by a fit to the others
    (NaN if all calls are of one group)."""
    errors = []
    for group in range(groups):
        unseen = samples.fold == group
        if unseen.any() and not unseen.all():
            surface = fitting.fit(samples.where(~unseen), layout)
            errors.append(relative_errors(surface, samples.where(unseen)))
    return np.concatenate(errors) if errors else np.array([np.nan])


def relative_errors(surface: Surface, samples: Samples) -> Floats:
    """predicted / measured - 1 of each call, (n,)."""
    return surface.seconds(samples.call) / samples.seconds - 1.0


def calibrate(folder: Path, gpu: Gpu, only: str = "", groups: int = FOLDS) -> Iterator[tuple[Surface, Errors]]:
    """Fits all surfaces of a folder whose name begins with ``only``, with their errors on unseen shapes."""
    for name, samples in measured.samples(folder, gpu, only):
        layout = layout_of(name)
        unseen = np.abs(left_out(samples, layout, groups))
        surface = fitting.fit(samples, layout)
        error = float(np.mean(unseen))
        errors = Errors(
            gpu.name,
            folder.name,
            name,
            len(samples.seconds),
            error,
            float(np.mean(np.abs(relative_errors(surface, samples)))),
            float(np.percentile(unseen, 90)),
            float(np.mean(unseen < 0.1)),
        )
        yield replace(surface, spread=error), errors


def surface_file(folder: Path, gpu: Gpu, surfaces: Mapping[str, Surface]) -> SurfaceFile:
    """What is shipped of a folder of measurements."""
    source = f"fitted by kvsim calibrate to {folder.parent.name}/{folder.name} of {measured.SOURCE}"
    return SurfaceFile(gpu.name, folder.name.replace("_", " "), source, measured.stream_share(folder, gpu), surfaces)


RELATIVES: tuple[tuple[str, str], ...] = (
    ("gb200", "b200-sxm"),
    ("b200-sxm", "gb200"),
    ("h100-sxm", "a100-80gb-sxm"),
    ("h100-sxm", "b200-sxm"),
    ("l40s", "rtx-pro-6000-server"),
    ("rtx-pro-6000-server", "l40s"),
    ("a100-80gb-sxm", "h100-sxm"),
    ("b200-sxm", "h100-sxm"),
)
"""(left-out GPU, measured relative whose utilisation it is given); the first two are within a generation."""


def transferred(profiles: Path, gpu_name: str, relative: str, engine: str, only: str = "") -> Iterator[Errors]:
    """Errors on a GPU that was left out whole: its own data sheet, the utilisation of a relative."""
    gpu, other = load_gpu(gpu_name), load_gpu(relative)
    own = dict(measured.samples(measured.engines(profiles, gpu_name)[engine], gpu, only))
    folder = measured.engines(profiles, relative)[engine]
    for name, samples in measured.samples(folder, other, only):
        if name in own:
            surface = fitting.fit(samples, layout_of(name))
            errors = np.abs(relative_errors(surface, own[name]))
            yield Errors(
                gpu_name,
                relative,
                name,
                len(errors),
                float(np.mean(errors)),
                float(np.mean(np.abs(relative_errors(surface, samples)))),
                float(np.percentile(errors, 90)),
                float(np.mean(errors < 0.1)),
            )
