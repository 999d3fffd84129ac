"""Changes to a trace before it is played: pure functions from a Trace to a Trace.

What leaves rows out counts them in ``TraceRows.dropped``, under a reason of its own; only ``limit`` reads as if the
file ended earlier. Every trace begins at its first request, so what cuts the beginning also moves the origin.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import COLUMNS, Ragged, Trace, TraceRows


def limit(trace: Trace, n: int) -> Trace:
    """The first ``n`` requests of the trace, as if the file ended after them (all of it, if it has no more).

    Rows after the last request kept are not counted as read. Of the rows left out by the reader, those that failed
    in the traced system are counted if they stand before it; dropped ones, whose place is not recorded, all are.
    Raises InputError if ``n`` is below 1.
    """
    if n < 1:
        raise InputError(f"{n} requests cannot be played", key="limit", hint="allowed: whole numbers from 1, or null")
    if n >= len(trace):
        return trace

    rows = _rows(trace)
    failed = rows.source_failed
    columns: dict[str, Any] = {}
    if trace.source_failed_before is not None:
        stays = trace.source_failed_before < n
        failed = int(stays.sum())
        columns = {name: column[stays] for name, column in _failed(trace).items()}
    read = n + failed + sum(rows.dropped.values())
    rows = dataclasses.replace(rows, read=read, source_failed=failed)
    return dataclasses.replace(trace.select(slice(n)), rows=rows, **columns)


def row_range(trace: Trace, first: int = 0, stop: int | None = None) -> Trace:
    """Requests number ``first`` up to, not including, ``stop`` (null: the last); the others are dropped and counted.

    Raises InputError for an empty range.
    """
    end = len(trace) if stop is None else min(stop, len(trace))
    if not 0 <= first < end:
        hint = f"allowed: 0 <= first < stop; the trace has {len(trace)} requests"
        raise InputError(f"there is no request from {first} to below {end}", key="first", hint=hint)
    kept = np.zeros(len(trace), np.bool_)
    kept[first:end] = True
    return _kept(trace, kept, "outside row_range")


def window(trace: Trace, from_s: float = 0.0, to_s: float | None = None) -> Trace:
    """Requests that arrive at or after ``from_s`` and before ``to_s`` (null: the end); the others are dropped.

    Seconds count from the first request. A session that began before goes on as if it began here. Raises InputError
    if nothing is left.
    """
    end_s = math.inf if to_s is None else to_s
    if not 0 <= from_s < end_s:
        raise InputError(f"{from_s} to {end_s} is no time", key="from_s", hint="allowed: 0 <= from_s < to_s")
    arrival_s = trace.arrival_ns / 1e9
    return _kept(trace, (arrival_s >= from_s) & (arrival_s < end_s), "outside window")


def keep_rows(
    trace: Trace,
    column: str,
    *,
    least: float | None = None,
    most: float | None = None,
    among: tuple[int | str, ...] | None = None,
) -> Trace:
    """Requests whose value in a column is within bounds (inclusive) or among some values; the others are dropped.

    Columns: prompt_tokens, output_tokens, session, priority, tenant, model, images. Sessions, tenants and models are
    given by number or by name. Raises InputError for a column that the trace lacks and if nothing is left.
    """
    values = _column(trace, column)
    if least is None and most is None and among is None:
        raise InputError("says nothing about which rows to keep", key=column, hint="give least, most or among")
    kept = np.ones(len(trace), np.bool_)
    if least is not None:
        kept &= values >= least
    if most is not None:
        kept &= values <= most
    if among is not None:
        kept &= np.isin(values, [_number(trace, column, value) for value in among])
    return _kept(trace, kept, f"{column} filtered")


def fit_context(trace: Trace, max_tokens: int, policy: Literal["clip", "drop", "keep"] = "drop") -> Trace:
    """What happens to requests whose prompt and output together exceed ``max_tokens``.

    - drop: they are left out and counted
    - clip: outputs are cut to what is left, counted as clipped; prompts of ``max_tokens`` or more are left out
    - keep: they stay as they are, and the run rejects or clips them (the same as without this transform)

    Prompts are never shortened. Raises InputError if nothing is left.
    """
    if max_tokens < 2:
        raise InputError(f"{max_tokens} is too few", key="max_tokens", hint="allowed: whole numbers from 2")
    if policy == "keep":
        return trace
    if policy == "drop":
        return _kept(trace, trace.prompt_tokens + trace.output_tokens <= max_tokens, "exceeds max_tokens")
    trace = _kept(trace, trace.prompt_tokens < max_tokens, "prompt exceeds max_tokens")
    output = np.minimum(trace.output_tokens, max_tokens - trace.prompt_tokens)
    rows = _rows(trace)
    clipped = rows.clipped + int((output < trace.output_tokens).sum())
    return dataclasses.replace(trace, output_tokens=output, rows=dataclasses.replace(rows, clipped=clipped))


def rate_scale(trace: Trace, factor: float) -> Trace:
    """The same requests, arriving ``factor`` times as fast: arrival times divided by it, rounded to ns.

    This changes the time of day and the length of bursts; ``thin`` lowers the rate and keeps both. Think times are
    people's and stay as they are. Raises InputError unless ``factor`` is positive and finite, and the last arrival
    stays within int64 nanoseconds.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"{factor} is not a positive number", key="rate_scale", hint="1.0 plays the trace as it is")
    if factor == 1:
        return trace
    arrival_ns = np.rint(trace.arrival_ns / factor)
    if len(trace) and not arrival_ns[-1] < 2.0**62:
        hint = "the last arrival would be more than 146 years after the first"
        raise InputError(f"{factor} is too small", key="rate_scale", hint=hint)
    failed_ns = trace.source_failed_ns
    return dataclasses.replace(
        trace,
        arrival_ns=arrival_ns.astype(np.int64),
        origin_ns=None,  # the hours of the day are gone
        source_failed_ns=None if failed_ns is None else np.rint(failed_ns / factor).astype(np.int64),
    )


def thin(trace: Trace, keep_frac: float, *, seed: int = 0) -> Trace:
    """Every session (every request, where there are none) kept with probability ``keep_frac``; the others dropped.

    The rate falls and the clock stays: hours of the day, lengths and think times are as they were. Bursts get
    smaller: a Poisson process stays one, and counts of variance-to-mean ratio D get 1 + keep_frac (D - 1). Raises
    InputError if nothing is left.
    """
    if not 0 < keep_frac <= 1:
        raise InputError(f"{keep_frac} is not a share", key="keep_frac", hint="allowed: above 0 to 1")
    unit = _units(trace)
    chosen = np.random.default_rng([seed, 1]).random(int(unit.max()) + 1) < keep_frac
    return _kept(trace, chosen[unit], "thinned")


def spread_ties(trace: Trace, over_s: float | None = None, *, seed: int = 0) -> Trace:
    """Requests with one arrival time spread over the ``over_s`` seconds behind it (uniform, in their order).

    For clocks that are coarse: 1 for BurstGPT's whole seconds, 3 for Mooncake's batches. Nothing moves past the next
    different arrival time, and ``null`` means up to it. Rows alone at their time move too, as the clock was coarse for
    them as well. The order of rows stays.
    """
    if over_s is not None and not 0 < over_s < math.inf:
        raise InputError(f"{over_s} is not a positive number", key="over_s")
    times, group = np.unique(trace.arrival_ns, return_inverse=True)
    gaps = np.diff(times)
    last = int(np.median(gaps)) if len(gaps) else 10**9
    room = np.concatenate((gaps, [last]))
    if over_s is not None:
        room = np.minimum(room, round(over_s * 1e9))
    shift = np.random.default_rng([seed, 2]).random(len(trace))
    shift = shift[np.lexsort((shift, group))]  # rising within each group
    arrival_ns = trace.arrival_ns + np.floor(shift * room[group]).astype(np.int64)
    return _from_zero(dataclasses.replace(trace, arrival_ns=arrival_ns))


def resample(trace: Trace, sessions: int | None = None, *, seed: int = 0) -> Trace:
    """Sessions (requests, where there are none) drawn with replacement: a bootstrap of the trace.

    ``sessions``: how many (null: as many as there are). Each keeps its times, so the span and the hours of the day
    stay; one drawn twice comes twice, as two sessions with the same block ids. Rows that failed in the traced system
    stay out of it.
    """
    if sessions is not None and sessions < 1:
        raise InputError(f"{sessions} is too few", key="sessions", hint="allowed: whole numbers from 1")
    unit = _units(trace)
    total = int(unit.max()) + 1
    drawn = np.random.default_rng([seed, 3]).integers(total, size=total if sessions is None else sessions)
    order = np.argsort(unit, kind="stable")
    starts = np.concatenate(([0], np.cumsum(np.bincount(unit, minlength=total))))
    rows = Ragged(order, starts).select(drawn)
    return gathered([trace], rows.values, rows.rows, TraceRows(read=len(rows.values)))


def repeat(trace: Trace, times: int, pause_s: float = 0.0) -> Trace:
    """The whole trace ``times`` times, each beginning ``pause_s`` after the last arrival of the one before.

    Sessions of each pass are sessions of their own, block ids the same; rows that failed or were dropped count every
    time.
    """
    if times < 1:
        raise InputError(f"{times} is too few", key="times", hint="allowed: whole numbers from 1")
    if not 0 <= pause_s < math.inf:
        raise InputError(f"{pause_s} is not a number from 0", key="pause_s")
    period = int(trace.arrival_ns[-1]) + round(pause_s * 1e9)
    if times == 1:
        return trace
    if period * times >= 2**62:
        raise InputError(f"{times} is too many", key="times", hint="the last arrival would be after 146 years")
    moved = [
        dataclasses.replace(
            trace,
            arrival_ns=trace.arrival_ns + k * period,
            source_failed_ns=None if trace.source_failed_ns is None else trace.source_failed_ns + k * period,
        )
        for k in range(times)
    ]
    return merge(*moved)


def merge(*traces: Trace) -> Trace:
    """The requests of all traces in order of arrival (ties: in order of the traces), each from its own first request.

    Sessions stay apart; tenants and models of the same name are the same. A column that only some have is filled: no
    session, no pause, priority 0, no tenant, no model, no images, no deadline. The file that the trace names is the
    first one's. Raises InputError for block ids of different sizes.
    """
    if len(traces) == 1:
        return traces[0]
    sizes = {t.hash_block_tokens for t in traces if t.hash_block_tokens is not None}
    if len(sizes) > 1:
        raise InputError(f"block ids of {' and '.join(map(str, sorted(sizes)))} tokens cannot be merged")
    lengths = [len(t) for t in traces]
    firsts = np.concatenate(([0], np.cumsum(lengths)))
    arrival_ns = np.concatenate([t.arrival_ns for t in traces])
    order = np.argsort(arrival_ns, kind="stable")
    rows = [_rows(t) for t in traces]
    reasons = dict.fromkeys(reason for r in rows for reason in r.dropped)
    together = TraceRows(
        read=sum(r.read for r in rows),
        source_failed=sum(r.source_failed for r in rows),
        dropped={reason: sum(r.dropped.get(reason, 0) for r in rows) for reason in reasons},
        clipped=sum(r.clipped for r in rows),
        rejected=tuple(row for r in rows for row in r.rejected),
    )
    part = np.repeat(np.arange(len(traces)), lengths)[order]
    merged = gathered(traces, order, part, together, arrival_ns=arrival_ns[order])

    placed = np.empty(len(order), np.int64)
    placed[order] = np.arange(len(order))
    if all(t.source_failed_before is not None or not r.source_failed for t, r in zip(traces, rows, strict=True)):
        found: dict[str, list[NDArray[np.int64]]] = {}
        for trace, first in zip(traces, firsts, strict=False):
            failed = _failed(trace)
            if not failed:
                continue
            # A failed row stands before the row of its trace that it stood before, or behind its trace's last one.
            after = np.concatenate((placed[first : first + len(trace)], [placed[first + len(trace) - 1] + 1]))
            failed["source_failed_before"] = after[failed["source_failed_before"]]
            for name, column in failed.items():
                found.setdefault(name, []).append(column)
        whole: dict[str, Any] = {name: np.concatenate(columns) for name, columns in found.items()}
        if whole:
            by_place = np.argsort(whole["source_failed_before"], kind="stable")
            m = len(by_place)
            merged = dataclasses.replace(
                merged, **{name: column[by_place] for name, column in whole.items() if len(column) == m}
            )
    return merged


def merge_file(trace: Trace, path: Path, format: str = "auto") -> Trace:
    """The requests of another trace file among those of this one, by arrival, each from its own first request.

    ``format`` is a built-in one or auto. See ``merge``.
    """
    from kvsim.workload.reading import read_trace

    return merge(trace, read_trace(path, format, allow_plugins=False))


def remap(trace: Trace, column: Literal["tenant", "model"], to: tuple[tuple[str, str], ...]) -> Trace:
    """Other names for tenants or models, as [old, new] pairs; names not mentioned stay, equal names become one.

    ``"*"`` is everything not mentioned. A trace without the column gets it if ``"*"`` is the only old name. Raises
    InputError for a name that the trace does not have.
    """
    numbers: NDArray[np.int64] | None = getattr(trace, column)
    new_names = dict(to)
    if numbers is None:
        if set(new_names) != {"*"}:
            raise InputError(f"the trace has no {column}", key="column", hint='give "*" alone to name all rows')
        new: dict[str, Any] = {column: np.zeros(len(trace), np.int64), f"{column}_names": [new_names["*"]]}
        return dataclasses.replace(trace, **new)
    names = _names(trace, column)
    unknown = sorted(set(new_names) - set(names) - {"*"})
    if unknown:
        raise InputError(f"no {column} is called {unknown[0]!r}", key="to", hint=f"known: {', '.join(names[:20])}")
    renamed = [new_names.get(name, new_names.get("*", name)) for name in names]
    unique = list(dict.fromkeys(renamed))
    number = np.array([unique.index(name) for name in renamed], np.int64)
    moved = np.where(numbers >= 0, number[np.maximum(numbers, 0)], -1)
    columns: dict[str, Any] = {column: moved, f"{column}_names": unique}
    return dataclasses.replace(trace, **columns)


def set_deadlines(
    trace: Trace, fixed_s: float = 0.0, per_output_token_s: float = 0.0, tenant: str | None = None
) -> Trace:
    """Requests (of one tenant, if named) are of use only within so much time after they are sent.

    The time is ``fixed_s + per_output_token_s * output_tokens``, as bounds on the first token and on each further one
    add up to. The others keep the deadlines that they have. ``workload.deadlines`` says what becomes of late ones.
    Raises InputError unless the time is above 0, and for a tenant that the trace does not have.
    """
    for key, value in (("fixed_s", fixed_s), ("per_output_token_s", per_output_token_s)):
        if not 0 <= value < math.inf:
            raise InputError(f"{value} is not a number from 0", key=key)
    if not fixed_s and not per_output_token_s:
        raise InputError("no time at all", key="fixed_s", hint="give fixed_s, per_output_token_s or both")
    due_s = fixed_s + per_output_token_s * trace.output_tokens
    if not due_s.max(initial=0) < 2.0**62 / 1e9:
        raise InputError("a deadline would be after 146 years", key="fixed_s", hint="give seconds")
    due_ns = np.rint(due_s * 1e9).astype(np.int64)
    if tenant is not None:
        names = [] if trace.tenant is None else _names(trace, "tenant")
        if tenant not in names:
            hint = f"known: {', '.join(names[:20])}" if names else "the trace has none"
            raise InputError(f"no tenant is called {tenant!r}", key="tenant", hint=hint)
        before = np.full(len(trace), FILL["deadline_ns"]) if trace.deadline_ns is None else trace.deadline_ns
        due_ns = np.where(trace.tenant == names.index(tenant), due_ns, before)
    return dataclasses.replace(trace, deadline_ns=due_ns)


TRANSFORMS: Final[dict[str, Callable[..., Trace]]] = {
    "fit_context": fit_context,
    "keep_rows": keep_rows,
    "limit": limit,
    "merge": merge_file,
    "rate_scale": rate_scale,
    "remap": remap,
    "repeat": repeat,
    "resample": resample,
    "row_range": row_range,
    "set_deadlines": set_deadlines,
    "spread_ties": spread_ties,
    "thin": thin,
    "window": window,
}
"""Names under ``workload.transforms``, applied in the order of the list; their arguments are the keys beside it."""

FILL: Final = {"session": -1, "tenant": -1, "model": -1, "deadline_ns": -1}
FAILED: Final = ("source_failed_before", "source_failed_ns", "source_failed_prompt_tokens")


def _rows(trace: Trace) -> TraceRows:
    return trace.rows or TraceRows(read=len(trace))


def _failed(trace: Trace) -> dict[str, Any]:
    return {name: getattr(trace, name) for name in FAILED if getattr(trace, name) is not None}


def _kept(trace: Trace, kept: NDArray[np.bool_], reason: str) -> Trace:
    """The rows under the mask, from time 0 on; the others counted as dropped for the reason."""
    left_out = int(len(kept) - kept.sum())
    if not left_out:
        return trace
    if left_out == len(kept):
        raise InputError(f"no request is left: all {left_out} are {reason}")
    rows = _rows(trace)
    dropped = {**rows.dropped, reason: rows.dropped.get(reason, 0) + left_out}
    columns = _failed(trace)
    if "source_failed_before" in columns:
        before = np.concatenate(([0], np.cumsum(kept, dtype=np.int64)))
        columns["source_failed_before"] = before[columns["source_failed_before"]]
    part = dataclasses.replace(trace.select(kept), rows=dataclasses.replace(rows, dropped=dropped), **columns)
    return _from_zero(part)


def _from_zero(trace: Trace) -> Trace:
    first = int(trace.arrival_ns[0])
    failed_ns = trace.source_failed_ns
    if not first:
        return trace
    return dataclasses.replace(
        trace,
        arrival_ns=trace.arrival_ns - first,
        origin_ns=None if trace.origin_ns is None else trace.origin_ns + first,
        source_failed_ns=None if failed_ns is None else failed_ns - first,
    )


def _units(trace: Trace) -> NDArray[np.int64]:
    """What belongs together, (n,), numbered from 0: a session, or a request outside any.

    Rows that wait for rows of another session belong to it.
    """
    alone = np.arange(len(trace))
    if trace.session is None:
        unit = alone
    else:
        unit = np.where(trace.session >= 0, trace.session, int(trace.session.max()) + 1 + alone)
    if trace.wait_for is not None:  # the smallest number goes from row to waiting row until nothing changes
        waiting, awaited = trace.wait_for.rows, trace.wait_for.values
        _, unit = np.unique(unit, return_inverse=True)
        label = np.arange(int(unit.max()) + 1)
        while True:
            low = np.minimum(label[unit[waiting]], label[unit[awaited]])
            new = label.copy()
            np.minimum.at(new, unit[waiting], low)
            np.minimum.at(new, unit[awaited], low)
            if (new == label).all():
                break
            label = new
        unit = label[unit]
    number: NDArray[np.int64] = np.unique(unit, return_inverse=True)[1]
    return number


def gathered(
    traces: Sequence[Trace],
    rows: NDArray[np.int64],
    copy: NDArray[np.int64],
    counts: TraceRows,
    *,
    arrival_ns: NDArray[np.int64] | None = None,
) -> Trace:
    """Rows of the traces (numbered through), any number of times; rows of one ``copy`` belong together.

    Sorted by arrival, unless other arrival times are given, in order. ``copy`` tells apart sessions, and what waits
    for whom, of several draws.
    """
    arrival = arrival_ns
    if arrival is None:
        arrival = np.concatenate([t.arrival_ns for t in traces])[rows]
        order = np.argsort(arrival, kind="stable")
        rows, copy, arrival = rows[order], copy[order], arrival[order]
    columns: dict[str, Any] = {"arrival_ns": arrival}
    for name in COLUMNS:
        if name in columns or all(getattr(t, name) is None for t in traces):
            continue
        offset = 0
        parts = []
        names: dict[str, int] = {}
        for t in traces:
            column = getattr(t, name)
            if column is None:
                column = np.full(len(t), FILL.get(name, 0), np.int64)
            elif name in ("tenant", "model"):
                number = np.array([names.setdefault(n, len(names)) for n in _names(t, name)] or [0], np.int64)
                column = np.where(column >= 0, number[np.maximum(column, 0)], -1)
            elif name == "session":
                column = np.where(column >= 0, column + offset, -1)
                offset = max(offset, int(column.max()) + 1)
            parts.append(column)
        columns[name] = np.concatenate(parts)[rows]
        if names:
            columns[f"{name}_names"] = list(names)
    if "session" in columns:
        session = columns["session"]
        pairs = np.column_stack((copy, session))[session >= 0]
        _, number = np.unique(pairs, axis=0, return_inverse=True)
        columns["session"] = session.copy()
        columns["session"][session >= 0] = number.ravel()
        columns["session_names"] = None
    if any(t.wait_for is not None for t in traces):
        columns["wait_for"] = _waits(traces, rows, copy)
    if any(t.prefix_hashes is not None for t in traces):
        columns["prefix_hashes"] = _blocks(traces).select(rows)
        columns["hash_block_tokens"] = next(t.hash_block_tokens for t in traces if t.hash_block_tokens)
    nothing: dict[str, Any] = dict.fromkeys(FAILED)
    if len(traces) > 1:
        nothing["origin_ns"] = None
    return _from_zero(dataclasses.replace(traces[0], **nothing | columns, rows=counts))


def _waits(traces: Sequence[Trace], rows: NDArray[np.int64], copy: NDArray[np.int64]) -> Ragged:
    """``wait_for`` of gathered rows: the row of the same copy. A trace without it waits within sessions."""
    values, counts, first = [], [], 0
    for t in traces:
        column = t.wait_for
        if column is None:
            session = np.full(len(t), -1) if t.session is None else t.session
            by_session = np.argsort(session, kind="stable")
            follows = (session[by_session[1:]] == session[by_session[:-1]]) & (session[by_session[1:]] >= 0)
            before = np.full(len(t), -1)
            before[by_session[1:][follows]] = by_session[:-1][follows]
            column = Ragged(before[before >= 0], np.concatenate(([0], np.cumsum(before >= 0))))
        values.append(column.values + first)
        counts.append(column.counts)
        first += len(t)
    every = Ragged(np.concatenate(values), np.concatenate(([0], np.cumsum(np.concatenate(counts))))).select(rows)
    # Of each copy, where a row went: looked up in the sorted pairs (copy, row).
    key = copy * first + rows
    by_key = np.argsort(key, kind="stable")
    wanted = copy[every.rows] * first + every.values
    at = np.minimum(np.searchsorted(key[by_key], wanted), len(key) - 1)
    there = key[by_key][at] == wanted
    new_counts = np.bincount(every.rows[there], minlength=len(rows))
    return Ragged(by_key[at][there], np.concatenate(([0], np.cumsum(new_counts))))


def _blocks(traces: Sequence[Trace]) -> Ragged:
    """Block ids of all traces, those of different traces apart (copies of one trace share theirs)."""
    values, counts, used = [], [], 0
    seen: dict[int, int] = {}
    for t in traces:
        column = t.prefix_hashes or Ragged(np.zeros(0, np.int64), np.zeros(len(t) + 1, np.int64))
        first = seen.setdefault(id(column.values), used)
        if first == used and len(column.values):
            used += int(column.values.max()) + 1
        values.append(column.values + first)
        counts.append(column.counts)
    return Ragged(np.concatenate(values), np.concatenate(([0], np.cumsum(np.concatenate(counts)))))


def _column(trace: Trace, column: str) -> NDArray[np.int64]:
    known = [name for name in COLUMNS if not name.endswith("_ns") and getattr(trace, name) is not None]
    if column not in known:
        raise InputError(f"the trace has no column {column!r}", key="column", hint=f"it has {', '.join(known)}")
    found: NDArray[np.int64] = getattr(trace, column)
    return found


def _names(trace: Trace, column: str) -> list[str]:
    names: Sequence[str] | None = getattr(trace, f"{column}_names", None)
    if names is not None:
        return list(names)
    return [str(k) for k in range(int(getattr(trace, column).max(initial=-1)) + 1)]


def _number(trace: Trace, column: str, value: int | str) -> int:
    if isinstance(value, int):
        return value
    names = _names(trace, column) if column in ("session", "tenant", "model") else []
    if value not in names:
        some = f"known: {', '.join(names[:20])}" if names else "give numbers"
        raise InputError(f"no {column} is called {value!r}", key="among", hint=some)
    return names.index(value)
