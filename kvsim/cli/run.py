"""``kvsim run`` and ``kvsim validate``: the commands that read a scenario."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kvsim.scenario import Scenario
    from kvsim.scenario.resolve import Resolved


def scenario_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and options of every command that reads a scenario."""
    for decorate in (
        click.option("--no-plugins", is_flag=True, help="Refuse policies that are not part of kvsim."),
        click.option(
            "--set",
            "settings",
            metavar="PATH=VALUE",
            multiple=True,
            help="Replace a key, e.g. --set cluster.replicas=2; VALUE is YAML. Repeatable; the last one wins.",
        ),
        click.argument("scenario", metavar="SCENARIO"),
    ):
        command = decorate(command)
    return command


def engine_args_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--engine-args``, for commands about one scenario."""
    return click.option(
        "--engine-args",
        metavar="LINE",
        help="Arguments of `vllm serve` over what SCENARIO says, as one word; --set comes after them.",
    )(command)


def load_scenario(scenario: str, settings: Sequence[str], engine_args: str | None) -> Scenario:
    """The scenario with a ``vllm serve`` line and ``--set`` on top; what the line asks for in vain goes to stderr."""
    from kvsim.scenario import Scenario, parse_set

    overrides = [parse_set(setting) for setting in settings]
    if engine_args is None:
        return Scenario.load(scenario, overrides)
    from kvsim.scenario.engine_args import check_version, read_engine_args, shadowed

    read = read_engine_args(engine_args)
    loaded = Scenario.load(scenario, [*read.overrides, *overrides])
    check_version(loaded)
    for note in (*read.notes, *shadowed(loaded, read)):
        click.echo(f"Note: --engine-args: {note}", err=True)
    return loaded


@click.command
@scenario_options
@engine_args_option
@click.option("--out", metavar="DIR", help="Result folder, instead of the scenario's output.dir.")
@click.option("--overwrite", is_flag=True, help="Replace a result that is in the folder.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
@click.option("--mode", type=click.Choice(["leap", "step"]), help="Visit every step, or leap; the results are equal.")
@click.option("--decisions", metavar="FILE", help="Write each step's decisions as JSON lines; .gz packs.")
@click.option("--check-laws", is_flag=True, help="Verify conservation laws throughout; exit code 1 if one is broken.")
@click.option(
    "--uncertainty",
    "draws",
    metavar="N",
    type=click.IntRange(min=1),
    help="Also N runs with redrawn coefficients and seeds: a 90 % interval beside every figure.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Of --uncertainty: runs at a time; default: one per CPU.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def run(
    scenario: str,
    settings: tuple[str, ...],
    no_plugins: bool,
    engine_args: str | None,
    out: str | None,
    overwrite: bool,
    form: str,
    mode: str | None,
    decisions: str | None,
    check_laws: bool,
    draws: int | None,
    workers: int | None,
    quiet: bool,
) -> int:
    """Simulate SCENARIO (a YAML file), print the summary and write the result folder."""
    import time

    started_s = time.perf_counter()
    if workers is not None and draws is None:
        raise click.UsageError("--workers goes with --uncertainty")
    if mode is not None:
        settings = (*settings, f"engine.mode={mode}")
    loaded = load_scenario(scenario, settings, engine_args)
    from kvsim.api import execute
    from kvsim.scenario.resolve import resolve

    resolved = resolve(loaded, allow_plugins=not no_plugins)
    resolve_s = time.perf_counter() - started_s
    out_dir = loaded.output_dir if out is None else Path(out)
    uncertain = None
    if draws is not None:
        from kvsim.report.files import prepare_output
        from kvsim.sweeps.uncertainty import uncertainty

        prepare_output(out_dir, overwrite)
        with _progress_bar("draws", draws, quiet) as progress:
            uncertain = uncertainty(loaded, draws, workers=workers, allow_plugins=not no_plugins, progress=progress)
    try:
        with _progress_bar("requests", len(resolved.trace), quiet) as progress:
            outcome = execute(
                resolved,
                out=out_dir,
                overwrite=overwrite,
                check_laws=check_laws,
                decisions=None if decisions is None else Path(decisions),
                progress=progress,
                resolve_s=resolve_s,
                uncertainty=uncertain,
            )
    except AssertionError as error:
        if not check_laws:
            raise
        click.echo(f"Error: broken law: {error}", err=True)
        return 1
    result = outcome.result
    if form == "json" and not quiet:
        from kvsim.report.files import to_json

        click.echo(to_json(result.summary), nl=False)
    elif not quiet:
        from kvsim.report.terminal import print_summary, summary_text

        if sys.stdout.isatty():
            print_summary(result.summary, _ledger_rows(resolved))
        else:
            click.echo(summary_text(result.summary, _ledger_rows(resolved)), nl=False)
        click.echo(f"Result in {result.out_dir}")
    for law in outcome.broken_laws:
        click.echo(f"Error: broken law: {law}", err=True)
    diagnosis = result.summary["kvsim"]["diagnosis"]
    if diagnosis:
        click.echo(f"Error: stuck: {diagnosis}", err=True)
    return 1 if outcome.broken_laws or diagnosis else 0


@click.command
@scenario_options
@engine_args_option
def validate(scenario: str, settings: tuple[str, ...], no_plugins: bool, engine_args: str | None) -> None:
    """Check SCENARIO and every file it names, without running it."""
    loaded = load_scenario(scenario, settings, engine_args)
    from kvsim.scenario.resolve import resolve

    resolved = resolve(loaded, allow_plugins=not no_plugins)
    if loaded.expect is not None:
        from kvsim.sweeps.expect import Expectations

        Expectations.of(resolved)
    trace = resolved.trace
    rows = trace.rows
    read = f", {rows.read} rows read" if rows and rows.read != len(trace) else ""
    click.echo(f"{scenario}: valid")
    origin = f"{trace.path} ({trace.format})" if trace.path else "generated"
    click.echo(f"  workload  {len(trace)} requests{read}, {origin}")
    click.echo(f"  model     {resolved.model.name}, max_model_len {resolved.cluster.max_model_len}")
    for built in resolved.pools:
        pool = built.pool
        ranks = f" of {built.layout.gpus} GPUs" if built.layout.gpus > 1 else ""
        click.echo(
            f"  {pool.role:<9} {pool.replicas} x {built.gpu.name}{ranks}, {pool.kv_blocks} KV blocks each; "
            f"{', '.join(built.keys[seat]['name'] for seat in ('router', 'scheduler', 'kv', 'cost'))}"
        )
    for note in resolved.notes:
        click.echo(f"  note      {note}")


def _ledger_rows(resolved: Resolved) -> list[tuple[str, int]]:
    several = len(resolved.pools) > 1
    return [
        (f"{built.pool.role}: {row.label}" if several else row.label, row.bytes)
        for built in resolved.pools
        for row in built.ledger.rows()
    ]


@contextmanager
def _progress_bar(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar of what has been done, on stderr and only if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda ended: progress.update(task, completed=ended)
