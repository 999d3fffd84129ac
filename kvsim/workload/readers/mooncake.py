"""Mooncake (Qin et al., FAST '25): requests to Kimi with the ids of their prompts' blocks."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    NUMBER,
    WHOLE,
    Columns,
    Quarantine,
    RaggedColumn,
    check_block_tokens,
    keys_of,
    nothing_left,
    open_table,
    require,
)


@dataclass(frozen=True)
class Mooncake:
    """JSON lines ``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids`` (512-token blocks, chained).

    - ``len(hash_ids) = ceil(input_length / hash_block_tokens)``: the last id may name a partial block. A row in which
      this is otherwise is refused, so a file of another block size is not taken for one of 512.
    - Published times come in batches about every 3 s: ties keep file order.

    Source: github.com/kvcache-ai/Mooncake, FAST25-release/traces.
    """

    hash_block_tokens: int = 512

    columns: ClassVar[tuple[str, ...]] = ("timestamp", "input_length", "output_length", "hash_ids")

    def __post_init__(self) -> None:
        check_block_tokens(self.hash_block_tokens)

    def recognises(self, head: str) -> bool:
        """True for JSON lines with the four keys and none of another format that has them too."""
        keys = set(keys_of(head))
        return set(self.columns) <= keys and not keys & {"chat_id", "session_id", "delay"}

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request.

        Raises InputError for a bad value, a length below 1, times out of order, or more or fewer ids than blocks.
        """
        table = open_table(path, quarantine)
        require(table, self.columns)
        columns, hashes = Columns(), RaggedColumn()
        last_ns = None
        kinds = {"timestamp": NUMBER, "input_length": WHOLE, "output_length": WHOLE, "hash_ids": IDS}
        for batch in table.batches(kinds):
            prompt = batch.tokens("input_length", least=1)
            output = batch.tokens("output_length", least=1)
            ids = batch.ids("hash_ids")
            blocks = -(-prompt // self.hash_block_tokens)
            problem = f"has not one id for each {self.hash_block_tokens} tokens of input_length"
            batch.refuse(ids[1] != blocks, "hash_ids", problem, "state hash_block_tokens if blocks have another size")
            time_ns = batch.nanoseconds("timestamp", "ms")
            last_ns = batch.refuse_disorder("timestamp", time_ns, last_ns)
            columns.append(batch.good, arrival=time_ns, prompt=prompt, output=output)
            hashes.append(ids, batch.good)
        if not columns.rows:
            raise nothing_left(path)
        arrival_ns = columns.take("arrival")
        arrival_ns -= arrival_ns[0]
        return Trace(
            arrival_ns,
            columns.take("prompt"),
            columns.take("output"),
            prefix_hashes=chained(*hashes.take()),
            hash_block_tokens=self.hash_block_tokens,
            rows=TraceRows(read=columns.rows),
        )
