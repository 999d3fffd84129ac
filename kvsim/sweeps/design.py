"""Which points of a question are run: all of a grid, or a sample of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final, Literal

import numpy as np

from kvsim.core.errors import InputError
from kvsim.scenario.axes import Axis
from kvsim.scenario.source import Key

Method = Literal["grid", "random", "lhs"]
METHODS: Final = ("grid", "random", "lhs")
MOST_RUNS: Final = 1_000_000

Point = dict[Key, Any]
"""Key -> value: one scenario of the question."""


def points(axes: Sequence[Axis], method: Method = "grid", samples: int | None = None, seed: int = 0) -> list[Point]:
    """The points in order; equal arguments give equal points.

    ``grid``: every combination, the last axis fastest. ``random``: ``samples`` independent draws. ``lhs``: a Latin
    hypercube, in which each axis is cut into ``samples`` equal parts and each part is met once (McKay, Beckman and
    Conover 1979, doi 10.1080/00401706.1979.10489755). Raises InputError for a grid over an axis without steps, and for
    a count that does not fit the method.
    """
    if method not in METHODS:
        raise InputError(f"{method!r} is not a method", key="method", hint=f"allowed: {', '.join(METHODS)}")
    if method == "grid":
        if samples is not None:
            raise InputError("a grid is run as a whole", key="samples", hint="for a sample of it: method random or lhs")
        for axis in axes:
            if axis.values is None:
                raise InputError(
                    "a grid needs steps", key=f"{axis.name}.range", hint="give step or log, or method random or lhs"
                )
        size = prod(len(axis.values or ()) for axis in axes)
        _not_too_many(size)
        return [
            dict(zip([axis.key for axis in axes], values, strict=True))
            for values in product(*(axis.values or () for axis in axes))
        ]
    if samples is None or samples < 1:
        raise InputError(f"{method} needs the number of points", key="samples", hint="a whole number from 1")
    _not_too_many(samples)
    rng = np.random.default_rng(seed)
    shares = rng.random((len(axes), samples))
    if method == "lhs":
        shares = np.stack([(rng.permutation(samples) + row) / samples for row in shares]) if len(axes) else shares
    return [{axis.key: axis.at(float(shares[k, i])) for k, axis in enumerate(axes)} for i in range(samples)]


def _not_too_many(runs: int) -> None:
    if runs > MOST_RUNS:
        raise InputError(f"{runs} points are too many", key="axes", hint=f"at most {MOST_RUNS}; sample with lhs")


@dataclass(frozen=True)
class Shard:
    """Part ``index`` (from 1) of ``count`` equal parts: runs index-1, index-1+count, ..."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/3``. Raises InputError for anything else."""
        first, slash, second = text.partition("/")
        if slash and first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
            return cls(int(first), int(second))
        raise InputError(f"{text!r} is not I/N", key="--shard", hint="for example 1/3, 2/3 and 3/3")

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def takes(self, run: int) -> bool:
        """True if this part has the run (counted from 0)."""
        return run % self.count == self.index - 1
