"""``kvsim calibrate``: from a folder of measured operator times to efficiency surfaces, and how far to trust them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvsim.core.errors import InputError

if TYPE_CHECKING:
    from kvsim.hardware.calibration.accuracy import Errors


@click.command
@click.argument("profile_dir", metavar="PROFILE_DIR", type=click.Path(path_type=Path))
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Only this GPU; repeatable. Default: all measured.")
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="Only this engine's kernels, e.g. vllm.")
@click.option("--only", default="", metavar="PREFIX", help="Only surfaces so named, e.g. gemm/bfloat16.")
@click.option(
    "--folds", type=click.IntRange(1, 5), default=1, show_default=True, help="Fifths of the shapes to leave out."
)
@click.option("--transfer", is_flag=True, help="Leave out whole GPUs instead, each predicted from a relative.")
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), help="Write GPU.ENGINE.json there.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
def calibrate(
    profile_dir: Path,
    gpus: tuple[str, ...],
    engines: tuple[str, ...],
    only: str,
    folds: int,
    transfer: bool,
    out: Path | None,
    form: str,
) -> None:
    """Fit efficiency surfaces to measured operator times, and print their errors on shapes left out of the fit.

    PROFILE_DIR holds GPU/ENGINE_VERSION/TABLE.parquet in the layout of ai-dynamo/aiconfigurator, or a folder
    "aiconfigurator" with it. A shape (a layer's weights, a model's heads) is left out with all its batch sizes.
    """
    if transfer and out is not None:
        raise click.UsageError("--transfer writes nothing: leave out --out")
    if find_spec("scipy") is None:
        raise InputError("the fit needs SciPy", hint="pip install scipy")
    errors = (
        _transfers(profile_dir, gpus, engines, only)
        if transfer
        else _fits(profile_dir, gpus, engines, only, folds, out)
    )
    rows: list[Errors] = []
    for each in errors:
        if form == "table":
            if not rows:
                other = "relative" if transfer else "measurements"
                click.echo(f"{'surface':<30} {'gpu':<20} {other:<17} {'rows':>6}   seen unseen    p90  <10%")
            click.echo(
                f"{each.surface:<30} {each.gpu:<20} {each.engine:<17} {each.rows:>6} {each.seen:>6.1%} "
                f"{each.unseen:>6.1%} {each.p90:>6.1%} {each.within_10:>5.0%}"
            )
        rows.append(each)
    if not rows:
        raise InputError(f"nothing measured is called {only}...", file=profile_dir, hint="see kvsim calibrate --help")
    if form == "json":
        click.echo(json.dumps([asdict(each) for each in rows], indent=1))
        return
    kinds = {each.surface: [other.unseen for other in rows if other.surface == each.surface] for each in rows}
    click.echo("\nmean |error| on what the fit has not seen: median over the rows above, largest")
    for surface, unseen in sorted(kinds.items()):
        click.echo(f"{surface:<30} {_median(unseen):>6.1%} {max(unseen):>6.1%}")


def _median(values: list[float]) -> float:
    from statistics import median

    return median(values)


def _fits(
    profiles: Path, gpus: tuple[str, ...], engines: tuple[str, ...], only: str, folds: int, out: Path | None
) -> Iterator[Errors]:
    from kvsim.core.surface import Surface, write_surfaces
    from kvsim.hardware import load_gpu
    from kvsim.hardware.calibration import accuracy, measured

    for name in gpus or measured.measured_gpus(profiles):
        gpu = load_gpu(name)
        for engine, folder in measured.engines(profiles, name, engines).items():
            surfaces: dict[str, Surface] = {}
            for surface, errors in accuracy.calibrate(folder, gpu, only, folds):
                surfaces[errors.surface] = surface
                yield errors
            if out is not None and surfaces:
                out.mkdir(parents=True, exist_ok=True)
                text = write_surfaces(accuracy.surface_file(folder, gpu, surfaces))
                (out / f"{name}.{engine}.json").write_text(text, encoding="utf-8")


def _transfers(profiles: Path, gpus: tuple[str, ...], engines: tuple[str, ...], only: str) -> Iterator[Errors]:
    from kvsim.hardware.calibration import accuracy

    for left_out, relative in accuracy.RELATIVES:
        if not gpus or left_out in gpus:
            for engine in engines or ("vllm",):
                yield from accuracy.transferred(profiles, left_out, relative, engine, only)
