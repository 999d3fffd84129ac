"""kvsim's own trace format: a plain table, CSV or Parquet, in the words of the Trace."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.table import (
    NAME,
    SECONDS,
    SECONDS_OR_EMPTY,
    WHOLE,
    Column,
    Names,
    Table,
    header,
    open_table,
    require,
)

OPTIONAL = {"session_id": NAME, "think_s": SECONDS_OR_EMPTY, "priority": WHOLE}


@dataclass(frozen=True)
class Plain:
    """``arrival_s,prompt_tokens,output_tokens``, and if present ``session_id``, ``think_s``, ``priority``.

    - ``arrival_s`` is float64 seconds, rounded to ns; the first row becomes time 0.
    - ``input_tokens`` is read as ``prompt_tokens``.
    - ``session_id`` is any text; empty means no session. ``think_s`` is the pause between the end of the session's
      previous turn and this one; empty means 0.
    - Other columns are not read, except that one whose name is nearly an optional column's is refused.
    """

    columns: ClassVar[tuple[str, ...]] = ("arrival_s", "prompt_tokens", "output_tokens")

    def recognises(self, head: str) -> bool:
        """True if the three columns are there."""
        names = {"prompt_tokens" if name == "input_tokens" else name for name in header(head)}
        return set(self.columns) <= names

    def read(self, path: Path) -> Trace:
        """Every row becomes a request.

        Raises InputError for a bad cell, a length below 1, a negative think time, or arrivals out of order.
        """
        table = open_table(path)
        prompt_name = _prompt_name(table)
        require(table, ("arrival_s", prompt_name, "output_tokens"))
        optional = _optional(table)
        kinds = {"arrival_s": SECONDS, prompt_name: WHOLE, "output_tokens": WHOLE}
        kinds |= {name: OPTIONAL[name] for name in optional}

        arrival, prompt, output, think, priority = Column(), Column(), Column(), Column(), Column()
        sessions = Names()
        last_ns = None
        for batch in table.batches(kinds):
            time_ns = batch.nanoseconds("arrival_s")
            last_ns = batch.refuse_disorder("arrival_s", time_ns, last_ns)
            arrival.append(time_ns)
            prompt.append(batch.tokens(prompt_name, least=1))
            output.append(batch.tokens("output_tokens", least=1))
            if "session_id" in optional:
                sessions.append(batch.text("session_id"))
            if "think_s" in optional:
                think_ns = batch.nanoseconds("think_s")
                batch.refuse(think_ns < 0, "think_s", "is negative", "allowed: seconds from 0")
                think.append(think_ns)
            if "priority" in optional:
                priority.append(batch.whole("priority"))

        arrival_ns = arrival.take()
        arrival_ns -= arrival_ns[0]
        session, names = sessions.take() if "session_id" in optional else (None, None)
        return Trace(
            arrival_ns,
            prompt.take(),
            output.take(),
            session=session,
            think_ns=think.take() if "think_s" in optional else None,
            priority=priority.take() if "priority" in optional else None,
            session_names=names,
            rows=TraceRows(read=len(arrival_ns)),
        )


def _prompt_name(table: Table) -> str:
    if "input_tokens" not in table.names:
        return "prompt_tokens"
    if "prompt_tokens" in table.names:
        hint = "they mean the same; keep one"
        raise InputError("has both prompt_tokens and input_tokens", file=table.path, line=1, hint=hint)
    return "input_tokens"


def _optional(table: Table) -> list[str]:
    """The optional columns that the file has."""
    for name in table.names:
        near = difflib.get_close_matches(name, OPTIONAL, n=1, cutoff=0.85)
        if near and name not in OPTIONAL:
            hint = f"did you mean {near[0]!r}? rename or remove it"
            raise InputError("unknown column", file=table.path, line=1, key=name, hint=hint)
    optional = [name for name in OPTIONAL if name in table.names]
    if "think_s" in optional and "session_id" not in optional:
        hint = "think time is the pause between turns of a session: add session_id or remove think_s"
        raise InputError("needs the column session_id", file=table.path, line=1, key="think_s", hint=hint)
    return optional
