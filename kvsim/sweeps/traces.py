"""One trace for many runs: parsed once, written as Arrow, mapped into the memory of every worker."""

import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.core.files import TEMPORARY
from kvsim.core.trace import RejectedRow, Trace
from kvsim.workload import read_trace

TRACE: Final = ".trace-"


class CannotShare(InputError):
    """No run of the sweep can start: not a mistake in one of its scenarios."""


class SharedTraces:
    """Reads trace files for a sweep: each once, kept as an Arrow file in ``folder``.

    Its ``read`` has the form that ``resolve`` asks for. ``files`` maps what was read to the Arrow file, for workers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}

    def read(self, path: Path, format: str, allow_plugins: bool, **how: Any) -> Trace:
        """The trace in a file. Raises InputError as ``read_trace``, CannotShare if its Arrow file cannot be written."""
        key = _asked(path, format, how)
        if key not in self.files:
            stat = path.stat()
            state = f"{__version__} {key} {stat.st_size} {stat.st_mtime_ns}"
            arrow = self.folder / f"{TRACE}{sha256(state.encode()).hexdigest()[:16]}.arrow"
            if not arrow.is_file():
                write_arrow(read_trace(path, format, allow_plugins, **how), arrow)
            self.files[key] = arrow
        return read_arrow(self.files[key])

    def remove(self) -> None:
        """Delete the Arrow files, those of a killed sweep too; a process that has mapped one keeps what it has."""
        for arrow in self.folder.glob(f"{TRACE}*"):
            arrow.unlink(missing_ok=True)


def _asked(path: Path, format: str, how: Mapping[str, Any]) -> str:
    """What a trace depends on beside the content of its file: where that is, and how it is read."""
    return f"{path} {format} {sorted(how.items())}"


def mapped(files: Mapping[str, Path], path: Path, format: str, allow_plugins: bool, **how: Any) -> Trace:
    """The trace in ``path`` from its Arrow file; from ``path`` itself where that is out of reach (another machine)."""
    arrow = files.get(_asked(path, format, how))
    if arrow is not None and arrow.is_file():
        return read_arrow(arrow)
    return read_trace(path, format, allow_plugins, **how)


def write_arrow(trace: Trace, file: Path) -> None:
    """Write a trace as one row of lists, so that columns may differ in length; appears when complete.

    Raises CannotShare if it cannot be written.
    """
    columns: dict[str, Any] = {}
    plain = _taken_apart(trace, "", columns)
    schema = pa.schema([(name, pa.large_list(_arrow_type(array))) for name, array in columns.items()])
    schema = schema.with_metadata({"trace": json.dumps(plain)})
    batch = pa.RecordBatch.from_arrays([_list_of(array) for array in columns.values()], schema=schema)
    temporary = file.with_name(f"{file.name}{TEMPORARY}{os.getpid()}")
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(batch)
        os.replace(temporary, file)
    except OSError as error:
        problem = os.strerror(error.errno) if error.errno else str(error)
        raise CannotShare(
            f"the parsed trace cannot be written: {problem}", file=file, hint="free some space or name another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=8)
def read_arrow(file: Path) -> Trace:
    """A trace whose arrays are views of the mapped file: any number of processes hold it once."""
    with pa.memory_map(str(file)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column.values
        array = np.frombuffer(values.buffers()[1], dtype=values.type.to_pandas_dtype())
        columns[name] = array[values.offset : values.offset + len(values)]
    plain = json.loads(batch.schema.metadata[b"trace"])
    if plain["rows"]:
        plain["rows"]["rejected"] = tuple(RejectedRow(*row) for row in plain["rows"]["rejected"])
    trace: Trace = _put_together(Trace, plain, "", columns)
    return trace


def _taken_apart(node: Any, at: str, columns: dict[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass as plain data; arrays go to ``columns`` under their dotted name."""
    plain: dict[str, Any] = {}
    for field in fields(node):
        value, name = getattr(node, field.name), f"{at}{field.name}"
        if isinstance(value, np.ndarray):
            columns[name] = np.ascontiguousarray(value)
        elif is_dataclass(value):
            plain[field.name] = _taken_apart(value, f"{name}.", columns)
        else:
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def _put_together(cls: Any, plain: Mapping[str, Any], at: str, columns: Mapping[str, Any]) -> Any:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in fields(cls):
        name = f"{at}{field.name}"
        if name in columns:
            values[field.name] = columns[name]
            continue
        value = plain[field.name]
        hint = hints[field.name]
        inner = next((kind for kind in (hint, *_options(hint)) if is_dataclass(kind)), None)
        together = inner is not None and value is not None
        values[field.name] = _put_together(inner, value, f"{name}.", columns) if together else value
    return cls(**values)


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is not None else ()


def _arrow_type(array: Any) -> Any:
    return pa.from_numpy_dtype(array.dtype)


def _list_of(array: Any) -> Any:
    """One row that holds the array, without copying it."""
    values = pa.Array.from_buffers(_arrow_type(array), len(array), [None, pa.py_buffer(array)])
    offsets = pa.Array.from_buffers(pa.int64(), 2, [None, pa.py_buffer(np.array([0, len(array)], np.int64))])
    return pa.LargeListArray.from_arrays(offsets, values)
