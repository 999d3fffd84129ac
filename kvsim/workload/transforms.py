"""Changes to a trace before it is played: pure functions from a Trace to a Trace."""

import dataclasses
import math

import numpy as np

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows


def limit(trace: Trace, n: int) -> Trace:
    """The first ``n`` requests of the trace, as if the file ended after them (all of it, if it has no more).

    Rows after the last request kept are not counted as read. Of the rows left out by the reader, those that failed
    in the traced system are counted if they stand before it; dropped ones, whose place is not recorded, all are.
    Raises InputError if ``n`` is below 1.
    """
    if n < 1:
        raise InputError(f"{n} requests cannot be played", key="limit", hint="allowed: whole numbers from 1, or null")
    if n >= len(trace):
        return trace

    rows = trace.rows or TraceRows(read=len(trace))
    failed, failed_before = rows.source_failed, trace.source_failed_before
    if failed_before is not None:
        failed_before = failed_before[failed_before < n]
        failed = len(failed_before)
    read = n + failed + sum(rows.dropped.values())
    return dataclasses.replace(
        trace.select(slice(n)),
        rows=dataclasses.replace(rows, read=read, source_failed=failed),
        source_failed_before=failed_before,
        source_failed_ns=None if trace.source_failed_ns is None else trace.source_failed_ns[:failed],
        source_failed_prompt_tokens=None
        if trace.source_failed_prompt_tokens is None
        else trace.source_failed_prompt_tokens[:failed],
    )


def rate_scale(trace: Trace, factor: float) -> Trace:
    """The same requests, arriving ``factor`` times as fast: arrival times divided by it, rounded to ns.

    Think times are people's and stay as they are. Raises InputError unless ``factor`` is positive and finite, and
    the last arrival stays within int64 nanoseconds.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"{factor} is not a positive number", key="rate_scale", hint="1.0 plays the trace as it is")
    if factor == 1:
        return trace
    arrival_ns = np.rint(trace.arrival_ns / factor)
    if len(trace) and not arrival_ns[-1] < 2.0**62:
        hint = "the last arrival would be more than 146 years after the first"
        raise InputError(f"{factor} is too small", key="rate_scale", hint=hint)
    return dataclasses.replace(trace, arrival_ns=arrival_ns.astype(np.int64))
