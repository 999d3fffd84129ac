"""Reading a trace file: which format it is in, its reader, and where the trace came from."""

import dataclasses
import difflib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kvsim.core.errors import InputError
from kvsim.core.plugins import load
from kvsim.core.trace import RejectedRow, Trace, TraceRows
from kvsim.workload.readers import READERS

OnBadRow = Literal["refuse", "quarantine"]


def read_trace(
    path: str | os.PathLike[str],
    format: str = "auto",
    allow_plugins: bool = True,
    *,
    parameters: Mapping[str, Any] | None = None,
    on_bad_row: OnBadRow = "refuse",
) -> Trace:
    """A trace file (or an address, see ``readers.files.located``) as a Trace, with ``path``, ``format``, ``sha256`` (of
    the file's bytes) and ``rows`` filled in.

    ``format`` is a name in ``READERS``, ``"package.module:Class"``, or ``auto``: recognised from the content (a
    Parquet file by its column names). ``parameters`` are the reader's fields. With ``on_bad_row="quarantine"`` rows
    that break a rule are set aside: they are in ``rows.rejected``, and counted in ``rows.dropped`` by reason.
    Raises InputError, naming file, line, column and value, for anything that cannot be read.
    """
    from kvsim.workload.readers.files import checksum, located, readable

    with located(path) as local:
        name = recognised(local) if format == "auto" else format
        reader = load("trace format", name, READERS, allow_plugins=allow_plugins)(**(parameters or {}))
        trace = _read(reader, local, name, on_bad_row)
        with readable(local):
            sha256 = checksum(local)
    rows = trace.rows or TraceRows(read=len(trace))
    return dataclasses.replace(trace, path=str(path), format=name, sha256=sha256, rows=rows)


def _read(reader: Any, path: Path, name: str, on_bad_row: OnBadRow) -> Trace:
    """Read it strictly; if that fails, and bad rows are to be set aside, row by row."""
    from kvsim.workload.readers.table import Quarantine

    try:
        strict: Trace = reader.read(path)
        return strict
    except InputError:
        if on_bad_row == "refuse":
            raise
    if len(inspect.signature(reader.read).parameters) < 2:
        raise InputError(f"the reader {name} cannot set rows aside", key="on_bad_row", hint="allowed for it: refuse")
    quarantine = Quarantine()
    trace: Trace = reader.read(path, quarantine)
    rejected = tuple(sorted(quarantine.rows, key=_position))
    rows = trace.rows or TraceRows(read=len(trace))
    dropped = dict(rows.dropped)
    for row in rejected:
        reason = f"{row.column} {row.reason}".strip()
        dropped[reason] = dropped.get(reason, 0) + 1
    rows = dataclasses.replace(rows, read=rows.read + len(rejected), dropped=dropped, rejected=rejected)
    return dataclasses.replace(trace, rows=rows)


def _position(row: RejectedRow) -> int:
    """Where a row stands, for sorting: rows of a table by number; documents stay as they come."""
    number = row.place.rpartition(" ")[2]
    return int(number) if number.isascii() and number.isdigit() else 0


def recognised(path: Path) -> str:
    """The name of the first format that recognises the file. Raises InputError if none does."""
    from kvsim.workload.readers.files import head_of, shown
    from kvsim.workload.readers.table import ParquetTable, header, keys_of

    head = head_of(path)
    if head.startswith(b"PAR1"):
        parquet = ParquetTable(path)
        names = parquet.names
        marks = [f"#{key.decode(errors='replace')}" for key in parquet.metadata]
        text = "\n".join([",".join(names), *marks]) + "\n"
    else:
        text = head.decode("utf-8", errors="replace")
        names = list(keys_of(text)) or header(text)
    columns: dict[str, tuple[str, ...]] = {}
    for format, target in READERS.items():
        reader = load("trace format", format, {format: target})
        if reader().recognises(text):
            return format
        columns[format] = getattr(reader, "needed", ()) or getattr(reader, "columns", ())

    files = [path, *path.glob("chunk-*-trace.csv")] if path.is_dir() else [path]
    if files[-1].name.startswith("chunk-"):
        hint = "make a trace from them: workload: {generate: {name: servegen, path: ...}}"
        raise InputError("holds clients of ServeGen, not requests", file=path, hint=hint)
    known = {name for every in columns.values() for name in every}
    strange = sorted(set(names) - known)
    near = {
        wanted: match[0]
        for wanted in sorted(known - set(names))
        if (match := difflib.get_close_matches(wanted, strange, n=1, cutoff=0.7))
    }
    closest = max(columns, key=lambda format: len({*names, *near} & set(columns[format])))
    lacks = [
        f"{name!r} (is it {near[name]!r}?)" if name in near else repr(name)
        for name in columns[closest]
        if name not in names
    ]
    hint = f"known: {', '.join(columns)}; or map its columns: format: {{name: plain, columns: {{...}}}}"
    if len(lacks) < len(columns[closest]) or near:
        hint = f"closest is {closest}, which lacks {', '.join(lacks)}; {hint}"
    raise InputError(f"header {shown(','.join(names))} is of no known trace format", file=path, line=1, hint=hint)
