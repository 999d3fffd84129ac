"""``kvsim compare``: runs of the same requests side by side."""

from __future__ import annotations

import click

from kvsim.cli.ranges import FiniteRange


@click.command
@click.argument("runs", metavar="RUN_DIR RUN_DIR...", nargs=-1, required=True)
@click.option("--margin", type=FiniteRange(min=0), default=3.0, help="Per cent within which runs are the same.")
@click.option("--confidence", type=FiniteRange(min=0.5, max=0.9999), default=0.95, help="Of the intervals.")
@click.option("--plot", metavar="DIR", help="Also draw the distributions, as PNG and SVG.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
def compare(runs: tuple[str, ...], margin: float, confidence: float, plot: str | None, form: str) -> int:
    """Compare each RUN_DIR with the first, request by request. Exit code 1 if anything is worse beyond the margin."""
    from kvsim.report.compare import compare_runs, comparison_table, plot_comparison
    from kvsim.report.files import read_summary
    from kvsim.report.terminal import VERDICTS

    found = compare_runs(runs, margin / 100, confidence)
    if form == "json":
        import json

        click.echo(json.dumps([comparison.as_dict() for comparison in found], indent=1))
    else:
        for run in runs:
            verdict = VERDICTS.get(read_summary(run)["kvsim"]["stability"])
            if verdict:
                click.echo(f"{run}: {verdict}")
        click.echo(comparison_table(found, runs[0]), nl=False)
    if plot is not None:
        for path in plot_comparison(runs, plot, ("png", "svg")):
            click.echo(str(path), err=form == "json")
    return 1 if any(comparison.verdict == "worse" for comparison in found) else 0
