"""How far would another day have been different? Replicates of a recorded trace, by a block bootstrap over time."""

import dataclasses
from typing import Any, Final

import numpy as np

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.scenario.resolve import Resolved

BLOCKS: Final = 20
"""Windows that a trace is cut into: long enough to keep bursts whole, enough of them to differ."""


def resampled(resolved: Resolved, replicate: int) -> Resolved:
    """The same scenario on a replicate of its trace. A generated workload has seeds instead, and stays as it is."""
    if resolved.scenario.workload.trace is None:
        return resolved
    rng = np.random.default_rng([resolved.scenario.seed, replicate])
    return dataclasses.replace(resolved, trace=resample(resolved.trace, rng))


def resample(trace: Trace, rng: np.random.Generator, blocks: int = BLOCKS) -> Trace:
    """``blocks`` windows of equal length, drawn with replacement and put one behind the other.

    Order and gaps within a window stay; sessions of different windows are different sessions. Source: moving-block
    bootstrap with fixed blocks (Carlstein 1986, doi 10.1214/aos/1176350057). Raises InputError for a trace with columns
    that are not one value per request.
    """
    n = len(trace)
    if n < 2:
        return trace
    width_ns = int(trace.arrival_ns[-1]) // blocks + 1
    starts = np.searchsorted(trace.arrival_ns, np.arange(blocks + 1) * width_ns)
    drawn = rng.integers(blocks, size=blocks)
    rows = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in drawn])
    copies = np.repeat(np.arange(blocks), [starts[k + 1] - starts[k] for k in drawn])
    columns: dict[str, Any] = {}
    for field in dataclasses.fields(trace):
        column = getattr(trace, field.name)
        if field.name == "source_failed_before":
            columns[field.name] = None
        elif isinstance(column, np.ndarray):
            if len(column) != n:
                raise InputError(f"a trace with the column {field.name} cannot be resampled", key="workload.trace")
            columns[field.name] = column[rows]
    shift_ns = (np.arange(blocks) - drawn) * width_ns
    columns["arrival_ns"] = columns["arrival_ns"] + shift_ns[copies]
    if trace.session is not None:
        own = columns["session"]
        columns["session"] = np.where(own < 0, own, own * blocks + copies)
        columns["session_names"] = None
    if len(rows):
        columns["arrival_ns"] = columns["arrival_ns"] - columns["arrival_ns"][0]
    return dataclasses.replace(trace, **columns, rows=None)
