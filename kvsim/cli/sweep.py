"""``kvsim sweep`` and ``kvsim merge``: a scenario at many points, whole or in parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kvsim.cli.run import scenario_options

SHOWN = ("request_throughput", "p99_ttft_ms", "p99_tpot_ms", "slo_attainment", "stability", "error")
"""Figures of the table on the screen; the file has all."""
MOST_ROWS = 40


def executor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where runs are computed."""
    for decorate in (
        click.option(
            "--executor", metavar="NAME", help="processes (default), ray, or package.module:factory of an Executor."
        ),
        click.option("--workers", type=click.IntRange(min=1), help="Runs at a time; default: one per CPU (check: 1)."),
    ):
        command = decorate(command)
    return command


@click.command
@scenario_options
@click.option(
    "--vary", "axes", metavar="PATH=VALUES", multiple=True, help="An axis: cluster.replicas=[1,2,4]. Repeatable."
)
@click.option(
    "--method",
    type=click.Choice(["grid", "random", "lhs"]),
    default="grid",
    help="Which points; lhs is a Latin hypercube.",
)
@click.option("--samples", type=click.IntRange(min=1), help="Number of points for random and lhs.")
@click.option("--repetitions", type=click.IntRange(min=1), default=1, help="Seeds per point, the same for each.")
@click.option("--shard", metavar="I/N", help="Only part I of N (from 1); kvsim merge joins them.")
@click.option("--out", metavar="DIR", help="Folder; default: runs/NAME-sweep, and the part. An earlier sweep goes on.")
@executor_options
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def sweep(
    scenario: str,
    settings: tuple[str, ...],
    no_plugins: bool,
    axes: tuple[str, ...],
    method: Any,
    samples: int | None,
    repetitions: int,
    shard: str | None,
    out: str | None,
    workers: int | None,
    executor: str | None,
    form: str,
    quiet: bool,
) -> int:
    """Simulate SCENARIO at every point of its axes: keys with ``choices: [...]`` or ``range: {from, to, step|log}``.

    Finished runs are kept in the folder as they come, so the same command goes on after an interruption. A run that
    fails is a row with its error. Exit code 1 if none succeeded.
    """
    from kvsim.scenario import parse_set
    from kvsim.scenario.axes import Question
    from kvsim.sweeps.design import Shard
    from kvsim.sweeps.driver import override_axis, run_sweep

    question = Question.load(Path(scenario), dict(map(override_axis, axes)), [parse_set(text) for text in settings])
    part = None if shard is None else Shard.parse(shard)
    name = f"{Path(scenario).stem}-sweep" + (f"-{part.index}-of-{part.count}" if part else "")
    folder = Path("runs", name) if out is None else Path(out)
    with run_bar(quiet) as progress:
        found = run_sweep(
            question,
            method=method,
            samples=samples,
            repetitions=repetitions,
            out=folder,
            workers=workers,
            executor=executor,
            shard=part,
            allow_plugins=not no_plugins,
            progress=progress,
        )
    _show(found.table, list(found.manifest["axes"]), form, quiet)
    runs = len(found.manifest["runs"])
    if not quiet and form == "table":
        failed = f", {found.failed} failed" if found.failed else ""
        click.echo(f"{runs} runs{failed}; results in {folder}/results.parquet")
    return 1 if runs and found.failed == runs else 0


@click.command
@click.argument("parts", metavar="DIR...", nargs=-1, required=True)
@click.option("--out", metavar="DIR", required=True, help="Folder of the whole sweep.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def merge(parts: tuple[str, ...], out: str, quiet: bool) -> None:
    """Join the parts of a sweep that was run with --shard, as if it had never been cut."""
    from kvsim.sweeps.store import merge as merged

    table = merged(parts, out)
    if not quiet:
        click.echo(f"{len(table)} runs; results in {out}/results.parquet")


@contextmanager
def run_bar(quiet: bool) -> Iterator[Callable[[int, int, int], None] | None]:
    """A bar of finished runs with the time that is left, on stderr and only if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("runs", total=None)

        def update(done: int, total: int, failed: int) -> None:
            name = f"runs ({failed} failed)" if failed else "runs"
            progress.update(task, completed=done, total=total, description=name)

        yield update


def _show(table: Any, axes: list[str], form: str, quiet: bool) -> None:
    if quiet:
        return
    if form == "json":
        import json

        click.echo(json.dumps(table.to_pylist(), indent=1))
        return
    names = [*axes, "seed", *(name for name in SHOWN if name in table.column_names)]
    rows = [
        [_cell(row[name]) for name in names]
        for row in table.select(list(dict.fromkeys(names))).slice(0, MOST_ROWS).to_pylist()
    ]
    for line in aligned([[name.rpartition(".")[2] for name in names], *rows]):
        click.echo(line)
    if len(table) > MOST_ROWS:
        click.echo(f"... {len(table) - MOST_ROWS} more")


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines with columns under each other, numbers to the right, the last column as it is."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
        for row in rows
    ]


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
