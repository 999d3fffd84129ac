"""Qwen-Bailian (Wang et al., USENIX ATC '25): requests to Qwen models at Aliyun, with chats and block ids."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged, Trace, TraceRows
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    NAME,
    SECONDS,
    WHOLE,
    Columns,
    Names,
    Quarantine,
    RaggedColumn,
    check_block_tokens,
    keys_of,
    nothing_left,
    open_table,
    require,
)


@dataclass(frozen=True)
class Bailian:
    """JSON lines ``chat_id``, ``parent_chat_id``, ``timestamp`` (s), ``input_length``, ``output_length``, ``type``,
    ``turn``, ``hash_ids`` (16-token blocks, the last one may be partial).

    - ``parent_chat_id`` is the ``chat_id`` of the turn before, -1 for a first turn. It becomes ``wait_for``; all
      turns that go back to one first turn are a session. A parent that is not in the file (before the trace began)
      makes a turn a first one.
    - When answers ended is not recorded: ``think_ns`` is the whole gap since the parent was sent, an upper bound.
    - ``type`` (text, search, image, file) becomes the tenant. ``turn`` is not read.
    - Ids are hashes of single blocks; they are chained here, so equal ids mean equal prefixes.

    Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon.
    """

    hash_block_tokens: int = 16

    columns: ClassVar[tuple[str, ...]] = (
        *("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids"),
    )

    def __post_init__(self) -> None:
        check_block_tokens(self.hash_block_tokens)

    def recognises(self, head: str) -> bool:
        """True for JSON lines with these keys."""
        return set(self.columns) <= set(keys_of(head))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request.

        Raises InputError for a bad value, a length below 1, times out of order, a second row with the same chat_id,
        or more or fewer ids than blocks.
        """
        table = open_table(path, quarantine)
        require(table, self.columns)
        columns, hashes, types = Columns(), RaggedColumn(), Names()
        seen: set[int] = set()
        last_ns = None
        kinds = {"chat_id": WHOLE, "parent_chat_id": WHOLE, "timestamp": SECONDS, "input_length": WHOLE}
        kinds |= {"output_length": WHOLE, "hash_ids": IDS, **({"type": NAME} if "type" in table.names else {})}
        for batch in table.batches(kinds):
            prompt = batch.tokens("input_length", least=1)
            output = batch.tokens("output_length", least=1)
            ids = batch.ids("hash_ids")
            blocks = -(-prompt // self.hash_block_tokens)
            problem = f"has not one id for each {self.hash_block_tokens} tokens of input_length"
            batch.refuse(ids[1] != blocks, "hash_ids", problem, "state hash_block_tokens if blocks have another size")
            time_ns = batch.nanoseconds("timestamp")
            last_ns = batch.refuse_disorder("timestamp", time_ns, last_ns)
            chat = batch.whole("chat_id")
            batch.refuse(_repeated(chat, batch.good, seen), "chat_id", "is there twice", "each row needs its own")
            parent = batch.whole("parent_chat_id")
            columns.append(batch.good, arrival=time_ns, prompt=prompt, output=output, chat=chat, parent=parent)
            hashes.append(ids, batch.good)
            if "type" in kinds:
                types.append(batch.text("type"), batch.good)
        if not columns.rows:
            raise nothing_left(path)
        arrival_ns = columns.take("arrival")
        arrival_ns -= arrival_ns[0]
        chat = columns.take("chat")
        before = _rows_of_parents(chat, columns.take("parent"))
        turns = before >= 0
        think_ns = np.where(turns, arrival_ns - arrival_ns[before], 0)
        roots = _roots(before)
        first, session = np.unique(roots, return_inverse=True)
        tenant, tenant_names = types.take() if "type" in kinds else (None, None)
        return Trace(
            arrival_ns,
            columns.take("prompt"),
            columns.take("output"),
            session=session.astype(np.int64),
            session_names=[str(name) for name in chat[first].tolist()],
            think_ns=think_ns,
            tenant=tenant,
            tenant_names=tenant_names,
            wait_for=Ragged(before[turns], np.concatenate(([0], np.cumsum(turns)))),
            prefix_hashes=chained(*hashes.take()),
            hash_block_tokens=self.hash_block_tokens,
            rows=TraceRows(read=columns.rows),
        )


def _repeated(chat: NDArray[np.int64], good: NDArray[np.bool_], seen: set[int]) -> NDArray[np.bool_]:
    """(rows,) bool, true where a good row repeats a chat_id; adds the others to ``seen``."""
    again = np.zeros(len(chat), np.bool_)
    for i in np.flatnonzero(good).tolist():
        each = int(chat[i])
        again[i] = each in seen
        seen.add(each)
    return again


def _rows_of_parents(chat: NDArray[np.int64], parent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of each row's parent, (n,) int64; -1 where there is none before it."""
    by_chat = np.argsort(chat)
    at = np.minimum(np.searchsorted(chat[by_chat], parent), len(chat) - 1)
    found = by_chat[at]
    is_parent = (chat[found] == parent) & (found < np.arange(len(chat)))
    return np.where(is_parent, found, -1)


def _roots(before: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of the first turn of each row, (n,) int64."""
    roots = np.arange(len(before))
    for i in np.flatnonzero(before >= 0).tolist():  # parents stand before their children
        roots[i] = roots[before[i]]
    return roots
