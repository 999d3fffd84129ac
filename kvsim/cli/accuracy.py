"""``kvsim accuracy``: simulated against measured servers, in one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvsim.core.errors import InputError

if TYPE_CHECKING:
    from kvsim.accuracy.served import Served


@click.command
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@click.option("--only", "only", multiple=True, metavar="SET", help="Only this data set; repeatable.")
@click.option("--workers", type=click.IntRange(1), default=lambda: os.cpu_count() or 1, help="Default: every core.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
@click.option("--update", metavar="FILE", type=click.Path(path_type=Path), help="Put the table into this document.")
@click.option(
    "--uncertainty",
    "draws",
    metavar="N",
    type=click.IntRange(19),
    help="Instead: do measured figures lie in the 90 % intervals from N draws? A few runs of each configuration.",
)
def accuracy(
    folder: Path | None, only: tuple[str, ...], workers: int, form: str, update: Path | None, draws: int | None
) -> None:
    """Simulate every published run of a real server that can be, and print how far the results are from it.

    DIR holds the measurements, a folder per data set; default: $KVSIM_DATA/ground_truth, or
    ../shared/ground_truth. Each run is simulated with three cost models: calibrated, roofline, and the roofline of the
    bare data sheet. Runs that constants were fitted to are counted apart.
    """
    from kvsim.accuracy import errors, kv_blocks, predict, table
    from kvsim.accuracy.served import Served, Skipped
    from kvsim.accuracy.sets import SETS, served_runs

    data = folder or Path(os.environ.get("KVSIM_DATA") or Path("..", "shared")) / "ground_truth"
    unknown = [name for name in only if name not in SETS]
    if unknown:
        raise InputError(f"unknown data set {unknown[0]!r}", key="--only", hint=f"known: {', '.join(SETS)}")
    if not data.is_dir():
        raise InputError("no such folder", file=data, hint="name the folder with the measurements, or set KVSIM_DATA")
    try:
        found = list(served_runs(data, only or SETS))
    except FileNotFoundError as error:
        raise InputError("missing", file=error.filename, hint="--only leaves out data sets") from None
    runs = [each for each in found if isinstance(each, Served)]
    left_out = [each for each in found if isinstance(each, Skipped)]
    if draws is not None:
        _coverage(runs, draws, workers, form, update)
        return
    predicted = []
    for each in predict.predict(runs, workers=workers):
        predicted.append(each)
        if sys.stderr.isatty():
            click.echo(f"\r{len(predicted)} of {len(runs)} runs", err=True, nl=len(predicted) == len(runs))
    skipped = errors.together([*left_out, *errors.refusals(predicted)])
    lines = list(errors.lines(predicted))
    kv = [] if only else list(kv_blocks.errors(data))
    text = "\n".join(table.markdown(lines, kv, skipped))
    if update is not None:
        _update(update, text, table.BEGIN, table.END)
    click.echo(text if form == "table" else json.dumps(table.plain(predicted, lines, kv, skipped), indent=1))


def _coverage(runs: Sequence[Served], draws: int, workers: int, form: str, update: Path | None) -> None:
    from kvsim.accuracy import coverage

    asked = coverage.chosen(runs)
    covered = []
    for each in coverage.coverage(asked, draws, workers):
        covered.append(each)
        if sys.stderr.isatty():
            click.echo(f"\r{len(covered)} of {len(asked)} runs", err=True, nl=len(covered) == len(asked))
    text = "\n".join(coverage.markdown(covered))
    if update is not None:
        _update(update, text, coverage.BEGIN, coverage.END)
    if form == "table":
        click.echo(text)
        return
    rows = [
        {
            "data_set": each.served.data_set,
            "name": each.served.name,
            "configuration": each.served.configuration,
            "load": each.served.regime,
            "measured": dict(each.served.measured),
            "intervals": {metric: list(bounds) for metric, bounds in each.intervals.items()},
        }
        for each in covered
    ]
    click.echo(json.dumps(rows, indent=1))


def _update(document: Path, text: str, begin: str, end: str) -> None:
    from kvsim.accuracy.table import inserted

    try:
        document.write_text(inserted(document.read_text(encoding="utf-8"), text, begin, end), encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(str(error), file=document, key="--update") from None
