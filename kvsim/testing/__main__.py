"""Check a policy against the contract of its seat; exit code 0, 1 (something is wrong) or 2 (bad input)."""

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kvsim.core.errors import InputError
from kvsim.scenario.source import parse_yaml
from kvsim.testing.checks import check_target

LIMIT_S = 60
"""After so many seconds a policy that loops for ever is stopped, and the line that it is in is shown (exit code 1)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one policy, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kvsim.testing", description=__doc__)
    parser.add_argument("target", metavar="package.module:Class", help="the policy")
    parser.add_argument("parameters", metavar="FIELD=VALUE", nargs="*", help="its parameters; a value is YAML")
    parser.add_argument("--sample", metavar="FILE", type=Path, help="a small trace, for a reader")
    given = parser.parse_args(arguments)
    sys.path.insert(0, os.getcwd())  # policies of others lie where they are worked on
    wrong = 0
    try:
        for check in check_target(given.target, dict(map(_parameter, given.parameters)), given.sample):
            print(check, flush=True)
            wrong += check.problem is not None
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(
        f"{given.target} breaks the contract of its seat" if wrong else f"{given.target} keeps the contract of its seat"
    )
    return 1 if wrong else 0


def _parameter(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"{text!r} is not FIELD=VALUE", hint="for example max_num_seqs=8")
    return name, parse_yaml(value, key=name)


if __name__ == "__main__":
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    sys.exit(main())
