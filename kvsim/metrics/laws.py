"""Laws that every RunLog obeys, checked on the log alone: what ``--check-laws`` adds after a run."""

import numpy as np
from numpy.typing import NDArray

from kvsim.core.runlog import ABANDONED, FINISHED, NEVER, REJECTED, STATUS_NAMES, UNFINISHED, RunLog

_AT_ONCE = 65_536
"""Instants that are looked at together: as many as there are requests would take several columns of the log."""


def in_system(log: RunLog, time_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Requests that have arrived and not ended, at each time (m,): half-open [arrival, finish)."""
    arrivals, ends = _arrivals_and_ends(log)
    return np.searchsorted(arrivals, time_ns, side="right") - np.searchsorted(ends, time_ns, side="right")


def peak_in_system(log: RunLog, from_ns: int = 0) -> int:
    """Largest number of requests in the system at or after ``from_ns``; 0 if none arrived then."""
    arrivals, ends = _arrivals_and_ends(log)
    peak = 0
    for start in range(int(np.searchsorted(arrivals, from_ns)), len(arrivals), _AT_ONCE):
        instants = arrivals[start : start + _AT_ONCE]  # the number only rises at an arrival
        arrived = np.searchsorted(arrivals, instants, side="right")
        peak = max(peak, int((arrived - np.searchsorted(ends, instants, side="right")).max()))
    return peak


def _arrivals_and_ends(log: RunLog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """When requests were sent, and when those of them that ended did; each in order of time."""
    sent = log.arrival_ns != NEVER
    arrivals, ends = log.arrival_ns[sent], log.finish_ns[sent & (log.status != UNFINISHED)]
    arrivals.sort()
    ends.sort()
    return arrivals, ends


def littles_law(log: RunLog) -> tuple[float, float]:
    """The two sides of L = lambda W over [first, last] instant of the timeline; equal up to its sampling.

    Left: requests waiting or running, averaged over time from the replicas' own counters in the timeline (a
    sample holds until the next instant). Right: the sum over requests of the time they spent in the system in
    that span, divided by the span (arrival rate x mean time in system). For mixed pools: between two pools a
    request stands in neither counter. Raises ValueError if the timeline spans no time.

    Source: J. D. C. Little, "A proof for the queuing formula L = lambda W", Operations Research 9 (1961); in this
    finite form S. Stidham, Operations Research 22 (1974).
    """
    timeline = log.timeline
    if not len(timeline.time_ns) or timeline.time_ns[0] == timeline.time_ns[-1]:
        raise ValueError("the timeline spans no time")
    start_ns, end_ns = int(timeline.time_ns[0]), int(timeline.time_ns[-1])
    area = 0.0
    for replica in np.unique(timeline.replica):
        rows = timeline.replica == replica
        held_ns = np.diff(np.append(timeline.time_ns[rows], end_ns))
        area += float(((timeline.waiting + timeline.running)[rows] * held_ns).sum())
    sent = log.arrival_ns != NEVER
    leaves_ns = np.where(log.status == UNFINISHED, end_ns, log.finish_ns)[sent]
    stay_ns = np.clip(leaves_ns, start_ns, end_ns) - np.clip(log.arrival_ns[sent], start_ns, end_ns)
    span_ns = end_ns - start_ns
    return area / span_ns, float(stay_ns.sum()) / span_ns


def broken_laws(log: RunLog) -> list[str]:
    """Every law that this log breaks, one line each with the numbers; empty for a sound run.

    Times of a request in order; each ends once, by its status; tokens made = tokens asked for if finished, and
    never more; gaps of the pooled histogram = tokens after the first; blocks free + used + cached = total, the
    peak within it; the replicas' counters agree with arrivals and ends at every instant of the timeline
    (mixed pools, no client giving up: an abandoned request stays in its batch until the step ends).
    """
    broken: list[str] = []

    def law(text: str, holds: NDArray[np.bool_]) -> None:
        if not holds.all():
            rows = np.flatnonzero(~holds)
            broken.append(f"{text}: not in {len(rows)} rows, first row {rows[0]}")

    happened = [log.arrival_ns, log.queued_ns, log.first_scheduled_ns, log.first_token_ns, log.finish_ns]
    for earlier, later, text in zip(
        happened[:-1],
        happened[1:],
        ("arrival <= queued", "queued <= first scheduled", "first scheduled <= first token", "first token <= finish"),
        strict=True,
    ):
        law(text, (earlier == NEVER) | (later == NEVER) | (earlier <= later))
    law("a later time needs the earlier ones", (log.first_token_ns == NEVER) | (log.first_scheduled_ns != NEVER))
    law("status is known", (log.status >= 0) & (log.status < len(STATUS_NAMES)))
    law("ended <=> has a finish time", (log.status == UNFINISHED) == (log.finish_ns == NEVER))
    law("a rejected request has a reason", (log.status != REJECTED) | (log.reason > 0))
    law("finished: tokens made = asked for", (log.status != FINISHED) | (log.generated_tokens == log.output_tokens))
    law("tokens made <= asked for", log.generated_tokens <= log.output_tokens)
    law("tokens made <=> first token delivered", (log.generated_tokens > 0) == (log.first_token_ns != NEVER))

    gaps, after_first = int(log.gaps.count.sum()), int(np.maximum(log.generated_tokens - 1, 0).sum())
    if gaps != after_first:
        broken.append(f"gaps pooled = tokens after the first: {gaps} != {after_first}")
    made, delivered = int(log.generated_tokens.sum()), int(log.tokens_by_second.tokens.sum())
    if made != delivered:
        broken.append(f"tokens made = tokens delivered by second: {made} != {delivered}")

    timeline, total = log.timeline, np.array(log.total_blocks, dtype=np.int64)
    blocks = timeline.kv_used_blocks + timeline.kv_cached_blocks + timeline.kv_free_blocks
    law("timeline: used + cached + free = total blocks", blocks == total[timeline.replica])
    law("peak blocks <= total blocks", np.array(log.peak_used_blocks, dtype=np.int64) <= total)

    instants, rows_each = np.unique(timeline.time_ns, return_counts=True)
    if set(log.roles) == {"mixed"} and not (log.status == ABANDONED).any() and (rows_each == len(total)).all():
        counted = np.add.reduceat(timeline.waiting + timeline.running, np.arange(0, len(timeline.time_ns), len(total)))
        law("timeline: waiting + running = arrived - ended", counted == in_system(log, instants))
    return broken
