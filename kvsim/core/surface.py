"""Utilisation of an analytic bound as a surface over the shape of a call: a few tables, interpolated linearly.

Evaluated with frexp and + - x / alone, so that a number does not depend on the machine, nor on being computed alone
or in an array.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError

Floats = NDArray[np.float64]
Numbers = float | NDArray[np.float64] | NDArray[np.int64]
"""A number for all calls, or one for each."""


class Call(NamedTuple):
    """Calls of one operator: what the hardware allows at best, and where they lie on the axes of a surface.

    ``bound_s`` (n,) float64, s. ``coordinates`` maps the name of an axis to numbers above 0, (n,).
    """

    bound_s: Floats
    coordinates: Mapping[str, Floats]


def octave(x: Floats) -> Floats:
    """Position on a logarithmic axis: the whole octaves of log2 exactly, linear in between. ``x`` above 0, any shape.

    >>> octave(np.array([1.0, 1.5, 2.0, 3.0, 4.0])).tolist()
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    mantissa, exponent = np.frexp(x)
    return exponent + (2.0 * mantissa - 2.0)


@dataclass(frozen=True)
class Factor:
    """A positive number over one or more axes: given at knots, multilinear in ``octave`` of the coordinates between
    them, and held at its edge beyond.

    ``axes`` maps a coordinate's name to its ascending knots, (k,), two at least; ``values`` has one axis for each.

    >>> two = Factor({"tokens": (1.0, 4.0)}, np.array([0.2, 0.6]))
    >>> two.at({"tokens": np.array([1.0, 2.0, 4.0, 100.0])}).round(3).tolist()
    [0.2, 0.4, 0.6, 0.6]
    """

    axes: Mapping[str, tuple[float, ...]]
    values: Floats

    def at(self, coordinates: Mapping[str, Floats]) -> Floats:
        """Values at the coordinates, (n,)."""
        flat = self.values.ravel()
        total: Floats = np.zeros(())
        for weight, index in self.corners(coordinates):
            total = total + weight * flat[index]
        return total

    def corners(self, coordinates: Mapping[str, Floats]) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
        """The knots around each point: weight (n,) and position (n,) in the flattened values. Weights add up to 1."""
        sides: list[tuple[tuple[Floats, NDArray[np.int64]], tuple[Floats, NDArray[np.int64]]]] = []
        for name, knots in self.axes.items():
            places = octave(np.array(knots))
            place = np.minimum(np.maximum(octave(coordinates[name]), places[0]), places[-1])
            left = np.minimum(np.searchsorted(places, place, side="right") - 1, len(knots) - 2)
            right_share = (place - places[left]) / (places[left + 1] - places[left])
            sides.append(((1.0 - right_share, left), (right_share, left + 1)))
        for corner in product(*sides):
            weight, index = corner[0]
            for knots, (share, position) in zip(list(self.axes.values())[1:], corner[1:], strict=True):
                weight = weight * share
                index = index * len(knots) + position
            yield weight, index

    def beyond(self, coordinates: Mapping[str, Floats]) -> NDArray[np.bool_]:
        """True where a point lies outside the knots, (n,)."""
        outside: NDArray[np.bool_] = np.zeros((), dtype=np.bool_)
        for name, knots in self.axes.items():
            outside = outside | (coordinates[name] < knots[0]) | (coordinates[name] > knots[-1])
        return outside


@dataclass(frozen=True)
class Surface:
    """Seconds of a call = its bound / utilisation x slowdowns.

    ``spread`` is the mean |relative error| on shapes that the fit had not seen, ``rows`` the number of measurements.
    """

    utilisation: Factor
    slowdowns: tuple[Factor, ...] = ()
    spread: float = 0.0
    rows: int = 0

    def seconds(self, call: Call) -> Floats:
        """Seconds of each call, (n,)."""
        seconds = call.bound_s / self.utilisation.at(call.coordinates)
        for slowdown in self.slowdowns:
            seconds = seconds * slowdown.at(call.coordinates)
        return seconds

    def extrapolated(self, call: Call) -> NDArray[np.bool_]:
        """True for calls beyond what was measured, where the utilisation of the edge is taken, (n,)."""
        return self.utilisation.beyond(call.coordinates)


@dataclass(frozen=True)
class SurfaceFile:
    """What was measured on one GPU with one engine: surfaces by operator kind and variant (``gemm/bfloat16``).

    ``stream_share`` is the share of the data sheet's memory bandwidth with which weights much larger than the L2 cache
    were read.
    """

    gpu: str
    engine: str
    source: str
    stream_share: float
    surfaces: Mapping[str, Surface] = field(default_factory=dict)


def write_surfaces(file: SurfaceFile) -> str:
    """The text of a surface file (JSON); values with three digits, well below any spread."""
    surfaces = {
        name: {
            "spread": round(surface.spread, 4),
            "rows": surface.rows,
            "utilisation": _plain(surface.utilisation),
            "slowdowns": [_plain(slowdown) for slowdown in surface.slowdowns],
        }
        for name, surface in file.surfaces.items()
    }
    head = {"gpu": file.gpu, "engine": file.engine, "source": file.source}
    stream = {"stream_share": round(file.stream_share, 4)}
    lines = [f"{json.dumps(name)}: {json.dumps(surface, separators=(',', ':'))}" for name, surface in surfaces.items()]
    opening = json.dumps(head | stream)[:-1]
    return f'{opening},\n"surfaces": {{\n' + ",\n".join(lines) + "\n}}\n"


def read_surfaces(path: Path) -> SurfaceFile:
    """A surface file. Raises InputError naming the file and key if it cannot be read or understood."""
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read as surfaces: {error}", file=path) from None
    key = "surfaces"
    try:
        surfaces = {}
        for name, table in tables["surfaces"].items():
            key = f"surfaces.{name}"
            surfaces[name] = Surface(
                _factor(table["utilisation"]),
                tuple(_factor(each) for each in table["slowdowns"]),
                float(table["spread"]),
                int(table["rows"]),
            )
        key = "gpu, engine, source, stream_share"
        return SurfaceFile(
            str(tables["gpu"]),
            str(tables["engine"]),
            str(tables["source"]),
            float(tables["stream_share"]),
            surfaces,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"not a surface: {error!r}", file=path, key=key, hint="write such files with kvsim calibrate"
        ) from None


def _plain(factor: Factor) -> dict[str, Any]:
    values = [float(f"{value:.3g}") for value in factor.values.ravel().tolist()]
    return {"axes": {name: list(knots) for name, knots in factor.axes.items()}, "values": values}


def _factor(table: Mapping[str, Any]) -> Factor:
    axes = {name: tuple(float(knot) for knot in knots) for name, knots in table["axes"].items()}
    for name, knots in axes.items():
        if len(knots) < 2 or not _ascending(knots):
            raise ValueError(f"axis {name} needs two or more ascending knots above 0")
    values = np.array(table["values"], dtype=np.float64).reshape([len(knots) for knots in axes.values()])
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError("values must be above 0")
    return Factor(axes, values)


def _ascending(knots: Sequence[float]) -> bool:
    return knots[0] > 0 and all(low < high for low, high in pairwise(knots))
