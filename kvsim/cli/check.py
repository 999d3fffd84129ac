"""``kvsim check``: scenarios against what they expect, for people and for CI."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvsim.cli.sweep import executor_options

if TYPE_CHECKING:
    from kvsim.sweeps.expect import Report

COLOURS = {"pass": "green", "fail": "red", "no verdict": "yellow", "error": "red"}


@click.command
@click.argument("scenarios", metavar="SCENARIO...", nargs=-1, required=True)
@click.option("--set", "settings", metavar="PATH=VALUE", multiple=True, help="Replace a key in each. Repeatable.")
@click.option("--update-baseline", is_flag=True, help="Store the figures as new baselines instead of judging.")
@click.option("--junit", metavar="FILE", help="Also write JUnit XML.")
@click.option("--github/--no-github", default=None, help="Annotations and step summary; default: in GitHub Actions.")
@click.option("--no-plugins", is_flag=True, help="Refuse policies that are not part of kvsim.")
@executor_options
@click.option("--quiet", "-q", is_flag=True, help="Print only what does not pass.")
def check(
    scenarios: tuple[str, ...],
    settings: tuple[str, ...],
    update_baseline: bool,
    junit: str | None,
    github: bool | None,
    no_plugins: bool,
    workers: int | None,
    executor: str | None,
    quiet: bool,
) -> int:
    """Run each SCENARIO and hold it to its ``expect:``.

    Exit code 0: all pass. 1: one fails, or has no verdict because the noise between seeds is larger than the margin.
    2: one cannot be run, or its baseline is missing or stale.
    """
    from kvsim.core.errors import InputError
    from kvsim.report.ci import github_annotations, junit_xml, step_summary
    from kvsim.scenario import parse_set
    from kvsim.sweeps import expect

    overrides = [parse_set(text) for text in settings]
    reports: list[Report] = []
    for scenario in scenarios:
        try:
            report = expect.check(
                scenario,
                overrides,
                update_baseline=update_baseline,
                workers=workers or 1,
                executor=executor,
                allow_plugins=not no_plugins,
            )
        except InputError as error:
            report = expect.Report(scenario, (expect.Finding("it can be checked", "error", str(error)),))
        reports.append(report)
        if not quiet or report.verdict != "pass":
            head, *lines = str(report).splitlines()
            click.secho(head, fg=COLOURS[report.verdict])
            click.echo("\n".join(lines))
    if junit is not None:
        _write(Path(junit), junit_xml(reports))
    if github or (github is None and os.environ.get("GITHUB_ACTIONS") == "true"):
        click.echo(github_annotations(reports), nl=False)
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            with open(summary, "a", encoding="utf-8") as file:
                file.write(step_summary(reports))
    return worst(reports)


def worst(reports: Sequence[Report]) -> int:
    """The exit code of several reports."""
    from kvsim.sweeps.expect import EXIT_CODES

    return max(EXIT_CODES[report.verdict] for report in reports)


def _write(path: Path, text: str) -> None:
    from kvsim.core.errors import InputError

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}", key="--junit") from None
