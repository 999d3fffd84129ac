"""A trace file as checked NumPy columns, in batches: CSV or Parquet, told apart by content.

Arrow parses, and a reader states its rules on whole columns. Only when a cell does not parse or a rule fails is the
file gone through again, row by row, to name the line: good files pay nothing for good errors.
"""

import csv
import difflib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from kvsim.core.errors import InputError

HEAD_BYTES: Final = 64 * 1024
MAX_TOKENS: Final = 2**31 - 1
MAX_SECONDS: Final = 4_000_000_000
"""About 126 years either side of the file's origin: a difference of two such times fits in int64 nanoseconds."""


@dataclass(frozen=True)
class Kind:
    """What the cells of a column may hold: the Arrow type they are parsed to, and the same in words.

    Cells of an ``optional`` kind may be empty.
    """

    arrow: Any
    allowed: str
    optional: bool = False


WHOLE: Final = Kind(pa.int64(), "a whole number of at most 18 digits")
SECONDS: Final = Kind(pa.float64(), "a number of seconds")
SECONDS_OR_EMPTY: Final = Kind(pa.float64(), "a number of seconds, or nothing", optional=True)
DECIMAL_SECONDS: Final = Kind(pa.decimal128(18, 9), "seconds with at most nine decimals")
DATE_TIME: Final = Kind(pa.timestamp("ns"), "YYYY-MM-DD hh:mm:ss with at most nine decimals and no time zone")
NAME: Final = Kind(pa.dictionary(pa.int32(), pa.string()), "UTF-8 text", optional=True)


class Table(Protocol):
    """A file with named columns. ``batches`` yields all its rows in order, at least one."""

    path: Path
    names: list[str]

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator["Batch"]:
        """The columns named in ``kinds``, a batch of rows at a time. Raises InputError for a cell of another kind."""
        ...

    def fault(self, row: int, name: str, problem: str, hint: str) -> InputError:
        """The error that says where data row ``row`` (from 0) of column ``name`` stands and what is in it."""
        ...


class Batch:
    """Some consecutive rows of a table. Methods name a column; a rule that fails is an InputError with its line."""

    def __init__(self, table: Table, first_row: int, arrays: Mapping[str, Any]) -> None:
        self._table = table
        self._first_row = first_row
        self._arrays = arrays

    def tokens(self, name: str, least: int) -> NDArray[np.int64]:
        """A column of token counts, (rows,) int64, each at least ``least``."""
        values = _values(self._arrays[name], np.int64)
        allowed = f"allowed: whole numbers from {least} to {MAX_TOKENS}"
        self.refuse((values < least) | (values > MAX_TOKENS), name, "is not a possible number of tokens", allowed)
        return values

    def whole(self, name: str) -> NDArray[np.int64]:
        """A column of whole numbers, (rows,) int64."""
        return _values(self._arrays[name], np.int64)

    def nanoseconds(self, name: str) -> NDArray[np.int64]:
        """A column of times or durations, (rows,) int64 ns; an empty cell is 0. Only SECONDS go through float64."""
        array = self._arrays[name]
        allowed = f"allowed: times of at most {MAX_SECONDS} s"
        if pa.types.is_floating(array.type):
            seconds = _values(array, np.float64)
            seconds = np.where(_filled(array), seconds, 0.0) if array.null_count else seconds
            self.refuse(~(np.abs(seconds) <= MAX_SECONDS), name, "is not a finite time", allowed)  # ~ catches NaN
            return np.rint(seconds * 1e9).astype(np.int64)
        if pa.types.is_decimal(array.type):  # 128 bits; those above the low 64 must only repeat its sign
            words = _values(array, np.int64, words=2)
            time_ns, above = words[0::2], words[1::2]
            self.refuse(above != time_ns >> 63, name, "is too large", allowed)
        else:
            time_ns = _values(array, np.int64)
        limit = MAX_SECONDS * 10**9
        self.refuse((time_ns > limit) | (time_ns < -limit), name, "is too large", allowed)
        return time_ns

    def text(self, name: str) -> Any:
        """A column of NAME cells, as a pyarrow DictionaryArray; an empty cell is null."""
        return self._arrays[name]

    def refuse(self, where: NDArray[np.bool_], name: str, problem: str, hint: str) -> None:
        """Raise InputError for the first row at which ``where`` is true, with what its cell ``name`` holds."""
        if where.any():
            raise self._table.fault(self._first_row + int(where.argmax()), name, problem, hint)

    def refuse_disorder(self, name: str, time_ns: NDArray[np.int64], before_ns: int | None) -> int | None:
        """Raise InputError if a time is earlier than the row before it. Returns the last time, for the next batch."""
        if not len(time_ns):
            return before_ns
        first = time_ns[0] if before_ns is None else before_ns
        hint = "rows must be in order of arrival (equal times are fine); sort the file by this column"
        self.refuse(time_ns < np.concatenate(([first], time_ns[:-1])), name, "is earlier than the row before it", hint)
        return int(time_ns[-1])


class Column:
    """An int64 column put together from batches, in the order in which they come.

    Doubling a plain array leaves nothing behind (what is not yet filled takes no memory); a list of pieces, put
    together at the end, left 30 bytes per row with the allocators.
    """

    def __init__(self) -> None:
        self._values = np.empty(0, np.int64)
        self._rows = 0

    def append(self, values: NDArray[np.int64]) -> None:
        """Add a copy of the values of one batch."""
        rows = self._rows + len(values)
        if rows > len(self._values):
            grown = np.empty(max(rows, 2 * len(self._values)), np.int64)
            grown[: self._rows] = self._values[: self._rows]
            self._values = grown
        self._values[self._rows : rows] = values
        self._rows = rows

    def take(self) -> NDArray[np.int64]:
        """All values, (n,) int64; nothing is added afterwards."""
        return self._values[: self._rows]


class Names:
    """Text that repeats, as numbers in order of first appearance; an empty cell is -1."""

    def __init__(self) -> None:
        self._numbers: list[NDArray[np.int64]] = []
        self._dictionaries: list[Any] = []
        self._known = 0

    def append(self, text: Any, kept: NDArray[np.bool_] | None = None) -> None:
        """Add a column of ``Batch.text``, or only the rows of it at which ``kept`` is true."""
        numbers = np.where(_filled(text), _values(text.indices, np.int32).astype(np.int64) + self._known, -1)
        self._numbers.append(numbers if kept is None else numbers[kept])
        self._dictionaries.append(text.dictionary)
        self._known += len(text.dictionary)

    def take(self) -> tuple[NDArray[np.int64], list[str]]:
        """(n,) int64 numbers, and the name behind each number; names of which no row was kept are left out."""
        every = pa.concat_arrays(self._dictionaries).dictionary_encode()  # one name may be in several batches
        names: list[str] = every.dictionary.to_pylist()
        first = np.append(_values(every.indices, np.int32).astype(np.int64), -1)  # index -1 stays -1
        numbers = first[np.concatenate(self._numbers)]
        if "" in names:
            numbers[numbers == names.index("")] = -1
        used = np.zeros(len(names) + 1, np.bool_)
        used[numbers] = True
        used[-1] = False
        renumbered = np.append(np.cumsum(used[:-1]) - 1, -1)
        return renumbered[numbers], [name for name, is_used in zip(names, used.tolist(), strict=False) if is_used]


def head_of(path: Path) -> bytes:
    """The first 64 KiB of a trace file.

    Raises InputError if there is no such file, it cannot be read, it is empty, or a Git LFS pointer or a compressed
    file stands in its place.
    """
    with _readable(path):
        if not path.exists():
            raise InputError("there is no such file", file=path, hint="check the path of the trace")
        if path.is_dir():
            raise InputError("is a folder", file=path, hint="name the trace file in it")
        if not path.is_file():
            raise InputError("is not a regular file", file=path, hint="save the trace to a file first")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    if not head.strip():
        raise InputError("is empty", file=path, hint="a trace has a header line and at least one row")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            "is a Git LFS pointer, not the trace itself",
            file=path,
            line=1,
            hint="fetch the data with 'git lfs pull' in its repository",
        )
    if head.startswith((b"\x1f\x8b", b"\xfd7zXZ", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh")):
        raise InputError("is compressed", file=path, hint="unpack it first")
    return head


def header(head: str) -> list[str]:
    """The column names in the first line of a CSV file (quotes, blanks around names and a byte order mark removed).

    >>> header("TIMESTAMP,ContextTokens\\r\\n2023-11-16 18:15:46.6805900,374\\r\\n")
    ['TIMESTAMP', 'ContextTokens']
    """
    line = io.StringIO(head.removeprefix("\ufeff"), newline="").readline()
    try:
        return [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error:
        return []


def open_table(path: Path) -> Table:
    """A CSV or Parquet file. Raises InputError if it is neither, or as ``head_of``."""
    head = head_of(path)
    return ParquetTable(path) if head.startswith(b"PAR1") else CsvTable(path, head)


def require(table: Table, columns: Sequence[str]) -> None:
    """Raise InputError unless every one of ``columns`` is there once."""
    for name in columns:
        if name not in table.names:
            near = difflib.get_close_matches(name, table.names, n=1, cutoff=0.6)
            hint = f"is it {near[0]!r}?" if near else f"the header has {shown(','.join(table.names))}"
            raise InputError(f"column {name!r} is missing", file=table.path, line=1, hint=hint)
        if table.names.count(name) > 1:
            raise InputError(f"column {name!r} is there twice", file=table.path, line=1, hint="keep one of them")


def shown(text: str) -> str:
    """Text from a file in quotes, printable on any terminal, cut at 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


class CsvTable:
    """A CSV file: UTF-8, commas, header in the first line; LF, CRLF or CR; quotes allowed; empty lines skipped."""

    def __init__(self, path: Path, head: bytes) -> None:
        self.path = path
        try:
            text = head.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if len(head) - error.start > 3 or len(head) < HEAD_BYTES:  # else a character cut at the end of the head
                line = head.count(b"\n", 0, error.start) + 1
                raise InputError("is not UTF-8 text", file=path, line=line, hint="save it as CSV in UTF-8") from None
            text = head[: error.start].decode("utf-8-sig")
        self.names = header(text)

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator[Batch]:
        require(self, tuple(kinds))
        positions = {name: str(self.names.index(name)) for name in kinds}
        row = 0
        try:
            stream = pa.csv.open_csv(
                self.path,
                pa.csv.ReadOptions(
                    use_threads=False, skip_rows=1, column_names=[str(i) for i in range(len(self.names))]
                ),
                pa.csv.ParseOptions(),
                pa.csv.ConvertOptions(
                    column_types={positions[name]: kind.arrow for name, kind in kinds.items()},
                    include_columns=list(positions.values()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            )
            for batch in stream:
                arrays = dict(zip(kinds, batch.columns, strict=True))
                if any(array.null_count and not kinds[name].optional for name, array in arrays.items()):
                    raise self._unreadable(kinds, "a cell is empty")
                yield Batch(self, row, arrays)
                row += batch.num_rows
        except pa.ArrowInvalid as error:
            raise self._unreadable(kinds, str(error)) from None
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"cannot be read: {_first_line(error)}", file=self.path) from None
        if not row:
            raise self._unreadable(kinds, "no rows")

    def fault(self, row: int, name: str, problem: str, hint: str) -> InputError:
        line, record = next(islice(self._records(), row, None))
        cell = record[self.names.index(name)]
        return InputError(f"{shown(cell)} {problem}", file=self.path, line=line, key=name, hint=hint)

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Number of the (last) line and cells of every row; bytes that are not UTF-8 come as lone surrogates."""
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            lines.readline()
            records = csv.reader(lines)
            try:
                for record in records:
                    if record:
                        yield records.line_num + 1, record
            except csv.Error as error:
                raise InputError(f"is not CSV: {error}", file=self.path, line=records.line_num + 1) from None

    def _unreadable(self, kinds: Mapping[str, Kind], reason: str) -> InputError:
        """The error for the first row or cell that Arrow could not parse (or, if none is found, its own words)."""
        width = len(self.names)
        wanted = [(name, self.names.index(name), kind) for name, kind in kinds.items()]
        records = self._records()
        empty = True
        while chunk := list(islice(records, 4096)):
            empty = False
            if all(len(record) == width for _, record in chunk) and all(
                _parses([record[i] for _, record in chunk], kind) for _, i, kind in wanted
            ):
                continue
            for line, record in chunk:
                if len(record) != width:
                    hint = "each row needs as many cells as the header"
                    problem = f"has {len(record)} cells, the header has {width}"
                    return InputError(problem, file=self.path, line=line, key=shown(",".join(record)), hint=hint)
                for name, i, kind in wanted:
                    if not _parses([record[i]], kind):
                        problem = f"{shown(record[i])} is not {kind.allowed}"
                        return InputError(
                            problem, file=self.path, line=line, key=name, hint="correct the cell or leave out the row"
                        )
        if empty:
            return InputError("has a header but no rows", file=self.path, hint="a trace needs at least one row")
        return InputError(f"cannot be read as CSV: {shown(reason)}", file=self.path)


class ParquetTable:
    """A Parquet file. Where a CSV error names a line, here it names the row, counted from 1."""

    BATCH_ROWS: Final = 65_536

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet  # 40 ms that CSV traces need not pay

        self.path = path
        with self._readable():
            self._file = parquet.ParquetFile(path)
            self._schema = self._file.schema_arrow
            self.names: list[str] = list(self._schema.names)

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator[Batch]:
        require(self, tuple(kinds))
        for name, kind in kinds.items():
            found = self._schema.field(name).type
            if not _casts(found, kind):
                raise InputError(f"has type {found}", file=self.path, key=name, hint=f"allowed: {kind.allowed}")
        row = 0
        with self._readable():
            stream = self._file.iter_batches(self.BATCH_ROWS, columns=list(kinds), use_threads=False)
        while True:
            with self._readable():
                batch = next(stream, None)
                if batch is None:
                    break
                arrays = {name: _cast(batch.column(name), kind) for name, kind in kinds.items()}
            chunk = Batch(self, row, arrays)
            for name, array in arrays.items():
                if array.null_count and not kinds[name].optional:
                    chunk.refuse(~_filled(array), name, f"is not {kinds[name].allowed}", "fill in or leave out the row")
            yield chunk
            row += batch.num_rows
        if not row:
            raise InputError("has no rows", file=self.path, hint="a trace needs at least one row")

    def fault(self, row: int, name: str, problem: str, hint: str) -> InputError:
        column = self._file.read(columns=[name], use_threads=False).column(name)
        return InputError(
            f"{shown(str(column[row]))} {problem}", file=self.path, key=f"row {row + 1}: {name}", hint=hint
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read as Parquet: {_first_line(error)}", file=self.path) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise InputError(f"cannot be read: {why}", file=path) from None


def _first_line(error: BaseException) -> str:
    return shown((str(error).splitlines() or [type(error).__name__])[0])


def _values(array: Any, dtype: type[Any], words: int = 1) -> NDArray[Any]:
    """The memory of an Arrow array as NumPy (read-only, not copied; anything where a cell is null).

    ``Array.to_numpy`` would import pandas.
    """
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array) * words, dtype)
    size = np.dtype(dtype).itemsize * words
    return np.frombuffer(buffer, dtype, count=len(array) * words, offset=array.offset * size)


def _filled(array: Any) -> NDArray[np.bool_]:
    """(rows,) bool, false where a cell is null."""
    if pa.types.is_dictionary(array.type):
        array = array.indices
    bitmap = array.buffers()[0]
    if bitmap is None:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(np.bool_)


def _parses(cells: Sequence[str], kind: Kind) -> bool:
    """True if Arrow reads all of these cells as this kind."""
    stripped = [cell.strip(" \t") for cell in cells]
    if not kind.optional and "" in stripped:
        return False
    target = kind.arrow.value_type if pa.types.is_dictionary(kind.arrow) else kind.arrow
    try:
        pa.array([cell or None for cell in stripped], pa.string()).cast(target)
    except (pa.ArrowException, UnicodeEncodeError):
        return False
    return True


def _casts(found: Any, kind: Kind) -> bool:
    """True if a Parquet column of this type can hold this kind without loss."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if kind is NAME:
        text = pa.types.is_string(found) or pa.types.is_large_string(found)
        return bool(text or pa.types.is_integer(found) or pa.types.is_null(found))
    if kind is WHOLE:
        return bool(pa.types.is_integer(found))
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_decimal(found))


def _cast(array: Any, kind: Kind) -> Any:
    if kind is NAME:
        return array.cast(pa.string()).dictionary_encode()
    return array.cast(kind.arrow)
