"""Azure LLM inference trace 2023 (code and conversation), as published with Splitwise (Patel et al., ISCA 2024)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.table import (
    DATE_TIME,
    WHOLE,
    ZONED_DATE_TIME,
    Columns,
    Quarantine,
    header,
    nothing_left,
    open_table,
    require,
    zoned,
)


@dataclass(frozen=True)
class Azure2023:
    """``TIMESTAMP,ContextTokens,GeneratedTokens``: time of arrival without zone, prompt tokens, output tokens.

    Stamps have seven decimals (100 ns) and are read as integers; the files have CRLF line ends and no final newline.
    Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md.
    """

    columns: ClassVar[tuple[str, ...]] = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def recognises(self, head: str) -> bool:
        """True if the three columns are there and the first stamp has no time zone."""
        names = header(head)
        return set(self.columns) <= set(names) and "NumImages" not in names and not zoned(head, "TIMESTAMP")

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request. Raises InputError for a bad cell, a length below 1, or times out of order."""
        return read_azure(path, quarantine, in_zone=False)


def read_azure(path: Path, quarantine: Quarantine | None, *, in_zone: bool, images: bool = False) -> Trace:
    """A file of any year: stamps with a time zone or without, ``NumImages`` or not."""
    table = open_table(path, quarantine)
    require(table, Azure2023.columns)
    stamp = ZONED_DATE_TIME if in_zone else DATE_TIME
    kinds = {"TIMESTAMP": stamp, "ContextTokens": WHOLE, "GeneratedTokens": WHOLE}
    kinds |= {"NumImages": WHOLE} if images else {}
    columns = Columns()
    last_ns = None
    for batch in table.batches(kinds):
        values = {
            "prompt": batch.tokens("ContextTokens", least=1),
            "output": batch.tokens("GeneratedTokens", least=1),
        }
        if images:
            values["images"] = batch.whole("NumImages")
            batch.refuse(values["images"] < 0, "NumImages", "is negative", "allowed: whole numbers from 0")
        time_ns = batch.nanoseconds("TIMESTAMP")
        last_ns = batch.refuse_disorder("TIMESTAMP", time_ns, last_ns)
        columns.append(batch.good, arrival=time_ns, **values)
    if not columns.rows:
        raise nothing_left(path)
    arrival_ns = columns.take("arrival")
    origin_ns = int(arrival_ns[0])
    arrival_ns -= origin_ns
    return Trace(
        arrival_ns,
        columns.take("prompt"),
        columns.take("output"),
        images=columns.take("images") if images else None,
        origin_ns=origin_ns,
        rows=TraceRows(read=len(arrival_ns)),
    )
