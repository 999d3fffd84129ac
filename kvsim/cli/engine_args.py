"""``kvsim engine-args``: the ``vllm serve`` line of a scenario."""

from __future__ import annotations

import click

from kvsim.cli.run import engine_args_option, load_scenario, scenario_options


@click.command(name="engine-args")
@scenario_options
@engine_args_option
def engine_args(scenario: str, settings: tuple[str, ...], no_plugins: bool, engine_args: str | None) -> None:
    """Print the `vllm serve` line of SCENARIO: one per pool, with the limits that kvsim has decided.

    What such a line cannot say goes to stderr. The other way round: kvsim run SCENARIO --engine-args LINE.
    """
    from kvsim.scenario.engine_args import serve_lines
    from kvsim.scenario.resolve import resolve

    lines, notes = serve_lines(resolve(load_scenario(scenario, settings, engine_args), allow_plugins=not no_plugins))
    for line in lines:
        click.echo(line)
    for note in notes:
        click.echo(f"Note: {note}", err=True)
