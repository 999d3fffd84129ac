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
    from kvsim.accuracy.fit import Fit
    from kvsim.hardware.calibration.accuracy import Errors


@click.command
@click.argument("source", metavar="PROFILE_DIR|SCENARIO")
@click.option(
    "--from-bench",
    "benches",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Fit the server of SCENARIO to this result of vllm bench serve or AIPerf; repeatable, at several loads.",
)
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="With --from-bench: replace a key.")
@click.option("--gpu", "gpus", multiple=True, metavar="NAME", help="Only this GPU; repeatable. Default: all measured.")
@click.option("--engine", "engines", multiple=True, metavar="NAME", help="Only this engine's kernels, e.g. vllm.")
@click.option("--only", default="", metavar="PREFIX", help="Only surfaces so named, e.g. gemm/bfloat16.")
@click.option(
    "--folds", type=click.IntRange(1, 5), default=1, show_default=True, help="Fifths of the shapes to leave out."
)
@click.option("--transfer", is_flag=True, help="Leave out whole GPUs instead, each predicted from a relative.")
@click.option(
    "--out", metavar="PATH", type=click.Path(path_type=Path), help="Folder for GPU.ENGINE.json; file for a server."
)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
def calibrate(
    source: str,
    benches: tuple[Path, ...],
    settings: tuple[str, ...],
    gpus: tuple[str, ...],
    engines: tuple[str, ...],
    only: str,
    folds: int,
    transfer: bool,
    out: Path | None,
    form: str,
) -> None:
    """Fit efficiency surfaces to measured operator times, and print their errors on shapes left out of the fit.
    Or, with --from-bench, fit host time, frontend and efficiency to what clients of a server have measured.

    PROFILE_DIR holds GPU/ENGINE_VERSION/TABLE.parquet in the layout of ai-dynamo/aiconfigurator, or a folder
    "aiconfigurator" with it. A shape (a layer's weights, a model's heads) is left out with all its batch sizes.

    SCENARIO describes the server: model, GPU, engine; its workload is replaced by the requests of the runs. Half of
    them are kept out of the fit, and their errors printed without and with it.
    """
    if benches:
        if gpus or engines or only or transfer or folds != 1:
            raise click.UsageError("--gpu, --engine, --only, --folds and --transfer are for a PROFILE_DIR")
        _from_benches(source, settings, benches, out, form)
        return
    if settings:
        raise click.UsageError("--set goes with --from-bench")
    profile_dir = Path(source)
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


def _from_benches(path: str, settings: tuple[str, ...], benches: tuple[Path, ...], out: Path | None, form: str) -> None:
    from kvsim.accuracy.bench import read_bench
    from kvsim.accuracy.fit import fit, server_file
    from kvsim.cli.run import load_scenario
    from kvsim.core.files import write_whole

    scenario = load_scenario(path, settings, None)
    runs = [read_bench(bench) for bench in benches]
    if form == "table":
        for run in runs:
            how = "as sent" if run.max_concurrency is None else f"{run.max_concurrency} in flight"
            named = f", {run.model}" if run.model else ""
            click.echo(f"{run.file}: {run.client}{named}, {len(run.trace)} requests, {how}, {run.failed} failed")
    found = fit(scenario, runs)
    if out is not None:
        try:
            write_whole(out, server_file(scenario, runs, found).encode())
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror}", key="--out") from None
    if form == "json":
        click.echo(json.dumps(asdict(found), indent=1))
        return
    for line in _fit_table(found):
        click.echo(line)
    if out is not None:
        frontend = f"engine: {{frontend_s: {found.after.frontend_s:.4g}}}"
        click.echo(f"in the scenario: cost: {{name: calibrated, server: {out}}}, {frontend}")


COEFFICIENTS = {
    "host_step_s": ("host per step (ms)", 1e3),
    "host_request_s": ("host per request in it (us)", 1e6),
    "operators": ("time of operators (factor)", 1.0),
    "frontend_s": ("client to scheduler (ms)", 1e3),
}
HARDLY_TOLD = 0.5


def _fit_table(found: Fit) -> Iterator[str]:
    yield f"\n{'':<28} {'before':>9} {'fitted':>9}"
    for name, (label, unit) in COEFFICIENTS.items():
        before, after, sigma = (unit * getattr(each, name) for each in (found.before, found.after, found.sigma))
        told = "" if found.told[name] < HARDLY_TOLD else "   these runs hardly tell"
        yield f"{label:<28} {before:>9.3f} {after:>9.3f} +- {sigma:.3f}{told}"
    yield f"\n{'requests kept out of the fit':<28} {'measured':>9} {'before':>9} {'fitted':>9}   median |error|"
    for each in found.held_out:
        means = " ".join(f"{1e3 * value:>9.2f}" for value in (each.measured_s, each.before_s, each.after_s))
        yield f"{f'mean {each.name} (ms)':<28} {means}   {each.before_error:.1%} -> {each.after_error:.1%}"


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
