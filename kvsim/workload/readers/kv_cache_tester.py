"""Agentic coding sessions (Claude Code) as kv-cache-tester publishes them: one JSON document per session."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import FailedRows, Ragged, Trace, TraceRows, waits_among
from kvsim.workload.readers.files import members, readable, shown
from kvsim.workload.readers.prefixes import chained
from kvsim.workload.readers.table import (
    IDS,
    MAX_SECONDS,
    NAME,
    NUMBER,
    NUMBER_OR_EMPTY,
    WHOLE,
    Column,
    Quarantine,
    Unfit,
    field,
    nothing_left,
)


@dataclass(frozen=True)
class KVCacheTester:
    """A folder or tar archive (``.tar.xz``) of session documents, or one of them; its file name is the session's.

    - Each request (``t`` in s from the session's start, ``in``, ``out``, ``model``, ``hash_ids``) is a row. Those of a
      sub-agent are rows of the same session at the sub-agent's ``t`` plus their own.
    - ``hash_ids`` are **full** blocks only, ``floor(in / block_size)`` of them; ids are local to a document and made
      distinct here.
    - Documents have no common clock: session k (in order of file name) starts at ``k * session_gap_s``. With the
      default all start at 0, which is a crowd; give a gap, or play them as a closed loop.
    - ``wait_for``: a request waits for the one before it in its agent. The first of a sub-agent waits for the parent's
      last request before it; the parent's next request after a sub-agent's end waits for the sub-agent's last.
    - ``think_ns`` is ``think_time``; where it is absent, and where requests of other agents are waited for too, the
      time since the last end (``t + api_time``; a missing ``api_time`` counts as 0), at least 0.
    - Requests without output are counted as source_failed.

    Source: github.com/callanjfox/kv-cache-tester, traces/.
    """

    session_gap_s: float = 0.0

    columns: ClassVar[tuple[str, ...]] = ("requests", "block_size", "hash_id_scope")

    def __post_init__(self) -> None:
        if not 0 <= self.session_gap_s <= 1e6:
            hint = "allowed: seconds from 0 to 1,000,000"
            raise InputError(f"{self.session_gap_s} is not a possible gap", key="session_gap_s", hint=hint)

    def recognises(self, head: str) -> bool:
        """True for the beginning of such a document."""
        text = head.lstrip("\ufeff \t\r\n")
        return text.startswith("{") and '"hash_id_scope"' in text and '"block_size"' in text

    def read(self, path: Path, quarantine: Quarantine | None = None) -> Trace:
        """Every request with output becomes a request.

        A document that breaks a rule is refused, or set aside as a whole (counted as one row). Raises InputError for a
        document that is no session, a value of another kind, times out of order, ids that contradict the length, or
        documents of different block sizes.
        """
        sessions: list[_Session] = []
        block_tokens: int | None = None
        with readable(path):
            for name, content in members(path):
                try:
                    session = _session(name, content, block_tokens)
                except Unfit as unfit:
                    if quarantine is None:
                        hint = "correct or remove the document"
                        problem = f"{shown(unfit.value)} {unfit.problem}"
                        raise InputError(problem, file=path, key=f"{name}: {unfit.column}", hint=hint) from None
                    quarantine.add(name, unfit.column, unfit.value, unfit.problem)
                    continue
                block_tokens = session.block_tokens
                sessions.append(session)
        sessions.sort(key=lambda session: session.name)
        if not sum(len(session.arrival_ns) for session in sessions):
            raise nothing_left(path, "no request has output")
        return self._trace(sessions)

    def _trace(self, sessions: list["_Session"]) -> Trace:
        gap_ns = round(self.session_gap_s * 1e9)
        sizes = [len(each.arrival_ns) for each in sessions]
        number = np.repeat(np.arange(len(sessions)), sizes)

        def joined(name: str) -> NDArray[np.int64]:
            return np.concatenate([getattr(each, name) for each in sessions])

        time_ns = joined("arrival_ns") + number * gap_ns
        order = np.argsort(time_ns, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        first_row = np.concatenate(([0], np.cumsum(sizes)))
        waits = Ragged(
            np.concatenate(
                [each.waits.values + start for each, start in zip(sessions, first_row.tolist(), strict=False)]
            ),
            np.concatenate(([0], np.cumsum(np.concatenate([each.waits.counts for each in sessions])))),
        )
        waits = Ragged(place[waits.values], waits.offsets).select(order)
        prefix = _joined_prefixes(sessions).select(order)
        models: dict[str, int] = {}
        model = [models.setdefault(name, len(models)) for each in sessions for name in each.models]
        failed_session = np.repeat(np.arange(len(sessions)), [len(each.failed_ns) for each in sessions])
        failed_ns = joined("failed_ns") + failed_session * gap_ns
        failed_model = [models.setdefault(name, len(models)) for each in sessions for name in each.failed_models]
        by_time = np.argsort(failed_ns, kind="stable")
        arrival_ns = time_ns[order]
        origin_ns = int(arrival_ns[0])
        return Trace(
            arrival_ns - origin_ns,
            joined("prompt")[order],
            joined("output")[order],
            session=number[order],
            session_names=_unique([each.name for each in sessions]),
            think_ns=joined("think_ns")[order],
            elapsed_ns=joined("elapsed_ns")[order],
            model=np.array(model, np.int64)[order],
            model_names=list(models),
            wait_for=waits,
            prefix_hashes=prefix,
            hash_block_tokens=sessions[0].block_tokens,
            rows=TraceRows(read=len(order) + len(failed_ns), source_failed=len(failed_ns)),
            source_failed=FailedRows(
                np.searchsorted(arrival_ns, failed_ns[by_time], side="right"),
                failed_ns[by_time] - origin_ns,
                joined("failed_prompt")[by_time],
                session=failed_session[by_time],
                model=np.array(failed_model, np.int64)[by_time],
                elapsed_ns=joined("failed_elapsed_ns")[by_time],
            ),
        )


def _unique(names: list[str]) -> list[str]:
    """The names; one that was there before (``a.json`` and ``a.json.gz``) gets a number behind it."""
    seen: dict[str, None] = {}  # in order
    for name in names:
        number, own = 1, name
        while own in seen:
            number += 1
            own = f"{name} ({number})"
        seen[own] = None
    return list(seen)


def _joined_prefixes(sessions: list["_Session"]) -> Ragged:
    """The ids of all sessions, made distinct; the sessions' own columns are given up on the way."""
    values, counts, base = Column(), [], 0
    for each in sessions:
        values.append(each.prefix.values + base)
        counts.append(each.prefix.counts)
        base += int(each.prefix.values.max(initial=-1)) + 1
        each.prefix = Ragged(np.empty(0, np.int64), np.zeros(1, np.int64))
    return Ragged(values.take(), np.concatenate(([0], np.cumsum(np.concatenate(counts)))))


@dataclass
class _Session:
    """One document: its requests with output in order of time, and what failed. Times in ns from its start."""

    name: str
    block_tokens: int
    arrival_ns: NDArray[np.int64]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    think_ns: NDArray[np.int64]
    elapsed_ns: NDArray[np.int64]
    models: list[str]
    waits: Ragged
    prefix: Ragged
    failed_ns: NDArray[np.int64]
    failed_prompt: NDArray[np.int64]
    failed_elapsed_ns: NDArray[np.int64]
    failed_models: list[str]


@dataclass(eq=False)
class _Request:
    start_ns: int
    elapsed_ns: int
    prompt: int
    output: int
    model: str
    hashes: list[int]
    think_ns: int | None
    waits: "list[_Request]"

    @property
    def end_ns(self) -> int:
        return self.start_ns + max(0, self.elapsed_ns)


def _session(name: str, content: bytes, block_tokens: int | None) -> _Session:
    """A document. Raises Unfit."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unfit("", None, f"is not JSON: {getattr(error, 'msg', None) or type(error).__name__}") from None
    entries = document.get("requests") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise Unfit("requests", None, "is not a list of requests")
    size = field(document, "block_size", WHOLE, 1)
    if block_tokens not in (None, size):
        raise Unfit("block_size", size, f"is not {block_tokens}, as in the documents before")
    if document.get("hash_id_scope") != "local":
        raise Unfit("hash_id_scope", str(document.get("hash_id_scope")), "is not 'local'")
    every = list(_requests(entries, size))
    every.sort(key=lambda request: request.start_ns)  # stable: a request never stands before one it waits for
    kept = [request for request in every if request.output]
    failed = [request for request in every if not request.output]
    number = {id(request): i for i, request in enumerate(every)}
    waits = [[number[id(each)] for each in request.waits] for request in every]

    def column(values: Iterator[int]) -> NDArray[np.int64]:
        return np.fromiter(values, np.int64)

    hashes = np.array([each for request in kept for each in request.hashes], np.uint64)
    return _Session(
        name.partition(".json")[0],
        size,
        column(request.start_ns for request in kept),
        column(request.prompt for request in kept),
        column(request.output for request in kept),
        column(_pause_ns(request) for request in kept),
        column(request.elapsed_ns for request in kept),
        [request.model for request in kept],
        waits_among(
            Ragged(column(each for row in waits for each in row), _offsets([len(row) for row in waits])),
            np.flatnonzero([request.output > 0 for request in every]),
        ),
        chained(hashes, _offsets([len(request.hashes) for request in kept])),
        column(request.start_ns for request in failed),
        column(request.prompt for request in failed),
        column(request.elapsed_ns for request in failed),
        [request.model for request in failed],
    )


def _offsets(counts: list[int]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _pause_ns(request: _Request) -> int:
    if request.think_ns is not None and len(request.waits) < 2:
        return request.think_ns
    return max(0, request.start_ns - max((each.end_ns for each in request.waits), default=request.start_ns))


def _requests(entries: list[Any], size: int) -> Iterator[_Request]:
    """The parent's requests and those of its sub-agents. Raises Unfit."""
    last: _Request | None = None
    joining: list[_Request] = []  # last requests of sub-agents that the parent has not waited for yet
    for i, entry in enumerate(entries):
        at = f"requests[{i}]"
        kind = field(entry, "type", NAME, within=at)
        start_ns = round(field(entry, "t", NUMBER, 0, MAX_SECONDS, within=at) * 1e9)
        if kind == "subagent":
            agent = _sub_agent(entry, at, start_ns, last, size)
            yield from agent
            joining += agent[-1:]
            continue
        request = _request(entry, at, start_ns, size)
        if last is not None and start_ns < last.start_ns:
            raise Unfit(f"{at}.t", entry["t"], "is earlier than the request before it")
        ended = [each for each in joining if each.end_ns <= start_ns]
        joining = [each for each in joining if each.end_ns > start_ns]
        request.waits = [*([last] if last is not None else []), *ended]
        yield request
        last = request


def _sub_agent(entry: dict[str, Any], at: str, start_ns: int, parent: _Request | None, size: int) -> list[_Request]:
    inner = entry.get("requests")
    if not isinstance(inner, list):
        raise Unfit(f"{at}.requests", None, "is not a list of requests")
    requests: list[_Request] = []
    before = parent
    for i, each in enumerate(inner):
        within = f"{at}.requests[{i}]"
        own_ns = round(field(each, "t", NUMBER, 0, MAX_SECONDS, within=within) * 1e9)
        request = _request(each, within, start_ns + own_ns, size)
        if before is not None and request.start_ns < before.start_ns:
            raise Unfit(f"{within}.t", each["t"], "is earlier than the request before it")
        request.waits = [] if before is None else [before]
        if not requests:
            request.think_ns = None  # its own is 0: it tells nothing of the pause since the parent's request
        requests.append(request)
        before = request
    return requests


def _request(entry: Any, at: str, start_ns: int, size: int) -> _Request:
    prompt = field(entry, "in", WHOLE, 1, within=at)
    hashes = field(entry, "hash_ids", IDS, within=at) or []
    if len(hashes) != prompt // size:
        raise Unfit(f"{at}.hash_ids", len(hashes), f"are not the {prompt // size} full blocks of {prompt} tokens")
    api_s = field(entry, "api_time", NUMBER_OR_EMPTY, 0, MAX_SECONDS, within=at)
    think_s = field(entry, "think_time", NUMBER_OR_EMPTY, 0, MAX_SECONDS, within=at)
    return _Request(
        start_ns,
        -1 if api_s is None else round(api_s * 1e9),
        prompt,
        field(entry, "out", WHOLE, 0, within=at),
        field(entry, "model", NAME, within=at) or "",
        hashes,
        None if think_s is None else round(think_s * 1e9),
        [],
    )
