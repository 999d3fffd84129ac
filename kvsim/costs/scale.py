"""How much longer, or shorter, operators take than their cost model says: one factor per kind, and how sure it is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any, Final, TypeVar

from kvsim.core import catalogue
from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu

ALL: Final = "operators"
HOST: Final = "host"
KINDS: Final = (
    ALL,
    "gemm",
    "experts",
    "prefill_attention",
    "decode_attention",
    "all_reduce",
    "elementwise",
    HOST,
)
"""What can be scaled: all operators together, each kind of them (on top), and the time of the engine's host."""

FRONTEND: Final = "frontend"
"""Of ``spreads()``: the scenario's ``engine.frontend_s``, which is no part of a cost model."""

_FILE = Path(__file__).parent / "data" / "spread.toml"


class Scale:
    """Factors on seconds by kind; what is not named is 1, exactly.

    >>> scale = Scale({"operators": 1.5, "gemm": 2.0})
    >>> scale["gemm"], scale["all_reduce"], scale["host"]
    (3.0, 1.5, 1.0)
    """

    def __init__(self, factors: Mapping[str, float] | None) -> None:
        """Raises InputError for an unknown kind and a factor that is not above 0."""
        self._factors = dict(factors or {})
        for kind, factor in self._factors.items():
            if kind not in KINDS:
                raise InputError(f"{kind!r} cannot be scaled", key=f"scale.{kind}", hint=f"known: {', '.join(KINDS)}")
            if not 0 < factor < float("inf"):
                raise InputError(f"{factor!r} is not allowed", key=f"scale.{kind}", hint="needed: a factor above 0")

    def __getitem__(self, kind: str) -> float:
        own = self._factors.get(kind, 1.0)
        return own if kind == HOST else own * self._factors.get(ALL, 1.0)

    def gpu(self, gpu: Gpu, generic: Mapping[str, Efficiency]) -> Gpu:
        """A GPU whose constants make every operator take so much longer."""
        if not self._factors:
            return gpu
        known = {**generic, **gpu.efficiency}
        known.setdefault("experts", known["gemm"])
        return replace(gpu, efficiency={kind: self._slower(kind, fitted) for kind, fitted in known.items()})

    def _slower(self, kind: str, fitted: Efficiency) -> Efficiency:
        factor = self[kind]
        return Efficiency(fitted.compute / factor, fitted.memory / factor, fitted.fixed_s * factor)


Method = TypeVar("Method", bound=Callable[..., Any])


def scaled(kind: str) -> Callable[[Method], Method]:
    """For a method that returns seconds of one kind of operator, of an object with a ``scale``."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        def times(self: Any, *args: Any) -> Any:
            return self.scale[kind] * method(self, *args)

        return times  # type: ignore[return-value]

    return decorate


@cache
def spreads() -> Mapping[str, Any]:
    """Cost model -> its table in ``data/spread.toml``, where each figure and its source is explained."""
    return catalogue.read_toml(_FILE)
