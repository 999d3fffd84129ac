"""Request traces that NVIDIA Dynamo records: requests with block hashes and measured latencies, and tool calls."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.readers.files import head_of
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    NAME,
    NUMBER_OR_EMPTY,
    WHOLE,
    JsonLines,
    Quarantine,
    Unfit,
    field,
    keys_of,
    nothing_left,
)
from kvsim.workload.readers.turns import think_times

FAR_MS = 4_000_000_000_000
"""Milliseconds since 1970 that are taken for a time: until the year 2096."""


@dataclass(frozen=True)
class Dynamo:
    """JSON lines of events (schema ``dynamo.request.trace.v1``), of which ``request_end`` are requests.

    - Lines are in order of completion; requests are put in order of ``request_received_ms``.
    - ``replay.input_sequence_hashes`` (unsigned 64-bit, chained; ``trace_block_size`` tokens each, the last one may be
      partial) become ``prefix_hashes``. All requests must have one block size.
    - ``think_ns`` = max(0, gap since the session's previous request - its ``total_time_ms``).
    - Other events (tool calls) are counted as dropped. Measured latencies are not read.

    Source: github.com/ai-dynamo/dynamo, lib/bench.
    """

    columns: ClassVar[tuple[str, ...]] = ("event",)

    def recognises(self, head: str) -> bool:
        """True for JSON lines with an ``event`` of Dynamo's schema."""
        event = keys_of(head).get("event")
        return isinstance(event, dict) and str(event.get("schema")).startswith("dynamo.request.trace")

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every finished request becomes a request.

        Raises InputError for a value that is missing or of another kind, a length below 1, more or fewer hashes than
        blocks, a second block size, or a request that is there twice.
        """
        lines = JsonLines(path, head_of(path), quarantine)
        requests: list[_Request] = []
        dropped: dict[str, int] = {}
        seen: set[str] = set()
        block_tokens: int | None = None
        for line, row in lines.rows():
            try:
                event = row.get("event")
                kind = field(event, "event_type", NAME, within="event")
                if kind is None:
                    raise Unfit("event.event_type", None, "is missing")
                if kind == "request_end":
                    request = _request(event, block_tokens)
                    block_tokens = request.block_tokens
                    if request.id in seen:
                        raise Unfit("event.request.request_id", request.id, "is there twice")
                    if request.id is not None:
                        seen.add(request.id)
                    requests.append(request)
                else:
                    reason = f"no request but a {kind[:40]!a} event"
                    dropped[reason] = dropped.get(reason, 0) + 1
            except Unfit as unfit:
                lines.refuse(line, unfit)
        if not requests:
            raise nothing_left(path, "no request_end event")
        requests.sort(key=lambda request: request.received_ms)  # stable

        def column(name: str) -> Any:
            return np.array([getattr(request, name) for request in requests], np.int64)

        sessions, session = numbered([request.session for request in requests])
        models, model = numbered([request.model for request in requests])
        arrival_ns = (column("received_ms") - requests[0].received_ms) * 10**6
        counts = [len(request.hashes) for request in requests]
        hashes = np.array([each for request in requests for each in request.hashes], np.uint64)
        return Trace(
            arrival_ns,
            column("prompt"),
            column("output"),
            session=session if sessions else None,
            session_names=sessions or None,
            think_ns=think_times(arrival_ns, session, column("total_ns")) if sessions else None,
            model=model if models else None,
            model_names=models or None,
            prefix_hashes=None if block_tokens is None else chained(hashes, np.concatenate(([0], np.cumsum(counts)))),
            hash_block_tokens=block_tokens,
            origin_ns=requests[0].received_ms * 10**6,
            rows=TraceRows(read=len(requests) + sum(dropped.values()), dropped=dropped),
        )


@dataclass(frozen=True)
class _Request:
    id: str | None
    received_ms: int
    prompt: int
    output: int
    total_ns: int
    session: str | None
    model: str | None
    hashes: list[int]
    block_tokens: int | None


def _request(event: Any, block_tokens: int | None) -> _Request:
    """The request of an event; ``block_tokens`` is that of the requests before. Raises Unfit."""
    request, agent = event.get("request"), event.get("agent_context")
    at = "event.request"
    prompt = field(request, "input_tokens", WHOLE, 1, within=at)
    total_ms = field(request, "total_time_ms", NUMBER_OR_EMPTY, 0, FAR_MS, within=at)
    replay = request["replay"] if isinstance(request, dict) and isinstance(request.get("replay"), dict) else {}
    hashes = field(replay, "input_sequence_hashes", IDS, within=f"{at}.replay") or []
    size = block_tokens
    if replay:
        size = field(replay, "trace_block_size", WHOLE, 1, within=f"{at}.replay")
        if block_tokens not in (None, size):
            raise Unfit(f"{at}.replay.trace_block_size", size, f"is not {block_tokens}, as in the rows before")
        if len(hashes) != -(-prompt // size):
            raise Unfit(f"{at}.replay.input_sequence_hashes", len(hashes), f"are not {-(-prompt // size)} blocks")
    return _Request(
        field(request, "request_id", NAME, within=at),
        field(request, "request_received_ms", WHOLE, 0, FAR_MS, within=at),
        prompt,
        field(request, "output_tokens", WHOLE, 1, within=at),
        round((total_ms or 0) * 1e6),
        field(agent, "session_id", NAME),
        field(request, "model", NAME, within=at),
        hashes,
        size,
    )


def numbered(names: list[str | None]) -> tuple[list[str], Any]:
    """The names in order of first appearance, and the number of each row's name, (n,) int64; -1 for None."""
    known: dict[str, int] = {}
    numbers = [-1 if name is None else known.setdefault(name, len(known)) for name in names]
    return list(known), np.array(numbers, np.int64)
