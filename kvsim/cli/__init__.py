"""The command line: parse, call, print. One module per command (or group of commands), imported when it is called.

A command lives in a module here as a click command of the same name and has its line in ``COMMANDS``; it imports what
it needs inside its function, so that ``kvsim --help`` stays quick. May import everything; nothing imports it.

Exit codes: 0 done, 1 ran but got stuck or broke a law, 2 a mistake of the user, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from kvsim import __version__
from kvsim.core.errors import InputError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}

COMMANDS = {
    "accuracy": ("accuracy:accuracy", "Compare simulations with servers that were measured."),
    "calibrate": (
        "calibrate:calibrate",
        "Fit efficiency surfaces to measured operator times, or a server to its clients' measurements.",
    ),
    "capacity": ("capacity:capacity", "Find the largest load, or the fewest GPUs, that keep the SLO."),
    "check": ("check:check", "Hold scenarios to what they expect of themselves."),
    "compare": ("compare:compare", "Compare runs of the same requests."),
    "conformance": ("conformance:conformance", "Compare runs with recordings of vLLM's own scheduler."),
    "engine-args": ("engine_args:engine_args", "Print the `vllm serve` line of a scenario."),
    "list": ("inspect:list_", "List what a scenario can name."),
    "memory": ("memory:memory", "Count the bytes that a model takes on each GPU of a layout."),
    "merge": ("sweep:merge", "Join the parts of a sweep."),
    "plot": ("inspect:plot", "Draw the figures of a result folder."),
    "run": ("run:run", "Simulate a scenario."),
    "schema": ("inspect:schema", "Print the JSON Schema of scenario files."),
    "sweep": ("sweep:sweep", "Simulate a scenario at many points."),
    "trace": ("trace:trace", "Look at a trace, check it, convert it, draw it, make one, fetch a published one."),
    "validate": ("run:validate", "Check a scenario without running it."),
}
"""Command -> module and function in this package, and its line in ``kvsim --help``."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``kvsim``: ends the process with an exit code; a user's mistake is one line on stderr."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
    try:
        code = cli.main(args=args, prog_name="kvsim", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "kvsim"
        code = _refuse(f"{error.format_message()} (see {command} --help)")
    except click.ClickException as error:
        code = _refuse(error.format_message())
    except InputError as error:
        code = _refuse(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("Interrupted.", err=True)
        code = 130
    except BrokenPipeError:
        code = _reader_gone()
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(number: int, _: object) -> None:
    """Batch systems end a job so: workers are stopped and temporary files removed, as after Ctrl-C."""
    sys.exit(128 + number)


def _refuse(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return 2


def _reader_gone() -> int:
    """Nobody reads our output any more, as in ``kvsim list | head -1``: what was to be done is done."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Commands(click.Group):
    """The commands of ``COMMANDS``, imported one at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"kvsim.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit with 1, which here means that a run failed
            return _reader_gone()


@click.group(cls=_Commands, context_settings=CONTEXT, no_args_is_help=False)
@click.version_option(__version__, "--version", "-V", prog_name="kvsim", message="%(prog)s %(version)s")
def cli() -> None:
    """Simulate LLM serving: replay a request trace on modelled GPUs, schedulers and KV caches."""
