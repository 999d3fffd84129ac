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

from kvsim.core.content import histories
from kvsim.core.errors import InputError
from kvsim.core.trace import COLUMNS, FailedRows, Ragged, Trace, TraceRows


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

    rows, failed = _rows(trace), trace.source_failed
    count = rows.source_failed
    if failed is not None:
        failed = failed.select(failed.before < n)
        count = len(failed)
    rows = dataclasses.replace(rows, read=n + count + sum(rows.dropped.values()), source_failed=count)
    return dataclasses.replace(trace.select(slice(n)), rows=rows, source_failed=failed)


def row_range(trace: Trace, first: int = 0, stop: int | None = None) -> Trace:
    """Requests number ``first`` up to, not including, ``stop`` (null: the last); the others are dropped and counted.

    Of the rows that failed in the traced system, those between the first and the last request kept stay.
    Raises InputError for an empty range.
    """
    end = len(trace) if stop is None else min(stop, len(trace))
    if not 0 <= first < end:
        hint = f"allowed: 0 <= first < stop; the trace has {len(trace)} requests"
        raise InputError(f"there is no request from {first} to below {end}", key="first", hint=hint)
    kept = np.zeros(len(trace), np.bool_)
    kept[first:end] = True
    stays = None
    if trace.source_failed is not None:
        before = trace.source_failed.before
        stays = ((before > first) | (first == 0)) & ((before < end) | (end == len(trace)))
    return _kept(trace, kept, stays, "outside row_range")


def window(trace: Trace, from_s: float = 0.0, to_s: float | None = None) -> Trace:
    """Requests that arrive at or after ``from_s`` and before ``to_s`` (null: the end); the others are dropped.

    Seconds count from the first request. A session that began before goes on as if it began here. Raises InputError
    if nothing is left.
    """
    end_s = math.inf if to_s is None else to_s
    if not 0 <= from_s < end_s:
        raise InputError(f"{from_s} to {end_s} is no time", key="from_s", hint="allowed: 0 <= from_s < to_s")

    def inside(arrival_ns: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = (arrival_ns / 1e9 >= from_s) & (arrival_ns / 1e9 < end_s)
        return kept

    failed = trace.source_failed
    stays = None if failed is None else inside(failed.arrival_ns) | ((from_s == 0) & (failed.arrival_ns < 0))
    return _kept(trace, inside(trace.arrival_ns), stays, "outside window")


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
    given by number or by name. Rows that failed in the traced system have no output, and are dropped if the column says
    nothing of them. Raises InputError for a column that the trace lacks and if nothing is left.
    """
    values = _column(trace, column)
    if least is None and most is None and among is None:
        raise InputError("says nothing about which rows to keep", key=column, hint="give least, most or among")

    def fits(values: NDArray[np.int64]) -> NDArray[np.bool_]:
        kept = np.ones(len(values), np.bool_)
        if least is not None:
            kept &= values >= least
        if most is not None:
            kept &= values <= most
        if among is not None:
            kept &= np.isin(values, [_number(trace, column, value) for value in among])
        return kept

    failed, stays = trace.source_failed, None
    if failed is not None:
        of_failed = np.zeros(len(failed), np.int64) if column == "output_tokens" else getattr(failed, column, None)
        stays = np.zeros(len(failed), np.bool_) if of_failed is None else fits(of_failed)
    return _kept(trace, fits(values), stays, f"{column} filtered")


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
    failed = trace.source_failed
    stays = None if failed is None else failed.prompt_tokens < max_tokens
    if policy == "drop":
        return _kept(trace, trace.prompt_tokens + trace.output_tokens <= max_tokens, stays, "exceeds max_tokens")
    trace = _kept(trace, trace.prompt_tokens < max_tokens, stays, "prompt exceeds max_tokens")
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
    return dataclasses.replace(
        trace,
        arrival_ns=arrival_ns.astype(np.int64),
        origin_ns=None,  # the hours of the day are gone
        source_failed=_failed_at(trace, lambda failed_ns: np.rint(failed_ns / factor).astype(np.int64)),
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
    rng = np.random.default_rng([seed, 1])
    kept = (rng.random(int(unit.max()) + 1) < keep_frac)[unit]
    failed, stays = trace.source_failed, None
    if failed is not None:
        stays = rng.random(len(failed)) < keep_frac
        if trace.session is not None and failed.session is not None:  # a failed row goes with its session
            replayed = np.isin(failed.session, trace.session[trace.session >= 0])
            stays = np.where(replayed, np.isin(failed.session, trace.session[kept]), stays)
    return _kept(trace, kept, stays, "thinned")


def spread_ties(trace: Trace, over_s: float | None = None, *, seed: int = 0) -> Trace:
    """Requests with one arrival time spread over the ``over_s`` seconds behind it (uniform, in their order).

    For clocks that are coarse: 1 for BurstGPT's whole seconds, 3 for Mooncake's batches. Nothing moves past the next
    different arrival time, and ``null`` means up to it. Rows alone at their time move too, as the clock was coarse for
    them as well. The order of rows stays.
    """
    if over_s is not None and not 0 < over_s < math.inf:
        raise InputError(f"{over_s} is not a positive number", key="over_s")
    failed = trace.source_failed
    before = np.empty(0, np.int64) if failed is None else failed.before
    every_ns = np.insert(trace.arrival_ns, before, () if failed is None else failed.arrival_ns)  # as in the file
    times, group = np.unique(every_ns, return_inverse=True)
    gaps = np.diff(times)
    last = int(np.median(gaps)) if len(gaps) else 10**9
    room = np.concatenate((gaps, [last]))
    if over_s is not None:
        room = np.minimum(room, round(over_s * 1e9))
    shift = np.random.default_rng([seed, 2]).random(len(every_ns))
    shift = shift[np.lexsort((shift, group))]  # rising within each group
    every_ns += np.floor(shift * room[group]).astype(np.int64)
    failed_at = before + np.arange(len(before))
    moved = _failed_at(trace, lambda _: every_ns[failed_at])
    return _from_zero(dataclasses.replace(trace, arrival_ns=np.delete(every_ns, failed_at), source_failed=moved))


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
    return gathered([trace], rows.values, TraceRows(read=len(rows.values)), copy=rows.rows)


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
    return _merged([_shifted(trace, k * period) for k in range(times)], one_content=True)


def merge(*traces: Trace) -> Trace:
    """The requests of all traces in order of arrival (ties: in order of the traces), each from its own first request.

    Sessions stay apart; tenants and models of the same name are the same. A column that only some have is filled: no
    session, no pause, priority 0, no tenant, no model, no images, no deadline. The file that the trace names is the
    first one's. Raises InputError for block ids of different sizes.
    """
    return traces[0] if len(traces) == 1 else _merged(traces)


def _merged(traces: Sequence[Trace], *, one_content: bool = False) -> Trace:
    """See ``merge``. ``one_content``: these are copies of one trace, whose block ids mean the same."""
    sizes = {t.hash_block_tokens for t in traces if t.hash_block_tokens is not None}
    if len(sizes) > 1:
        raise InputError(f"block ids of {' and '.join(map(str, sorted(sizes)))} tokens cannot be merged")
    lengths = [len(t) for t in traces]
    firsts = np.concatenate(([0], np.cumsum(lengths)))
    arrival_ns = np.concatenate([t.arrival_ns for t in traces])
    every = np.arange(len(arrival_ns))
    rows = [_rows(t) for t in traces]
    reasons = dict.fromkeys(reason for r in rows for reason in r.dropped)
    together = TraceRows(
        read=sum(r.read for r in rows),
        source_failed=sum(r.source_failed for r in rows),
        dropped={reason: sum(r.dropped.get(reason, 0) for r in rows) for reason in reasons},
        clipped=sum(r.clipped for r in rows),
        rejected=tuple(row for r in rows for row in r.rejected),
    )
    if any(t.source_failed is None and r.source_failed for t, r in zip(traces, rows, strict=True)):
        return gathered(traces, every, together, one_content=one_content)  # nobody knows when some failed
    order = np.argsort(arrival_ns, kind="stable")
    in_order_ns = arrival_ns[order]
    placed = np.empty(len(order), np.int64)
    placed[order] = np.arange(len(order))
    places, times = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for trace, first in zip(traces, firsts.tolist(), strict=False):
        failed = trace.source_failed
        if failed is not None:  # by time, but never behind the next row of its own trace
            next_own = np.append(placed[first : first + len(trace)], len(order))[failed.before]
            by_time = np.searchsorted(in_order_ns, failed.arrival_ns, side="right")
            places.append(np.minimum(by_time, next_own))
            times.append(failed.arrival_ns)
    before = np.concatenate(places)
    in_order = np.lexsort((np.concatenate(times), before))
    failed_rows = (in_order, before[in_order]) if len(before) else None
    return gathered(traces, every, together, failed=failed_rows, one_content=one_content)


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
    new_names, failed = dict(to), trace.source_failed
    if numbers is None:
        if set(new_names) != {"*"}:
            raise InputError(f"the trace has no {column}", key="column", hint='give "*" alone to name all rows')
        one: dict[str, Any] = {column: np.zeros(len(trace), np.int64), f"{column}_names": [new_names["*"]]}
        if failed is not None:
            one["source_failed"] = dataclasses.replace(failed, **{column: np.zeros(len(failed), np.int64)})
        return dataclasses.replace(trace, **one)
    names = trace.names(column)
    unknown = sorted(set(new_names) - set(names) - {"*"})
    if unknown:
        raise InputError(f"no {column} is called {unknown[0]!r}", key="to", hint=f"known: {', '.join(names[:20])}")
    renamed = [new_names.get(name, new_names.get("*", name)) for name in names]
    unique = list(dict.fromkeys(renamed))
    return _renumbered(trace, column, np.array([unique.index(name) for name in renamed], np.int64), unique)


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
        names = [] if trace.tenant is None else trace.names("tenant")
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

_OF_FAILED: Final = tuple(each.name for each in dataclasses.fields(FailedRows))
FILL: Final = {"session": -1, "tenant": -1, "model": -1, "deadline_ns": -1, "elapsed_ns": -1, "history": -1}


def _rows(trace: Trace) -> TraceRows:
    return trace.rows or TraceRows(read=len(trace))


def _failed_at(trace: Trace, moved: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> FailedRows | None:
    """The rows that failed in the traced system, at other times."""
    failed = trace.source_failed
    return None if failed is None else dataclasses.replace(failed, arrival_ns=moved(failed.arrival_ns))


def _kept(trace: Trace, kept: NDArray[np.bool_], failed_kept: NDArray[np.bool_] | None, reason: str) -> Trace:
    """The rows under the mask, from time 0 on, and those under the other one that failed in the traced system; the
    rest counted as dropped for the reason."""
    if not kept.any():
        raise InputError(f"no request is left: all {len(kept)} are {reason}")
    failed_out = 0 if failed_kept is None else int((~failed_kept).sum())
    left_out = int((~kept).sum()) + failed_out
    if not left_out:
        return trace
    rows = _rows(trace)
    dropped = {**rows.dropped, reason: rows.dropped.get(reason, 0) + left_out}
    rows = dataclasses.replace(rows, source_failed=rows.source_failed - failed_out, dropped=dropped)
    part = trace.select(kept)
    if failed_kept is not None and part.source_failed is not None:
        part = dataclasses.replace(part, source_failed=part.source_failed.select(failed_kept))
    return _from_zero(dataclasses.replace(part, rows=rows))


def _from_zero(trace: Trace) -> Trace:
    first = int(trace.arrival_ns[0])
    if not first:
        return trace
    origin_ns = None if trace.origin_ns is None else trace.origin_ns + first
    return dataclasses.replace(_shifted(trace, -first), origin_ns=origin_ns)


def _shifted(trace: Trace, by_ns: int) -> Trace:
    """Every row so much later."""
    failed = _failed_at(trace, lambda failed_ns: failed_ns + by_ns)
    return dataclasses.replace(trace, arrival_ns=trace.arrival_ns + by_ns, source_failed=failed)


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
    counts: TraceRows,
    *,
    copy: NDArray[np.int64] | None = None,
    arrival_ns: NDArray[np.int64] | None = None,
    failed: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    one_content: bool = False,
) -> Trace:
    """Rows of the traces (numbered through), sorted by arrival; sessions of different traces are different ones.

    ``arrival_ns``: when each of ``rows`` arrives, if not when it did.
    A row may come any number of times if ``copy`` tells apart, for each of ``rows``, the draws: their sessions, and
    what waits for whom. ``failed``: rows that failed in the traced systems (numbered through too), in order, and how
    many of the others stand before each; without it there are none. ``one_content``: block ids of different traces mean
    the same.
    """
    if any(t.history is not None for t in traces):
        first = np.cumsum([0, *map(len, traces)])
        own = [(t, histories(t), first[i]) for i, t in enumerate(traces)]
        traces = [dataclasses.replace(t, history=np.where(column < 0, -1, column + i)) for t, column, i in own]
    if len(traces) > 1:
        traces = _numbered_alike(traces)
    if arrival_ns is None:
        arrival_ns = np.concatenate([t.arrival_ns for t in traces])[rows]
    order = np.argsort(arrival_ns, kind="stable")
    rows, copy = rows[order], None if copy is None else copy[order]

    def joined(parts: Sequence[Trace | FailedRows], name: str) -> NDArray[np.int64]:
        columns = [getattr(part, name) for part in parts]
        fill = FILL.get(name, 0)
        return np.concatenate(
            [np.full(len(p), fill, np.int64) if c is None else c for p, c in zip(parts, columns, strict=True)]
        )

    there = [name for name in COLUMNS if any(getattr(t, name) is not None for t in traces)]
    columns: dict[str, Any] = {name: joined(traces, name)[rows] for name in there if name != "arrival_ns"}
    columns |= {"arrival_ns": arrival_ns[order], "session_names": None}
    for name in ("session", "history"):
        if copy is not None and name in columns:
            inside = columns[name] >= 0
            pairs = np.column_stack((copy, columns[name]))[inside]
            columns[name][inside] = np.unique(pairs, axis=0, return_inverse=True)[1].ravel()
    if any(t.wait_for is not None for t in traces):
        columns["wait_for"] = _waits(traces, rows, np.zeros(len(rows), np.int64) if copy is None else copy)
    if any(t.prefix_hashes is not None for t in traces):
        columns["prefix_hashes"] = _blocks(traces, one_content).select(rows)
        columns["hash_block_tokens"] = next(t.hash_block_tokens for t in traces if t.hash_block_tokens)
    columns["source_failed"] = None
    if failed is not None:
        parts = [t.source_failed for t in traces if t.source_failed is not None]
        of_failed = {name: joined(parts, name)[failed[0]] for name in there if name in _OF_FAILED}
        columns["source_failed"] = FailedRows(failed[1], **of_failed)
    if len(traces) > 1:
        columns["origin_ns"] = None
    return _from_zero(dataclasses.replace(traces[0], **columns, rows=counts))


def _numbered_alike(traces: Sequence[Trace]) -> list[Trace]:
    """Traces in which tenants and models of one name have one number, and sessions numbers of their own."""
    alike = list(traces)
    first = 0
    for i, t in enumerate(traces):
        if t.session is not None:
            count = t.numbered("session")
            alike[i] = _renumbered(t, "session", np.arange(first, first + count), None)
            first += count
    for name in ("tenant", "model"):
        number: dict[str, int] = {}
        for i, t in enumerate(traces):
            if getattr(t, name) is not None:
                own = np.array([number.setdefault(each, len(number)) for each in t.names(name)], np.int64)
                alike[i] = _renumbered(alike[i], name, own, None)
        if number:
            names: dict[str, Any] = {f"{name}_names": list(number)}
            alike = [dataclasses.replace(t, **names) for t in alike]
    return alike


def _renumbered(trace: Trace, column: str, number: NDArray[np.int64], names: Sequence[str] | None) -> Trace:
    """``number[k]`` in place of session, tenant or model k."""
    table = np.append(number, -1)  # the last is that of -1
    columns: dict[str, Any] = {column: table[getattr(trace, column)], f"{column}_names": names}
    failed = trace.source_failed
    if failed is not None and getattr(failed, column) is not None:
        columns["source_failed"] = dataclasses.replace(failed, **{column: table[getattr(failed, column)]})
    return dataclasses.replace(trace, **columns)


def _waits(traces: Sequence[Trace], rows: NDArray[np.int64], copy: NDArray[np.int64]) -> Ragged:
    """``wait_for`` of gathered rows: the row of the same copy. A trace without it waits within sessions."""
    values, counts, first = [], [], 0
    for t in traces:
        column = t.waits()
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


def _blocks(traces: Sequence[Trace], one_content: bool) -> Ragged:
    """Block ids of all traces, those of different traces apart unless they mean the same."""
    values, counts, used = [], [], 0
    for t in traces:
        column = t.prefix_hashes or Ragged(np.zeros(0, np.int64), np.zeros(len(t) + 1, np.int64))
        values.append(column.values + used)
        if not one_content:
            used += int(column.values.max(initial=-1)) + 1
        counts.append(column.counts)
    return Ragged(np.concatenate(values), np.concatenate(([0], np.cumsum(np.concatenate(counts)))))


def _column(trace: Trace, column: str) -> NDArray[np.int64]:
    known = [name for name in COLUMNS if not name.endswith("_ns") and getattr(trace, name) is not None]
    if column not in known:
        raise InputError(f"the trace has no column {column!r}", key="column", hint=f"it has {', '.join(known)}")
    found: NDArray[np.int64] = getattr(trace, column)
    return found


def _number(trace: Trace, column: str, value: int | str) -> int:
    if isinstance(value, int):
        return value
    names = trace.names(column) if column in ("session", "tenant", "model") else []
    if value not in names:
        some = f"known: {', '.join(names[:20])}" if names else "give numbers"
        raise InputError(f"no {column} is called {value!r}", key="among", hint=some)
    return names.index(value)
