"""Synthetic traces, seeded: the same arguments give the same requests.

- Here: the parts of a workload, one kind of part per file (``arrivals``, ``distributions``, ``lengths``, ``sessions``,
  ``prefixes``), ``compose.py`` that puts them together, and whole workloads: ``burstgpt``, ``servegen``, ``recipes``.
- You implement one verb of a part in a frozen dataclass (``times_s``, ``sample``, ``turns``, ``draw``), vectorised,
  with its formula and source in the docstring, and name it in the table at the end of its file.
- You may import kvsim.core, kvsim.workload and numpy.
- Copy ``arrivals.Gamma`` or ``distributions.Exponential``.
- Then run ``pytest tests/unit/workload``.
- The scenario layer calls you (``workload.generate``); people do with ``python -m kvsim.workload.generate``.
"""

from collections.abc import Callable
from typing import Any, Final

from kvsim.core.trace import Trace
from kvsim.workload.generate.arrivals import ARRIVALS, Arrivals
from kvsim.workload.generate.burstgpt import (
    BurstGPTRows,
    burstgpt_like,
    burstgpt_like_days,
    burstgpt_like_rows,
    write_burstgpt_csv,
)
from kvsim.workload.generate.compose import composed
from kvsim.workload.generate.distributions import DISTRIBUTIONS, Distribution
from kvsim.workload.generate.lengths import LENGTHS, Lengths
from kvsim.workload.generate.prefixes import PREFIXES, Prefixes
from kvsim.workload.generate.recipes import chat_sessions, lognormal_poisson
from kvsim.workload.generate.servegen import servegen
from kvsim.workload.generate.sessions import SESSIONS, Sessions

PARTS: Final[dict[Any, tuple[str, dict[str, str]]]] = {
    Arrivals: ("arrivals", ARRIVALS),
    Distribution: ("distribution", DISTRIBUTIONS),
    Lengths: ("lengths", LENGTHS),
    Prefixes: ("prefixes", PREFIXES),
    Sessions: ("sessions", SESSIONS),
}
"""Kinds of parts: what it is called, and its built-ins by name (``package.module:Class``)."""

GENERATORS: Final[dict[str, Callable[..., Trace]]] = {
    "burstgpt_like": burstgpt_like,
    "chat_sessions": chat_sessions,
    "composed": composed,
    "lognormal_poisson": lognormal_poisson,
    "servegen": servegen,
}
"""Names under ``workload.generate``; their arguments are the keys beside it."""

__all__ = [
    "ARRIVALS",
    "DISTRIBUTIONS",
    "GENERATORS",
    "LENGTHS",
    "PARTS",
    "PREFIXES",
    "SESSIONS",
    "Arrivals",
    "BurstGPTRows",
    "Distribution",
    "Lengths",
    "Prefixes",
    "Sessions",
    "burstgpt_like",
    "burstgpt_like_days",
    "burstgpt_like_rows",
    "chat_sessions",
    "composed",
    "lognormal_poisson",
    "servegen",
    "write_burstgpt_csv",
]
