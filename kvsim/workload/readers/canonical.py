"""kvsim's own Parquet form, to which every trace converts (``kvsim trace convert``): all columns of a Trace."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import COLUMNS, FailedRows, Ragged, Trace, TraceRows
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

NEEDED: Final[tuple[str, ...]] = ("arrival_ns", "prompt_tokens", "output_tokens")
TEXTS: Final[tuple[str, ...]] = ("session", "tenant", "model")
NUMBERS: Final[tuple[str, ...]] = tuple(name for name in COLUMNS if name not in (*NEEDED, *TEXTS))
LISTS: Final[tuple[str, ...]] = ("wait_for", "prefix_hashes")
RANGES: Final = {
    "priority": (-(2**62), 2**62),
    "deadline_ns": (-1, 2**62),
    "elapsed_ns": (-1, 2**62),
    "history": (-1, 2**62),
    "ends_by_eos": (0, 1),
}
"""Lowest and highest number, where it is not 0 and 2^62."""
FAILED: Final = ("arrival_ns", "prompt_tokens", *TEXTS, "elapsed_ns")
"""What is known of rows that failed in the traced system."""


@dataclass(frozen=True)
class Canonical:
    """Parquet with ``arrival_ns``, ``prompt_tokens``, ``output_tokens`` (int64) and, each optional, ``session``,
    ``tenant``, ``model`` (text, null for none), ``think_ns``, ``priority``, ``images``, ``deadline_ns``,
    ``ends_by_eos``, ``elapsed_ns``, ``history`` (int64), ``wait_for``, ``prefix_hashes`` (lists of int64).

    - Meaning and units are those of the Trace's columns. Rows with ``output_tokens`` 0 failed in the traced system;
      ``wait_for`` counts the other rows only, from 0.
    - The metadata of the schema hold ``kvsim.trace_version`` (1) and ``kvsim.trace``: JSON with ``rows`` (read,
      source_failed, dropped, clipped), ``hash_block_tokens``, ``origin_ns``, and the ``format`` and ``sha256`` of the
      file that it was made from.
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
        kinds |= dict.fromkeys((name for name in LISTS if name in table.names), IDS)
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
                    least, most = RANGES.get(name, (0, 2**62))
                    wrong = (values[name] < least) | (values[name] > most)
                    batch.refuse(wrong, name, "is out of range", f"allowed: whole numbers from {least} to {most}")
            if "wait_for" in kinds:
                ids, counts = batch.ids("wait_for")
                own = np.repeat(np.maximum(columns.rows + np.cumsum(output > 0) - 1, 0), counts)
                ahead = np.zeros(len(output), np.bool_)
                ahead[np.repeat(np.arange(len(output)), counts)[ids >= own.astype(np.uint64)]] = True
                batch.refuse(ahead, "wait_for", "names a row that is not before its own", "rows count from 0")
            if "prefix_hashes" in kinds:
                blocks = -(-prompt // int(about["hash_block_tokens"]))
                too_many = (batch.ids("prefix_hashes")[1] > blocks) & (output > 0)
                batch.refuse(too_many, "prefix_hashes", "has more ids than the prompt has blocks", "correct the ids")
            time_ns = batch.nanoseconds("arrival_ns", "ns")
            last_ns = batch.refuse_disorder("arrival_ns", time_ns, last_ns)
            values["arrival_ns"] = time_ns
            values |= {name: text.number(batch.text(name), batch.good) for name, text in texts.items()}
            kept, failed = batch.good & (output > 0), batch.good & (output == 0)
            known = {name: column for name, column in values.items() if name in FAILED}
            failures.append(failed, before=columns.rows + np.cumsum(kept), **known)
            columns.append(kept, **values)
            for name, column in lists.items():
                column.append(batch.ids(name), kept)
        if not columns.rows:
            raise nothing_left(path)

        whole: dict[str, Any] = {name: columns.take(name) for name in columns.names}
        failed_rows = {name: failures.take(name) for name in failures.names}
        first_ns = int(whole["arrival_ns"][0])
        whole["arrival_ns"] -= first_ns
        failed_rows["arrival_ns"] -= first_ns
        ragged = {name: column.take() for name, column in lists.items()}
        more: dict[str, Any] = {f"{name}_names": text.known for name, text in texts.items()}
        dropped: dict[str, int] = about["dropped"]
        read = columns.rows + failures.rows + sum(dropped.values())
        return Trace(
            **whole,
            **more,
            wait_for=_rows(*ragged["wait_for"]) if "wait_for" in ragged else None,
            prefix_hashes=chained(*ragged["prefix_hashes"]) if "prefix_hashes" in ragged else None,
            hash_block_tokens=int(about["hash_block_tokens"]) if "prefix_hashes" in ragged else None,
            origin_ns=about["origin_ns"],
            rows=TraceRows(read, failures.rows, dropped, about["clipped"]),
            source_failed=FailedRows(**failed_rows),
        )


def _rows(values: NDArray[np.uint64], offsets: NDArray[np.int64]) -> Ragged:
    return Ragged(values.astype(np.int64), offsets)


def _about(table: ParquetTable) -> dict[str, Any]:
    """What the metadata say beside the version. Raises InputError if this version did not write them."""
    version = table.metadata.get(META_VERSION.encode())
    if version is None or not version.isdigit():
        raise InputError(f"has no metadata {META_VERSION}", file=table.path, hint="kvsim trace convert writes it")
    if int(version) != VERSION:
        hint = f"this kvsim reads version {VERSION}; convert the source again"
        raise InputError(f"has version {int(version)} of kvsim's trace form", file=table.path, hint=hint)
    try:
        about = json.loads(table.metadata.get(META_ABOUT.encode(), b"{}"))
        rows = about.get("rows", {})
        dropped = {str(reason): int(count) for reason, count in rows.get("dropped", {}).items()}
        clipped = int(rows.get("clipped", 0))
        block = about.get("hash_block_tokens")
        if "prefix_hashes" in table.names and not (isinstance(block, int) and 0 < block < 2**31):
            raise ValueError("hash_block_tokens is missing")
        origin = about.get("origin_ns")
        if not (origin is None or (isinstance(origin, int) and abs(origin) < 2**62)):
            raise ValueError("origin_ns is no time")
        if any(count < 0 for count in (clipped, *dropped.values())):
            raise ValueError("a count is negative")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"its metadata {META_ABOUT} cannot be used: {error}"
        raise InputError(problem, file=table.path, hint="convert the source again") from None
    return {"dropped": dropped, "clipped": clipped, "hash_block_tokens": block or 0, "origin_ns": origin}
