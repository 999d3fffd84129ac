"""``kvsim capacity``: how much load, or how many GPUs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvsim.cli.ranges import FiniteRange
from kvsim.cli.run import scenario_options
from kvsim.cli.sweep import aligned, executor_options

if TYPE_CHECKING:
    from kvsim.sweeps.sizing import Answer


@click.command
@scenario_options
@click.option("--find", type=click.Choice(["rate", "replicas"]), default="replicas", help="What to search.")
@click.option("--gpus", metavar="NAME,...", help="Search for each of these GPUs.")
@click.option(
    "--vary", "axes", metavar="PATH=VALUES", multiple=True, help="Search at each point of an axis. Repeatable."
)
@click.option("--key", metavar="PATH", help="The key to search, instead of the workload's rate or cluster.replicas.")
@click.option("--attainment", type=float, default=0.99, help="Share of the requests that must keep the SLO.")
@click.option("--confidence", type=float, default=0.95, help="Of the answer and its intervals.")
@click.option("--seeds", type=int, default=5, help="Seeds of a generated workload, or replicates of a recorded one.")
@click.option("--tolerance", type=FiniteRange(min=1e-4), default=0.005, help="Relative, of a rate.")
@click.option(
    "--price",
    "prices",
    metavar="GPU=USD",
    multiple=True,
    help="USD per GPU and hour, instead of the data file's. Repeatable.",
)
@click.option("--out", metavar="DIR", help="Where answers go, as scenarios; default: runs/NAME-capacity.")
@executor_options
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", help="What the screen shows.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def capacity(
    scenario: str,
    settings: tuple[str, ...],
    no_plugins: bool,
    find: Any,
    gpus: str | None,
    axes: tuple[str, ...],
    key: str | None,
    attainment: float,
    confidence: float,
    seeds: int,
    tolerance: float,
    prices: tuple[str, ...],
    out: str | None,
    workers: int | None,
    executor: str | None,
    form: str,
    quiet: bool,
) -> int:
    """Find the largest rate, or the fewest replicas, at which SCENARIO keeps its SLO.

    Runs that are overloaded or cut short count as not keeping it; nothing is extrapolated, and each answer is written
    as a scenario that can be run. Exit code 1 if some configuration keeps the SLO nowhere.
    """
    from kvsim.scenario import parse_set
    from kvsim.scenario.axes import Question
    from kvsim.sweeps.driver import override_axis
    from kvsim.sweeps.sizing import best, write_answers
    from kvsim.sweeps.sizing import capacity as search

    varied = dict(map(override_axis, axes))
    if gpus is not None:
        varied["cluster.gpu"] = gpus.split(",")
    with _told(quiet) as progress:
        answers = search(
            Question.load(scenario, varied, [parse_set(text) for text in settings]),
            find=find,
            attainment=attainment,
            confidence=confidence,
            seeds=seeds,
            tolerance=tolerance,
            key=key,
            prices=dict(map(_price, prices)),
            workers=workers,
            executor=executor,
            allow_plugins=not no_plugins,
            progress=progress,
        )
    folder = Path("runs", f"{Path(scenario).stem}-capacity") if out is None else Path(out)
    asked = {"find": find, "attainment": attainment, "confidence": confidence, "seeds": seeds}
    paths = write_answers(answers, folder, asked)
    if form == "json" and not quiet:
        click.echo(paths[-1].read_text(encoding="utf-8"), nl=False)
    elif not quiet:
        goal = "fewest replicas" if find == "replicas" else "largest rate"
        click.echo(f"{goal} at which {attainment:.4g} of the requests keep the SLO ({confidence:.0%} confidence)")
        for line in _table(answers, find):
            click.echo(line)
        chosen = best(answers)
        if chosen is not None and len(answers) > 1:
            why = "cheapest" if chosen.usd_per_million_tokens is not None else "least effort per request"
            click.echo(f"{why}: {', '.join(str(value) for value in chosen.point.values())}")
        for answer in answers:
            if answer.reason:
                click.echo(f"{', '.join(map(str, answer.point.values())) or scenario}: {answer.reason}")
        click.echo(f"answers in {folder}, as scenarios that run")
    return 1 if any(answer.value is None for answer in answers) else 0


def _table(answers: list[Answer], find: str) -> list[str]:
    names = list(answers[0].point)
    key = next((answer.setting[0].rpartition(".")[2] for answer in answers if answer.setting), find)
    searched = "requests/s" if key == "rate_scale" else key
    head = [name.rpartition(".")[2] for name in names]
    head += [searched, "estimate", "interval", "GPUs", "requests/s", "attainment"]
    head += ["USD/h", "USD per M tokens", "per M output"]
    rows = [head]
    for a in answers:
        cells = [str(a.point[name]) for name in names]
        cells += [_cell(a.value), _cell(a.estimate), _range(a.interval), _cell(a.gpus)]
        cells += [_cell(a.requests_per_s), _cell(a.attainment), _cell(a.usd_per_hour)]
        price = _cell(a.usd_per_million_tokens)
        if a.usd_per_million_tokens_interval:
            price += f" {_range(a.usd_per_million_tokens_interval)}"
        rows.append([*cells, price, _cell(a.usd_per_million_output_tokens)])
    twice = len(names) + 4 if searched == "requests/s" else None
    return aligned([[cell for k, cell in enumerate(row) if k != twice] for row in rows])


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _range(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"[{interval[0]:.4g}, {interval[1]:.4g}]"


def _price(text: str) -> tuple[str, float]:
    from kvsim.core.errors import InputError

    name, _, price = text.rpartition("=")
    try:
        usd = float(price)
    except ValueError:
        usd = -1.0
    if not name or not 0 <= usd < float("inf"):
        raise InputError(f"{text!r} is not GPU=USD", key="--price", hint="for example --price h100-sxm=2.69")
    return name, usd


@contextmanager
def _told(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """What is being looked at, on stderr and only if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("searching") as status:
        yield status.update
