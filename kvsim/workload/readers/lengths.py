"""Lists of lengths (ShareGPT, arXiv summarisation, ...) as Vidur's data sets write them, with or without arrivals."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.table import SECONDS, WHOLE, Columns, Quarantine, header, nothing_left, open_table, require


@dataclass(frozen=True)
class Lengths:
    """``num_prefill_tokens,num_decode_tokens``: prompt and output tokens; ``arrived_at`` (s) if there are arrivals.

    Without ``arrived_at`` every request arrives at time 0, as ``vllm bench serve --request-rate inf`` sends them.
    Other columns are not read (``pd_ratio`` means different things in different files).
    Source: github.com/microsoft/vidur, data/processed_traces.
    """

    columns: ClassVar[tuple[str, ...]] = ("num_prefill_tokens", "num_decode_tokens")

    def recognises(self, head: str) -> bool:
        """True if the two columns are there."""
        return set(self.columns) <= set(header(head))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every row becomes a request. Raises InputError for a bad cell, a length below 1, or times out of order."""
        table = open_table(path, quarantine)
        require(table, self.columns)
        timed = "arrived_at" in table.names
        columns = Columns()
        last_ns = None
        kinds = {"num_prefill_tokens": WHOLE, "num_decode_tokens": WHOLE}
        for batch in table.batches({"arrived_at": SECONDS, **kinds} if timed else kinds):
            prompt = batch.tokens("num_prefill_tokens", least=1)
            output = batch.tokens("num_decode_tokens", least=1)
            time_ns = batch.nanoseconds("arrived_at") if timed else np.zeros(len(prompt), np.int64)
            if timed:
                last_ns = batch.refuse_disorder("arrived_at", time_ns, last_ns)
            columns.append(batch.good, arrival=time_ns, prompt=prompt, output=output)
        if not columns.rows:
            raise nothing_left(path)
        arrival_ns = columns.take("arrival")
        arrival_ns -= arrival_ns[0]
        return Trace(arrival_ns, columns.take("prompt"), columns.take("output"), rows=TraceRows(read=columns.rows))
