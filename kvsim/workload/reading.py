"""Reading a trace file: which format it is in, its reader, and where the trace came from."""

import dataclasses
import difflib
import hashlib
import os
from pathlib import Path

from kvsim.core.errors import InputError
from kvsim.core.plugins import load
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers import READERS


def read_trace(path: str | os.PathLike[str], format: str = "auto", allow_plugins: bool = True) -> Trace:
    """A trace file as a Trace, with ``path``, ``format``, ``sha256`` (of the file's bytes) and ``rows`` filled in.

    ``format`` is a name in ``READERS``, ``"package.module:Class"``, or ``auto``: recognised from the content (a
    Parquet file by its column names). Raises InputError, naming file, line, column and value, for anything that
    cannot be read.
    """
    from kvsim.workload.readers.table import head_of  # pyarrow is imported when a trace is read, not before

    path = Path(path)
    head = head_of(path)
    name = _recognised(path, head) if format == "auto" else format
    reader = load("trace format", name, READERS, allow_plugins=allow_plugins)()
    trace: Trace = reader.read(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    rows = trace.rows or TraceRows(read=len(trace))
    return dataclasses.replace(trace, path=str(path), format=name, sha256=sha256, rows=rows)


def _recognised(path: Path, head: bytes) -> str:
    """The name of the first format that recognises the file."""
    from kvsim.workload.readers.table import open_table, shown

    names = open_table(path).names
    text = ",".join(names) + "\n" if head.startswith(b"PAR1") else head.decode("utf-8", errors="replace")
    columns: dict[str, tuple[str, ...]] = {}
    for format, target in READERS.items():
        reader = load("trace format", format, {format: target})
        if reader().recognises(text):
            return format
        columns[format] = getattr(reader, "columns", ())

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
    hint = "known: " + "; ".join(f"{format} ({','.join(every)})" for format, every in columns.items())
    if len(lacks) < len(columns[closest]) or near:
        hint = f"closest is {closest}, which lacks {', '.join(lacks)}; {hint}"
    raise InputError(f"header {shown(','.join(names))} is of no known trace format", file=path, line=1, hint=hint)
