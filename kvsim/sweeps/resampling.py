"""How far would another day have been different? Replicates of a recorded trace, by a block bootstrap over time."""

import dataclasses
from typing import Final

import numpy as np

from kvsim.core.trace import Trace, TraceRows
from kvsim.scenario.resolve import Resolved
from kvsim.workload.transforms import gathered

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

    Order and gaps within a window stay; sessions of different windows are different sessions, equal prompt blocks stay
    equal. Source: moving-block bootstrap with fixed blocks (Carlstein 1986, doi 10.1214/aos/1176350057).
    """
    if len(trace) < 2:
        return trace
    width_ns = int(trace.arrival_ns[-1]) // blocks + 1
    starts = np.searchsorted(trace.arrival_ns, np.arange(blocks + 1) * width_ns)
    sizes = np.diff(starts)
    drawn = rng.integers(blocks, size=blocks)
    while not sizes[drawn].any():  # only empty windows of a bursty trace: that says nothing
        drawn = rng.integers(blocks, size=blocks)
    rows = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in drawn])
    copies = np.repeat(np.arange(blocks), sizes[drawn])
    shift_ns = (np.arange(blocks) - drawn) * width_ns
    arrival_ns = trace.arrival_ns[rows] + shift_ns[copies]
    replicate = gathered([trace], rows, TraceRows(read=len(rows)), copy=copies, arrival_ns=arrival_ns)
    return dataclasses.replace(replicate, origin_ns=None)
