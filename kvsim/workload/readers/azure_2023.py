"""Azure LLM inference trace 2023 (code and conversation), as published with Splitwise (Patel et al., ISCA 2024)."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.table import DATE_TIME, WHOLE, Column, header, open_table, require


@dataclass(frozen=True)
class Azure2023:
    """``TIMESTAMP,ContextTokens,GeneratedTokens``: time of arrival without zone, prompt tokens, output tokens.

    Stamps have seven decimals (100 ns) and are read as integers; the files have CRLF line ends and no final newline.
    Source: github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md.
    """

    columns: ClassVar[tuple[str, ...]] = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def recognises(self, head: str) -> bool:
        """True if the three columns are there."""
        return set(self.columns) <= set(header(head))

    def read(self, path: Path) -> Trace:
        """Every row becomes a request. Raises InputError for a bad cell, a length below 1, or times out of order."""
        table = open_table(path)
        require(table, self.columns)
        arrival, prompt, output = Column(), Column(), Column()
        last_ns = None
        for batch in table.batches({"TIMESTAMP": DATE_TIME, "ContextTokens": WHOLE, "GeneratedTokens": WHOLE}):
            time_ns = batch.nanoseconds("TIMESTAMP")
            last_ns = batch.refuse_disorder("TIMESTAMP", time_ns, last_ns)
            arrival.append(time_ns)
            prompt.append(batch.tokens("ContextTokens", least=1))
            output.append(batch.tokens("GeneratedTokens", least=1))
        arrival_ns = arrival.take()
        arrival_ns -= arrival_ns[0]
        return Trace(arrival_ns, prompt.take(), output.take(), rows=TraceRows(read=len(arrival_ns)))
