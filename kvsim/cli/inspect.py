"""``kvsim list``, ``schema`` and ``plot``: look at what there is."""

from __future__ import annotations

import click

KINDS = ("models", "gpus", "schedulers", "routers", "kv", "costs", "readers", "generators", "transforms")


@click.command
def schema() -> None:
    """Print the JSON Schema of scenario files, from which editors complete."""
    from kvsim.scenario.json_schema import schema_text

    click.echo(schema_text(), nl=False)


@click.command(name="list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
def list_(kind: str | None) -> None:
    """List what a scenario can name."""
    from kvsim.scenario.listing import entries

    for each in KINDS if kind is None else (kind,):
        if kind is None:
            click.echo(f"{each}:")
        rows = list(entries(each))
        width = max(17, *(len(name) for name, _ in rows))
        for name, description in rows:
            click.echo(f"{'  ' if kind is None else ''}{name:<{width}}  {description}")


@click.command
@click.argument("run_dir", metavar="RUN_DIR")
@click.option("--out", metavar="DIR", help="Where the figures go; default: RUN_DIR.")
def plot(run_dir: str, out: str | None) -> None:
    """Draw the figures of a result folder, as PNG and SVG."""
    from kvsim.report.plot import plot_run

    for path in plot_run(run_dir, out):
        click.echo(str(path))
