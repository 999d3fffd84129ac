"""What engines add to the operators on the GPU: a few constants each, in ``data/hosts.toml``."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from kvsim.core import catalogue
from kvsim.core.errors import InputError

_FILE = Path(__file__).parent / "data" / "hosts.toml"


@dataclass(frozen=True)
class Host:
    """Constants of one engine, in s; what each is, and where it was fitted, stands in the file."""

    step_s: float
    quantise_s: float
    frontend_s: float
    source: str


@dataclass(frozen=True)
class Server:
    """What ``kvsim calibrate --from-bench`` found about one server: host time in s, and a factor on operators.

    ``frontend_s`` is for the scenario's ``engine.frontend_s``: no cost model sees it. ``host_spread`` and
    ``operators_spread``: standard deviations of the logarithms, for ``kvsim run --uncertainty``.
    """

    host_step_s: float
    host_request_s: float
    operators: float
    frontend_s: float
    host_spread: float
    operators_spread: float
    source: str


def read_server(path: Path) -> Server:
    """A file that ``kvsim calibrate --from-bench`` wrote. Raises InputError naming file and key."""
    return catalogue.build(Server, catalogue.read_toml(path), path)


@cache
def hosts() -> Mapping[str, Host]:
    """Engine -> its constants."""
    tables = catalogue.read_toml(_FILE)
    return {name: catalogue.build(Host, table, _FILE, within=name) for name, table in tables.items()}


def host_of(name: str) -> Host:
    """The constants of an engine. Raises InputError for one that is not in the file."""
    if name not in hosts():
        raise InputError(f"the host of {name!r} was not measured", key="host", hint=f"known: {', '.join(hosts())}")
    return hosts()[name]
