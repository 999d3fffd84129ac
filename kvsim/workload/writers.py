"""From a Trace to a file that the ``plain`` reader gives back unchanged."""

import csv
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Trace


def write_plain_csv(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write ``arrival_s,prompt_tokens,output_tokens`` and the optional columns that the trace has, LF line ends.

    Seconds are written exactly, without trailing zeros. Raises OSError if the file cannot be written.
    """
    columns: dict[str, list[Any]] = {
        "arrival_s": _decimals(trace.arrival_ns),
        "prompt_tokens": trace.prompt_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
    }
    if trace.session is not None:
        columns["session_id"] = _session_names(trace)
        if trace.think_ns is not None:
            columns["think_s"] = _decimals(trace.think_ns)
    if trace.priority is not None:
        columns["priority"] = trace.priority.tolist()
    write_csv(columns, path)


def write_plain_parquet(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the columns of ``write_plain_csv`` as Parquet; times as float64 seconds.

    A time below 2^50 ns (13 days) comes back exactly. Raises OSError if the file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def column(values: NDArray[Any], arrow: Any) -> Any:
        """pa.array(values) without importing pandas."""
        return pa.Array.from_buffers(arrow, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])

    columns = {
        "arrival_s": column(trace.arrival_ns / 1e9, pa.float64()),
        "prompt_tokens": column(trace.prompt_tokens, pa.int64()),
        "output_tokens": column(trace.output_tokens, pa.int64()),
    }
    if trace.session is not None:
        columns["session_id"] = pa.array(_session_names(trace), pa.string())
        if trace.think_ns is not None:
            columns["think_s"] = column(trace.think_ns / 1e9, pa.float64())
    if trace.priority is not None:
        columns["priority"] = column(trace.priority, pa.int64())
    parquet.write_table(pa.Table.from_arrays(list(columns.values()), names=list(columns)), path)


def write_csv(columns: dict[str, list[Any]], path: str | os.PathLike[str]) -> None:
    """Write columns of equal length under a header of their names, UTF-8, LF line ends."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _session_names(trace: Trace) -> list[str]:
    assert trace.session is not None
    names = trace.session_names
    return ["" if k < 0 else names[k] if names is not None else str(k) for k in trace.session.tolist()]


def _decimals(time_ns: NDArray[np.int64]) -> list[str]:
    """Nanoseconds as exact seconds.

    >>> _decimals(np.array([0, 20_622_000, 12_000_000_001]))
    ['0', '0.020622', '12.000000001']
    """
    return [f"{t // 10**9}.{t % 10**9:09d}".rstrip("0").rstrip(".") for t in time_ns.tolist()]
