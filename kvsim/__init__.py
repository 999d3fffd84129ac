"""Trace-driven discrete-event simulator of LLM serving.

``kvsim.run("scenario.yaml")`` simulates and returns a ``Result``; ``kvsim.sweep`` runs it at many points,
``kvsim.capacity`` finds what it takes; ``kvsim.Scenario`` makes or loads a scenario.
Importing this loads next to nothing: the names below are found when they are used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvsim.api import run as run
    from kvsim.core.errors import InputError as InputError
    from kvsim.report.result import Result as Result
    from kvsim.scenario import Scenario as Scenario
    from kvsim.sweeps import capacity as capacity
    from kvsim.sweeps import sweep as sweep

__version__ = "0.1.0"
__all__ = ["InputError", "Result", "Scenario", "__version__", "capacity", "run", "sweep"]

_HOMES = {
    "InputError": "kvsim.core.errors",
    "Result": "kvsim.report.result",
    "Scenario": "kvsim.scenario",
    "capacity": "kvsim.sweeps",
    "run": "kvsim.api",
    "sweep": "kvsim.sweeps",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kvsim' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
