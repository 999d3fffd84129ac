"""TraceLab: rounds of coding agents (Claude Code, Codex), as their session logs tell them."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from kvsim.core.trace import FailedRows, Ragged, Trace, TraceRows
from kvsim.workload.readers.dynamo import numbered
from kvsim.workload.readers.files import head_of
from kvsim.workload.readers.table import (
    NAME,
    WHOLE,
    JsonLines,
    Quarantine,
    Unfit,
    check_block_tokens,
    field,
    keys_of,
    nothing_left,
)
from kvsim.workload.readers.turns import think_times

INPUTS = ("user_message", "tool_result")
"""Timing events that bring input: the round is sent after the last of them before its first output."""


@dataclass(frozen=True)
class TraceLab:
    """JSON lines, one LLM round each: ``session_id``, ``model``, ``input_tokens_total``, ``prefix_tokens`` (found in
    the provider's cache), ``output_tokens``, ``timing_events``.

    - A round arrives when its last input was there (user message or tool result; else at its first event) and ended
      with its last event. ``think_ns`` is the pause from the end of the session's previous round to the arrival.
    - No block ids are recorded. ``prefix_hashes`` are reconstructed within a session: a round shares the first
      ``prefix_tokens // hash_block_tokens`` blocks with the round before it, as far as that one reaches; what was
      cached before a session's first round (its system prompt) and answers in later prompts count as new.
    - Rounds are put in order of arrival; rounds without output are counted as source_failed.

    Source: github.com/uw-syfi/TraceLab.
    """

    hash_block_tokens: int = 16

    columns: ClassVar[tuple[str, ...]] = (
        *("session_id", "input_tokens_total", "prefix_tokens", "output_tokens", "timing_events"),
    )

    def __post_init__(self) -> None:
        check_block_tokens(self.hash_block_tokens)

    def recognises(self, head: str) -> bool:
        """True for JSON lines with these keys."""
        return set(self.columns) <= set(keys_of(head))

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every round with output becomes a request.

        Raises InputError for a value that is missing or of another kind, a length below 1, more cached tokens than
        input, a stamp that is none, or a round that ends before it arrives.
        """
        lines = JsonLines(path, head_of(path), quarantine)
        rounds: list[_Round] = []
        failed: list[_Round] = []
        for line, row in lines.rows():
            try:
                each = _round(row)
                (rounds if each.output else failed).append(each)
            except Unfit as unfit:
                lines.refuse(line, unfit)
        if not rounds:
            raise nothing_left(path, "no round with output")
        rounds.sort(key=lambda each: each.arrival_ns)  # stable
        failed.sort(key=lambda each: each.arrival_ns)

        def column(name: str, of: list[_Round] = rounds) -> Any:
            return np.array([getattr(each, name) for each in of], np.int64)

        sessions, session = numbered([each.session for each in (*rounds, *failed)])
        models, model = numbered([each.model for each in (*rounds, *failed)])
        n = len(rounds)
        origin_ns = rounds[0].arrival_ns
        arrival_ns = column("arrival_ns") - origin_ns
        failed_ns = column("arrival_ns", failed) - origin_ns
        elapsed_ns = column("elapsed_ns")
        return Trace(
            arrival_ns,
            column("prompt"),
            column("output"),
            session=session[:n],
            session_names=sessions,
            think_ns=think_times(arrival_ns, session[:n], elapsed_ns),
            elapsed_ns=elapsed_ns,
            model=model[:n] if models else None,
            model_names=models or None,
            prefix_hashes=self._prefixes(rounds),
            hash_block_tokens=self.hash_block_tokens,
            origin_ns=origin_ns,
            rows=TraceRows(read=n + len(failed), source_failed=len(failed)),
            source_failed=FailedRows(
                np.searchsorted(arrival_ns, failed_ns, side="right"),
                failed_ns,
                column("prompt", failed),
                session=session[n:],
                model=model[n:] if models else None,
                elapsed_ns=column("elapsed_ns", failed),
            ),
        )

    def _prefixes(self, rounds: list["_Round"]) -> Ragged:
        chains: dict[str, list[int]] = {}
        values: list[int] = []
        offsets = [0]
        new = 0
        for each in rounds:
            before = chains.get(each.session, [])
            full = min(each.cached // self.hash_block_tokens, each.prompt // self.hash_block_tokens)
            blocks = -(-each.prompt // self.hash_block_tokens)
            shared = before[:full]
            chains[each.session] = chain = [*shared, *range(new, new + blocks - len(shared))]
            new += blocks - len(shared)
            values += chain
            offsets.append(len(values))
            if each.prompt % self.hash_block_tokens:
                chain.pop()  # a partial block is not found again: behind it the next prompt goes on differently
        return Ragged(np.array(values, np.int64), np.array(offsets, np.int64))


@dataclass(frozen=True)
class _Round:
    session: str
    model: str | None
    arrival_ns: int
    elapsed_ns: int
    prompt: int
    cached: int
    output: int


def _round(row: dict[str, Any]) -> _Round:
    """Raises Unfit."""
    session = field(row, "session_id", NAME)
    if session is None:
        raise Unfit("session_id", None, "is missing")
    prompt = field(row, "input_tokens_total", WHOLE, 1)
    cached = field(row, "prefix_tokens", WHOLE, 0)
    if cached > prompt:
        raise Unfit("prefix_tokens", cached, "is more than input_tokens_total")
    events = row.get("timing_events")
    if not isinstance(events, list) or not events:
        raise Unfit("timing_events", events if isinstance(events, list) else None, "has no event")
    times = [_time_ns(event) for event in events]
    kinds = [event.get("event_type") for event in events]
    inputs = 0  # events before the first output
    while inputs < len(kinds) and kinds[inputs] in INPUTS:
        inputs += 1
    arrival_ns = max(times[: max(inputs, 1)])
    if max(times) < arrival_ns:
        raise Unfit("timing_events", None, "end before the last input")
    return _Round(
        session,
        field(row, "model", NAME),
        arrival_ns,
        max(times) - arrival_ns,
        prompt,
        cached,
        field(row, "output_tokens", WHOLE, 0),
    )


def _time_ns(event: Any) -> int:
    """The stamp of an event (ISO 8601 with a zone), ns since 1970."""
    stamp = event.get("timestamp") if isinstance(event, dict) else None
    try:
        time = datetime.fromisoformat(stamp) if isinstance(stamp, str) else None
        if time is None or time.tzinfo is None or not 1970 <= time.year <= 2096:
            raise ValueError
        return round(time.timestamp() * 1e6) * 1_000
    except (ValueError, OverflowError):
        value = stamp if isinstance(stamp, str | int | float | None) else "a list or object"
        problem = "is not YYYY-MM-DDThh:mm:ss with a time zone"
        raise Unfit("timing_events.timestamp", value, problem) from None
