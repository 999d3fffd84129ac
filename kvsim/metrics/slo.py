"""Service level objectives: bounds in milliseconds, and which requests meet them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import NEVER, RunLog
from kvsim.metrics.latency import finished


@dataclass(frozen=True)
class Slo:
    """Inclusive bounds in milliseconds; None is unbounded. All must hold.

    ``itl_ms`` bounds a request's largest gap; ``tpot_ms`` and ``normalized_tpot_ms`` are averages per token.
    Source of the rules: ``vllm bench serve --goodput`` (a one-token output meets any TPOT).
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None
    itl_ms: float | None = None
    normalized_tpot_ms: float | None = None

    @classmethod
    def of(cls, bounds: Mapping[str, float]) -> "Slo":
        """The objectives with these bounds in milliseconds: the inverse of ``bounds``."""
        return cls(**{f"{name}_ms": bound for name, bound in bounds.items()})

    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by metric name (``ttft``, ``tpot``, ...)."""
        named = {field.name.removesuffix("_ms"): getattr(self, field.name) for field in fields(self)}
        return {name: bound for name, bound in named.items() if bound is not None}


def met(log: RunLog, slo: Slo) -> dict[str, NDArray[np.bool_]]:
    """For each bound that is set: requests (n,) bool that finished and keep it.

    Compared in integer nanoseconds, a bound rounded to the nearest one, so a value on the bound is inside.
    """
    done = finished(log)
    spent_ns_and_tokens: dict[str, Callable[[], tuple[NDArray[np.int64], Any]]] = {  # whole columns: as asked for
        "ttft": lambda: (log.first_token_ns - log.arrival_ns, 1),
        "tpot": lambda: (log.finish_ns - log.first_token_ns, np.maximum(log.output_tokens - 1, 1)),
        "e2el": lambda: (log.finish_ns - log.arrival_ns, 1),
        "itl": lambda: (np.where(log.max_gap_ns == NEVER, 0, log.max_gap_ns), 1),
        "normalized_tpot": lambda: (log.finish_ns - log.arrival_ns, log.output_tokens),
    }
    result = {}
    for name, bound_ms in slo.bounds().items():
        spent_ns, tokens = spent_ns_and_tokens[name]()
        result[name] = done & (spent_ns <= np.round(bound_ms * 1e6) * tokens)
    return result


def good(log: RunLog, slo: Slo) -> NDArray[np.bool_] | None:
    """Requests (n,) bool that finished and keep every bound; None if no bound is set."""
    keeps = met(log, slo)
    return np.logical_and.reduce(list(keeps.values())) if keeps else None


def deadline_met(log: RunLog, deadline_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Requests (n,) bool that have a deadline of their own and finished by it.

    ``deadline_ns`` (n,) counts from the sending, inclusive; -1: none (``Trace.deadline_ns``).
    """
    in_time: NDArray[np.bool_] = log.finish_ns - log.arrival_ns <= deadline_ns
    return finished(log) & in_time
