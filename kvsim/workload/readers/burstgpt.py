"""BurstGPT (Wang et al., KDD '25, doi 10.1145/3711896.3737413): ChatGPT and GPT-4 traffic over 213 days."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvsim.core.trace import FailedRows, Trace, TraceRows
from kvsim.workload.readers.table import (
    DECIMAL_SECONDS,
    NAME,
    WHOLE,
    Columns,
    Names,
    Quarantine,
    header,
    nothing_left,
    open_table,
    require,
)
from kvsim.workload.readers.turns import think_times

SESSION = "Session ID"
ELAPSED = "Elapsed time"
LOG_TYPES = ("Conversation log", "API log")


@dataclass(frozen=True)
class BurstGPT:
    """``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, with or without failures.

    Files ``_3`` also have ``Session ID`` (empty on API rows: no session) and ``Elapsed time`` (whole seconds from
    submission to complete response on the original system). Columns are found by name.

    - ``Timestamp`` is in seconds, written ``5`` or ``19440110.0``; the first request replayed becomes time 0.
    - A row without response tokens failed on the original system: it is counted as ``source_failed``, not replayed.
    - Think time of a turn = max(0, gap to the previous turn's submission - the previous turn's elapsed time), where
      turns are the replayed rows of one session; 0 for its first turn and for API rows.
    - ``Model`` becomes the model, ``Log Type`` (``Conversation log`` or ``API log``: two services) the tenant.
    """

    columns: ClassVar[tuple[str, ...]] = (
        "Timestamp",
        "Model",
        "Request tokens",
        "Response tokens",
        "Total tokens",
        "Log Type",
    )

    def recognises(self, head: str) -> bool:
        """True if the six columns common to all published files are there."""
        return set(self.columns) <= set(header(head))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row with response tokens becomes a request.

        Raises InputError for a bad cell, times out of order, totals that do not add up, a response to an empty
        request, another log type, one of the two session columns without the other, or a file in which every row
        failed.
        """
        table = open_table(path, quarantine)
        require(table, self.columns)
        kinds = {
            "Timestamp": DECIMAL_SECONDS,
            "Request tokens": WHOLE,
            "Response tokens": WHOLE,
            "Total tokens": WHOLE,
            "Model": NAME,
            "Log Type": NAME,
        }
        has_sessions = SESSION in table.names or ELAPSED in table.names
        if has_sessions:
            require(table, (SESSION, ELAPSED))
            kinds |= {SESSION: NAME, ELAPSED: DECIMAL_SECONDS}

        columns, failures = Columns(), Columns()
        sessions, models, services = Names(), Names(), Names()
        last_ns = None
        read = replayed = 0
        for batch in table.batches(kinds):
            request = batch.tokens("Request tokens", least=0)
            response = batch.tokens("Response tokens", least=0)
            wrong = batch.tokens("Total tokens", least=0) != request + response
            batch.refuse(wrong, "Total tokens", "is not request + response tokens", "correct or remove the row")
            batch.refuse((request == 0) & (response > 0), "Request tokens", "has a response", "allowed: at least 1")
            batch.refuse_unknown("Log Type", LOG_TYPES)
            values = {"prompt_tokens": request, "output_tokens": response}
            if has_sessions:
                values["elapsed_ns"] = batch.nanoseconds(ELAPSED)
                batch.refuse(values["elapsed_ns"] < 0, ELAPSED, "is negative", "allowed: seconds from 0")
            time_ns = batch.nanoseconds("Timestamp")
            last_ns = batch.refuse_disorder("Timestamp", time_ns, last_ns)
            kept, failed = batch.good & (response > 0), batch.good & (response == 0)
            values |= {
                "arrival_ns": time_ns,
                "model": models.number(batch.text("Model"), batch.good),
                "tenant": services.number(batch.text("Log Type"), batch.good),
            }
            if has_sessions:
                values["session"] = sessions.number(batch.text(SESSION), batch.good)
            failures.append(failed, before=replayed + np.cumsum(kept), **values)
            columns.append(kept, **values)
            read += int(np.count_nonzero(batch.good))
            replayed = columns.rows
        if not replayed:
            raise nothing_left(path, f"all {read} rows failed in the traced system" if read else "no row can be used")

        whole: dict[str, Any] = {name: columns.take(name) for name in columns.names}
        first_ns = int(whole["arrival_ns"][0])
        whole["arrival_ns"] -= first_ns
        failed_rows = {name: failures.take(name) for name in failures.names if name != "output_tokens"}
        failed_rows["arrival_ns"] -= first_ns
        if has_sessions:
            whole["think_ns"] = think_times(whole["arrival_ns"], whole["session"], whole["elapsed_ns"])
        return Trace(
            **whole,
            session_names=sessions.known if has_sessions else None,
            tenant_names=services.known,
            model_names=models.known,
            rows=TraceRows(read=read, source_failed=read - replayed),
            origin_ns=first_ns,
            source_failed=FailedRows(**failed_rows),
        )
