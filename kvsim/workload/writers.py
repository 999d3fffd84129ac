"""From a Trace to a file: CSV or JSON lines as ``plain`` reads them, BurstGPT's CSV, or kvsim's own Parquet form."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import RAGGED_COLUMNS, RejectedRow, Trace, previous_rows

BATCH_ROWS: Final = 131_072
"""Rows of one Parquet row group."""

_TEXTS: Final = (
    ("session", "session_id"),
    ("tenant", "tenant"),
    ("model", "model"),
)
_LISTS: Final = (("prefix_hashes", "hash_ids"), ("wait_for", "wait_for"))


def write_plain_csv(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write ``arrival_s,prompt_tokens,output_tokens`` and the optional columns that the trace has, LF line ends.

    Seconds are written exactly, without trailing zeros. Rows that failed in the traced system are not in it.
    Raises InputError for a trace with lists (prefix hashes, wait_for) or with line ends in names, which a CSV does not
    hold, and OSError if the file cannot be written.
    """
    for name in RAGGED_COLUMNS:
        if getattr(trace, name) is not None:
            raise InputError(f"a CSV does not hold {name}", hint="write .jsonl or .parquet")
    _refuse_line_ends(trace)
    write_csv(_plain_columns(trace), path)


def write_plain_jsonl(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the columns of ``write_plain_csv``, and lists, as JSON lines; times are whole nanoseconds or seconds.

    Read it with ``format: {name: plain, hash_block_tokens: ...}`` if it has ``hash_ids``.
    Raises InputError for segments, which no file holds, and OSError.
    """
    _refuse_segments(trace)
    columns = {"arrival_ns": trace.arrival_ns.tolist(), **_plain_columns(trace)}
    del columns["arrival_s"]
    for name in ("think_s", "deadline_s"):
        if name in columns:
            columns[name] = [float(each) if each else None for each in columns[name]]
    lists = {theirs: getattr(trace, ours) for ours, theirs in _LISTS if getattr(trace, ours) is not None}
    with open(path, "w", encoding="utf-8", newline="") as file:
        for i, row in enumerate(zip(*columns.values(), strict=True)):
            record = {name: value for name, value in zip(columns, row, strict=True) if value not in (None, "")}
            record |= {name: column.row(i).tolist() for name, column in lists.items()}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_plain_parquet(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write the columns of ``write_plain_csv`` as Parquet; times as float64 seconds.

    A time below 2^50 ns (13 days) comes back exactly; ``write_canonical`` has no such bound. Raises OSError if the
    file cannot be written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "arrival_s": _column(trace.arrival_ns / 1e9, pa.float64()),
        "prompt_tokens": _column(trace.prompt_tokens, pa.int64()),
        "output_tokens": _column(trace.output_tokens, pa.int64()),
    }
    for ours, theirs in _TEXTS:
        if getattr(trace, ours) is not None:
            columns[theirs] = _text_column(getattr(trace, ours), trace.names(ours))
    if trace.session is not None and trace.think_ns is not None:
        columns["think_s"] = _column(trace.think_ns / 1e9, pa.float64())
    for name in ("priority", "images"):
        if getattr(trace, name) is not None:
            columns[name] = _column(getattr(trace, name), pa.int64())
    parquet.write_table(pa.Table.from_arrays(list(columns.values()), names=list(columns)), path)


def write_canonical(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write every column of the trace in kvsim's own Parquet form (``readers/canonical.py``), zstd.

    Rows that failed in the traced system stand where they stood, with ``output_tokens`` 0; rows that were dropped
    are counted in the metadata. Raises InputError for segments, which no file holds, and OSError if the file cannot be
    written.
    """
    import pyarrow as pa
    from pyarrow import parquet

    from kvsim.workload.readers.canonical import LISTS, META_ABOUT, META_VERSION, NEEDED, NUMBERS, TEXTS, VERSION

    _refuse_segments(trace)
    rows = trace.rows
    about: dict[str, Any] = {"format": trace.format, "sha256": trace.sha256}
    if rows is not None:
        names = ("read", "source_failed", "dropped", "clipped")
        about["rows"] = {name: getattr(rows, name) for name in names}
    if trace.origin_ns is not None:
        about["origin_ns"] = trace.origin_ns
    if trace.hash_block_tokens is not None:
        about["hash_block_tokens"] = trace.hash_block_tokens
    numbers = [name for name in NUMBERS if getattr(trace, name) is not None]
    texts = [name for name in TEXTS if getattr(trace, name) is not None]
    lists = [name for name in LISTS if getattr(trace, name) is not None]
    list_type = pa.list_(pa.int64())
    fields = [(name, pa.int64()) for name in (*NEEDED, *numbers)]
    fields += [(name, pa.dictionary(pa.int32(), pa.string())) for name in texts]
    fields += [(name, list_type) for name in lists]
    metadata = {META_VERSION: str(VERSION), META_ABOUT: json.dumps(about)}
    schema = pa.schema(fields, metadata=metadata)
    dictionaries = {name: _strings(trace.names(name)) for name in texts}
    with parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=texts, column_encoding={"arrival_ns": "DELTA_BINARY_PACKED"}
    ) as writer:
        for row, failed in _in_file_order(trace):
            played = row >= 0
            arrays = [
                _column(_of_both(trace, name, row, failed, -1 if name == "elapsed_ns" else 0), pa.int64())
                for name in (*NEEDED, *numbers)
            ]
            for name in texts:
                at = _of_both(trace, name, row, failed, -1).astype(np.int32)
                arrays.append(pa.DictionaryArray.from_arrays(_column(at, pa.int32(), at >= 0), dictionaries[name]))
            for name in lists:
                chosen = getattr(trace, name).select(row[played])
                counts = np.zeros(len(row), np.int64)
                counts[played] = chosen.counts
                ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
                arrays.append(pa.ListArray.from_arrays(_column(ends, pa.int32()), _column(chosen.values, pa.int64())))
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def write_burstgpt_csv(trace: Trace, path: str | os.PathLike[str]) -> None:
    """Write BurstGPT_1's columns (BurstGPT_3's if the trace has sessions), which ``readers/burstgpt.py`` gives back.

    Times count from the midnight behind ``origin_ns``. A row without a model is written as ``ChatGPT``; one without a
    tenant as ``Conversation log`` if it has a session, else as ``API log``. Rows that failed in the traced system stand
    where they stood. Raises InputError for what the format cannot say, and OSError if the file cannot be written.
    """
    import pyarrow as pa

    from kvsim.workload.readers.burstgpt import ELAPSED, LOG_TYPES, SESSION

    for name in ("priority", "images", "deadline_ns", *RAGGED_COLUMNS):
        if getattr(trace, name) is not None:
            raise InputError(f"BurstGPT's format does not hold {name}", hint="write it as .parquet")
    services = [] if trace.tenant is None else trace.names("tenant")
    if {*services} - {*LOG_TYPES}:
        hint = f"allowed: {', '.join(LOG_TYPES)}; write it as .parquet"
        raise InputError("BurstGPT's format does not hold these tenants", hint=hint)
    _refuse_line_ends(trace)
    elapsed_ns = None if trace.session is None else _elapsed(trace, trace.session)
    failed_rows = trace.source_failed
    first_ns = trace.origin_ns or 0
    in_seconds = [first_ns, trace.arrival_ns, *(() if failed_rows is None else (failed_rows.arrival_ns,))]
    whole = not any(np.any(np.asarray(part) % 10**9) for part in in_seconds)
    models = [] if trace.model is None else trace.names("model")
    sessions = [] if trace.session is None else trace.names("session")
    quoted = any(not {*name}.isdisjoint(',"') for name in (*models, *sessions))
    models, services = [*models, "ChatGPT"], [*services, *LOG_TYPES]
    talk, api = len(services) - 2, len(services) - 1
    if elapsed_ns is not None:
        trace = replace(trace, elapsed_ns=elapsed_ns)

    def tables() -> Iterator[Any]:
        for row, failed in _in_file_order(trace):
            request, response = (_of_both(trace, name, row, failed) for name in ("prompt_tokens", "output_tokens"))
            session, model, service = (
                _of_both(trace, name, row, failed, -1) for name in ("session", "model", "tenant")
            )
            columns = {"Timestamp": _seconds(_of_both(trace, "arrival_ns", row, failed) + first_ns, whole)}
            if elapsed_ns is not None:
                columns[SESSION] = _text_column(session, sessions)
                columns[ELAPSED] = _seconds(np.maximum(_of_both(trace, "elapsed_ns", row, failed), 0), whole)
            columns |= {
                "Model": _text_column(np.where(model >= 0, model, len(models) - 1), models),
                "Request tokens": _column(request, pa.int64()),
                "Response tokens": _column(response, pa.int64()),
                "Total tokens": _column(request + response, pa.int64()),
                "Log Type": _text_column(np.where(service >= 0, service, np.where(session >= 0, talk, api)), services),
            }
            yield pa.Table.from_arrays(list(columns.values()), names=list(columns))

    write_arrow_csv(tables(), path, quoted)


def _elapsed(trace: Trace, session: NDArray[np.int64]) -> NDArray[np.int64]:
    """How long each row took, (n,) ns, such that the pauses behind it are the trace's: as recorded, if that gives them;
    0 where it is not recorded and no turn follows."""
    before = previous_rows(session)
    later = np.flatnonzero(before >= 0)
    earlier = before[later]
    elapsed_ns = np.zeros(len(session), np.int64) if trace.elapsed_ns is None else np.maximum(trace.elapsed_ns, 0)
    gap_ns = trace.arrival_ns[later] - trace.arrival_ns[earlier]
    think_ns = 0 if trace.think_ns is None else trace.think_ns[later]
    differs = np.maximum(gap_ns - elapsed_ns[earlier], 0) != think_ns
    elapsed_ns[earlier] = np.where(differs, gap_ns - think_ns, elapsed_ns[earlier])
    if bool((elapsed_ns < 0).any()):
        problem = "BurstGPT's format does not hold pauses longer than the time between two turns"
        raise InputError(problem, hint="write it as .parquet")
    return elapsed_ns


def write_arrow_csv(tables: Iterable[Any], path: str | os.PathLike[str], quoted: bool = False) -> None:
    """Write tables of the same columns one after the other under a header, LF line ends; ``quoted``: text in quotes."""
    from pyarrow import csv as arrow_csv

    options = arrow_csv.WriteOptions(include_header=False, quoting_style="needed" if quoted else "none")
    with open(path, "wb") as file:
        header = ""
        for table in tables:
            if not header:
                header = ",".join(table.column_names) + "\n"
                file.write(header.encode())
            arrow_csv.write_csv(table, file, options)


def write_csv(columns: dict[str, list[Any]], path: str | os.PathLike[str]) -> None:
    """Write columns of equal length under a header of their names, UTF-8, LF line ends."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_rejected(rejected: Sequence[RejectedRow], path: str | os.PathLike[str]) -> None:
    """Write ``place,column,value,reason``, one line per row in quarantine."""
    names = RejectedRow._fields
    write_csv({name: [getattr(row, name) for row in rejected] for name in names}, path)


def _in_file_order(trace: Trace) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Batches of the rows of a file: the trace's row, or -1 for one that failed in the traced system; and the numbers
    of those."""
    order = np.arange(len(trace))
    if trace.source_failed is not None:
        order = np.insert(order, trace.source_failed.before, -1)
    failures = 0
    for start in range(0, max(len(order), 1), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        count = int((rows < 0).sum())
        yield rows, np.arange(failures, failures + count)
        failures += count


def _of_both(
    trace: Trace, name: str, row: NDArray[np.int64], failed: NDArray[np.int64], nothing: int = 0
) -> NDArray[np.int64]:
    """A column of the rows of ``_in_file_order``; ``nothing`` where it is not known."""
    values = np.full(len(row), nothing, np.int64)
    for source, into, numbers in ((trace, row >= 0, row[row >= 0]), (trace.source_failed, row < 0, failed)):
        column = getattr(source, name, None)
        if column is not None:
            values[into] = column[numbers]
    return values


def _refuse_segments(trace: Trace) -> None:
    if trace.segments is not None:
        raise InputError("no file holds segments", hint="they belong to traces made in memory")


def _refuse_line_ends(trace: Trace) -> None:
    for ours, _ in _TEXTS:
        for name in getattr(trace, f"{ours}_names") or ():
            if "\n" in name or "\r" in name:
                hint = "write .jsonl or .parquet"
                raise InputError(f"a CSV does not hold the {ours} {name!r}", hint=hint)


def _plain_columns(trace: Trace) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "arrival_s": _decimals(trace.arrival_ns),
        "prompt_tokens": trace.prompt_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
    }
    for ours, theirs in _TEXTS:
        if getattr(trace, ours) is not None:
            names = trace.names(ours)
            columns[theirs] = ["" if k < 0 else names[k] for k in getattr(trace, ours).tolist()]
    if trace.think_ns is not None and (trace.session is not None or trace.wait_for is not None):
        columns["think_s"] = _decimals(trace.think_ns)
    for name in ("priority", "images"):
        if getattr(trace, name) is not None:
            columns[name] = getattr(trace, name).tolist()
    if trace.deadline_ns is not None:
        texts = _decimals(trace.deadline_ns)
        columns["deadline_s"] = ["" if t < 0 else s for t, s in zip(trace.deadline_ns.tolist(), texts, strict=True)]
    return columns


def _decimals(time_ns: NDArray[np.int64]) -> list[str]:
    """Nanoseconds as exact seconds.

    >>> _decimals(np.array([0, 20_622_000, 12_000_000_001]))
    ['0', '0.020622', '12.000000001']
    """
    return [f"{t // 10**9}.{t % 10**9:09d}".rstrip("0").rstrip(".") for t in time_ns.tolist()]


def _seconds(time_ns: NDArray[np.int64], whole: bool) -> Any:
    """Nanoseconds as an Arrow column of seconds, without or with nine decimals."""
    import pyarrow as pa

    if whole:
        return _column(time_ns // 10**9, pa.int64())
    words = np.column_stack((time_ns, time_ns >> 63))  # 128 bits, the low ones first
    return pa.Array.from_buffers(pa.decimal128(19, 9), len(time_ns), [None, pa.py_buffer(words)])


def _column(values: NDArray[Any], arrow: Any, filled: NDArray[np.bool_] | None = None) -> Any:
    """An Arrow array of the values. ``pa.array`` would import pandas."""
    import pyarrow as pa

    bitmap = None if filled is None or filled.all() else pa.py_buffer(np.packbits(filled, bitorder="little"))
    return pa.Array.from_buffers(arrow, len(values), [bitmap, pa.py_buffer(np.ascontiguousarray(values))])


def _strings(names: Sequence[str]) -> Any:
    import pyarrow as pa

    encoded = [name.encode() for name in names]
    ends = np.concatenate(([0], np.cumsum([len(each) for each in encoded]))).astype(np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)))


def _text_column(numbers: NDArray[np.int64], names: Sequence[str]) -> Any:
    import pyarrow as pa

    at = numbers.astype(np.int32)
    return pa.DictionaryArray.from_arrays(_column(at, pa.int32(), at >= 0), _strings(names)).cast(pa.string())
