"""A trace file as checked NumPy columns, in batches: CSV, Parquet or JSON lines, told apart by content.

Arrow parses, and a reader states its rules on whole columns. Only when a cell does not parse or a rule fails is the
file gone through again, row by row, to name the line: good files pay nothing for good errors. With a ``Quarantine``
rows are parsed one by one from the start (some ten times slower), and those that break a rule are set aside.
"""

import codecs
import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import MAX_TOKENS, RejectedRow
from kvsim.workload.readers.files import (
    HEAD_BYTES,
    first_line,
    head_of,
    holds_members,
    open_bytes,
    open_text,
    readable,
    shown,
)

MAX_SECONDS: Final = 4_000_000_000
"""About 126 years either side of the file's origin: a difference of two such times fits in int64 nanoseconds."""
NS_PER: Final = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@dataclass(frozen=True)
class Kind:
    """What the cells of a column may hold: the Arrow type they are parsed to, and the same in words.

    Cells of an ``optional`` kind may be empty (in JSON: null, or the key left out).
    """

    arrow: Any
    allowed: str
    optional: bool = False


WHOLE: Final = Kind(pa.int64(), "a whole number of at most 18 digits")
WHOLE_OR_EMPTY: Final = Kind(pa.int64(), "a whole number of at most 18 digits, or nothing", optional=True)
NUMBER: Final = Kind(pa.float64(), "a number")
NUMBER_OR_EMPTY: Final = Kind(pa.float64(), "a number, or nothing", optional=True)
SECONDS: Final = Kind(pa.float64(), "a number of seconds")
SECONDS_OR_EMPTY: Final = Kind(pa.float64(), "a number of seconds, or nothing", optional=True)
DECIMAL_SECONDS: Final = Kind(pa.decimal128(18, 9), "seconds with at most nine decimals")
DATE_TIME: Final = Kind(pa.timestamp("ns"), "YYYY-MM-DD hh:mm:ss with at most nine decimals and no time zone")
ZONED_DATE_TIME: Final = Kind(
    pa.timestamp("ns", "UTC"), "YYYY-MM-DD hh:mm:ss with at most nine decimals and a time zone (Z or +hh:mm)"
)
NAME: Final = Kind(pa.dictionary(pa.int32(), pa.string()), "UTF-8 text", optional=True)
IDS: Final = Kind(pa.list_(pa.uint64()), "a list of whole numbers from 0, below 2^64", optional=True)


class Quarantine:
    """Collects rows that break a rule, so that the others can be played (``on_bad_row: quarantine``)."""

    def __init__(self) -> None:
        self.rows: list[RejectedRow] = []

    def add(self, place: str, column: str, value: str, reason: str) -> None:
        """Set a row aside; ``value`` is text from the file."""
        self.rows.append(RejectedRow(place, column, shown(value)[1:-1], reason))


class Cell(NamedTuple):
    """Where a cell stands: on a line, or (``key`` says so) in a row of a file without lines; and its text."""

    line: int | None
    key: str
    text: str


class Table(Protocol):
    """A file with named columns. ``batches`` yields all its rows in order, at least one row in all."""

    path: Path
    names: list[str]

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator["Batch"]:
        """The columns named in ``kinds``, a batch of rows at a time.

        Raises InputError for a cell of another kind, unless the table was opened with a quarantine.
        """
        ...


class Batch:
    """Some consecutive rows of a table. Methods name a column.

    A rule that a row breaks is an InputError with its line; with a quarantine the row is set aside, and ``good`` is
    false there: (rows,) bool, complete when all rules have been stated.
    """

    def __init__(
        self, path: Path, arrays: Mapping[str, Any], cell: Callable[[int, str], Cell], quarantine: Quarantine | None
    ) -> None:
        self._path = path
        self._arrays = arrays
        self._cell = cell
        self._quarantine = quarantine
        self.good: NDArray[np.bool_] = np.ones(len(next(iter(arrays.values()))), np.bool_)

    def tokens(self, name: str, least: int) -> NDArray[np.int64]:
        """A column of token counts, (rows,) int64, each at least ``least``."""
        values = _values(self._arrays[name], np.int64)
        allowed = f"allowed: whole numbers from {least} to {MAX_TOKENS}"
        self.refuse((values < least) | (values > MAX_TOKENS), name, "is not a possible number of tokens", allowed)
        return values

    def whole(self, name: str, empty: int = 0) -> NDArray[np.int64]:
        """A column of whole numbers, (rows,) int64; ``empty`` where a cell is empty."""
        array = self._arrays[name]
        values = _values(array, np.int64)
        return np.where(_filled(array), values, empty) if array.null_count else values

    def nanoseconds(self, name: str, unit: str = "s", empty: int = 0) -> NDArray[np.int64]:
        """A column of times or durations in ``unit`` (s, ms, us, ns), (rows,) int64 ns; ``empty`` where a cell is
        empty. Date-times and DECIMAL_SECONDS do not go through float64."""
        array = self._arrays[name]
        allowed = f"allowed: times of at most {MAX_SECONDS} s"
        limit = MAX_SECONDS * 10**9
        if pa.types.is_floating(array.type):
            times = _values(array, np.float64) * NS_PER[unit]
            times = np.where(_filled(array), times, empty) if array.null_count else times
            bad = ~(np.abs(times) <= limit)  # ~ catches NaN
            self.refuse(bad, name, "is not a finite time", allowed)
            return np.rint(np.where(bad, 0, times) if bad.any() else times).astype(np.int64)
        if pa.types.is_decimal(array.type):  # 128 bits; those above the low 64 must only repeat its sign
            words = _values(array, np.int64, words=2)
            time_ns, above = words[0::2], words[1::2]
            self.refuse(above != time_ns >> 63, name, "is too large", allowed)
        elif pa.types.is_integer(array.type):
            numbers = self.whole(name)
            self.refuse(np.abs(numbers) > limit // NS_PER[unit], name, "is too large", allowed)
            time_ns = numbers * NS_PER[unit]
        else:
            time_ns = _values(array, np.int64)
        self.refuse((time_ns > limit) | (time_ns < -limit), name, "is too large", allowed)
        return np.where(_filled(array), time_ns, empty) if array.null_count else time_ns

    def text(self, name: str) -> Any:
        """A column of NAME cells, as a pyarrow DictionaryArray; an empty cell is null."""
        return self._arrays[name]

    def filled(self, name: str) -> NDArray[np.bool_]:
        """(rows,) bool, false where a cell is empty."""
        return _filled(self._arrays[name])

    def ids(self, name: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """A column of IDS: all values (m,) uint64, and how many each row has, (rows,) int64."""
        array = self._arrays[name]
        ends = _values(array, np.int32, extra=1).astype(np.int64)
        counts = np.where(_filled(array), np.diff(ends), 0)
        values = _values(array.values, np.uint64)
        own: Any = slice(ends[0], ends[-1])
        if array.null_count:  # what a null row points to is not its own
            own = np.repeat(ends[:-1] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        if array.values.null_count:
            empty = ~_filled(array.values)[own]
            odd = np.bincount(np.repeat(np.arange(len(counts)), counts)[empty], minlength=len(counts)) > 0
            self.refuse(odd, name, "has an empty item", f"allowed: {IDS.allowed}")
        return values[own], counts

    def refuse(self, where: NDArray[np.bool_], name: str, problem: str, hint: str) -> None:
        """The rows at which ``where`` is true break a rule: ``problem`` ends a sentence that begins with the cell
        ``name``. Raises InputError for the first of them, or sets them aside."""
        if not where.any():
            return
        if self._quarantine is None:
            cell = self._cell(int(where.argmax()), name)
            raise InputError(f"{shown(cell.text)} {problem}", file=self._path, line=cell.line, key=cell.key, hint=hint)
        for i in np.flatnonzero(where & self.good).tolist():
            cell = self._cell(i, name)
            place = f"line {cell.line}" if cell.line is not None else cell.key.partition(":")[0]
            self._quarantine.add(place, name, cell.text, problem)
        self.good &= ~where

    def refuse_unknown(self, name: str, known: Sequence[str]) -> None:
        """Refuse rows whose NAME cell is none of ``known``."""
        array = self._arrays[name]
        odd = np.array([each not in known for each in array.dictionary.to_pylist()] + [True], np.bool_)
        numbers = np.where(_filled(array), _values(array.indices, np.int32), len(odd) - 1)
        self.refuse(odd[numbers], name, "is not known", f"allowed: {', '.join(known)}")

    def refuse_disorder(self, name: str, time_ns: NDArray[np.int64], before_ns: int | None) -> int | None:
        """Refuse rows that are earlier than a good row before them. Returns the last time, for the next batch.

        State this rule last, so that a row that breaks another has no say in it.
        """
        if not len(time_ns):
            return before_ns
        lowest = np.iinfo(np.int64).min
        times = np.concatenate(([lowest if before_ns is None else before_ns], np.where(self.good, time_ns, lowest)))
        latest = np.maximum.accumulate(times)
        hint = "rows must be in order of arrival (equal times are fine); sort the file by this column"
        self.refuse(self.good & (times[1:] < latest[:-1]), name, "is earlier than the row before it", hint)
        return int(latest[-1])


class Column:
    """An int64 (or ``dtype``) column put together from batches, in the order in which they come.

    Doubling a plain array leaves nothing behind (what is not yet filled takes no memory); a list of pieces, put
    together at the end, left 30 bytes per row with the allocators.
    """

    def __init__(self, dtype: Any = np.int64) -> None:
        self._values: NDArray[Any] = np.empty(0, dtype)
        self._rows = 0

    def append(self, values: NDArray[Any]) -> None:
        """Add a copy of the values of one batch."""
        rows = self._rows + len(values)
        if rows > len(self._values):
            grown = np.empty(max(rows, 2 * len(self._values)), self._values.dtype)
            grown[: self._rows] = self._values[: self._rows]
            self._values = grown
        self._values[self._rows : rows] = values
        self._rows = rows

    def take(self) -> NDArray[Any]:
        """All values, (n,); nothing is added afterwards."""
        return self._values[: self._rows]


class RaggedColumn:
    """A ragged column of uint64 ids put together from batches."""

    def __init__(self) -> None:
        self._values = Column(np.uint64)
        self._counts = Column()

    def append(self, ids: tuple[NDArray[np.uint64], NDArray[np.int64]], kept: NDArray[np.bool_]) -> None:
        """Add a column of ``Batch.ids``, of the rows at which ``kept`` is true."""
        values, counts = ids
        self._values.append(values if kept.all() else values[np.repeat(kept, counts)])
        self._counts.append(counts[kept])

    def take(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """All values (m,) uint64, and offsets (n + 1,) int64."""
        return self._values.take(), np.concatenate(([0], np.cumsum(self._counts.take())))


class Columns:
    """Several columns put together from batches, each by its name."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self.rows = 0

    def append(self, kept: NDArray[np.bool_], **values: NDArray[Any]) -> None:
        """Add the rows of one batch at which ``kept`` is true; every batch brings the same columns."""
        for name, column in values.items():
            self._columns.setdefault(name, Column()).append(column[kept])
        self.rows += int(np.count_nonzero(kept))

    @property
    def names(self) -> list[str]:
        """The columns, none before the first batch."""
        return list(self._columns)

    def take(self, name: str) -> NDArray[np.int64]:
        """A column, (rows,) int64; nothing is added afterwards."""
        return self._columns[name].take() if name in self._columns else np.empty(0, np.int64)


class Names:
    """Text that repeats, as numbers in order of first appearance; an empty cell is -1."""

    def __init__(self) -> None:
        self._numbers = Column()
        self._known: dict[str, int] = {}

    def number(self, text: Any, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
        """A column of ``Batch.text`` as numbers, (rows,) int64; only names of rows under the mask are kept."""
        indices = _values(text.indices, np.int32).astype(np.int64)
        indices = np.where(_filled(text), indices, len(text.dictionary))  # behind the last: no name
        used = np.zeros(len(text.dictionary) + 1, np.bool_)
        used[indices[kept]] = True
        number = np.full(len(used), -1, np.int64)
        for i, (name, is_used) in enumerate(zip(text.dictionary.to_pylist(), used.tolist(), strict=False)):
            if name and is_used:
                number[i] = self._known.setdefault(name, len(self._known))
        return number[indices]

    @property
    def known(self) -> list[str]:
        """The name behind each number."""
        return list(self._known)

    def append(self, text: Any, kept: NDArray[np.bool_]) -> None:
        """Add a column of ``Batch.text``, of the rows at which ``kept`` is true."""
        self._numbers.append(self.number(text, kept)[kept])

    def take(self) -> tuple[NDArray[np.int64], list[str]]:
        """(n,) int64 numbers, and the name behind each number."""
        return self._numbers.take(), self.known


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


def check_block_tokens(tokens: int) -> None:
    """Raise InputError unless so many tokens can be the size of a block."""
    if not 1 <= tokens <= MAX_TOKENS:
        hint = f"allowed: whole numbers from 1 to {MAX_TOKENS}"
        raise InputError(f"{tokens} is not a possible number of tokens", key="hash_block_tokens", hint=hint)


def nothing_left(path: Path, why: str = "no row can be used") -> InputError:
    """The error for a trace without a single request."""
    return InputError(f"has nothing to replay: {why}", file=path, hint="a trace needs at least one request")


def open_table(path: Path, quarantine: Quarantine | None = None) -> Table:
    """A CSV, Parquet or JSON lines file. Raises InputError if it is none, or as ``head_of``."""
    head = head_of(path)
    if holds_members(path):
        raise InputError("is a folder or an archive", file=path, hint="name the trace file in it")
    if head.startswith(b"PAR1"):
        return ParquetTable(path, quarantine)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return JsonLines(path, head, quarantine)
    return CsvTable(path, head, quarantine)


def is_zoned(table: Table, name: str) -> bool:
    """True if the first stamp in a column of date-times ends with a time zone (``Z``, ``+01:00``)."""
    if isinstance(table, ParquetTable):
        return table.has_zone(name)
    if isinstance(table, JsonLines):
        text = keys_of(head_of(table.path).decode("utf-8", errors="replace")).get(name)
    else:
        return zoned(head_of(table.path).decode("utf-8", errors="replace"), name)
    return _has_zone(text)


def zoned(head: str, name: str) -> bool:
    """``is_zoned`` for the head of a CSV file; false if it has no such column or no row.

    >>> zoned("TIMESTAMP,x\\n\\n2024-05-10 00:00:00+00:00,1\\n", "TIMESTAMP")
    True
    """
    rows = [line for line in head.splitlines()[1:] if line]
    names = header(head)
    if not rows or name not in names:
        return False
    cells, at = header(rows[0]), names.index(name)
    return _has_zone(cells[at] if at < len(cells) else None)


def _has_zone(stamp: Any) -> bool:
    clock = stamp[10:] if isinstance(stamp, str) else ""
    return clock.endswith("Z") or "+" in clock or "-" in clock


def present(table: Table, kinds: Mapping[str, Kind]) -> dict[str, Kind]:
    """Those of the kinds whose columns the file may have: JSON lines may bring a key in any row."""
    return {name: kind for name, kind in kinds.items() if name in table.names or isinstance(table, JsonLines)}


def require(table: Table, columns: Sequence[str]) -> None:
    """Raise InputError unless every one of ``columns`` is there once."""
    for name in columns:
        if name not in table.names:
            near = difflib.get_close_matches(name, table.names, n=1, cutoff=0.6)
            hint = f"is it {near[0]!r}?" if near else f"the header has {shown(','.join(table.names))}"
            raise InputError(f"column {name!r} is missing", file=table.path, line=1, hint=hint)
        if table.names.count(name) > 1:
            raise InputError(f"column {name!r} is there twice", file=table.path, line=1, hint="keep one of them")


class CsvTable:
    """A CSV file: UTF-8, commas, header in the first line; LF, CRLF or CR; quotes allowed; empty lines skipped.

    A row is a line: no published format has line ends inside cells, and a stray quote would swallow the rows behind it.
    """

    ROWS: Final = 8_192

    def __init__(self, path: Path, head: bytes, quarantine: Quarantine | None = None) -> None:
        self.path = path
        self._quarantine = quarantine
        is_whole = len(head) < HEAD_BYTES
        head = head.removeprefix(codecs.BOM_UTF8)  # with it positions of errors would not count from the start
        try:
            text = head.decode()
        except UnicodeDecodeError as error:
            if len(head) - error.start > 3 or is_whole:  # else a character cut at the end of the head
                line = head.count(b"\n", 0, error.start) + 1
                if quarantine is None or line == 1:
                    hint = "save it as CSV in UTF-8"
                    raise InputError("is not UTF-8 text", file=path, line=line, hint=hint) from None
            text = head[: error.start].decode()
        self.names = header(text)

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator[Batch]:
        require(self, tuple(kinds))
        return self._parsed(kinds) if self._quarantine is None else self._sifted(kinds, self._quarantine)

    def _parsed(self, kinds: Mapping[str, Kind]) -> Iterator[Batch]:
        """By Arrow; the first cell that does not parse is an error."""
        positions = {name: str(self.names.index(name)) for name in kinds}
        row = 0
        try:
            source = _QuoteWatch(open_bytes(self.path))
            stream = pa.csv.open_csv(
                source,
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
                yield Batch(self.path, arrays, self._finder(row), None)
                row += batch.num_rows
        except pa.ArrowInvalid as error:
            raise self._unreadable(kinds, str(error)) from None
        except (pa.ArrowException, OSError, EOFError, LZMAError) as error:
            raise InputError(f"cannot be read: {first_line(error)}", file=self.path) from None
        if not row or (source.seen and row != self._lines()):
            raise self._unreadable(kinds, "no rows")

    def _lines(self) -> int:
        """Lines below the header that are not empty."""
        with readable(self.path), open_text(self.path) as lines:
            lines.readline()
            return sum(1 for line in lines if line.strip("\r\n"))

    def _sifted(self, kinds: Mapping[str, Kind], quarantine: Quarantine) -> Iterator[Batch]:
        """Row by row; those with too few or too many cells, or a cell that does not parse, go into quarantine."""
        wanted = [(name, self.names.index(name), kind) for name, kind in kinds.items()]
        records = self._records()
        while chunk := list(islice(records, self.ROWS)):
            rows = []
            for line, record in chunk:
                if problem := self._misshapen(record):
                    quarantine.add(f"line {line}", "", ",".join(record).rstrip("\n"), problem)
                else:
                    rows.append((line, record))
            if not rows:
                continue
            arrays, faulty = {}, {}
            for name, i, kind in wanted:
                arrays[name], faulty[name] = _sift_text([record[i] for _, record in rows], kind)
            batch = Batch(self.path, arrays, self._pointer(rows), quarantine)
            for name, where in faulty.items():
                batch.refuse(where, name, f"is not {kinds[name].allowed}", "")
            yield batch

    def _pointer(self, rows: Sequence[tuple[int, list[str]]]) -> Callable[[int, str], Cell]:
        def cell(i: int, name: str) -> Cell:
            line, record = rows[i]
            return Cell(line, name, record[self.names.index(name)])

        return cell

    def _finder(self, first_row: int) -> Callable[[int, str], Cell]:
        """Finds a cell by going through the file again."""

        def cell(i: int, name: str) -> Cell:
            for row, (line, record) in enumerate(self._records()):
                if problem := self._misshapen(record):  # it may have swallowed rows, so that others are numbered wrong
                    raise self._misshapen_error(line, record, problem)
                if row == first_row + i:
                    return Cell(line, name, record[self.names.index(name)])
            raise InputError("changed while it was read", file=self.path)

        return cell

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """Number of the line and cells of every row; bytes that are not UTF-8 come as lone surrogates.

        A line that cannot be taken apart (a quote is left open) comes whole, with a line end behind it.
        """
        with readable(self.path), open_text(self.path) as lines:
            lines.readline()
            for number, line in enumerate(lines, 2):
                text = line.rstrip("\r\n")
                if not text:
                    continue
                if '"' not in text:
                    yield number, text.split(",")
                    continue
                try:
                    record = next(csv.reader([f"{text}\n"]))
                    whole = not record[-1].endswith("\n")
                except csv.Error:  # a cell of more than 131,072 characters
                    whole = False
                yield number, record if whole else [f"{text}\n"]

    def _misshapen(self, record: list[str]) -> str:
        """What is wrong with a row of ``_records`` before any cell is looked at, or nothing."""
        if record[-1].endswith("\n"):
            return "has a quote that is not closed on its line"
        if len(record) != len(self.names):
            return f"has {len(record)} cells, the header has {len(self.names)}"
        return ""

    def _misshapen_error(self, line: int, record: list[str], problem: str) -> InputError:
        hint = "each row needs as many cells as the header, on one line"
        key = shown(",".join(record).rstrip("\n"))
        return InputError(problem, file=self.path, line=line, key=key, hint=hint)

    def _unreadable(self, kinds: Mapping[str, Kind], reason: str) -> InputError:
        """The error for the first row or cell that Arrow could not parse (or, if none is found, its own words)."""
        wanted = [(name, self.names.index(name), kind) for name, kind in kinds.items()]
        records = self._records()
        empty = True
        while chunk := list(islice(records, 4096)):
            empty = False
            if not any(self._misshapen(record) for _, record in chunk) and all(
                _parses([record[i] for _, record in chunk], kind) for _, i, kind in wanted
            ):
                continue
            for line, record in chunk:
                if problem := self._misshapen(record):
                    return self._misshapen_error(line, record, problem)
                for name, i, kind in wanted:
                    if not _parses([record[i]], kind):
                        problem = f"{shown(record[i])} is not {kind.allowed}"
                        return InputError(
                            problem, file=self.path, line=line, key=name, hint="correct the cell or leave out the row"
                        )
        if empty:
            return InputError("has a header but no rows", file=self.path, hint="a trace needs at least one row")
        return InputError(f"cannot be read as CSV: {shown(reason)}", file=self.path)


class _QuoteWatch:
    """A stream of bytes that remembers whether a quote has passed."""

    closed = False

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seen = False

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.seen = self.seen or b'"' in data
        return data


class JsonLines:
    """JSON lines: an object per line; empty lines skipped. Its columns are the keys; a key may be left out.

    ``names`` are the keys of the objects in the first 64 KiB; a key that comes later is found all the same.
    """

    ROWS: Final = 8_192

    def __init__(self, path: Path, head: bytes, quarantine: Quarantine | None = None) -> None:
        self.path = path
        self._quarantine = quarantine
        self.names: list[str] = list(keys_of(head.decode("utf-8", errors="replace")))

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator[Batch]:
        empty = True
        rows = self.rows()
        while chunk := list(islice(rows, self.ROWS)):
            empty = False
            arrays, faulty = {}, {}
            for name, kind in kinds.items():
                arrays[name], faulty[name] = _sift_json([row.get(name) for _, row in chunk], kind)
            batch = Batch(self.path, arrays, self._pointer(chunk), self._quarantine)
            for name, where in faulty.items():
                batch.refuse(where, name, f"is not {kinds[name].allowed}", "correct the value or leave out the row")
            yield batch
        if empty and self._quarantine is None:
            raise InputError("has no rows", file=self.path, hint="a trace needs at least one row")

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Number of the line and object of every row. Raises InputError for a line that is no JSON object, or sets it
        aside."""
        with readable(self.path), open_text(self.path) as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    problem = "" if isinstance(row, dict) else "is not a JSON object"
                except (ValueError, RecursionError) as error:
                    problem = f"is not JSON: {getattr(error, 'msg', None) or type(error).__name__}"
                if not problem:
                    yield number, row
                elif self._quarantine is not None:
                    self._quarantine.add(f"line {number}", "", line.rstrip("\r\n"), problem)
                else:
                    hint = "each line needs an object, as {...}"
                    raise InputError(f"{shown(line.strip())} {problem}", file=self.path, line=number, hint=hint)

    def refuse(self, line: int, unfit: "Unfit") -> None:
        """A row that a reader of nested objects cannot use. Raises InputError, or sets it aside."""
        if self._quarantine is None:
            problem = f"{shown(unfit.value)} {unfit.problem}"
            hint = "correct the value or leave out the row"
            raise InputError(problem, file=self.path, line=line, key=unfit.column, hint=hint)
        self._quarantine.add(f"line {line}", unfit.column, unfit.value, unfit.problem)

    def _pointer(self, rows: Sequence[tuple[int, dict[str, Any]]]) -> Callable[[int, str], Cell]:
        def cell(i: int, name: str) -> Cell:
            line, row = rows[i]
            return Cell(line, name, json.dumps(row[name]) if name in row else "nothing")

        return cell


class Unfit(Exception):
    """A value inside a JSON document that a reader cannot use: where, what, and what is wrong with it."""

    def __init__(self, column: str, value: Any, problem: str) -> None:
        super().__init__(f"{column}: {problem}")
        self.column = column
        self.value = json.dumps(value) if value is not None else "nothing"
        self.problem = problem


def field(record: Any, name: str, kind: Kind, least: float = 0, most: float = MAX_TOKENS, *, within: str = "") -> Any:
    """``record[name]``, None if it is empty and the kind optional. Raises Unfit if it is not of this kind and in range.

    ``within`` names the record in messages.
    """
    column = f"{within}.{name}" if within else name
    value = record.get(name) if isinstance(record, dict) else None
    if value is None and kind.optional:
        return None
    if value is None or not _JSON_FITS[kind.arrow](value):
        raise Unfit(column, value, f"is not {kind.allowed}")
    if isinstance(value, int | float) and kind is not NAME and not least <= value <= most:
        raise Unfit(column, value, f"is not in {least:g} .. {most:g}")
    return str(value) if kind is NAME else value


def keys_of(head: str) -> dict[str, Any]:
    """The keys of the JSON objects in the first lines of a file, each with its first value that is not null.

    >>> keys_of('{"a": 1}\\n{"a": 2, "b": null}\\n{"a":')
    {'a': 1, 'b': None}
    """
    found: dict[str, Any] = {}
    for line in head.removeprefix("\ufeff").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            for key, value in row.items():
                if found.get(key) is None:
                    found[key] = value
    return found


class ParquetTable:
    """A Parquet file. Where a CSV error names a line, here it names the row, counted from 1."""

    BATCH_ROWS: Final = 65_536

    def __init__(self, path: Path, quarantine: Quarantine | None = None) -> None:
        from pyarrow import parquet  # 40 ms that CSV traces need not pay

        self.path = path
        self._quarantine = quarantine
        with self._readable():
            self._file = parquet.ParquetFile(path)
            self._schema = self._file.schema_arrow
            self.names: list[str] = list(self._schema.names)
            self.metadata: dict[bytes, bytes] = self._schema.metadata or {}

    def has_zone(self, name: str) -> bool:
        """True if a column holds timestamps with a time zone."""
        found = self._schema.field(name).type
        return bool(pa.types.is_timestamp(found) and found.tz is not None)

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
            chunk = Batch(self.path, arrays, self._finder(row), self._quarantine)
            for name, array in arrays.items():
                if array.null_count and not kinds[name].optional:
                    chunk.refuse(~_filled(array), name, f"is not {kinds[name].allowed}", "fill in or leave out the row")
            yield chunk
            row += batch.num_rows
        if not row:
            raise InputError("has no rows", file=self.path, hint="a trace needs at least one row")

    def _finder(self, first_row: int) -> Callable[[int, str], Cell]:
        column: dict[str, Any] = {}

        def cell(i: int, name: str) -> Cell:
            if name not in column:
                with self._readable():
                    column[name] = self._file.read(columns=[name], use_threads=False).column(name)
            return Cell(None, f"row {first_row + i + 1}: {name}", str(column[name][first_row + i]))

        return cell

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot be read as Parquet: {first_line(error)}", file=self.path) from None


def _values(array: Any, dtype: type[Any], words: int = 1, extra: int = 0) -> NDArray[Any]:
    """The memory of an Arrow array as NumPy (read-only, not copied; anything where a cell is null).

    ``words`` of ``dtype`` per cell, and ``extra`` ones behind the last (a list array has one more offset than cells).

    ``Array.to_numpy`` would import pandas.
    """
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array) * words + extra, dtype)
    size = np.dtype(dtype).itemsize * words
    return np.frombuffer(buffer, dtype, count=len(array) * words + extra, offset=array.offset * size)


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
    if kind in (WHOLE, WHOLE_OR_EMPTY):
        return bool(pa.types.is_integer(found))
    if kind is IDS:
        lists = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(lists and pa.types.is_integer(found.value_type))
    if kind in (DATE_TIME, ZONED_DATE_TIME):
        return bool(pa.types.is_timestamp(found) and (found.tz is None) == (kind is DATE_TIME))
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_decimal(found))


def _cast(array: Any, kind: Kind) -> Any:
    if kind is NAME:
        names = array.cast(pa.string()).dictionary_encode()
        names.dictionary.validate(full=True)  # nobody else looks whether the bytes are UTF-8
        return names
    return array.cast(kind.arrow)


def _sift_text(cells: Sequence[str], kind: Kind) -> tuple[Any, NDArray[np.bool_]]:
    """Cells of a CSV column as an Arrow array (null where they do not parse), and where they do not parse."""
    faulty = np.zeros(len(cells), np.bool_)
    texts: list[str | None] = list(cells)
    if not _parses(cells, kind):
        faulty = np.array([not _parses([cell], kind) for cell in cells])
        texts = [None if bad else cell for cell, bad in zip(cells, faulty.tolist(), strict=True)]
    stripped = [text.strip(" \t") or None if text is not None else None for text in texts]
    if kind is NAME:
        return _names([text or None for text in texts]), faulty
    return _strings(stripped).cast(kind.arrow), faulty


def _sift_json(cells: Sequence[Any], kind: Kind) -> tuple[Any, NDArray[np.bool_]]:
    """Values of a JSON column as an Arrow array (null where they are of another kind), and where they are."""
    fits = _JSON_FITS[kind.arrow]
    faulty = np.array([not (kind.optional if cell is None else fits(cell)) for cell in cells], np.bool_)
    if faulty.any():
        cells = [None if bad else cell for cell, bad in zip(cells, faulty.tolist(), strict=True)]
    if kind is NAME:
        return _names([None if cell is None else str(cell) for cell in cells]), faulty
    if kind is IDS:
        counts = np.array([0 if cell is None else len(cell) for cell in cells], np.int64)
        values = np.array([each for cell in cells if cell for each in cell], np.uint64)
        ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        inner = pa.Array.from_buffers(pa.uint64(), len(values), [None, pa.py_buffer(values)])
        buffers = [_bitmap(np.array([cell is not None for cell in cells], np.bool_)), pa.py_buffer(ends)]
        return pa.Array.from_buffers(IDS.arrow, len(counts), buffers, children=[inner]), faulty
    if pa.types.is_timestamp(kind.arrow):
        return _strings(cells).cast(kind.arrow), faulty
    if pa.types.is_decimal(kind.arrow):
        return _strings([None if cell is None else repr(cell) for cell in cells]).cast(kind.arrow), faulty
    dtype = np.int64 if pa.types.is_integer(kind.arrow) else np.float64
    numbers = np.array([0 if cell is None else cell for cell in cells], dtype)
    missing = np.array([cell is None for cell in cells], np.bool_)
    return pa.Array.from_buffers(kind.arrow, len(numbers), [_bitmap(~missing), pa.py_buffer(numbers)]), faulty


_JSON_FITS: Final[dict[Any, Callable[[Any], bool]]] = {
    WHOLE.arrow: lambda cell: type(cell) is int and -(10**18) < cell < 10**18,
    NUMBER.arrow: lambda cell: type(cell) in (int, float) and abs(cell) < 10**300,
    DECIMAL_SECONDS.arrow: lambda cell: type(cell) in (int, float) and _parses([repr(cell)], DECIMAL_SECONDS),
    DATE_TIME.arrow: lambda cell: type(cell) is str and _parses([cell], DATE_TIME),
    ZONED_DATE_TIME.arrow: lambda cell: type(cell) is str and _parses([cell], ZONED_DATE_TIME),
    NAME.arrow: lambda cell: type(cell) in (str, int) and _encodes(str(cell)),
    IDS.arrow: lambda cell: (
        type(cell) is list and (not cell or (set(map(type, cell)) == {int} and min(cell) >= 0 and max(cell) < 2**64))
    ),
}
"""What a JSON value must be for a kind, by its Arrow type."""


def _encodes(text: str) -> bool:
    return not any(0xD800 <= ord(each) <= 0xDFFF for each in text) if not text.isascii() else True


def _strings(texts: Sequence[str | None]) -> Any:
    """An Arrow string array. ``pa.array`` would import pandas."""
    encoded = [b"" if text is None else text.encode() for text in texts]
    ends = np.concatenate(([0], np.cumsum([len(each) for each in encoded]))).astype(np.int32)
    filled = np.array([text is not None for text in texts], np.bool_)
    return pa.StringArray.from_buffers(
        len(encoded), pa.py_buffer(ends), pa.py_buffer(b"".join(encoded)), _bitmap(filled)
    )


def _names(texts: Sequence[str | None]) -> Any:
    return _strings(texts).dictionary_encode()


def _bitmap(filled: NDArray[np.bool_]) -> Any:
    """The validity buffer of an Arrow array (None if all cells are filled)."""
    return None if filled.all() else pa.py_buffer(np.packbits(filled, bitorder="little"))
