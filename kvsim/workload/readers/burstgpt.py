"""BurstGPT (Wang et al., KDD '25, doi 10.1145/3711896.3737413): ChatGPT and GPT-4 traffic over 213 days."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.table import DECIMAL_SECONDS, NAME, WHOLE, Column, Names, header, open_table, require

SESSION = "Session ID"
ELAPSED = "Elapsed time"


@dataclass(frozen=True)
class BurstGPT:
    """``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type``, with or without failures.

    Files ``_3`` also have ``Session ID`` (empty on API rows: no session) and ``Elapsed time`` (whole seconds from
    submission to complete response on the original system). Columns are found by name.

    - ``Timestamp`` is in seconds, written ``5`` or ``19440110.0``; the first request replayed becomes time 0.
    - A row without response tokens failed on the original system: it is counted as ``source_failed``, not replayed.
    - Think time of a turn = max(0, gap to the previous turn's submission - the previous turn's elapsed time), where
      turns are the replayed rows of one session; 0 for its first turn and for API rows.
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

    def read(self, path: Path) -> Trace:
        """Every row with response tokens becomes a request.

        Raises InputError for a bad cell, times out of order, totals that do not add up, a response to an empty
        request, one of the two session columns without the other, or a file in which every row failed.
        """
        table = open_table(path)
        require(table, self.columns)
        kinds = {
            "Timestamp": DECIMAL_SECONDS,
            "Request tokens": WHOLE,
            "Response tokens": WHOLE,
            "Total tokens": WHOLE,
        }
        has_sessions = SESSION in table.names or ELAPSED in table.names
        if has_sessions:
            require(table, (SESSION, ELAPSED))
            kinds |= {SESSION: NAME, ELAPSED: DECIMAL_SECONDS}

        arrival, prompt, output, elapsed, failed = Column(), Column(), Column(), Column(), Column()
        sessions = Names()
        last_ns = None
        read = replayed = 0
        for batch in table.batches(kinds):
            time_ns = batch.nanoseconds("Timestamp")
            last_ns = batch.refuse_disorder("Timestamp", time_ns, last_ns)
            request = batch.tokens("Request tokens", least=0)
            response = batch.tokens("Response tokens", least=0)
            wrong = batch.tokens("Total tokens", least=0) != request + response
            batch.refuse(wrong, "Total tokens", "is not request + response tokens", "correct or remove the row")
            batch.refuse((request == 0) & (response > 0), "Request tokens", "has a response", "allowed: at least 1")
            kept = response > 0
            arrival.append(time_ns[kept])
            prompt.append(request[kept])
            output.append(response[kept])
            failed.append(replayed + np.cumsum(kept)[~kept])
            if has_sessions:
                sessions.append(batch.text(SESSION), kept)
                elapsed_ns = batch.nanoseconds(ELAPSED)
                batch.refuse(elapsed_ns < 0, ELAPSED, "is negative", "allowed: seconds from 0")
                elapsed.append(elapsed_ns[kept])
            read += len(kept)
            replayed += int(kept.sum())
        if not replayed:
            raise InputError(f"has nothing to replay: all {read} rows failed in the traced system", file=path)

        arrival_ns = arrival.take()
        arrival_ns -= arrival_ns[0]
        session, names = sessions.take() if has_sessions else (None, None)
        return Trace(
            arrival_ns,
            prompt.take(),
            output.take(),
            session=session,
            think_ns=None if session is None else think_times(arrival_ns, session, elapsed.take()),
            session_names=names,
            rows=TraceRows(read=read, source_failed=read - replayed),
            source_failed_before=failed.take(),
        )


def think_times(
    arrival_ns: NDArray[np.int64], session: NDArray[np.int64], elapsed_ns: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pause before each turn, (n,) int64 ns: max(0, gap since its session's previous row - that row's elapsed time).

    0 for a first turn and where ``session`` is -1.
    """
    by_session = np.argsort(session, kind="stable")
    earlier, later = by_session[:-1], by_session[1:]
    turns = (session[earlier] == session[later]) & (session[later] >= 0)
    earlier, later = earlier[turns], later[turns]
    think_ns = np.zeros(len(session), np.int64)
    think_ns[later] = np.maximum(0, arrival_ns[later] - arrival_ns[earlier] - elapsed_ns[earlier])
    return think_ns
