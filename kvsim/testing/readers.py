"""What a reader promises: a sound Trace in which every row is accounted for, or an InputError."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvsim.core.errors import InputError
from kvsim.core.seats import TraceReader
from kvsim.core.trace import COLUMNS, RAGGED_COLUMNS, FailedRows, Ragged, Trace
from kvsim.testing.checks import Look
from kvsim.workload.readers.files import head_of


def looks(reader: TraceReader, sample: Path) -> Iterator[Look]:
    """The checks of a reader on a file in its format. Raises InputError if the file cannot be opened."""
    try:
        data = sample.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=sample) from None

    def runs() -> str | None:
        return None if len(reader.read(sample)) else "the trace has no rows"

    def sound() -> str | None:
        return trace_fault(reader.read(sample))

    def recognises() -> str | None:
        start = head_of(sample)
        if start.startswith(b"PAR1"):
            return None  # a Parquet file is recognised by its column names, which kvsim reads
        head = start.decode("utf-8", errors="replace")
        if reader.recognises(head) is not True:
            return f"it does not recognise {sample.name}"
        strangers = ("", "\n", "hello", "a,b,c\n1,2,3\n", "\x00\x00", '{"a": 1}\n')
        taken = [text for text in strangers if reader.recognises(text)]
        return f"it takes {taken[0]!r} for its own" if taken else None

    def repeats() -> str | None:
        one, other = reader.read(sample), reader.read(sample)
        for field in dataclasses.fields(Trace):
            if not _equal(getattr(one, field.name), getattr(other, field.name)):
                return f"{field.name} differs between two reads"
        return None

    yield "runs", runs
    yield "recognises the sample, and nothing foreign", recognises
    yield "the trace is sound: sorted, from 0, lengths of at least 1, every row accounted for", sound
    yield "reading twice gives the same trace", repeats
    yield "a damaged file gives a sound trace or an InputError", lambda: _damage(reader, data, sample)


def trace_fault(trace: Trace) -> str | None:
    """What a trace lacks to be sound, or None (``kvsim/core/trace.py``)."""
    for name in COLUMNS:
        column = getattr(trace, name)
        if column is not None and not (isinstance(column, np.ndarray) and column.dtype == np.int64):
            return f"{name} is {getattr(column, 'dtype', type(column).__name__)}, not an array of int64"
    for name in RAGGED_COLUMNS:
        ragged = getattr(trace, name)
        if ragged is not None and not ragged.values.dtype == ragged.offsets.dtype == np.int64:
            return f"{name} is not of int64"
    if len(trace) and trace.arrival_ns[0] != 0:
        return f"the first request arrives at {trace.arrival_ns[0]} ns, not at 0"
    if trace.rows is None:
        return "rows is None: nobody can say what was left out"
    if trace.rows.replayed != len(trace):
        return f"{trace.rows} leaves {trace.rows.replayed} rows to replay, and the trace has {len(trace)}"
    for name in ("session", "tenant", "model"):
        numbers, names = getattr(trace, name), getattr(trace, f"{name}_names")
        if numbers is not None and (numbers < -1).any():
            return f"{name} has a number below -1"
        last = -1 if numbers is None else int(numbers.max(initial=-1))
        if names is not None and len(names) <= last:
            return f"{name} {last} has no name among {len(names)}"
    for name, least in (("images", 0), ("deadline_ns", -1), ("history", -1)):
        column = getattr(trace, name)
        if column is not None and (column < least).any():
            return f"{name} has a value below {least}"
    return _failed_fault(trace) or (None if trace.prefix_hashes is None else _prefix_fault(trace.prefix_hashes))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if type(one) is type(other) and isinstance(one, Ragged | FailedRows):
        return all(_equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return bool(one == other)


def _failed_fault(trace: Trace) -> str | None:
    """Rows that failed in the traced system have to stand where their times say."""
    failed, rows = trace.source_failed, trace.rows
    if failed is None or rows is None:
        return None
    if len(failed) != rows.source_failed:
        return f"{len(failed)} rows failed in the traced system, and {rows} counts {rows.source_failed}"
    every_ns = np.insert(trace.arrival_ns, failed.before, failed.arrival_ns)
    return "a row that failed in the traced system is out of order" if (np.diff(every_ns) < 0).any() else None


def _prefix_fault(hashes: Ragged) -> str | None:
    """Ids have to be chained: each always behind the same one."""
    before = np.concatenate(([-1], hashes.values[:-1]))[: len(hashes.values)]
    starts = hashes.offsets[:-1]
    before[starts[starts < len(before)]] = -1
    distinct, first = np.unique(hashes.values, return_index=True)
    if len(distinct) and int(distinct[-1]) != len(distinct) - 1:
        return f"prefix_hashes has {len(distinct)} ids up to {distinct[-1]}, not numbered from 0 without gaps"
    if not np.array_equal(before[first][hashes.values], before):
        return "prefix_hashes has an id behind two different ids: ids have to stand for all before them"
    return None


def _damage(reader: TraceReader, data: bytes, sample: Path) -> str | None:
    """Cut the file, blow holes into it, and see what the reader makes of it."""
    rng = np.random.default_rng(0)
    damaged = [b"", b"\n", data[: len(data) // 2], data[: len(data) * 2 // 3 + 1], data + b"\x00\xff,,,,\n", data[::-1]]
    for _ in range(20):
        broken = bytearray(data)
        for at in rng.integers(0, max(1, len(data)), 3):
            broken[at : at + 1] = rng.choice([b"", b"-", b"x", b",", b"\n", b'"', b"1e400", b"\xff"])
        damaged.append(bytes(broken))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, sample.name)
        for content in damaged:
            path.write_bytes(content)
            try:
                fault = trace_fault(reader.read(path))
            except InputError:
                continue
            except Exception as error:
                return f"{type(error).__name__} instead of an InputError: {' '.join(str(error).split())[:200]}"
            if fault:
                return f"a damaged file was read as a trace in which {fault}"
    return None
