"""Scalars with several values: ``choices: [...]`` and ``range: {from, to, step|log}`` anywhere in a scenario."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from kvsim.core.errors import InputError
from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import Key, Override, Source, apply, dotted, overrides_of, read_yaml, shown, varied

MOST_VALUES: Final = 100_000
"""A range with more values than this is a typing mistake (``step: 1e-9``), not a question."""

RANGE: Final = "range: {from: 1, to: 8, step: 1}; step adds, log multiplies (log: 2 doubles); without them any number"


@dataclass(frozen=True)
class Axis:
    """One key and what it takes: ``values`` in order, or (None) any number from ``low`` to ``high``.

    ``whole``: only whole numbers; ``log``: evenly spread in the logarithm. Both are for drawing, where ``values`` is
    None.
    """

    key: Key
    values: tuple[Any, ...] | None
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False

    @property
    def name(self) -> str:
        """The key as ``--set`` writes it; the name of its column."""
        return dotted(self.key)

    def at(self, share: float) -> Any:
        """The value that lies at ``share`` in [0, 1) of the axis; numbers have six digits, so that every machine
        gives the same."""
        if self.values is not None:
            return self.values[int(share * len(self.values))]
        if self.whole and not self.log:
            return int(self.low) + int(share * (int(self.high) - int(self.low) + 1))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.whole else float(f"{value:.6g}")

    def described(self) -> Any:
        """Plain data for a file."""
        if self.values is not None:
            return list(self.values)
        return {"from": self.low, "to": self.high, "whole": self.whole, "log": self.log}


@dataclass(frozen=True)
class Question:
    """A scenario in which some keys have several values. ``scenario`` makes one point of it."""

    data: Mapping[str, Any]
    source: Source
    overrides: tuple[Override, ...]
    axes: tuple[Axis, ...]

    @classmethod
    def load(
        cls,
        scenario: str | os.PathLike[str] | Scenario,
        axes: Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | Sequence[Override] = (),
    ) -> Question:
        """A file or a Scenario, overrides on top of it, and axes on top of both.

        ``axes`` maps a dotted key to a list of values, or to ``{"range": {...}}``. Raises InputError for a file or
        axis that cannot be read.
        """
        if isinstance(scenario, Scenario):
            data, source = scenario.model_dump(exclude_unset=True), scenario.source
        else:
            file = Path(scenario)
            data, lines = read_yaml(file)
            source = Source(file, lines)
        new = overrides_of(overrides) if isinstance(overrides, Mapping) else list(overrides)
        for name, spec in (axes or {}).items():
            if isinstance(spec, Mapping):
                spec = dict(spec)
            else:
                try:
                    spec = {"choices": [value.item() if hasattr(value, "item") else value for value in spec]}
                except TypeError:
                    raise InputError(f"{spec!r} is not a list of values", key=name, hint=RANGE) from None
            new += overrides_of({name: spec})
        where = replace(source, overrides=(*source.overrides, *new))
        combined = apply(data, new)
        found = tuple(_axis(key, spec, where) for key, spec in varied(combined))
        return cls(data, source, tuple(new), found)

    def scenario(self, values: Mapping[Key, Any]) -> Scenario:
        """The scenario with these values on its axes. Raises InputError for a value that its key never takes."""
        filled = tuple(replace(o, value=_filled(o.value, o.key, values)) for o in self.overrides)
        data: dict[str, Any] = _filled(self.data, (), values)
        return Scenario.of(data, self.source, filled)


def _filled(node: Any, at: Key, values: Mapping[Key, Any]) -> Any:
    if at in values:
        return values[at]
    if isinstance(node, Mapping):
        return {key: _filled(value, (*at, key), values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(value, (*at, idx), values) for idx, value in enumerate(node)]
    return node


def _axis(key: Key, spec: Mapping[str, Any], source: Source) -> Axis:
    if "choices" in spec:
        values = spec["choices"]
        if not isinstance(values, list) or not values:
            found = "an empty list" if values == [] else shown(values)
            raise source.error(
                f"expected a list of values, found {found}", (*key, "choices"), "for example choices: [1, 2, 4]"
            )
        texts = [json.dumps(value, sort_keys=True, default=str) for value in values]
        twice = next((text for text in texts if texts.count(text) > 1), None)
        if twice is not None:
            raise source.error(f"{twice} is there twice", (*key, "choices"), "each value once")
        return Axis(key, tuple(values))
    return _range((*key, "range"), key, spec["range"], source)


def _range(at: Key, key: Key, spec: Any, source: Source) -> Axis:
    if not isinstance(spec, Mapping):
        raise source.error(f"expected keys and values, found {shown(spec)}", at, RANGE)
    for name in spec:
        if name not in ("from", "to", "step", "log"):
            raise source.error("unknown key", (*at, name), "known: from, to, step, log")
    for name in ("from", "to"):
        if name not in spec:
            raise source.error("is missing", (*at, name), RANGE)
    if "step" in spec and "log" in spec:
        raise source.error("step and log exclude each other", at, RANGE)
    for name, value in spec.items():
        if isinstance(value, bool) and name == "log" and value:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise source.error(f"expected a number, found {shown(value)}", (*at, name), RANGE)
    low, high, log = spec["from"], spec["to"], spec.get("log")
    if low >= high:
        raise source.error(f"from {low} is not below to {high}", at, RANGE)
    if log is not None and low <= 0:
        raise source.error(f"{low} is not allowed; it must be greater than 0 where log is given", (*at, "from"))
    whole = isinstance(low, int) and isinstance(high, int)
    if log is True or (log is None and "step" not in spec):
        return Axis(key, None, low, high, whole, log is True)
    name = "step" if log is None else "log"
    by = spec[name]
    if by <= (0 if name == "step" else 1):
        least = "greater than 0" if name == "step" else "greater than 1 (each value so many times the one before)"
        raise source.error(f"{by} is not allowed; it must be {least}", (*at, name))
    return Axis(key, tuple(_steps(low, high, by, name == "log", (*at, name), source)))


def _steps(low: float, high: float, by: float, times: bool, at: Key, source: Source) -> Iterator[float]:
    """The numbers from ``low`` to ``high``, in decimal: 0.1, 0.2, 0.3, not 0.30000000000000004."""
    value, last, step = Decimal(repr(low)), Decimal(repr(high)), Decimal(repr(by))
    kind = int if all(isinstance(number, int) for number in (low, by)) else float
    for _ in range(MOST_VALUES):
        yield kind(value)
        value = value * step if times else value + step
        if value > last:
            return
    raise source.error(f"{by} gives more than {MOST_VALUES} values", at, RANGE)
