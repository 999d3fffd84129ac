"""JSON lines in the words of Mooncake, as ``vllm bench serve`` (timed_trace) and AIPerf replay them."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    NAME,
    NUMBER_OR_EMPTY,
    WHOLE,
    Columns,
    Names,
    Quarantine,
    RaggedColumn,
    check_block_tokens,
    keys_of,
    nothing_left,
    open_table,
    present,
    require,
)


@dataclass(frozen=True)
class TimedTrace:
    """JSON lines ``input_length``, ``output_length`` and, each optional, ``timestamp``, ``delay``, ``session_id``,
    ``hash_ids``.

    - ``timestamp`` and ``delay`` are in ``time_unit`` (ms in AIPerf and Mooncake; vLLM multiplies by a factor that is
      given to it). Rows without a timestamp: the first of a session arrives at 0, a later one ``delay`` after its
      predecessor (whose duration is not known); requests are then put in order of arrival.
    - ``think_ns`` is ``delay``, the pause after the predecessor's end; where only timestamps are given, the whole gap
      since the predecessor was sent, an upper bound.
    - ``hash_ids`` are blocks of ``hash_block_tokens`` (512 in AIPerf), the last one full or partial; they are chained
      here, so equal ids mean equal prefixes.
    """

    time_unit: Literal["s", "ms", "us", "ns"] = "ms"
    hash_block_tokens: int = 512

    columns: ClassVar[tuple[str, ...]] = ("input_length", "output_length")

    def __post_init__(self) -> None:
        check_block_tokens(self.hash_block_tokens)

    def recognises(self, head: str) -> bool:
        """True for JSON lines with the two lengths that are neither Mooncake's nor Qwen-Bailian's."""
        keys = set(keys_of(head))
        mooncake = {"timestamp", "hash_ids"} <= keys and not keys & {"session_id", "delay"}
        return set(self.columns) <= keys and "chat_id" not in keys and not mooncake

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request.

        Raises InputError for a bad value, a length below 1, timestamps out of order, a negative delay, or more or
        fewer ids than blocks.
        """
        table = open_table(path, quarantine)
        require(table, self.columns)
        columns, hashes, sessions = Columns(), RaggedColumn(), Names()
        last_ns = None
        optional = {"timestamp": NUMBER_OR_EMPTY, "delay": NUMBER_OR_EMPTY, "session_id": NAME, "hash_ids": IDS}
        kinds = {"input_length": WHOLE, "output_length": WHOLE, **present(table, optional)}
        for batch in table.batches(kinds):
            prompt = batch.tokens("input_length", least=1)
            output = batch.tokens("output_length", least=1)
            nothing = np.full(len(prompt), -1, np.int64)
            delay_ns = batch.nanoseconds("delay", self.time_unit, empty=-1) if "delay" in kinds else nothing
            if "delay" in kinds:
                negative = batch.filled("delay") & (delay_ns < 0)
                batch.refuse(negative, "delay", "is negative", "allowed: numbers from 0")
            if "hash_ids" in kinds:
                ids = batch.ids("hash_ids")
                blocks = -(-prompt // self.hash_block_tokens)
                full = prompt // self.hash_block_tokens
                wrong = (ids[1] > 0) & (ids[1] != blocks) & (ids[1] != full)
                problem = f"has not one id for each {self.hash_block_tokens} tokens of input_length"
                batch.refuse(wrong, "hash_ids", problem, "state hash_block_tokens if blocks have another size")
            timed = batch.filled("timestamp") if "timestamp" in kinds else nothing >= 0
            time_ns = nothing
            if "timestamp" in kinds:
                time_ns = batch.nanoseconds("timestamp", self.time_unit)
                latest = np.maximum.accumulate(np.where(timed & batch.good, time_ns, np.iinfo(np.int64).min))
                last_ns = batch.refuse_disorder("timestamp", np.where(timed, time_ns, latest), last_ns)
            columns.append(batch.good, time=time_ns, timed=timed, delay=delay_ns, prompt=prompt, output=output)
            if "hash_ids" in kinds:
                hashes.append(ids, batch.good)
            if "session_id" in kinds:
                sessions.append(batch.text("session_id"), batch.good)
        if not columns.rows:
            raise nothing_left(path)
        session, names = sessions.take() if "session_id" in kinds else (np.full(columns.rows, -1), [])
        arrival_ns, think_ns = _clock(columns, session)
        order = np.argsort(arrival_ns, kind="stable")
        prefix = chained(*hashes.take()) if "hash_ids" in kinds else None
        if prefix is not None:
            prefix = prefix.select(order) if len(prefix.values) else None
        return Trace(
            arrival_ns[order] - arrival_ns[order[0]],
            columns.take("prompt")[order],
            columns.take("output")[order],
            session=session[order] if names else None,
            session_names=names or None,
            think_ns=think_ns[order] if names else None,
            prefix_hashes=prefix,
            hash_block_tokens=None if prefix is None else self.hash_block_tokens,
            rows=TraceRows(read=columns.rows),
        )


def _clock(columns: Columns, session: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Arrival and pause of each row in file order, both (n,) int64 ns."""
    arrivals, pauses = [], []
    previous: dict[int, int] = {}
    for time_ns, is_timed, delay_ns, each in zip(
        *(columns.take(name).tolist() for name in ("time", "timed", "delay")), session.tolist(), strict=True
    ):
        before = previous.get(each) if each >= 0 else None
        if before is None:
            arrival, pause = time_ns if is_timed else 0, 0
        else:
            arrival = max(time_ns, before) if is_timed else before + max(delay_ns, 0)
            pause = delay_ns if delay_ns >= 0 else arrival - before
        previous[each] = arrival
        arrivals.append(arrival)
        pauses.append(pause)
    return np.array(arrivals, np.int64), np.array(pauses, np.int64)
