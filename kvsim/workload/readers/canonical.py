"""kvsim's own Parquet form, to which every trace converts (``kvsim trace convert``): all columns of a Trace."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged, Trace, TraceRows
from kvsim.workload.readers.files import head_of
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    NAME,
    WHOLE,
    Columns,
    Names,
    ParquetTable,
    Quarantine,
    RaggedColumn,
    nothing_left,
    require,
)

VERSION: Final = 1
"""Raised when a column is renamed or changes its meaning; new optional columns do not raise it."""
META_VERSION: Final = "kvsim.trace_version"
META_ABOUT: Final = "kvsim.trace"

NEEDED: Final = ("arrival_ns", "prompt_tokens", "output_tokens")
NUMBERS: Final = ("think_ns", "priority", "images", "deadline_ns", "history")
TEXTS: Final = ("session", "tenant", "model")


@dataclass(frozen=True)
class Canonical:
    """Parquet with ``arrival_ns``, ``prompt_tokens``, ``output_tokens`` (int64) and, each optional, ``session``,
    ``tenant``, ``model`` (text, null for none), ``think_ns``, ``priority``, ``images``, ``deadline_ns``, ``history``
    (int64), ``wait_for``, ``prefix_hashes`` (lists of int64).

    - Meaning and units are those of the Trace's columns. Rows with ``output_tokens`` 0 failed in the traced system;
      ``wait_for`` counts the other rows only, from 0.
    - The metadata of the schema hold ``kvsim.trace_version`` (1) and ``kvsim.trace``: JSON with ``rows`` (read,
      source_failed, dropped), ``hash_block_tokens``, ``origin_ns``, and the ``format`` and ``sha256`` of the file that
      it was made from.
    """

    def recognises(self, head: str) -> bool:
        """True for the names of the three columns, followed by the mark of kvsim's metadata."""
        return f"#{META_VERSION}" in head.splitlines()[1:]

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """The trace that was written. Raises InputError for another version, or values that break a Trace's rules."""
        if not head_of(path).startswith(b"PAR1"):
            raise InputError("is not a Parquet file", file=path, hint="kvsim trace convert writes one")
        table = ParquetTable(path, quarantine)
        about = _about(table)
        require(table, NEEDED)
        kinds = dict.fromkeys((*NEEDED, *(name for name in NUMBERS if name in table.names)), WHOLE)
        kinds |= dict.fromkeys((name for name in TEXTS if name in table.names), NAME)
        kinds |= dict.fromkeys((name for name in ("wait_for", "prefix_hashes") if name in table.names), IDS)
        if "wait_for" in kinds and quarantine is not None:
            raise InputError("rows that others may wait for cannot be set aside", file=path, key="on_bad_row")

        columns, failures = Columns(), Columns()
        lists = {name: RaggedColumn() for name, kind in kinds.items() if kind is IDS}
        texts = {name: Names() for name, kind in kinds.items() if kind is NAME}
        last_ns = None
        for batch in table.batches(kinds):
            prompt, output = batch.tokens("prompt_tokens", least=0), batch.tokens("output_tokens", least=0)
            batch.refuse((prompt == 0) & (output > 0), "prompt_tokens", "has an output", "allowed: at least 1")
            values = {"prompt_tokens": prompt, "output_tokens": output}
            for name in NUMBERS:
                if name in kinds:
                    values[name] = batch.whole(name)
                    least = {"priority": -(2**62), "deadline_ns": -1, "history": -1}.get(name, 0)
                    batch.refuse(values[name] < least, name, "is too small", f"allowed: whole numbers from {least}")
            if "wait_for" in kinds:
                ids, counts = batch.ids("wait_for")
                own = np.repeat(columns.rows + np.cumsum(output > 0) - 1, counts)
                ahead = np.zeros(len(output), np.bool_)
                ahead[np.repeat(np.arange(len(output)), counts)[ids.astype(np.int64) >= own]] = True
                batch.refuse(ahead, "wait_for", "names a row that is not before its own", "rows count from 0")
            if "prefix_hashes" in kinds:
                blocks = -(-prompt // int(about["hash_block_tokens"]))
                too_many = (batch.ids("prefix_hashes")[1] > blocks) & (output > 0)
                batch.refuse(too_many, "prefix_hashes", "has more ids than the prompt has blocks", "correct the ids")
            time_ns = batch.nanoseconds("arrival_ns", "ns")
            last_ns = batch.refuse_disorder("arrival_ns", time_ns, last_ns)
            kept, failed = batch.good & (output > 0), batch.good & (output == 0)
            failures.append(failed, arrival=time_ns, prompt=prompt, before=columns.rows + np.cumsum(kept))
            columns.append(kept, arrival=time_ns, **values)
            for name, column in lists.items():
                column.append(batch.ids(name), kept)
            for name, text in texts.items():
                text.append(batch.text(name), kept)
        if not columns.rows:
            raise nothing_left(path)

        arrival_ns = columns.take("arrival")
        first_ns = int(arrival_ns[0])
        arrival_ns -= first_ns
        ragged = {name: column.take() for name, column in lists.items()}
        named = {name: text.take() for name, text in texts.items()}
        rows = TraceRows(read=columns.rows + failures.rows, source_failed=failures.rows)
        dropped = {str(reason): int(count) for reason, count in about["dropped"].items()}
        more: dict[str, Any] = {name: columns.take(name) for name in NUMBERS if name in kinds}
        for name in TEXTS:
            if name in named:
                more |= {name: named[name][0], f"{name}_names": named[name][1]}
        return Trace(
            arrival_ns,
            columns.take("prompt_tokens"),
            columns.take("output_tokens"),
            **more,
            wait_for=_rows(*ragged["wait_for"]) if "wait_for" in ragged else None,
            prefix_hashes=chained(*ragged["prefix_hashes"]) if "prefix_hashes" in ragged else None,
            hash_block_tokens=int(about["hash_block_tokens"]) if "prefix_hashes" in ragged else None,
            origin_ns=about["origin_ns"],
            rows=TraceRows(rows.read + sum(dropped.values()), rows.source_failed, dropped),
            source_failed_before=failures.take("before"),
            source_failed_ns=failures.take("arrival") - first_ns,
            source_failed_prompt_tokens=failures.take("prompt"),
        )


def _rows(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> Ragged:
    return Ragged(values.astype(np.int64), offsets)


def _about(table: ParquetTable) -> dict[str, Any]:
    """``dropped``, ``hash_block_tokens``, ``origin_ns``. Raises InputError if this version did not write them."""
    version = table.metadata.get(META_VERSION.encode())
    if version is None or not version.isdigit():
        raise InputError(f"has no metadata {META_VERSION}", file=table.path, hint="kvsim trace convert writes it")
    if int(version) != VERSION:
        hint = f"this kvsim reads version {VERSION}; convert the source again"
        raise InputError(f"has version {int(version)} of kvsim's trace form", file=table.path, hint=hint)
    try:
        about = json.loads(table.metadata.get(META_ABOUT.encode(), b"{}"))
        dropped = {str(reason): int(count) for reason, count in about.get("rows", {}).get("dropped", {}).items()}
        block = about.get("hash_block_tokens")
        if "prefix_hashes" in table.names and not (isinstance(block, int) and 0 < block < 2**31):
            raise ValueError("hash_block_tokens is missing")
        origin = about.get("origin_ns")
        if not (origin is None or (isinstance(origin, int) and abs(origin) < 2**62)):
            raise ValueError("origin_ns is no time")
        if any(count < 0 for count in dropped.values()):
            raise ValueError("a count is negative")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"its metadata {META_ABOUT} cannot be used: {error}"
        raise InputError(problem, file=table.path, hint="convert the source again") from None
    return {"dropped": dropped, "hash_block_tokens": block or 0, "origin_ns": origin}
