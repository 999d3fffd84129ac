"""A RunLog as Arrow record batches: the columns of ``requests.parquet`` and ``timeline.parquet``.

Arrays are wrapped buffer by buffer. ``pyarrow.array`` would do it in one call, but it imports pandas (0.4 s).
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvsim.core.runlog import STATUS_NAMES, RunLog, seconds
from kvsim.core.trace import Trace
from kvsim.metrics.latency import client_queue_s, e2el_s, max_itl_s, queue_s, tpot_s, ttft_s
from kvsim.metrics.slo import Slo, deadline_met, good
from kvsim.metrics.summary import SCHEMA_VERSION

BATCH_ROWS: Final = 131_072
"""Rows of one Parquet row group: what is in memory at once while a run of any size is written."""

_INT, _FLOAT, _TEXT, _BOOL = pa.int64(), pa.float64(), pa.string(), pa.bool_()
_METADATA: Final = {"kvsim.schema_version": str(SCHEMA_VERSION)}

REQUESTS: Final = pa.schema(
    [
        ("request_id", _INT),
        ("session_id", _TEXT),
        ("tenant", _TEXT),
        ("priority", _INT),
        ("arrival_s", _FLOAT),
        ("queued_s", _FLOAT),
        ("first_scheduled_s", _FLOAT),
        ("first_token_s", _FLOAT),
        ("finish_s", _FLOAT),
        ("prompt_tokens", _INT),
        ("output_tokens", _INT),
        ("cached_tokens", _INT),
        ("computed_tokens", _INT),
        ("preemptions", _INT),
        ("replica_prefill", _INT),
        ("replica_decode", _INT),
        ("status", _TEXT),
        ("reason", _TEXT),
        ("ttft_s", _FLOAT),
        ("tpot_s", _FLOAT),
        ("e2el_s", _FLOAT),
        ("queue_s", _FLOAT),
        ("max_itl_s", _FLOAT),
        ("good", _BOOL),
        ("client_queue_s", _FLOAT),
        ("generated_tokens", _INT),
        ("swaps", _INT),
        ("swapped_tokens", _INT),
        ("deadline_s", _FLOAT),
        ("deadline_met", _BOOL),
    ],
    metadata=_METADATA,
)
"""One row per request in the order of the trace. ``output_tokens`` is what was asked for (after the cut at the model's
length), ``generated_tokens`` what was delivered; they differ only where a request did not finish. ``swaps`` are those
of its ``preemptions`` that kept its KV in host memory, ``swapped_tokens`` the tokens of KV copied there.
``deadline_s`` counts from the arrival; null, like ``deadline_met``, where the trace gives the request none."""

TIMELINE: Final = pa.schema(
    [
        ("time_s", _FLOAT),
        ("replica", _INT),
        ("step_s", _FLOAT),
        ("waiting", _INT),
        ("running", _INT),
        ("batch_tokens", _INT),
        ("prefill_tokens", _INT),
        ("decode_requests", _INT),
        ("kv_used_blocks", _INT),
        ("kv_cached_blocks", _INT),
        ("kv_free_blocks", _INT),
        ("kv_usage_frac", _FLOAT),
    ],
    metadata=_METADATA,
)
"""One row per sampling instant and replica, ordered by time, then replica."""


def request_batches(log: RunLog, trace: Trace, slo: Slo | None = None) -> Iterator[pa.RecordBatch]:
    """Record batches of schema REQUESTS, at most BATCH_ROWS rows each; at least one, so that an empty run has columns.

    Row i of the log is row i of ``trace`` (sessions, tenants, priorities, deadlines). ``good`` is null where ``slo``
    bounds nothing.
    """
    names = _Names([*trace.session_names] if trace.session_names is not None else _numbers(trace.session))
    tenants = _Names([*trace.tenant_names] if trace.tenant_names is not None else _numbers(trace.tenant))
    statuses, reasons = _Names(STATUS_NAMES), _Names(log.reasons)
    for start in range(0, max(len(log), 1), BATCH_ROWS):
        stop = min(start + BATCH_ROWS, len(log))
        part = _rows(log, start, stop)
        rows = stop - start
        is_good = good(part, slo or Slo())
        deadline_ns = None if trace.deadline_ns is None else trace.deadline_ns[start:stop]
        columns = {
            "request_id": _ints(np.arange(start, stop)),
            "session_id": _nulls(_TEXT, rows) if trace.session is None else names.column(trace.session[start:stop]),
            "tenant": _nulls(_TEXT, rows) if trace.tenant is None else tenants.column(trace.tenant[start:stop]),
            "priority": _nulls(_INT, rows) if trace.priority is None else _ints(trace.priority[start:stop]),
            "arrival_s": _floats(seconds(part.arrival_ns)),
            "queued_s": _floats(seconds(part.queued_ns)),
            "first_scheduled_s": _floats(seconds(part.first_scheduled_ns)),
            "first_token_s": _floats(seconds(part.first_token_ns)),
            "finish_s": _floats(seconds(part.finish_ns)),
            "prompt_tokens": _ints(part.prompt_tokens),
            "output_tokens": _ints(part.output_tokens),
            "cached_tokens": _ints(part.cached_tokens),
            "computed_tokens": _ints(part.computed_tokens),
            "preemptions": _ints(part.preemptions),
            "replica_prefill": _ints(part.replica_prefill, part.replica_prefill >= 0),
            "replica_decode": _ints(part.replica_decode, part.replica_decode >= 0),
            "status": statuses.column(part.status),
            "reason": reasons.column(np.where(part.reason > 0, part.reason, -1)),
            "ttft_s": _floats(ttft_s(part)),
            "tpot_s": _floats(tpot_s(part)),
            "e2el_s": _floats(e2el_s(part)),
            "queue_s": _floats(queue_s(part)),
            "max_itl_s": _floats(max_itl_s(part)),
            "good": _nulls(_BOOL, rows) if is_good is None else _bools(is_good),
            "client_queue_s": _floats(client_queue_s(part)),
            "generated_tokens": _ints(part.generated_tokens),
            "swaps": _ints(part.swaps),
            "swapped_tokens": _ints(part.swapped_tokens),
            "deadline_s": _nulls(_FLOAT, rows) if deadline_ns is None else _floats(seconds(deadline_ns)),
            "deadline_met": _nulls(_BOOL, rows)
            if deadline_ns is None
            else _bools(deadline_met(part, deadline_ns), deadline_ns >= 0),
        }
        yield pa.RecordBatch.from_arrays([columns[name] for name in REQUESTS.names], schema=REQUESTS)


def timeline_batches(log: RunLog) -> Iterator[pa.RecordBatch]:
    """Record batches of schema TIMELINE, at most BATCH_ROWS rows each; at least one."""
    timeline = log.timeline
    total_blocks = np.array(log.total_blocks, dtype=np.int64)
    for start in range(0, max(len(timeline.time_ns), 1), BATCH_ROWS):
        part = slice(start, start + BATCH_ROWS)
        replica, used = timeline.replica[part], timeline.kv_used_blocks[part]
        columns = {
            "time_s": _floats(seconds(timeline.time_ns[part])),
            "replica": _ints(replica),
            "step_s": _floats(seconds(timeline.step_ns[part])),
            "kv_usage_frac": _floats(used / total_blocks[replica] if len(used) else np.zeros(0)),
        }
        for name in TIMELINE.names:
            if name not in columns:
                columns[name] = _ints(getattr(timeline, name)[part])
        yield pa.RecordBatch.from_arrays([columns[name] for name in TIMELINE.names], schema=TIMELINE)


def _rows(log: RunLog, start: int, stop: int) -> RunLog:
    """The log with its per-request columns cut to these rows (views, nothing is copied)."""
    parts: dict[str, Any] = {}
    for field in fields(log):
        column = getattr(log, field.name)
        if isinstance(column, np.ndarray):
            parts[field.name] = column[start:stop]
    return replace(log, **parts)


def _numbers(session: NDArray[np.int64] | None) -> list[str]:
    """Names for the sessions of a trace that gives them numbers only."""
    return [] if session is None or not len(session) else [str(k) for k in range(int(session.max()) + 1)]


def _validity(valid: NDArray[np.bool_] | None) -> Any:
    """An Arrow validity bitmap (least significant bit first), or None if all rows are valid."""
    if valid is None or valid.all():
        return None
    return pa.py_buffer(np.packbits(valid, bitorder="little"))


def _floats(values: NDArray[np.float64]) -> Any:
    values = np.ascontiguousarray(values, dtype=np.float64)
    return pa.Array.from_buffers(_FLOAT, len(values), [_validity(~np.isnan(values)), pa.py_buffer(values)])


def _ints(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> Any:
    values = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(_INT, len(values), [_validity(valid), pa.py_buffer(values)])


def _bools(values: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None) -> Any:
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(_BOOL, len(values), [_validity(valid), bits])


def _nulls(kind: Any, rows: int) -> Any:
    return pa.nulls(rows, kind)


class _Names:
    """A table of strings that a column indexes."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [name.encode() for name in names]
        ends = np.cumsum([0, *(len(name) for name in encoded)], dtype=np.int32)
        self._strings = pa.StringArray.from_buffers(len(names), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))

    def column(self, index: NDArray[Any]) -> Any:
        """The strings at these positions; a negative position is null."""
        valid = index >= 0
        positions = pa.Array.from_buffers(
            pa.int32(), len(index), [_validity(valid), pa.py_buffer(np.where(valid, index, 0).astype(np.int32))]
        )
        return pa.DictionaryArray.from_arrays(positions, self._strings).cast(_TEXT)
