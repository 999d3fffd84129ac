"""What ``kvsim.run`` returns: the summary, and the run's tables as DataFrames when somebody asks for them."""

import os
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kvsim.core.html import bars
from kvsim.core.runlog import RunLog
from kvsim.core.trace import Trace
from kvsim.metrics.slo import Slo
from kvsim.report.files import read_summary, read_table
from kvsim.report.tables import REQUESTS, TIMELINE, request_batches, timeline_batches
from kvsim.report.terminal import VERDICTS, headline_facts, latency_table, short_text, title

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """One run. In memory (``log`` and ``trace``), in a folder (``out_dir``), or both.

    ``summary`` is ``summary.json`` as a dict; ``requests`` and ``timeline`` are the Parquet files as DataFrames,
    made on first use.
    """

    summary: dict[str, Any]
    log: RunLog | None = None
    trace: Trace | None = None
    out_dir: Path | None = None

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> "Result":
        """The result that is in a run folder. Raises InputError if it is not a complete run folder."""
        return cls(summary=read_summary(run_dir), out_dir=Path(run_dir))

    @cached_property
    def requests(self) -> "pd.DataFrame":
        """One row per request in the order of the trace: the columns of ``requests.parquet``."""
        if self.log is None or self.trace is None:
            return self._read("requests")
        slo = Slo.of(self.summary["kvsim"]["slo"] or {})
        return _frame(pa.Table.from_batches(request_batches(self.log, self.trace, slo), REQUESTS))

    @cached_property
    def timeline(self) -> "pd.DataFrame":
        """One row per sampling instant and replica: the columns of ``timeline.parquet``."""
        if self.log is None:
            return self._read("timeline")
        return _frame(pa.Table.from_batches(timeline_batches(self.log), TIMELINE))

    def _read(self, name: str) -> "pd.DataFrame":
        if self.out_dir is None:
            raise ValueError(f"this result has neither a log nor a folder to read {name} from")
        return _frame(read_table(self.out_dir, name))

    def __repr__(self) -> str:
        where = f"\nin {self.out_dir}" if self.out_dir is not None else ""
        return short_text(self.summary) + where

    def _repr_html_(self) -> str:
        own = self.summary["kvsim"]
        verdict = VERDICTS.get(own["stability"], "")
        warning = f'<p style="color:#b00020"><b>{escape(verdict)}</b></p>' if verdict else ""
        facts = ", ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in headline_facts(self.summary))
        head, *rows = latency_table(self.summary)
        header = "".join(f"<th>{name}</th>" for name in head)
        body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
        return (
            f"<div><b>{escape(title(self.summary))}</b>{warning}<p>{facts}</p>"
            f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>{self._plots()}</div>"
        )

    def _plots(self) -> str:
        """Small histograms of the finished requests' TTFT and TPOT; nothing where there is nothing to read."""
        if self.log is None and self.out_dir is None:
            return ""
        done = self.requests[self.requests["status"] == "finished"]
        return "".join(
            bars(np.log10(done[f"{name}_s"].dropna().clip(lower=1e-9).to_numpy() * 1e3), f"{name.upper()} (log10 ms)")
            for name in ("ttft", "tpot")
        )


def _frame(table: Any) -> "pd.DataFrame":
    frame: pd.DataFrame = table.to_pandas()
    return frame
