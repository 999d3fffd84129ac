"""A request trace as columns: who asks, when, for how much, after whom, and what the prompts share."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvsim.core import html

MAX_TOKENS: Final = 2**31 - 1
"""No prompt and no output is longer."""


class RejectedRow(NamedTuple):
    """A row of the file that was set aside (``on_bad_row: quarantine``): where it is, what is in it, and why.

    ``place`` is ``line 7`` of a text file, ``row 7`` of a Parquet file (both from 1), or a place inside a document.
    ``column`` is empty if the row as a whole is wrong.
    """

    place: str
    column: str
    value: str
    reason: str


@dataclass(frozen=True)
class TraceRows:
    """Where every row of the file went: ``read = replayed + source_failed + dropped``.

    ``source_failed`` rows failed in the system that was traced (BurstGPT writes them with zero tokens) and carry
    nothing to replay. ``dropped`` maps a reason to a count. ``clipped`` (part of ``replayed``) is filled in by the
    run: outputs cut at the model's length. ``rejected`` (part of ``dropped``) are the rows in quarantine.
    """

    read: int
    source_failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    clipped: int = 0
    rejected: Sequence[RejectedRow] = ()

    @property
    def replayed(self) -> int:
        """Rows handed to the simulator."""
        return self.read - self.source_failed - sum(self.dropped.values())


@dataclass(frozen=True)
class Ragged:
    """A column with any number of int64 values per row: row i has ``values[offsets[i]:offsets[i + 1]]``.

    ``values`` (m,) int64; ``offsets`` (n + 1,) int64, from 0 to m, not decreasing.

    >>> column = Ragged(np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    >>> len(column), column.row(0).tolist(), column.counts.tolist()
    (3, [7, 8], [2, 0, 1])
    >>> column.select(np.array([0, 2])).values.tolist()
    [7, 8, 9]
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __post_init__(self) -> None:
        ends = self.offsets
        if not len(ends) or ends[0] != 0 or ends[-1] != len(self.values) or bool((np.diff(ends) < 0).any()):
            raise ValueError("offsets must go from 0 to the number of values and must not decrease")

    @property
    def counts(self) -> NDArray[np.int64]:
        """Values of each row, (n,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of each value, (m,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def row(self, i: int) -> NDArray[np.int64]:
        """The values of one row."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]

    def select(self, rows: NDArray[Any]) -> "Ragged":
        """The given rows (positions, or a mask), in that order."""
        counts = self.counts[rows]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        shifts = self.offsets[:-1][rows] - offsets[:-1]
        values = np.empty(int(offsets[-1]), np.int64)
        for start in range(0, len(counts), 4096):  # some rows at a time: an index for all values is as large as they
            stop = min(start + 4096, len(counts))
            first, last = int(offsets[start]), int(offsets[stop])
            values[first:last] = self.values[np.arange(first, last) + np.repeat(shifts[start:stop], counts[start:stop])]
        return Ragged(values, offsets)


def previous_rows(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row before each row that has the same number (of a session, say), -1 if there is none; shape (n,).

    Rows with number -1 stand alone.

    >>> previous_rows(np.array([7, -1, 8, 7, -1, 7])).tolist()
    [-1, -1, -1, 0, -1, 3]
    """
    before = np.full(len(numbers), -1)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    same = (ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)
    before[order[1:][same]] = order[:-1][same]
    return before


def waits_among(wait_for: Ragged, kept: NDArray[Any]) -> Ragged:
    """``wait_for`` of the rows at some increasing positions, by their new numbers.

    What a row that is left out waited for takes its place: the last of a chain still comes after the first.

    >>> chain = Ragged(np.array([0, 1]), np.array([0, 0, 1, 2]))
    >>> waits_among(chain, np.array([0, 2])).row(1).tolist()
    [0]
    """
    moved = np.full(len(wait_for), -1, np.int64)
    moved[kept] = np.arange(len(kept))
    chosen = wait_for.select(kept)
    waits = moved[chosen.values]
    if bool((waits >= 0).all()):
        return Ragged(waits, chosen.offsets)
    behind: dict[int, list[int]] = {}  # what a row that is left out waited for, among those that stay
    values: list[int] = []
    offsets = [0]
    for row in range(int(kept[-1]) + 1):
        own: dict[int, None] = {}
        for each in wait_for.row(row).tolist():
            own |= dict.fromkeys([int(moved[each])] if moved[each] >= 0 else behind[each])
        if moved[row] < 0:
            behind[row] = list(own)
        else:
            values += sorted(own)
            offsets.append(len(values))
    return Ragged(np.array(values, np.int64), np.array(offsets, np.int64))


COLUMNS: Final = (
    *("arrival_ns", "prompt_tokens", "output_tokens", "session", "think_ns", "priority"),
    *("tenant", "model", "images", "deadline_ns", "ends_by_eos", "elapsed_ns", "history"),
)
RAGGED_COLUMNS: Final = ("wait_for", "prefix_hashes", "segments")
"""Columns of a Trace with one value per row, and with any number of values per row."""


@dataclass(frozen=True)
class FailedRows:
    """Rows that failed in the traced system, in file order, each column int64 of shape (m,): they arrived, and that is
    all; there is nothing to replay.

    ``before`` counts the rows of the trace that stand before it. The others are the trace's columns of these names
    (``arrival_ns`` may be negative, ``prompt_tokens`` 0); numbers of sessions, tenants and models are the trace's too.
    """

    before: NDArray[np.int64]
    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    session: NDArray[np.int64] | None = None
    tenant: NDArray[np.int64] | None = None
    model: NDArray[np.int64] | None = None
    elapsed_ns: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.before)

    def __post_init__(self) -> None:
        for each in fields(self):
            column = getattr(self, each.name)
            if column is not None and len(column) != len(self.before):
                raise ValueError(f"{each.name} has {len(column)} rows, before has {len(self.before)}")
        if bool((np.diff(self.before) < 0).any()):
            raise ValueError("before must not decrease")

    def select(self, rows: NDArray[Any]) -> "FailedRows":
        """The given rows (positions, or a mask), in that order."""
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        chosen: dict[str, Any] = {name: column[rows] for name, column in columns.items() if column is not None}
        return FailedRows(**chosen)


_LEFT_OUT: Final = 1 << 40
"""What a row generates that is not in the trace any more is numbered from here on."""


@dataclass(frozen=True)
class Trace:
    """Requests in arrival order; ties keep file order. Plain columns are int64 of shape (n,); None: not in the trace.

    - ``arrival_ns`` nanoseconds from the first row (so the first is 0), not decreasing
    - ``prompt_tokens``, ``output_tokens`` at least 1
    - ``priority`` lower is served first
    - ``session``, ``tenant``, ``model`` number of the session (conversation, agent run), of who asks, and of the model
      asked for; -1 where the row has none. ``session_names[k]`` is what the file called session ``k``, and so on.
    - ``images`` images in the prompt, from 0; their tokens are part of ``prompt_tokens``
    - ``deadline_ns`` the request is of use only if it ends within so much time after it is sent; -1: whenever
    - ``ends_by_eos`` 1 if the model decides that the output ends (a stop token, which no engine can foresee), 0 if the
      client's ``max_tokens`` does; None: all by ``max_tokens``. Only asynchronous scheduling tells them apart.
    - ``elapsed_ns`` from sending to the end of the output in the traced system, -1: not known; no run depends on it

    Which row waits for which, in a closed loop (``sessions: closed``):

    - Without ``wait_for`` every row waits for the row of its session before it.
    - ``wait_for`` row i lists the rows (positions below i) that must have ended before row i is sent: one for the next
      turn, several where parallel sub-agents are joined, none for a row that starts at its ``arrival_ns``. Ended is
      whatever is over: finished, rejected, or given up by its client.
    - ``think_ns`` pause between the last of these ends and the sending of this row.

    What prompts share:

    - ``prefix_hashes`` row i holds the ids of the blocks of ``hash_block_tokens`` tokens that row i's prompt consists
      of, from its start. Block k covers tokens ``k * b`` to ``min((k + 1) * b, prompt_tokens)``: the last one may be
      partial. Fewer ids than blocks: nothing is known of the tokens behind them (formats that list full blocks only).
      No more ids than ``ceil(prompt_tokens / b)``.
    - **An id stands for a block and everything before it**: the prompts of two rows with the same id at a position
      agree up to the end of that block (or of the shorter prompt). So an id occurs at one position only and always
      behind the same id. Ids are numbered from 0 without gaps over the whole trace; readers renumber ids that a file
      keeps apart by session, or that name a block's own content only.
    - A block of the trace is not a KV block of an engine: a hit is worth tokens, and those are cut into KV blocks anew.
    - ``history`` number of the text that a prompt carries on: the prompts of rows with the same number, in order, begin
      with the prompt and the output of the one before; -1: it carries on nothing. None: rows of a session do. (A row
      that is shorter than both together was cut and carries on nothing, see ``kvsim.core.content.carried_on``.)
    - ``segments`` (in place of ``prefix_hashes``) the prompt itself, as triples: row i holds (stream, first, tokens),
      (stream, first, tokens), ... for so many tokens of an endless stream from ``first`` on. Two tokens are equal
      exactly if stream and position are. Streams are numbered from 0; stream -1 - k is what row k generates.

    Provenance, filled in by readers: ``path``, ``format``, ``sha256``, ``rows``; ``origin_ns``, the first row's time
    since some midnight on the clock of the traced system, which gives hours of the day (None: not known);
    ``source_failed``, the rows that failed there (None: not known, or none).
    """

    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    session: NDArray[np.int64] | None = None
    think_ns: NDArray[np.int64] | None = None
    priority: NDArray[np.int64] | None = None
    session_names: Sequence[str] | None = None
    path: str | None = None
    format: str | None = None
    sha256: str | None = None
    rows: TraceRows | None = None
    source_failed: FailedRows | None = None
    tenant: NDArray[np.int64] | None = None
    tenant_names: Sequence[str] | None = None
    model: NDArray[np.int64] | None = None
    model_names: Sequence[str] | None = None
    images: NDArray[np.int64] | None = None
    deadline_ns: NDArray[np.int64] | None = None
    ends_by_eos: NDArray[np.int64] | None = None
    elapsed_ns: NDArray[np.int64] | None = None
    history: NDArray[np.int64] | None = None
    wait_for: Ragged | None = None
    prefix_hashes: Ragged | None = None
    hash_block_tokens: int | None = None
    segments: Ragged | None = None
    origin_ns: int | None = None

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def _repr_html_(self) -> str:
        """For notebooks: what is in it, arrivals over time, and lengths."""
        n = len(self)
        span_s = int(self.arrival_ns[-1]) / 1e9 if n else 0.0
        facts = {"requests": f"{n:,}", "from": self.path or "memory", "format": self.format or "-"}
        facts |= {"span": f"{span_s:,.1f} s", "mean rate": f"{(n - 1) / span_s:.4g} per s" if span_s else "-"}
        if self.session is not None:
            facts["sessions"] = f"{len(np.unique(self.session[self.session >= 0])):,}"
        plots = [html.bars(self.arrival_ns / 1e9, "arrivals over time (s)")]
        for name, tokens in (("prompt tokens", self.prompt_tokens), ("output tokens", self.output_tokens)):
            if n:
                levels = np.percentile(tokens, (50, 90, 99))
                facts[name] = "median {:,.0f}, p90 {:,.0f}, p99 {:,.0f}".format(*levels)
            plots.append(html.bars(np.log10(tokens), f"{name} (log10)"))
        return html.card("Trace", facts, plots)

    def __post_init__(self) -> None:
        n = len(self.arrival_ns)
        for name in (*COLUMNS, *RAGGED_COLUMNS):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} rows, arrival_ns has {n}")
        if n and (int(self.arrival_ns[0]) < 0 or bool((np.diff(self.arrival_ns) < 0).any())):
            raise ValueError("arrival_ns must start at or after 0 and must not decrease")
        if n and (int(self.prompt_tokens.min()) < 1 or int(self.output_tokens.min()) < 1):
            raise ValueError("prompt_tokens and output_tokens must be at least 1")
        failed = self.source_failed
        if failed is not None and len(failed) and not 0 <= failed.before[0] <= failed.before[-1] <= n:
            raise ValueError(f"source_failed has a row before row {failed.before[-1]}, the trace has {n}")
        if self.think_ns is not None and int(self.think_ns.min(initial=0)) < 0:
            raise ValueError("think_ns must not be negative")
        if self.wait_for is not None:
            waits = self.wait_for.values
            if bool(((waits < 0) | (waits >= self.wait_for.rows)).any()):
                raise ValueError("wait_for must name rows before its own")
        if (self.prefix_hashes is None) != (self.hash_block_tokens is None):
            raise ValueError("prefix_hashes and hash_block_tokens belong together")
        if self.prefix_hashes is not None and self.hash_block_tokens is not None:
            blocks = -(-self.prompt_tokens // self.hash_block_tokens)
            if bool((self.prefix_hashes.counts > blocks).any()):
                raise ValueError("prefix_hashes has more blocks than the prompt")
            if int(self.prefix_hashes.values.min(initial=0)) < 0:
                raise ValueError("prefix_hashes must not be negative")

        if self.segments is not None:
            if self.prefix_hashes is not None:
                raise ValueError("segments and prefix_hashes exclude each other")
            lengths = np.bincount(self.segments.rows[2::3], self.segments.values[2::3], minlength=n)
            if bool((self.segments.counts % 3).any()) or bool((lengths != self.prompt_tokens).any()):
                raise ValueError("segments must be triples whose lengths add up to prompt_tokens")

    def names(self, column: str) -> list[str]:
        """What the file called each session, tenant or model; where it had no names, their numbers."""
        names: Sequence[str] | None = getattr(self, f"{column}_names")
        return list(names) if names is not None else [str(k) for k in range(self.numbered(column))]

    def numbered(self, column: str) -> int:
        """How many sessions, tenants or models have a number: one more than the highest, failed rows included."""
        numbers = [getattr(self, column), getattr(self.source_failed, column, None)]
        return 1 + max((int(each.max(initial=-1)) for each in numbers if each is not None), default=-1)

    def waits(self) -> Ragged:
        """``wait_for``; if the trace does not say, each row waits for the one before it in its session."""
        if self.wait_for is not None:
            return self.wait_for
        before = np.full(len(self), -1) if self.session is None else previous_rows(self.session)
        return Ragged(before[before >= 0], np.concatenate(([0], np.cumsum(before >= 0))))

    def select(self, rows: NDArray[Any] | slice) -> "Trace":
        """The trace of some rows only: a slice, a mask, or positions in increasing order.

        Times stay as they are, and so do names, provenance and rows that failed in the traced system; ``rows`` is the
        caller's business. In place of a row that is left out a row waits for what that one waited for. Raises
        ValueError for positions that do not increase.
        """
        kept = np.arange(len(self))[rows]
        if bool((np.diff(kept) <= 0).any()):
            raise ValueError("positions must increase")
        columns: dict[str, Any] = {}
        for name in COLUMNS:
            column = getattr(self, name)
            if column is not None:
                columns[name] = column[rows]
        if self.source_failed is not None:
            before = np.searchsorted(kept, self.source_failed.before)
            columns["source_failed"] = replace(self.source_failed, before=before)
        if self.prefix_hashes is not None:
            columns["prefix_hashes"] = self.prefix_hashes.select(kept)
        if self.segments is not None:
            chosen = self.segments.select(kept)
            values = chosen.values.copy()
            rows_meant = -1 - values[0::3]
            generated = (rows_meant >= 0) & (rows_meant < len(self))
            moved = np.arange(len(self)) + _LEFT_OUT
            moved[kept] = np.arange(len(kept))
            values[0::3][generated] = -1 - moved[rows_meant[generated]]
            columns["segments"] = Ragged(values, chosen.offsets)
        if self.wait_for is not None:
            columns["wait_for"] = waits_among(self.wait_for, kept)
        return replace(self, **columns)
