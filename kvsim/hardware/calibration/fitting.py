"""Fits a surface to measured calls: least absolute deviation of log(predicted / measured), smooth between the knots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvsim.core.operators import TILE_ROWS, TILES
from kvsim.core.surface import Call, Factor, Floats, Surface, octave
from kvsim.hardware.calibration.measured import Samples

Axes = Mapping[str, tuple[float, ...]]

_DIMENSION = (32, 128, 512, 1024, 2048, 4096, 8192, 16384, 65536)


@dataclass(frozen=True)
class Layout:
    """Knots of one operator kind: of the utilisation, and of slowdowns, each 1 where its first axis begins.

    ``smooth`` weighs the curvature of log utilisation against the measurements, ``flat`` its slope, which decides
    where there are none.
    """

    utilisation: Axes
    slowdowns: tuple[Axes, ...] = ()
    smooth: float = 0.05
    flat: float = 0.0


AXES: dict[str, Layout] = {
    "gemm": Layout(
        {
            "m": (1, 4, 8, 16, 17, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 32768),
            "n": _DIMENSION,
            "k": _DIMENSION,
        },
        (
            *({f"ragged_{a}x{b}": (1, 2), f"waves_{a}x{b}": (0.5, 1, 2, 4)} for a, b in TILES),
            *({f"padded_{a}": (1, 2), "m": (64, 512, 4096)} for a in TILE_ROWS),
        ),
    ),
    "prefill_attention": Layout(
        {
            "span": (0.5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
            "blocks": (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768, 131072),
            "group": (1, 4, 16, 64),
        },
        smooth=0.03,
        flat=0.01,
    ),
    "decode_attention": Layout(
        {
            "span": (2, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768, 131072),
            "sequences": (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192),
            "group": (1, 2, 8, 64),
        },
        (
            # Beyond L2 size a repeated kernel reads memory; below it, its cache.
            {"cache": (0.125, 0.25, 0.35, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 8), "sequences": (1, 16, 128, 1024)},
            # Several KV heads cost FlashAttention 2 another copy of the output of a batch.
            {"kv_heads": (1, 2), "requests": (1, 2, 64), "span": (128, 256, 2048)},
        ),
        smooth=0.03,
    ),
    "latent_prefill_attention": Layout(
        {
            "span": (0.5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
            "blocks": (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768, 131072),
        },
        smooth=0.03,
        flat=0.01,
    ),
    "latent_decode_attention": Layout(
        {
            "span": (2, 64, 256, 1024, 2048, 4096, 8192, 32768, 131072),
            "sequences": (1, 4, 16, 32, 64, 128, 256, 1024),
            "heads": (1, 16, 32, 64, 128),
        },
        ({"cache": (0.125, 0.25, 0.5, 1, 2, 4, 8), "sequences": (1, 16, 128, 1024)},),
        smooth=0.03,
    ),
    "experts": Layout(
        {
            "per_expert": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 16384),
            "active": (1, 4, 16, 64, 256),
            "width": (32, 128, 512, 2048, 8192),
            "hidden": (2048, 7168),
        },
        (
            {"skew": (1, 2), "per_expert": (1, 4, 16, 64, 256, 1024, 8192), "ranks": (1, 2, 4, 8, 32, 128)},
            # Few tokens that favour some of many experts wake fewer than even ones would.
            {"skew": (1, 2), "per_expert": (1, 4, 16, 64, 512), "active": (1, 4, 16, 64, 256)},
        ),
        flat=0.1,
    ),
    "experts_of_model": Layout(
        {
            "per_expert": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 16384),
            "active": (1, 4, 16, 64, 256),
            "width": (32, 128, 512, 2048, 8192),
        },
        smooth=0.01,
        flat=0.01,
    ),
    "all_reduce": Layout(
        {"bytes": tuple(float(2**power) for power in range(8, 30)), "ranks": (2, 4, 8)},
        smooth=0.1,
    ),
}
AXES |= {f"window_{kind}": AXES[kind] for kind in ("prefill_attention", "decode_attention")}
"""Where the knots of an operator kind lie: dense where kernels change (small m, L2 size), octaves apart elsewhere."""


def fit(samples: Samples, layout: Layout, rounds: int = 8) -> Surface:
    """The surface of these measurements. Gauss-Newton steps on the logarithms of the knots' values.

    Absolute deviations (by reweighting) because the error that counts is the mean absolute one, and because tables
    hold outliers. Raises ValueError if there are none.
    """
    from scipy import sparse
    from scipy.linalg import solve

    if not len(samples.seconds):
        raise ValueError("no measurements to fit")
    shapes = (layout.utilisation, *layout.slowdowns)
    grids = [Factor(axes, np.ones([len(knots) for knots in axes.values()])) for axes in shapes]
    designs = [_design(grid, samples.call) for grid in grids]
    target = np.log(samples.seconds / samples.call.bound_s)
    pull = [layout.smooth * _curvature(layout.utilisation) + layout.flat * _slope(layout.utilisation)]
    pull += [_to_one(axes) for axes in layout.slowdowns]
    penalty = sparse.block_diag(pull) + 1e-4 * sparse.identity(sum(grid.values.size for grid in grids))
    logs = [np.zeros(grid.values.size) for grid in grids]
    signs = [-1.0] + [1.0] * len(layout.slowdowns)
    weights = np.ones(len(target))
    for _ in range(rounds):
        parts, predicted = [], np.zeros(len(target))
        for design, log, sign in zip(designs, logs, signs, strict=True):
            scaled = design @ sparse.diags(np.exp(log))
            value = np.asarray(scaled.sum(axis=1)).ravel()
            parts.append(sign * sparse.diags(1 / value) @ scaled)
            predicted += sign * np.log(value)
        jacobian = sparse.hstack(parts).tocsr()
        together = np.concatenate(logs)
        aim = target - predicted + jacobian @ together
        normal = jacobian.T @ sparse.diags(weights) @ jacobian + penalty
        together = solve(normal.toarray(), jacobian.T @ (weights * aim), assume_a="pos")
        logs = np.split(together, np.cumsum([grid.values.size for grid in grids])[:-1])
        weights = 0.05 / np.maximum(np.abs(target - predicted), 0.02)
    factors = [Factor(grid.axes, np.exp(log).reshape(grid.values.shape)) for grid, log in zip(grids, logs, strict=True)]
    for slowdown in factors[1:]:
        slowdown.values[0] = 1.0  # _to_one has left them there but for rounding
    return Surface(factors[0], tuple(factors[1:]), rows=len(samples.seconds))


def _design(grid: Factor, call: Call) -> Any:
    """Weights of the knots at each call, sparse (calls, knots)."""
    from scipy import sparse

    rows, columns, values = [], [], []
    calls = np.arange(len(call.bound_s))
    for weight, index in grid.corners(call.coordinates):
        rows.append(calls)
        columns.append(index)
        values.append(weight)
    shape = (len(calls), grid.values.size)
    return sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def _curvature(axes: Axes) -> Any:
    """Sum of squared second differences along each axis, as a quadratic form (knots, knots)."""
    from scipy import sparse

    places = [octave(np.array(knots)) for knots in axes.values()]
    index = np.arange(np.prod([len(each) for each in places])).reshape([len(each) for each in places])
    total = sparse.csr_matrix((index.size, index.size))
    for axis, place in enumerate(places):
        along = np.moveaxis(index, axis, 0)
        for j in range(1, len(place) - 1):
            before, after = place[j] - place[j - 1], place[j + 1] - place[j]
            scale = 2 / (before + after)
            trio = (scale / before, -scale * (1 / before + 1 / after), scale / after)
            knots = [along[j + step].ravel() for step in (-1, 0, 1)]
            row = np.arange(len(knots[0]))
            values = np.concatenate([np.full(len(row), value) for value in trio])
            bend = sparse.csr_matrix((values, (np.tile(row, 3), np.concatenate(knots))), shape=(len(row), index.size))
            total = total + bend.T @ bend
    return total


def _slope(axes: Axes) -> Any:
    """Sum of squared differences along each axis, as a quadratic form (knots, knots)."""
    from scipy import sparse

    sizes = [len(knots) for knots in axes.values()]
    index = np.arange(np.prod(sizes)).reshape(sizes)
    total = sparse.csr_matrix((index.size, index.size))
    for axis in range(len(sizes)):
        along = np.moveaxis(index, axis, 0)
        low, high = along[:-1].ravel(), along[1:].ravel()
        rows = np.arange(len(low))
        values = np.concatenate([np.full(len(low), -1.0), np.full(len(low), 1.0)])
        step = sparse.csr_matrix(
            (values, (np.tile(rows, 2), np.concatenate([low, high]))), shape=(len(low), index.size)
        )
        total = total + step.T @ step
    return total


def _to_one(axes: Axes) -> Any:
    """Pulls a slowdown to 1: hard where its first axis begins, gently elsewhere."""
    from scipy import sparse

    sizes = [len(knots) for knots in axes.values()]
    strength: Floats = np.full(sizes, 0.1)
    strength[0] = 1e6
    return sparse.diags(strength.ravel())
