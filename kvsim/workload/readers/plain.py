"""kvsim's own words in a plain table, CSV, JSON lines or Parquet; or any table, with a map of its columns."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged, Trace, TraceRows
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    DATE_TIME,
    IDS,
    NAME,
    NUMBER,
    NUMBER_OR_EMPTY,
    SECONDS,
    SECONDS_OR_EMPTY,
    WHOLE,
    WHOLE_OR_EMPTY,
    ZONED_DATE_TIME,
    Batch,
    Columns,
    Kind,
    Names,
    Quarantine,
    RaggedColumn,
    Table,
    check_block_tokens,
    header,
    is_zoned,
    keys_of,
    nothing_left,
    open_table,
    present,
    require,
)

ARRIVALS = {"arrival_s": "s", "arrival_ms": "ms", "arrival_us": "us", "arrival_ns": "ns", "arrival_time": "s"}
"""Names of the column of arrivals, and their units; ``arrival_time`` is a date and time."""
PAUSES = {"think_s": "s", "think_ms": "ms"}
DEADLINES = {"deadline_s": "s", "deadline_ms": "ms"}
LENGTHS = ("prompt_tokens", "output_tokens")
LISTS = ("hash_ids", "wait_for")

OPTIONAL: dict[str, Kind] = {
    "session_id": NAME,
    **dict.fromkeys(PAUSES, NUMBER_OR_EMPTY),
    "think_s": SECONDS_OR_EMPTY,
    "priority": WHOLE_OR_EMPTY,
    "tenant": NAME,
    "model": NAME,
    "images": WHOLE_OR_EMPTY,
    **dict.fromkeys(DEADLINES, NUMBER_OR_EMPTY),
    "deadline_s": SECONDS_OR_EMPTY,
    "hash_ids": IDS,
    "wait_for": IDS,
}


@dataclass(frozen=True)
class Plain:
    """``arrival_s,prompt_tokens,output_tokens``, and if present ``session_id``, ``think_s``, ``priority``, ``tenant``,
    ``model``, ``images``, ``deadline_s``; in JSON lines and Parquet also the lists ``hash_ids`` and ``wait_for``.

    - ``arrival_s`` is float64 seconds, rounded to ns; the first row becomes time 0. Or ``arrival_ms``, ``arrival_us``,
      ``arrival_ns`` (whole), ``arrival_time`` (a date and time); ``think_ms`` and ``deadline_ms`` likewise.
    - ``input_tokens`` is read as ``prompt_tokens``.
    - ``session_id``, ``tenant`` and ``model`` are any text; empty means none. ``think_s`` is the pause between the end
      of the session's previous turn (or of the rows in ``wait_for``) and this one; empty means 0. ``deadline_s`` runs
      from the sending of the request; empty means none. Empty ``priority`` and ``images`` mean 0.
    - ``wait_for`` lists rows of the file, counted from 0; rows of such a file cannot be set aside. ``hash_ids`` are
      blocks of ``hash_block_tokens``, which has to be given with them; they are chained here, so equal ids mean equal
      prefixes.
    - ``columns`` maps names above to the file's: ``{arrival_ms: ts, prompt_tokens: in, output_tokens: out}``.
    - Other columns are not read, except that one whose name is nearly an optional column's is refused.
    """

    columns: Mapping[str, str] | None = None
    hash_block_tokens: int | None = None

    needed: ClassVar[tuple[str, ...]] = ("arrival_s", *LENGTHS)

    def __post_init__(self) -> None:
        if self.hash_block_tokens is not None:
            check_block_tokens(self.hash_block_tokens)
        known = [*ARRIVALS, *LENGTHS, *OPTIONAL]
        for name in self._map:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
                meant = f"did you mean {near[0]!r}? " if near else ""
                raise InputError(f"unknown name {name!r}", key="columns", hint=f"{meant}known: {', '.join(known)}")

    @property
    def _map(self) -> Mapping[str, str]:
        return self.columns or {}

    def recognises(self, head: str) -> bool:
        """True if an arrival and both lengths are there."""
        names = {"prompt_tokens" if name == "input_tokens" else name for name in (*header(head), *keys_of(head))}
        return set(LENGTHS) <= names and bool(names & set(ARRIVALS))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request.

        Raises InputError for a bad cell, a length below 1, a negative think time, arrivals out of order, more ids than
        blocks, or a row that waits for one that is not before it.
        """
        table = open_table(path, quarantine)
        name = {ours: ours for ours in OPTIONAL} | dict(self._map)
        arrival = self._one_of(table, ARRIVALS) or "arrival_s"
        name[arrival] = self._map.get(arrival, arrival)
        prompt = name["prompt_tokens"] = self._map.get("prompt_tokens") or _prompt_name(table)
        output = name["output_tokens"] = self._map.get("output_tokens", "output_tokens")
        require(table, (name[arrival], prompt, output))
        optional = self._optional(table, name)
        kinds = {name[arrival]: _arrival_kind(table, arrival, name[arrival]), prompt: WHOLE, output: WHOLE}
        kinds |= {name[ours]: kind for ours, kind in optional.items()}

        if name["wait_for"] in table.names and quarantine is not None:
            hint = "correct the row"
            raise InputError(
                "rows that others may wait for cannot be set aside", file=path, key="on_bad_row", hint=hint
            )
        columns, hashes, waits = Columns(), RaggedColumn(), RaggedColumn()
        texts = {ours: Names() for ours in ("session_id", "tenant", "model") if ours in optional}
        any_filled: set[str] = set()
        last_ns, row = None, 0
        for batch in table.batches(kinds):
            values = {"prompt": batch.tokens(prompt, least=1), "output": batch.tokens(output, least=1)}
            for ours in optional:
                if batch.filled(name[ours]).any():
                    any_filled.add(ours)
            for ours in ("priority", "images"):
                if ours in optional:
                    values[ours] = batch.whole(name[ours])
            if "images" in optional:
                batch.refuse(values["images"] < 0, name["images"], "is negative", "allowed: whole numbers from 0")
            values |= _durations(batch, optional, name)
            if "hash_ids" in optional:
                ids = self._ids(batch, name["hash_ids"], values["prompt"])
            time_ns = batch.nanoseconds(name[arrival], ARRIVALS[arrival])
            last_ns = batch.refuse_disorder(name[arrival], time_ns, last_ns)
            if "wait_for" in optional:
                waiting = batch.ids(name["wait_for"])
                own = np.repeat(np.arange(row, row + len(time_ns)), waiting[1])
                ahead = np.zeros(len(time_ns), np.bool_)
                ahead[own[waiting[0] >= own.astype(np.uint64)] - row] = True
                batch.refuse(ahead, name["wait_for"], "names a row that is not before its own", "rows count from 0")
                waits.append(waiting, batch.good)
            columns.append(batch.good, arrival=time_ns, **values)
            if "hash_ids" in optional:
                hashes.append(ids, batch.good)
            for ours, text in texts.items():
                text.append(batch.text(name[ours]), batch.good)
            row += len(time_ns)
        if not columns.rows:
            raise nothing_left(path)

        arrival_ns = columns.take("arrival")
        origin_ns = int(arrival_ns[0]) if arrival == "arrival_time" else None
        arrival_ns -= arrival_ns[0]
        given = {ours for ours in optional if ours in any_filled or ours in table.names}
        named = {
            ours: texts[ours].take() if ours in given else (None, None) for ours in ("session_id", "tenant", "model")
        }
        prefix = chained(*hashes.take()) if "hash_ids" in given else None
        return Trace(
            arrival_ns,
            columns.take("prompt"),
            columns.take("output"),
            session=named["session_id"][0],
            session_names=named["session_id"][1],
            think_ns=columns.take("think") if given & set(PAUSES) else None,
            priority=columns.take("priority") if "priority" in given else None,
            tenant=named["tenant"][0],
            tenant_names=named["tenant"][1],
            model=named["model"][0],
            model_names=named["model"][1],
            images=columns.take("images") if "images" in given else None,
            deadline_ns=columns.take("deadline") if given & set(DEADLINES) else None,
            wait_for=Ragged(waits.take()[0].astype(np.int64), waits.take()[1]) if "wait_for" in given else None,
            prefix_hashes=prefix,
            hash_block_tokens=None if prefix is None else self.hash_block_tokens,
            origin_ns=origin_ns,
            rows=TraceRows(read=columns.rows),
        )

    def _one_of(self, table: Table, names: Mapping[str, str]) -> str | None:
        """Which of several names for one thing the map or the file has. Raises InputError if there are two."""
        found = [name for name in names if name in self._map] or [name for name in names if name in table.names]
        if len(found) > 1:
            hint = "they mean the same; keep one"
            raise InputError(f"has both {found[0]} and {found[1]}", file=table.path, line=1, hint=hint)
        return found[0] if found else None

    def _optional(self, table: Table, name: Mapping[str, str]) -> dict[str, Kind]:
        """The optional columns that the file may have, by our names."""
        mapped = set(self._map.values())
        for theirs in table.names:
            near = difflib.get_close_matches(theirs, OPTIONAL, n=1, cutoff=0.85)
            if near and theirs not in OPTIONAL and theirs not in mapped:
                hint = f"did you mean {near[0]!r}? rename or remove it"
                raise InputError("unknown column", file=table.path, line=1, key=theirs, hint=hint)
        for ours in self._map:
            if ours in OPTIONAL:
                require(table, (name[ours],))
        self._one_of(table, PAUSES)
        self._one_of(table, DEADLINES)
        optional = {ours: kind for ours, kind in OPTIONAL.items() if name[ours] in present(table, {name[ours]: kind})}
        pause = next((ours for ours in PAUSES if name[ours] in table.names), None)
        if pause and not {name["session_id"], name["wait_for"]} & set(table.names):
            hint = "think time is the pause between turns of a session: add session_id or remove it"
            raise InputError("needs the column session_id", file=table.path, line=1, key=name[pause], hint=hint)
        if name["hash_ids"] in table.names and self.hash_block_tokens is None:
            hint = "format: {name: plain, hash_block_tokens: 16}, or whatever size the blocks have"
            raise InputError("needs hash_block_tokens", file=table.path, line=1, key=name["hash_ids"], hint=hint)
        if self.hash_block_tokens is None:
            optional.pop("hash_ids", None)
        return optional

    def _ids(self, batch: Batch, name: str, prompt: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        assert self.hash_block_tokens is not None
        ids = batch.ids(name)
        problem = f"has more ids than the prompt has blocks of {self.hash_block_tokens} tokens"
        batch.refuse(ids[1] > -(-prompt // self.hash_block_tokens), name, problem, "correct hash_block_tokens")
        return ids


def _durations(batch: Batch, optional: Mapping[str, Kind], name: Mapping[str, str]) -> dict[str, NDArray[np.int64]]:
    """Pauses and deadlines of a batch, in ns."""
    found = {}
    for what, units, empty in (("think", PAUSES, 0), ("deadline", DEADLINES, -1)):
        for ours in units:
            if ours in optional:
                time_ns = batch.nanoseconds(name[ours], units[ours], empty)
                negative = batch.filled(name[ours]) & (time_ns < 0)
                batch.refuse(negative, name[ours], "is negative", "allowed: seconds from 0")
                if what not in found or batch.filled(name[ours]).any():
                    found[what] = time_ns
    return found


def _arrival_kind(table: Table, arrival: str, name: str) -> Kind:
    if arrival == "arrival_time":
        return ZONED_DATE_TIME if is_zoned(table, name) else DATE_TIME
    return {"arrival_s": SECONDS, "arrival_ns": WHOLE}.get(arrival, NUMBER)


def _prompt_name(table: Table) -> str:
    if "input_tokens" not in table.names:
        return "prompt_tokens"
    if "prompt_tokens" in table.names:
        hint = "they mean the same; keep one"
        raise InputError("has both prompt_tokens and input_tokens", file=table.path, line=1, hint=hint)
    return "input_tokens"
