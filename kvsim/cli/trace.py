"""``kvsim trace``: look at a trace, check it, convert it, draw it, make one, fetch a published one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvsim.cli.run import scenario_options
from kvsim.core.errors import InputError

if TYPE_CHECKING:
    from kvsim.core.trace import Trace


@click.group(name="trace", no_args_is_help=True)
def trace() -> None:
    """Look at a trace, check it, convert it, draw it, make one, fetch a published one."""


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and options of every command that reads a trace."""
    for decorate in (
        click.option(
            "--on-bad-row",
            type=click.Choice(["refuse", "quarantine"]),
            default="refuse",
            help="A row that breaks a rule stops, or is set aside and counted.",
        ),
        click.option(
            "--option",
            "options",
            metavar="NAME=VALUE",
            multiple=True,
            help="A parameter of the reader, e.g. --option hash_block_tokens=16; VALUE is YAML. Repeatable.",
        ),
        click.option("--reader", "format_", default="auto", metavar="NAME", help="See kvsim list readers."),
        click.argument("file", metavar="FILE"),
    ):
        command = decorate(command)
    return command


def writing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and options of every command that writes a trace."""
    for decorate in (
        click.option("--overwrite", is_flag=True, help="Replace OUT."),
        click.option(
            "--as",
            "as_",
            type=click.Choice(["plain", "burstgpt"]),
            default="plain",
            help="The columns of a .csv: kvsim's own names, or BurstGPT's, failed rows included.",
        ),
        click.argument("out", metavar="OUT"),
    ):
        command = decorate(command)
    return command


def read(file: str, format_: str, options: tuple[str, ...], on_bad_row: str) -> Trace:
    """The trace, as the options of ``reading_options`` say."""
    from kvsim.core import plugins
    from kvsim.scenario import parse_set, seats
    from kvsim.scenario.source import Source
    from kvsim.workload.readers import READERS
    from kvsim.workload.readers.files import located
    from kvsim.workload.reading import OnBadRow, read_trace, recognised

    given: dict[str, Any] = {}
    for option in options:
        override = parse_set(option, "--option", "hash_block_tokens=16")
        node, path = given, ".".join(map(str, override.key))
        for part in override.key[:-1]:  # columns.arrival_ms=ts
            node = node.setdefault(str(part), {})
            if not isinstance(node, dict):
                raise InputError("is a value already", key=f"--option {path}", hint="give one of the two")
        if isinstance(node.get(str(override.key[-1])), dict):
            raise InputError("has keys already", key=f"--option {path}", hint="give one of the two")
        node[str(override.key[-1])] = override.value
    policy: OnBadRow = "quarantine" if on_bad_row == "quarantine" else "refuse"
    with located(file) as local:
        name = recognised(local) if format_ == "auto" else format_
        reader = plugins.load("trace format", name, READERS)
        values = seats.arguments(seats.parameters_of(reader), given, Source(), ("--option",), known=())
        return dataclasses.replace(read_trace(local, name, parameters=values, on_bad_row=policy), path=file)


@trace.command()
@reading_options
@click.option("--lru", metavar="N,N,...", help="Sizes of the LRU caches, in blocks of the trace.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
def info(file: str, format_: str, options: tuple[str, ...], on_bad_row: str, lru: str | None, form: str) -> None:
    """Print what FILE is like: volume, burstiness, lengths, sessions, what a prefix cache could find."""
    sizes = None if lru is None else _sizes(lru)
    read_in = read(file, format_, options, on_bad_row)
    from kvsim.metrics.trace_stats import describe

    statistics = describe(read_in, sizes)
    if form == "json":
        from kvsim.report.files import to_json

        click.echo(to_json(statistics), nl=False)
    else:
        from kvsim.report.trace_table import trace_text

        click.echo(trace_text(file, statistics), nl=False)


def _sizes(text: str) -> list[int]:
    sizes = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(0 < size < 2**31 for size in sizes):
        raise InputError(f"{text!r} is not a list of sizes", key="--lru", hint="for example --lru 1000,10000")
    return sizes


@trace.command()
@reading_options
@click.option("--rejected", metavar="CSV", help="Where rows in quarantine go; default: rejected_rows.csv.")
@click.option("--overwrite", is_flag=True, help="Replace that file.")
def validate(
    file: str, format_: str, options: tuple[str, ...], on_bad_row: str, rejected: str | None, overwrite: bool
) -> int:
    """Check every row of FILE. Exit code 1 if rows had to be set aside (--on-bad-row quarantine)."""
    if rejected is not None and on_bad_row == "refuse":
        raise InputError("needs --on-bad-row quarantine", key="--rejected", hint="else the first bad row is an error")
    read_in = read(file, format_, options, on_bad_row)
    rows = read_in.rows
    assert rows is not None
    click.echo(f"{file}: {read_in.format}, {rows.read} rows read")
    click.echo(f"  replayed       {len(read_in)}")
    if rows.source_failed:
        click.echo(f"  source failed  {rows.source_failed}")
    for reason, count in sorted(rows.dropped.items()):
        click.echo(f"  dropped        {count}: {reason}")
    if not rows.rejected:
        return 0
    out = Path(rejected or "rejected_rows.csv")
    _write_rejected(read_in, out, "--rejected", overwrite)
    click.echo(f"  set aside      {len(rows.rejected)}: see {out}")
    return 1


@trace.command()
@reading_options
@writing_options
def convert(
    file: str, format_: str, options: tuple[str, ...], on_bad_row: str, out: str, overwrite: bool, as_: str
) -> None:
    """Write FILE as OUT: .parquet (kvsim's own form, all columns), .jsonl (requests and lists) or .csv (no lists).

    Rows that failed in the traced system are kept in .parquet and --as burstgpt only.
    """
    target = _target(out, overwrite, as_)
    read_in = read(file, format_, options, on_bad_row)
    aside = _write(read_in, target, as_, overwrite)
    failed = read_in.rows.source_failed if read_in.rows else 0
    lost = target.suffix != ".parquet" and as_ == "plain"
    left = f", {failed} that failed in the traced system left out" if failed and lost else ""
    click.echo(f"{out}: {len(read_in)} requests{left}{aside}")


@trace.command()
@scenario_options
@writing_options
def generate(scenario: str, settings: tuple[str, ...], no_plugins: bool, out: str, overwrite: bool, as_: str) -> None:
    """Write the requests that SCENARIO plays, read or generated, after its transforms, as OUT (see convert)."""
    target = _target(out, overwrite, as_)
    from kvsim.scenario import Scenario, parse_set
    from kvsim.scenario.resolve import resolve

    loaded = Scenario.load(scenario, [parse_set(setting) for setting in settings])
    made = resolve(loaded, allow_plugins=not no_plugins).trace
    aside = _write(made, target, as_, overwrite)
    click.echo(f"{out}: {len(made)} requests{aside}")


ENDINGS = {".parquet": "write_canonical", ".jsonl": "write_plain_jsonl", ".csv": "write_plain_csv"}
"""Ending of a trace file -> its writer in ``kvsim.workload.writers``."""


def _target(out: str, overwrite: bool, as_: str) -> Path:
    """Where a trace is to be written. Raises InputError for an unknown ending, and if something is there."""
    target = Path(out).expanduser()
    if target.suffix not in ENDINGS:
        raise InputError(f"{out!r} has no known ending", key="OUT", hint=f"allowed: {', '.join(ENDINGS)}")
    if as_ == "burstgpt" and target.suffix != ".csv":
        raise InputError("BurstGPT's format is CSV", key="--as", hint="name OUT .csv")
    if target.exists() and not overwrite:
        raise InputError(f"{out} is there already", key="OUT", hint="pass --overwrite to replace it")
    return target


def _write(what: Trace, target: Path, as_: str, overwrite: bool) -> str:
    """The whole trace, or no file; ``rejected_rows.csv`` beside it if rows were set aside, and a word about them."""
    from kvsim.workload import writers

    rejected, beside = what.rows.rejected if what.rows else (), target.with_name("rejected_rows.csv")
    if rejected:
        _write_rejected(what, beside, "OUT", overwrite)
    temporary = target.with_name(f"{target.name}.kvsim-tmp{target.suffix}")
    with writing(target):
        try:
            name = "write_burstgpt_csv" if as_ == "burstgpt" else ENDINGS[target.suffix]
            getattr(writers, name)(what, temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return f", {len(rejected)} set aside: see {beside}" if rejected else ""


def _write_rejected(what: Trace, out: Path, key: str, overwrite: bool) -> None:
    from kvsim.workload.writers import write_rejected

    if out.exists() and not overwrite:
        problem = f"{out}, for the rows set aside, is there already"
        raise InputError(problem, key=key, hint="pass --overwrite to replace it")
    with writing(out):
        write_rejected(what.rows.rejected if what.rows else (), out)


@trace.command()
@reading_options
@click.option("-n", "rows", type=click.IntRange(min=1), default=10, show_default=True, help="So many requests.")
def head(file: str, format_: str, options: tuple[str, ...], on_bad_row: str, rows: int) -> None:
    """Print the first requests of FILE as kvsim reads them."""
    read_in = read(file, format_, options, on_bad_row)
    from kvsim.report.trace_table import head_text

    click.echo(head_text(read_in, rows), nl=False)


@trace.command()
@reading_options
@click.option("--out", metavar="DIR", default=".", help="Where the figures go; default: here.")
def plot(file: str, format_: str, options: tuple[str, ...], on_bad_row: str, out: str) -> None:
    """Draw arrivals over time, the hour-of-day profile, the joint density of lengths, and prefix reuse."""
    read_in = read(file, format_, options, on_bad_row)
    from kvsim.report.trace_plot import plot_trace

    for path in plot_trace(read_in, out):
        click.echo(str(path))


@trace.command()
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--out", metavar="DIR", default=".", help="Where the file goes; default: here.")
@click.option("--url", metavar="URL", help="Another place that serves the same file.")
def fetch(name: str | None, out: str, url: str | None) -> None:
    """Download a published trace and check it; without NAME, list what there is. Interrupted downloads go on."""
    from kvsim.workload.fetching import SOURCES
    from kvsim.workload.fetching import fetch as download

    if name is None:
        for known, source in SOURCES.items():
            click.echo(f"{known:<28}  {source.about}")
        return
    path = download(name, Path(out), url=url, say=lambda text: click.echo(text, err=True))
    click.echo(str(path))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what writing may raise into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=path, hint="name another place") from None
