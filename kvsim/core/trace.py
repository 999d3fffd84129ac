"""A request trace as columns: who asks, when, and for how much."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvsim.core import html


@dataclass(frozen=True)
class TraceRows:
    """Where every row of the file went: ``read = replayed + source_failed + dropped``.

    ``source_failed`` rows failed in the system that was traced (BurstGPT writes them with zero tokens) and carry
    nothing to replay. ``dropped`` maps a reason to a count. ``clipped`` (part of ``replayed``) is filled in by the
    run: outputs cut at the model's length.
    """

    read: int
    source_failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    clipped: int = 0

    @property
    def replayed(self) -> int:
        """Rows handed to the simulator."""
        return self.read - self.source_failed - sum(self.dropped.values())


@dataclass(frozen=True)
class Trace:
    """Requests in arrival order; ties keep file order. All arrays have shape (n,).

    - ``arrival_ns`` int64, nanoseconds from the first row (so the first is 0), not decreasing
    - ``prompt_tokens``, ``output_tokens`` int64, at least 1
    - ``session`` int64 session number or -1 for a request outside any session; None if the trace has none
    - ``think_ns`` int64, pause between the end of the previous turn and this one; None if the trace has none
    - ``priority`` int64, lower is served first; None if the trace has none
    - ``session_names[k]`` is what the file called session ``k``
    - ``source_failed_before`` (m,) int64: for each row that failed in the traced system, in file order, how many rows
      of the trace stand before it; None if not recorded
    """

    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    session: NDArray[np.int64] | None = None
    think_ns: NDArray[np.int64] | None = None
    priority: NDArray[np.int64] | None = None
    session_names: Sequence[str] | None = None
    path: str | None = None
    format: str | None = None
    sha256: str | None = None
    rows: TraceRows | None = None
    source_failed_before: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def _repr_html_(self) -> str:
        """For notebooks: what is in it, arrivals over time, and lengths."""
        n = len(self)
        span_s = int(self.arrival_ns[-1]) / 1e9 if n else 0.0
        facts = {"requests": f"{n:,}", "from": self.path or "memory", "format": self.format or "-"}
        facts |= {"span": f"{span_s:,.1f} s", "mean rate": f"{(n - 1) / span_s:.4g} per s" if span_s else "-"}
        if self.session is not None:
            facts["sessions"] = f"{len(np.unique(self.session[self.session >= 0])):,}"
        plots = [html.bars(self.arrival_ns / 1e9, "arrivals over time (s)")]
        for name, tokens in (("prompt tokens", self.prompt_tokens), ("output tokens", self.output_tokens)):
            if n:
                levels = np.percentile(tokens, (50, 90, 99))
                facts[name] = "median {:,.0f}, p90 {:,.0f}, p99 {:,.0f}".format(*levels)
            plots.append(html.bars(np.log10(tokens), f"{name} (log10)"))
        return html.card("Trace", facts, plots)

    def __post_init__(self) -> None:
        n = len(self.arrival_ns)
        for name in ("prompt_tokens", "output_tokens", "session", "think_ns", "priority"):
            column = getattr(self, name)
            if column is not None and len(column) != n:
                raise ValueError(f"{name} has {len(column)} rows, arrival_ns has {n}")
        if n and (int(self.arrival_ns[0]) < 0 or bool((np.diff(self.arrival_ns) < 0).any())):
            raise ValueError("arrival_ns must start at or after 0 and must not decrease")
        if n and (int(self.prompt_tokens.min()) < 1 or int(self.output_tokens.min()) < 1):
            raise ValueError("prompt_tokens and output_tokens must be at least 1")
