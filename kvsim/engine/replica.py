"""One replica: steps that are planned, launched and applied, and the leaps over steps in which nothing changes."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvsim.core.cluster import Pool
from kvsim.core.request import DECODING, ENDED, HELD, WAITING, Request
from kvsim.core.shape import BatchShape
from kvsim.engine.clock import FOREVER
from kvsim.engine.pace import LARGEST_BATCH, DecodePace, PaceTable
from kvsim.engine.plan import Plan
from kvsim.engine.recorder import LONGEST_PACKED_NS, PACK_AT, Recorder, TimelineSamples

if TYPE_CHECKING:
    from kvsim.engine.cluster import Simulation
    from kvsim.engine.decisions import DecisionRecorder

SECOND = 1_000_000_000
_SHORTEST_LEAP, _FIRST_LEAP, _LONGEST_LEAP = 4, 16, 4096
_LONGEST_LIST = 256
"""Beyond so many steps arrays beat lists by more than the way to the plain path costs."""
_INBOX = 512
ROUND = 6755399441055744.0
"""1.5 * 2^52: x + ROUND - ROUND is x rounded half to even, for x below 2^51, in a third of the time of round()."""


class Waiting(deque[Request]):
    """The waiting queue, head first: delivered requests (their KV is here), then preempted ones, then the others."""

    @property
    def first(self) -> Request:
        return self[0]


class Replica:
    """What one engine holds and does; also the view that policies read.

    Time: ``boundary_ns`` is where the last applied step ended (or the replica woke up). A stretch of one or more
    steps with the same batch may be in flight: ``stretch_steps`` > 0, ending at ``ends_ns``. ``due_ns`` is the
    first moment at which ``settle`` has something to do.

    Decodes are totals: ``decoding_count``, ``_context`` and ``_squares`` (sums over them before the next step) and
    ``decode_step``, the number of decode steps taken. A request that joins at decode step d with r tokens to go is
    done when ``decode_step`` is d + r; its context then follows from the two numbers it keeps, and nothing is done
    per step.

    Gaps: ``_cohort_ns`` is when the decodes last got a token, all of them but those in ``_behind``, whose own last
    token is in ``gap_from_ns``. The largest gap of a request that stayed with the decodes since time t is the first
    entry at or after t of ``_gap_starts``/``_gap_sizes``, kept strictly decreasing in size.
    """

    __slots__ = (
        "_asking",
        "_behind",
        "_books_ahead",
        "_changed",
        "_check_laws",
        "_chunks",
        "_cohort_ns",
        "_context",
        "_decode_shape",
        "_decodes",
        "_duration",
        "_durations",
        "_emptied",
        "_ends",
        "_every_step",
        "_finish_column",
        "_finishing",
        "_gap_sizes",
        "_gap_starts",
        "_gaps",
        "_given_up",
        "_held",
        "_leap",
        "_leaps",
        "_longest_last",
        "_look_tokens",
        "_look_until_ns",
        "_max_gap_column",
        "_pace",
        "_plan",
        "_recorder",
        "_recount_in",
        "_review_ns",
        "_review_step",
        "_runs_fast",
        "_samples",
        "_scheduler",
        "_second_end_ns",
        "_second_tokens",
        "_shape",
        "_simulation",
        "_squares",
        "_step_s",
        "_steps_s",
        "_steps_seen",
        "_sure_blocks",
        "_tools",
        "admissions",
        "bookings",
        "boundary_ns",
        "decisions",
        "decode_step",
        "decoding_count",
        "due_ns",
        "eager",
        "first_scheduled_column",
        "id",
        "inbox",
        "kv",
        "offers",
        "other_context",
        "peak_used_blocks",
        "posted",
        "prefilling",
        "ready_count",
        "role",
        "running_now",
        "steps",
        "stretch_end_ns",
        "stretch_start_ns",
        "stretch_steps",
        "stretches",
        "total_blocks",
        "waiting",
        "waiting_tokens",
        "watchers",
    )

    def __init__(
        self,
        id: int,
        pool: Pool,
        simulation: Simulation,
        recorder: Recorder,
        samples: TimelineSamples,
        pace: DecodePace,
        leaps: bool,
        decisions: DecisionRecorder | None,
        check_laws: bool,
    ) -> None:
        self.id = id
        self.role = pool.role
        self.kv = pool.kv.start(pool.kv_blocks)
        self.total_blocks = pool.kv_blocks
        self.peak_used_blocks = 0
        self._scheduler = pool.scheduler
        self._every_step = bool(getattr(pool.scheduler, "every_step", True))
        self._step_s = pool.cost.step_s
        self._steps_s = pool.cost.steps_s
        self._longest_last = bool(getattr(pool.cost, "longest_last", False))
        self._simulation = simulation
        self._recorder = recorder
        self._gaps = recorder.gaps
        columns = recorder.columns
        self.first_scheduled_column = columns.first_scheduled_ns
        self._finish_column = columns.finish_ns
        self._max_gap_column = columns.max_gap_ns
        self._samples = samples
        self._leaps = leaps
        self._runs_fast = (
            leaps and not check_laws and not decisions and not samples.every_step and pool.role != "prefill"
        )
        self.decisions = decisions
        self._check_laws = check_laws
        # requests
        self.waiting = Waiting()
        self.ready_count = 0  # how many at the head of the queue were delivered with their KV
        self.waiting_tokens = 0
        self.inbox: deque[Request] = deque()  # arrived, not yet looked at
        self.eager = False
        self.offers: deque[Request] = deque()
        self.bookings: deque[tuple[int, int, Request]] = deque()  # (time, blocks, request) of sent KV, not yet booked
        self._books_ahead = self._runs_fast and not getattr(pool.scheduler, "preempts_by_choice", True)
        self._sure_blocks = 0  # at most so many blocks will ever be taken by those who are here or on their way
        self._recount_in = 0
        self.running_now: dict[Request, None] = {}  # in admission order
        self.prefilling: list[Request] = []
        self.admissions = 0
        self._held: list[Request] = []
        self._given_up: list[Request] = []
        self._emptied: tuple[int, list[tuple[int, int]]] | None = None  # free blocks and queue, when all were preempted
        self.other_context = 0  # tokens in KV of running requests that do not decode
        # decodes
        self.decoding_count = 0
        self._context = 0
        self._squares = 0
        self.decode_step = 0
        self._finishing: list[tuple[int, int, Request]] = []
        # gaps
        self._behind: list[Request] = []
        self._cohort_ns = 0
        self._gap_starts: list[int] = []
        self._gap_sizes: list[int] = []
        self._second_end_ns = 0
        self._second_tokens = 0
        # time
        self.boundary_ns = 0
        self.due_ns = FOREVER
        self.stretch_steps = 0
        self.stretch_start_ns = 0
        self.stretch_end_ns = 0
        self._ends: Sequence[int] | None = None
        self._steps_seen = 0
        self._look_tokens = self._look_until_ns = 0
        self._durations: list[int] | NDArray[np.int64] = []
        self._duration = 0  # of a recent decode step, to guess by
        self._decodes = 0
        self._chunks: Sequence[tuple[Request, int, int]] = ()
        self._decode_shape = self._shape = BatchShape()
        self._leap = _FIRST_LEAP
        self._changed = True
        self._asking = self._every_step
        self._review_ns = FOREVER
        self._review_step = FOREVER
        self.steps = 0
        self.stretches = 0
        self.watchers = 0
        self.posted = -1
        self._plan = Plan(self, pool.scheduler.max_num_batched_tokens)
        self._pace = pace
        # Small batches have their pace in tables, if two numbers and no more say how long a decode step takes.
        paced = LARGEST_BATCH + 1 if self._longest_last and not getattr(pool.cost, "reads_squares", True) else 0
        # What the fast loop works with; none of these is ever replaced by another object.
        self._tools = (
            self.inbox, self.waiting, self.prefilling, self.running_now, self._finishing, self.kv,
            self.kv.growth_blocks, self.kv.release, self.kv.join, self._step_s, self._steps_s,
            self._gap_starts, self._gap_sizes, self._gaps.values, self._gaps.runs, self._decode_shape,
            samples, self._longest_last, self.total_blocks,
            self._behind, self.bookings, pace.tables, paced, columns.finish_ns,
            columns.max_gap_ns, columns.first_token_ns, columns.computed_tokens,
        )  # fmt: skip
        if decisions:
            self._plan.refused = []

    # ---- what a policy reads

    @property
    def now_s(self) -> float:
        return self.boundary_ns / 1e9

    @property
    def free_blocks(self) -> int:
        return self.kv.free_blocks

    @property
    def running(self) -> Sequence[Request]:
        return list(self.running_now)

    @property
    def running_count(self) -> int:
        return len(self.running_now)

    @property
    def requests_count(self) -> int:
        return len(self.running_now) + len(self.waiting)

    @property
    def decodes_in_flight(self) -> int:
        """Decodes that take part in the stretch in flight."""
        return self._decodes if self.stretch_steps else 0

    @property
    def youngest(self) -> Request:
        if not self.running_now:
            raise IndexError("nothing runs")
        return next(reversed(self.running_now))

    @property
    def blocks_short(self) -> int:
        short = self.kv.growth_blocks(self.decode_step, 1) - self._plan.growth - self.kv.free_blocks
        return short if short > 0 else 0

    @property
    def resident_tokens(self) -> int:
        now_ns = self._simulation.now_ns
        if now_ns < self._look_until_ns:
            return self._look_tokens  # no step has ended since the last look
        context = self._context + self.other_context
        if self.stretch_steps > 1:
            done = self.steps_done
            context += self._decodes * done
            if done < self.stretch_steps:
                self._look_until_ns = self.ends_ns[done]
        elif self.stretch_steps:
            self._look_until_ns = self.stretch_end_ns
        self._look_tokens = context
        return context

    @property
    def steps_done(self) -> int:
        """Steps of the stretch in flight that have ended by now; time does not go back, so it counts on."""
        ends, now_ns, done = self._ends or self.ends_ns, self._simulation.now_ns, self._steps_seen
        while done < self.stretch_steps and ends[done] <= now_ns:
            done += 1
        self._steps_seen = done
        return done

    def context_tokens_of(self, request: Request) -> int:
        if request.state == DECODING:
            return request.computed_tokens + self.decode_step - request.joined_step
        return request.computed_tokens

    # ---- time

    def settle(self, now_ns: int) -> None:
        """Let happen every arrival and end at or before ``now_ns``, and every plan before it."""
        inbox = self.inbox
        while True:
            if self.stretch_steps:
                if inbox and inbox[0].enters_ns <= (self.stretch_end_ns if self.stretch_end_ns < now_ns else now_ns):
                    self._arrive_in_flight(inbox[0].enters_ns)
                if self.stretch_end_ns > now_ns:
                    break
                if self._as_usual(self.stretch_start_ns) and self._decodes == self.decoding_count:
                    self._run(now_ns)
                else:
                    self._apply()
                continue
            boundary_ns = self.boundary_ns
            wake_ns = self.due_ns - 1
            if wake_ns > boundary_ns:  # asleep: until something arrives, or for ever, or until a review
                if inbox and inbox[0].enters_ns <= (wake_ns if wake_ns < now_ns else now_ns):
                    arrival_ns = inbox[0].enters_ns
                    self._wake(arrival_ns)
                    self._arrive(arrival_ns)
                elif wake_ns < now_ns and self.due_ns < FOREVER:
                    self._wake(wake_ns)
                else:
                    break
            elif inbox and inbox[0].enters_ns <= boundary_ns:
                self._arrive(boundary_ns)
            elif boundary_ns >= now_ns:
                break
            elif not self.eager and self._as_usual(boundary_ns):  # eager: hardly ever more than one stretch
                self._run(now_ns)
            else:
                self._launch()
        if self.bookings:
            self._take_bookings(now_ns)

    def _as_usual(self, start_ns: int) -> bool:
        """Nothing about the stretch that starts there is beyond the fast loop."""
        return (
            self._runs_fast
            and (self._cohort_ns == start_ns or not self.decoding_count)
            and not self._asking
            and not self.offers
            and not self._given_up
        )

    def _run(self, now_ns: int) -> None:
        """Step after step and leap after leap until ``now_ns`` or until something is not as usual.

        The same as ``_launch`` and ``_apply`` in turn, in one loop that keeps its counters in locals: this is where a
        simulation spends its time. What is not as usual (a preemption, a held decode, a sample due, an end beyond now)
        is left to them. Each round is one stretch: arrive, plan, launch, apply.
        """
        (
            inbox, waiting, prefilling, running_now, finishing, kv, growth_blocks, release, join, step_s, steps_s,
            gap_starts, gap_sizes, values, weights, decode_shape, samples, longest_last, total_blocks,
            behind, bookings, paces, paced, finish_column, max_gap_column, first_token_column, computed_column,
        ) = self._tools  # fmt: skip
        sample_ns = samples.next_ns
        steps_run = stretches_run = 0
        least_free = total_blocks - self.peak_used_blocks
        start = self.boundary_ns
        decodes = self.decoding_count
        context, squares, step = self._context, self._squares, self.decode_step
        duration, leap = self._duration, self._leap
        flying = self.stretch_steps > 0
        while True:
            if flying:  # a stretch that was launched earlier has ended by now
                flying = False
                start, end, steps = self.stretch_start_ns, self.stretch_end_ns, self.stretch_steps
                if sample_ns < end:
                    self._sample(end)
                    sample_ns = samples.next_ns
                launched = self._durations
                chunks = self._chunks
                self._chunks = ()
                self.stretch_steps = 0
                free = kv.free_blocks
                if steps > 1:
                    kv.free_blocks = free = free - growth_blocks(step + 1, steps - 1)
                if len(launched) != steps:
                    launched = launched[:steps]
                largest = int(launched[-1] if longest_last else max(launched))
                durations = launched if isinstance(launched, list) else launched.tolist()
                pace = None
                if behind:
                    self._gaps.add(durations[:1], decodes - len(behind), durations[0])
                    self._gaps.add(durations[1:], decodes, largest)
                elif decodes:
                    self._gaps.add(launched, decodes, largest)
            else:
                # ---- arrive
                arrival_ns = inbox[0].enters_ns if inbox else FOREVER
                if arrival_ns <= start:
                    while arrival_ns <= start:
                        request = inbox.popleft()
                        if request.state:
                            self._deliver(request)
                        else:
                            waiting.append(request)
                            self.waiting_tokens += request.prompt_tokens
                        arrival_ns = inbox[0].enters_ns if inbox else FOREVER
                    self._changed = True
                if start >= now_ns:
                    break
                # ---- plan and launch
                chunks = None
                once = False
                if (waiting or prefilling) and self._changed:
                    self.boundary_ns = self._cohort_ns = start
                    self.decoding_count = decodes
                    self._context, self._squares, self.decode_step = context, squares, step
                    if bookings:
                        self._take_bookings(start)
                    plan = self._consult(start)
                    chunks = plan.chunks
                    # Nothing planned, or somebody was preempted or held:
                    if not (chunks or plan.joined) or self._decodes != decodes + plan.joined or self._asking:
                        self._duration, self._leap = duration, leap
                        self.steps += steps_run
                        self.stretches += stretches_run
                        self._send_off(plan)
                        return
                    if not chunks:
                        once = bool(waiting)  # they may be told something else at the next step
                        decodes, context, squares = self._decodes, self._context, self._squares
                        kv.free_blocks += growth_blocks(step, 1)  # to be taken with those of the leap
                if chunks:
                    shape = plan.shape
                    if decodes:
                        shape.decode_context_tokens += context
                        shape.decode_context_squares += squares
                        shape.sampled_requests += decodes
                    shape.decode_requests = decodes + plan.chunk_decodes
                    steps = 1
                    largest = round(step_s(shape) * 1e9)
                    end = start + largest
                    free = kv.free_blocks
                    if end > now_ns or largest >= LONGEST_PACKED_NS:
                        self._chunks = chunks
                        self._duration = duration
                        self.steps += steps_run
                        self.stretches += stretches_run
                        self._fly(start, end, [largest], shape, decodes, leap)
                        return
                    if sample_ns < end:
                        self._sample_steps(start, (largest,), shape, step, decodes, end)
                        sample_ns = samples.next_ns
                    if decodes:
                        values.append(largest)
                        weights += (decodes - len(behind) if behind else decodes, 1)
                elif not decodes:
                    if waiting or prefilling or arrival_ns > now_ns or sample_ns < arrival_ns:
                        break
                    start = arrival_ns  # idle until then
                    continue
                else:
                    finish, admission, request = finishing[0]
                    while request.finish_step != finish or request.admission != admission or request.state != DECODING:
                        heappop(finishing)
                        finish, admission, request = finishing[0]
                    steps = finish - step
                    if prefilling or once:
                        steps = 1
                    pace = None
                    if decodes < paced:
                        pace = paces[decodes]
                        if pace is None or pace.size <= context + steps * decodes:
                            pace, steps = self._pace.reach(decodes, context, steps)
                    if pace:
                        sums = pace.before
                        begin_ns = start - sums[context]
                        last = context + (steps - 1) * decodes
                        if begin_ns + sums[last] >= arrival_ns:
                            steps = 1 + pace.ends_before(arrival_ns, context, steps, start)
                            last = context + (steps - 1) * decodes
                        end = begin_ns + sums[last + decodes]
                        if end > now_ns and steps > leap:
                            steps = leap
                            last = context + (steps - 1) * decodes
                            end = begin_ns + sums[last + decodes]
                        began = context
                        duration = largest = pace.duration[last]
                    else:
                        if steps > leap:
                            steps = leap
                        if duration and arrival_ns < FOREVER:
                            # Not many more than there is time for: what is beyond the arrival is thrown away.
                            until_arrival = (arrival_ns - start) // duration + 2
                            if steps > until_arrival:
                                steps = until_arrival
                        if steps > _LONGEST_LIST:
                            break
                        decode_shape.decode_requests = decode_shape.sampled_requests = decodes
                        decode_shape.decode_context_tokens = context
                        decode_shape.decode_context_squares = squares
                        seconds = steps_s(decode_shape, steps)
                        if type(seconds) is not list:
                            seconds = np.asarray(seconds).tolist()
                        durations = [s * 1e9 + ROUND - ROUND for s in seconds]
                        end = start + int(sum(durations))
                        duration = int(durations[-1])
                        while end - duration >= arrival_ns:  # this one would be launched after the arrival
                            durations.pop()
                            end -= duration
                            duration = int(durations[-1])
                        steps = len(durations)
                        largest = duration if longest_last else int(max(durations))
                    free = kv.free_blocks - growth_blocks(step, steps)
                    if free < 0 or largest >= LONGEST_PACKED_NS:
                        break
                    if steps == leap < _LONGEST_LEAP:
                        leap = steps * 2
                    if end > now_ns:
                        self.boundary_ns = self._cohort_ns = start
                        self.decoding_count = decodes
                        self._context, self._squares, self.decode_step = context, squares, step
                        kv.free_blocks -= growth_blocks(step, 1)
                        self._duration = duration
                        self.steps += steps_run
                        self.stretches += stretches_run
                        decode_shape.decode_requests = decode_shape.sampled_requests = decodes
                        decode_shape.decode_context_tokens = context
                        decode_shape.decode_context_squares = squares
                        flight = pace.durations(context, steps) if pace else [int(d) for d in durations]
                        self._fly(start, end, flight, decode_shape, decodes, leap)
                        return
                    if sample_ns < end:
                        kv.free_blocks -= growth_blocks(step, 1)
                        decode_shape.decode_requests = decodes
                        flight = pace.durations(context, steps) if pace else [int(d) for d in durations]
                        self._sample_steps(start, flight, decode_shape, step, decodes, end)
                        sample_ns = samples.next_ns
                    kv.free_blocks = free
                    if pace:
                        begun = pace.begun
                        begun[context] += decodes
                        begun[last + decodes] -= decodes
                        if behind:
                            begun[context] -= len(behind)
                            begun[context + decodes] += len(behind)
                    else:
                        values += durations
                        if behind:
                            weights += (decodes - len(behind), 1, decodes, steps - 1)
                        else:
                            weights += (decodes, steps)
            # ---- apply
            if bookings and bookings[0][0] < end:
                self._take_bookings(end - 1)
                free = kv.free_blocks
            if free < least_free:
                self.note_peak(free)
                least_free = free
            steps_run += steps
            stretches_run += 1
            tokens = 0
            if decodes:
                tokens = decodes * steps
                squares += steps * (2 * context + tokens)
                context += tokens
                step += steps
                if behind:
                    first, later = largest, 0
                    if steps > 1:
                        first = pace.duration[began] if pace else int(durations[0])
                        later = largest if longest_last else int(max(durations[1:]))
                    self._pause_ends(start, start + first, decodes, later)
                else:
                    while gap_sizes and gap_sizes[-1] <= largest:
                        gap_sizes.pop()
                        gap_starts.pop()
                    gap_sizes.append(largest)
                    gap_starts.append(start)
                while finishing and finishing[0][0] <= step:
                    finish, admission, request = heappop(finishing)
                    if request.finish_step != finish or request.admission != admission or request.state != DECODING:
                        continue
                    request_context = request.prompt_tokens + request.output_tokens - 1
                    decodes -= 1
                    context -= request_context
                    squares -= request_context * request_context
                    release(request, request_context)
                    del running_now[request]
                    request.state = ENDED
                    i = bisect_left(gap_starts, request.gap_from_ns)
                    gap = gap_sizes[i] if i < len(gap_sizes) else 0
                    finish_column[request.id] = end
                    max_gap_column[request.id] = gap if gap > request.max_gap_ns else request.max_gap_ns
                    if request.watched:
                        self._simulation.ended(request, end)
                if waiting or prefilling:
                    self._changed = True
                if not decodes:
                    gap_sizes.clear()
                    gap_starts.clear()
            if chunks:
                self._changed = True
                for request, before, chunk in chunks:
                    after = before + chunk
                    if (
                        before
                        or request.generated_tokens
                        or request.output_tokens == 1
                        or after < request.target_tokens
                    ):
                        self.boundary_ns = start
                        self.decoding_count = decodes
                        self._context, self._squares, self.decode_step = context, squares, step
                        self._cohort_ns = end
                        tokens += self._apply_chunk(request, before, chunk, end)
                        decodes = self.decoding_count
                        context, squares = self._context, self._squares
                        continue
                    # A fresh prompt in one chunk, the common case of ``_apply_chunk``.
                    tokens += 1
                    computed_column[request.id] += chunk
                    first_token_column[request.id] = request.gap_from_ns = end
                    request.generated_tokens = 1
                    request.target_tokens += 1
                    request.computed_tokens = after
                    request.state = DECODING
                    request.joined_step = step
                    request.finish_step = finish = step + request.output_tokens - 1
                    heappush(finishing, (finish, request.admission, request))
                    join(request, after, step)
                    decodes += 1
                    context += after
                    squares += after * after
            if end < self._second_end_ns:
                self._second_tokens += tokens
            elif steps == 1:
                self._count_seconds((end,), 1, end, tokens, 0)
            elif pace:
                self._count_seconds_paced(pace, began, start, steps, end)
            else:
                ends = [start + int(e) for e in accumulate(durations)]
                self._count_seconds(ends, steps, end, tokens // steps, 0)
            start = end
        self.boundary_ns = self._cohort_ns = start
        self.decoding_count = decodes
        self._context, self._squares, self.decode_step = context, squares, step
        self._duration, self._leap = duration, leap
        self.steps += steps_run
        self.stretches += stretches_run
        self.due_ns = start + 1 if running_now or waiting else FOREVER
        if len(values) >= PACK_AT:
            self._gaps.pack()
        if start < now_ns and self.due_ns < FOREVER and arrival_ns > start:
            self._launch()

    def _fly(
        self,
        start: int,
        end: int,
        durations: list[int] | NDArray[np.int64],
        shape: BatchShape,
        decodes: int,
        leap: int,
    ) -> None:
        """A stretch of the fast loop that does not end at once: in flight like any other."""
        self._decodes = decodes
        self._shape = shape
        self._durations = durations
        self._leap = leap
        self._ends = None
        self.stretch_start_ns = start
        self.stretch_steps = len(durations)
        self.stretch_end_ns = self.due_ns = end
        self.note_peak(self.kv.free_blocks)
        if len(self._gaps.values) >= PACK_AT:
            self._gaps.pack()

    def plan_at(self, now_ns: int) -> None:
        """Let happen everything up to and including the plan at ``now_ns``."""
        self.settle(now_ns)
        if not self.stretch_steps and self.due_ns == now_ns + 1 < FOREVER:
            self._wake(now_ns)  # a review is due
        self.plan_now(now_ns)

    def plan_now(self, now_ns: int) -> None:
        """Plan and launch if that is due now; everything before it has happened."""
        while not self.stretch_steps and self.boundary_ns == now_ns and self.due_ns == now_ns + 1 < FOREVER:
            self._launch()
            if self.due_ns <= now_ns:
                self.settle(now_ns)

    def interrupt(self, now_ns: int) -> None:
        """Something changes now: settle, and let the step in flight be the last of its stretch."""
        self.settle(now_ns)
        if self.stretch_steps > 1:
            self._cut(now_ns)
            if self.stretch_end_ns <= now_ns:
                self._apply()
            else:
                self.note_peak(self.blocks_free_now)
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        self._changed = True
        if not self.stretch_steps and self.due_ns > self.boundary_ns + 1:
            self._wake(now_ns)

    def _wake(self, now_ns: int) -> None:
        """It slept, and may have something to do from now on."""
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        if self.boundary_ns < now_ns:
            self.boundary_ns = now_ns
        self.due_ns = self.boundary_ns + 1

    def _cut(self, now_ns: int) -> None:
        """Of a stretch of many steps only those follow that are launched before now."""
        steps = bisect_left(self.ends_ns, now_ns, 0, self.stretch_steps) + 1
        if steps < self.stretch_steps:
            self.stretch_steps = steps
            self.stretch_end_ns = self.due_ns = int(self.ends_ns[steps - 1])
            if self._leap > _SHORTEST_LEAP:
                self._leap >>= 1

    # ---- requests come and go

    def enqueue(self, request: Request, now_ns: int) -> None:
        """A request arrives. Unless somebody watches, it is enough to look at the inbox once it is full."""
        self.inbox.append(request)
        if self.eager or len(self.inbox) >= _INBOX:
            self.settle(now_ns)

    def enqueue_rows(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """The same for many requests (id, arrival ns, prompt tokens, output tokens) that nobody watches."""
        for first in range(0, len(rows), _INBOX):
            self.inbox.extend([Request(*row) for row in rows[first : first + _INBOX]])
            self.settle(self.inbox[-1].enters_ns)

    def _arrive_in_flight(self, now_ns: int) -> None:
        """A request arrives before the stretch in flight has ended."""
        if self.stretch_steps > 1:
            self._cut(now_ns)
        self._arrive(self.stretch_end_ns)

    def _arrive(self, until_ns: int) -> None:
        """Everything in the inbox that arrived by then goes to the back of the queue."""
        inbox = self.inbox
        samples = self._samples
        while inbox and inbox[0].enters_ns <= until_ns:
            request = inbox.popleft()
            if samples.next_ns < request.enters_ns:
                self._sample(request.enters_ns)
            if request.state:
                self._deliver(request)
            else:
                self.waiting.append(request)
                self.waiting_tokens += request.prompt_tokens
            if self.decisions and request.state == WAITING:
                self.decisions.arrived(request)
        self._changed = True

    def preempt(self, request: Request) -> None:
        """A running request loses its KV and waits again, ahead of those that have not run."""
        if self.decisions:
            context = self.context_tokens_of(request)
            blocks = max(request.held_blocks, self.kv.missing_blocks(Request(0, 0, 1, 1), context))
            generated = request.generated_tokens
            if request.state == DECODING:
                generated += self.decode_step - request.joined_step
            self.decisions.preempted(request, context, generated, blocks)
        self._drop_running(request)
        request.computed_tokens = 0
        request.state = WAITING
        request.preemptions += 1
        self._recorder.columns.preemptions[request.id] += 1
        self.waiting.insert(self.ready_count, request)
        self.waiting_tokens += request.target_tokens
        self._changed = True

    def _drop_running(self, request: Request) -> None:
        """Out of the running list, with all its blocks."""
        del self.running_now[request]
        if request.state == DECODING:
            self._leave_decodes(request)
        else:
            self.other_context -= request.computed_tokens
            if request in self.prefilling:
                self.prefilling.remove(request)
        self.kv.release(request, request.computed_tokens)

    def _join_decodes(self, request: Request, context: int) -> None:
        """From the next step on it decodes, with this context; its last token came at ``gap_from_ns``."""
        step = self.decode_step
        request.state = DECODING
        request.computed_tokens = context
        request.joined_step = step
        request.finish_step = finish = step + request.output_tokens - request.generated_tokens
        heappush(self._finishing, (finish, request.admission, request))
        self.kv.join(request, context, step)
        if self._cohort_ns != request.gap_from_ns:
            self._behind.append(request)
        self.decoding_count += 1
        self._context += context
        self._squares += context * context

    def _leave_decodes(self, request: Request) -> None:
        """Out of the totals before its end; what it knows of itself is brought up to date."""
        steps = self.decode_step - request.joined_step
        context = request.computed_tokens + steps
        request.computed_tokens = context
        request.generated_tokens += steps
        request.target_tokens += steps
        self.decoding_count -= 1
        self._context -= context
        self._squares -= context * context
        self.kv.leave(request, context)
        if request in self._behind:
            self._behind.remove(request)
        else:
            self._note_gap(request)
            request.gap_from_ns = self._cohort_ns

    def _note_gap(self, request: Request) -> None:
        """The largest gap since this request joined the decodes."""
        i = bisect_left(self._gap_starts, request.gap_from_ns)
        if i < len(self._gap_sizes) and self._gap_sizes[i] > request.max_gap_ns:
            request.max_gap_ns = self._gap_sizes[i]

    def _shared_gap(self, start_ns: int, gap_ns: int) -> None:
        """Every decode that had its last token at ``start_ns`` or before saw a gap of this size."""
        starts, sizes = self._gap_starts, self._gap_sizes
        while sizes and sizes[-1] <= gap_ns:
            sizes.pop()
            starts.pop()
        sizes.append(gap_ns)
        starts.append(start_ns)

    def _own_gap(self, request: Request, end_ns: int) -> None:
        """A token after a pause that the rest of the batch did not share."""
        gap = end_ns - request.gap_from_ns
        self._gaps.add_step(gap, 1)
        if gap > request.max_gap_ns:
            request.max_gap_ns = gap
        request.gap_from_ns = end_ns

    def _hold(self, request: Request) -> None:
        """It sits out the coming step."""
        self._leave_decodes(request)
        request.state = HELD
        self.other_context += request.computed_tokens
        self._held.append(request)

    def _rejoin_held(self) -> None:
        """Those who sat out the last step take part again."""
        for request in self._held:
            self.other_context -= request.computed_tokens
            self._join_decodes(request, request.computed_tokens)
        self._held.clear()

    # ---- a step: planned, launched, applied

    def _launch(self) -> None:
        """Plan the step that starts at the boundary and send it off, with as many like it as are sure to follow."""
        start = self.boundary_ns
        if self.bookings:
            self._take_bookings(start)
        if self.offers:
            self._simulation.take_offers(self, start)
        kv = self.kv
        growth = kv.growth_blocks(self.decode_step, 1)
        if (
            growth > kv.free_blocks
            or self._asking
            or ((self.waiting or self.prefilling) and (self._changed or not self._leaps))
        ):
            self._send_off(self._consult(start))
        else:
            self._changed = False
            self._decodes = self.decoding_count
            kv.free_blocks -= growth
            self._send_off(None)

    def _send_off(self, plan: Plan | None) -> None:
        """Launch what was planned (None: everybody decodes). The blocks for its first step are taken."""
        self.stretch_start_ns = start = self.boundary_ns
        self.note_peak(self.kv.free_blocks)
        decodes = self._decodes
        if plan and plan.chunks:
            self._chunks = plan.chunks
            self._shape = shape = plan.shape
            if decodes:
                shape.decode_context_tokens += self._context
                shape.decode_context_squares += self._squares
                shape.sampled_requests += decodes
            shape.decode_requests = decodes + plan.chunk_decodes
            steps = 1
        elif decodes:
            self._shape = shape = self._decode_shape
            shape.decode_requests = shape.sampled_requests = decodes
            shape.decode_context_tokens = self._context
            shape.decode_context_squares = self._squares
            steps = self._sure_steps() if self._leaps and not self._changed else 1
        else:
            self._sleep()
            if self.decisions and plan:
                self.decisions.launched(self, plan, start, start)
            return
        if self._samples.every_step:
            self._samples.next_ns = start
        self.stretch_steps = steps
        if steps == 1:
            duration = round(self._step_s(shape) * 1e9)
            self._durations = [duration]
            self._ends = None
            self.due_ns = self.stretch_end_ns = start + duration
        else:
            self._launch_leap(shape, steps)
        if self.decisions:
            self.decisions.launched(self, plan, start, self.stretch_end_ns)

    def _consult(self, start: int) -> Plan:
        """Ask the scheduler until it schedules something or changes nothing."""
        plan = self._plan
        while True:
            if self._held:
                self._rejoin_held()
            self._changed = False
            plan.begin()
            self._scheduler.plan(self, plan)
            if plan.simple and not plan.short:
                plan.growth = 0
                self._decodes = self.decoding_count
                if plan.chunk_decodes and plan.chunk_decodes == len(plan.chunks):
                    self._decodes = self._join_ready(plan)
                self._asking = self._every_step
                self._review_ns = self._review_step = FOREVER
                return plan
            if plan.short:
                plan.hold_unserved()
            if plan.decodes_held:
                decodes = 0
                self._changed = True
            else:
                if plan.runs is not None and len(plan.runs) < self.decoding_count:
                    for request in self.running:
                        if request.state == DECODING and request not in plan.runs:
                            self._hold(request)
                    self._changed = True
                decodes = self.decoding_count
            plan.growth = 0
            if 0 < plan.chunk_decodes == len(plan.chunks) and not plan.decodes_held and plan.runs is None:
                decodes = self._join_ready(plan)
            self._decodes = decodes
            if decodes or plan.chunks or not plan.preempted or self._goes_round():
                break
            if self.decisions:
                self.decisions.launched(self, plan, start, start)
        # Nothing may have changed at the next boundary, and still the scheduler may have to be asked.
        self._asking = self._every_step or bool(self._held)
        self._review_ns = self._review_step = FOREVER
        if plan.review_ns is not None:
            self._review_ns = plan.review_ns
            self._asking = True
        if plan.review_steps is not None:
            self._review_step = self.decode_step + plan.review_steps
            self._asking = True
        return plan

    def _join_ready(self, plan: Plan) -> int:
        """All that was planned is a next token for requests whose KV is here: they decode like the others, at once.

        The blocks of the step are booked already. Returns the decodes of the step.
        """
        if not self.decoding_count:
            self._cohort_ns = self.boundary_ns
        for request, context, _ in plan.chunks:
            self.other_context -= context
            if request in self.prefilling:
                self.prefilling.remove(request)
            self._join_decodes(request, context)
        plan.joined = plan.chunk_decodes
        plan.clear()
        self._changed = bool(self.waiting or self.prefilling)  # they may be told something else at the next step
        return self.decoding_count

    def _goes_round(self) -> bool:
        """Everybody was preempted, and since the last time this happened nobody got a token and nothing came or went.

        A prompt that is admitted without blocks for all of it, and outgrows them each time, would go on for ever: the
        replica waits for something to change instead.
        """
        if self.running_now:
            return False
        was, self._emptied = self._emptied, (
            self.kv.free_blocks, [(request.id, request.target_tokens) for request in self.waiting]
        )  # fmt: skip
        return was == self._emptied

    def _sure_steps(self) -> int:
        """How many steps from here on are sure to have the same batch, as far as this replica can know."""
        if self.prefilling or self._cohort_ns != self.stretch_start_ns:
            return 1
        finishing = self._finishing
        step = self.decode_step
        while True:
            finish, admission, request = finishing[0]
            if request.finish_step == finish and request.admission == admission and request.state == DECODING:
                break
            heappop(finishing)
        steps = finish - step
        if self._asking:
            if self._every_step:
                return 1
            steps = min(steps, self._review_step - step)
        if steps > self._leap:
            steps = self._leap
        if self.inbox and self._duration:
            # About as many as there is time for until the next arrival; a guess costs nothing but another stretch.
            until_arrival = (self.inbox[0].enters_ns - self.stretch_start_ns) // self._duration + 1
            if steps > until_arrival:
                steps = until_arrival
        if steps > 1:
            steps = 1 + self.kv.steps_until_short(step + 1, steps - 1)
        return steps

    def _launch_leap(self, shape: BatchShape, steps: int) -> None:
        seconds = self._steps_s(shape, steps)
        start = self.stretch_start_ns
        self._ends = None
        if type(seconds) is list:
            self._durations = durations = [round(s * 1e9) for s in seconds]
            end = start + sum(durations)
        else:
            self._durations = rounded = np.rint(np.asarray(seconds) * 1e9).astype(np.int64)
            end = start + int(rounded.sum())
        if self._review_ns < FOREVER:
            self.stretch_steps = steps = min(steps, bisect_left(self.ends_ns, self._review_ns) + 1)
            end = int(self.ends_ns[steps - 1])
        if steps == self._leap < _LONGEST_LEAP:
            self._leap = steps * 2
        self._duration = int(self._durations[-1])
        self.stretch_end_ns = self.due_ns = end

    @property
    def ends_ns(self) -> Sequence[int]:
        """When each step of the stretch in flight ends; worked out when somebody asks."""
        ends = self._ends
        if ends is None:
            durations = self._durations
            many = durations if isinstance(durations, list) else durations.tolist()
            self._ends = ends = list(accumulate(many, initial=self.stretch_start_ns))[1:]
            self._steps_seen = 0
        return ends

    def _sleep(self) -> None:
        """Nothing can be scheduled: until something comes, or until the time at which the policy asked to be called."""
        # With nobody here a review has nothing to look at; a policy that always asks for one would never end the run.
        later = bool(self.waiting or self.running_now) and self.boundary_ns < self._review_ns < FOREVER
        self.due_ns = self._review_ns + 1 if later else FOREVER

    def _apply(self) -> None:
        """The stretch in flight has ended: contexts have grown, tokens are delivered, some requests are done."""
        kv = self.kv
        steps = self.stretch_steps
        end = self.stretch_end_ns
        if self._samples.next_ns < end:
            self._sample(end)
        if steps > 1:
            kv.free_blocks -= kv.growth_blocks(self.decode_step + 1, steps - 1)
        if self.bookings:
            self._take_bookings(end - 1)
        self.note_peak(kv.free_blocks)
        if self._given_up:
            self._drop_given_up()
        decodes = self._decodes
        if decodes:
            tokens = decodes * steps
            self._squares += steps * (2 * self._context + tokens)
            self._context += tokens
            self.decode_step = step = self.decode_step + steps
            # Gaps: the step's duration for all, unless a pause lies behind some of them.
            start = self.stretch_start_ns
            durations = self._durations
            if len(durations) != steps:
                durations = durations[:steps]
            if self._behind or self._cohort_ns != start:
                self._record_pause(durations, decodes)
            else:
                if steps == 1:
                    largest = durations[0]
                    self._gaps.add_step(largest, decodes)
                else:
                    largest = max(durations) if isinstance(durations, list) else int(durations.max())
                    self._gaps.add(durations, decodes, largest)
                self._shared_gap(start, largest)
            self._cohort_ns = end
            finishing = self._finishing
            while finishing and finishing[0][0] <= step:
                finish, admission, request = heappop(finishing)
                if request.finish_step == finish and request.admission == admission and request.state == DECODING:
                    self._finish_decode(request, end)
        else:
            tokens = 0
            if not self.decoding_count:
                self._cohort_ns = end
        sampled = self._apply_chunks(end) if self._chunks else 0
        if end < self._second_end_ns:
            self._second_tokens += tokens + sampled
        else:
            self._count_seconds(self.ends_ns, steps, end, decodes, sampled)
        self.stretch_steps = 0
        self.steps += steps
        self.stretches += 1
        self.boundary_ns = end
        self.due_ns = end + 1 if self.running_now or self.waiting or self.offers else FOREVER
        if self.decisions:
            self.decisions.applied(self)
        if self._check_laws:
            self._check_books()

    def _record_pause(self, durations: list[int] | NDArray[np.int64], decodes: int) -> None:
        """Gaps of a stretch whose first step ends a pause that all decodes shared, or that some had for themselves."""
        since_ns = self._cohort_ns
        end_ns = self.stretch_start_ns + int(durations[0])
        shared = decodes - len(self._behind)
        later_ns = 0
        if shared:
            self._gaps.add_step(end_ns - since_ns, shared)
        if len(durations) > 1:
            later = durations[1:]
            later_ns = int(later.max() if isinstance(later, np.ndarray) else max(later))
            self._gaps.add(later, decodes, later_ns)
        self._pause_ends(since_ns, end_ns, decodes, later_ns)

    def _pause_ends(self, since_ns: int, end_ns: int, decodes: int, later_ns: int) -> None:
        """The decodes got a token at ``end_ns``; some had paused longer than the others, who had one ``since_ns``.

        ``later_ns``: the largest gap of the steps that follow in the same stretch, if any.
        """
        behind = self._behind
        if decodes > len(behind):
            self._shared_gap(since_ns, end_ns - since_ns)
        for request in behind:
            self._own_gap(request, end_ns)
        behind.clear()
        if later_ns:
            self._shared_gap(end_ns, later_ns)

    def _apply_chunks(self, end: int) -> int:
        """The chunks of the step have been computed. Returns the tokens sampled from them."""
        sampled = 0
        for request, context, tokens in self._chunks:
            sampled += self._apply_chunk(request, context, tokens, end)
        self._chunks = ()
        self._changed = True
        return sampled

    def _apply_chunk(self, request: Request, before: int, tokens: int, end: int) -> int:
        """One chunk, on top of so much context. Returns 1 if it was the last one and a token was sampled, else 0."""
        columns = self._recorder.columns
        context = before + tokens
        if tokens > 1 or not request.generated_tokens or context < request.target_tokens:
            columns.computed_tokens[request.id] += tokens
        if request.state == ENDED:
            return 0
        request.computed_tokens = context
        if context < request.target_tokens:
            self.other_context += tokens
            if request not in self.prefilling:
                self.prefilling.append(request)
            return 0
        # It has all it needs in KV, so the step sampled its next token.
        self.other_context -= before
        if request in self.prefilling:
            self.prefilling.remove(request)
        request.target_tokens += 1
        request.generated_tokens += 1
        if request.generated_tokens == 1:
            columns.first_token_ns[request.id] = end
            request.gap_from_ns = end
        else:
            self._own_gap(request, end)
        if request.generated_tokens == request.output_tokens:
            del self.running_now[request]
            self.kv.release(request, context)
            self._end_request(request, end)
        elif self.role == "prefill":
            del self.running_now[request]
            self._simulation.offer(request, end)
        else:
            self._join_decodes(request, context)
        return 1

    def _finish_decode(self, request: Request, end: int) -> None:
        """Its last token came with this step."""
        context = request.prompt_tokens + request.output_tokens - 1
        self.decoding_count -= 1
        self._context -= context
        self._squares -= context * context
        self.kv.release(request, context)
        del self.running_now[request]
        self._note_gap(request)
        if not self.decoding_count:
            self._gap_starts.clear()
            self._gap_sizes.clear()
        request.generated_tokens = request.output_tokens
        self._changed = True
        self._end_request(request, end)

    def _end_request(self, request: Request, end_ns: int) -> None:
        """It got its last token, and its blocks are back."""
        request.state = ENDED
        i = request.id
        self._finish_column[i] = end_ns
        if request.generated_tokens > 1:
            self._max_gap_column[i] = request.max_gap_ns
        if self.decisions:
            self.decisions.finished(request)
        if request.watched:
            self._simulation.ended(request, end_ns)

    # ---- interruptions

    def _deliver(self, request: Request) -> None:
        """A request whose KV was sent here: it is served before those that still need a prefill."""
        if request.state == ENDED:  # abandoned on the way
            self.waiting_tokens -= request.prompt_tokens + 1
            self.kv.release(request, 0)
            return
        request.state = WAITING
        self.waiting_tokens -= request.prompt_tokens  # one token is left to do
        self.waiting.insert(self.ready_count, request)
        self.ready_count += 1

    @property
    def blocks_free_now(self) -> int:
        """Free blocks, those taken for the step in flight counted out."""
        free = self.kv.free_blocks
        if self.stretch_steps > 1 and (done := self.steps_done):
            free -= self.kv.growth_blocks(self.decode_step + 1, done)
        return free

    def reserve(self, request: Request, tokens: int, now_ns: int) -> bool:
        """Book blocks for a request that is on its way, if they are free now. Nobody's step changes."""
        kv = self.kv
        missing = kv.missing_blocks(request, tokens)
        later = kv.growth_blocks(self.decode_step + 1, self.stretch_steps - 1) if self.stretch_steps > 1 else 0
        enough = missing <= kv.free_blocks - later
        if not enough and (not later or missing > self.blocks_free_now):
            return False
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        kv.allocate(request, tokens)
        if not enough:
            self._cut(now_ns)  # the later steps of the leap counted on these blocks
        if not self.stretch_steps:
            self.note_peak(kv.free_blocks)
        if self._books_ahead:
            self._sure_blocks += missing + kv.missing_blocks(request, request.prompt_tokens + request.output_tokens)
        return True

    def book_ahead(self, request: Request, now_ns: int) -> bool:
        """As ``reserve``, without bringing this replica up to date: if no request could possibly be short of blocks.

        Nothing that happens here matters to anybody then, so the steps until now can wait, and be taken together.
        """
        if not self._books_ahead or self.eager or self.watchers or self.offers:
            return False
        peak = self.kv.missing_blocks(request, request.prompt_tokens + request.output_tokens)
        if self._sure_blocks + peak > self.total_blocks:
            self._recount_in -= 1
            if self._recount_in > 0:
                return False
            self._recount_sure_blocks(now_ns)
            if self._sure_blocks + peak > self.total_blocks:
                return False
        self._sure_blocks += peak
        missing = self.kv.missing_blocks(request, request.prompt_tokens + 1)
        self.bookings.append((now_ns, missing, request))
        if len(self.bookings) >= _INBOX:
            self.settle(now_ns)
        return True

    def _recount_sure_blocks(self, now_ns: int) -> None:
        self.settle(now_ns)
        probe = Request(0, 0, 1, 1)
        here = [*self.running_now, *self.waiting, *self._simulation.on_their_way_to(self)]
        self._sure_blocks = sum(self.kv.missing_blocks(probe, r.prompt_tokens + r.output_tokens) for r in here)
        self._recount_in = len(here)  # a constant cost per request, however many there are

    def _take_bookings(self, until_ns: int) -> None:
        """Blocks that were booked ahead, by that time."""
        bookings = self.bookings
        while bookings and bookings[0][0] <= until_ns:
            booked_ns, _, request = bookings.popleft()
            if self._samples.next_ns < booked_ns:
                self._sample(booked_ns)
            self.waiting_tokens += request.prompt_tokens + 1
            self.kv.allocate(request, request.prompt_tokens + 1)

    def _booked_by(self, time_ns: int) -> int:
        """Blocks booked ahead for that time or before, and not taken yet."""
        return sum(blocks for booked_ns, blocks, _ in self.bookings if booked_ns <= time_ns)

    def note_peak(self, free_blocks: int) -> None:
        """So few blocks are free now."""
        used = self.total_blocks - free_blocks
        if used > self.peak_used_blocks:
            self.peak_used_blocks = used

    def give_back(self, left: Request, now_ns: int) -> bool:
        """The KV of a request that was sent on is not needed here any more. True if that sets something going."""
        if self.due_ns <= now_ns:
            self.settle(now_ns)
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        self.kv.release(left, 0)
        self._changed = True
        if self.due_ns == FOREVER and (self.waiting or self.running_now):
            self._wake(now_ns)
            return True
        return False

    @property
    def takes_offers(self) -> bool:
        """No preempted request waits here."""
        return len(self.waiting) == self.ready_count

    def give_up(self, request: Request, now_ns: int) -> None:
        """The client has gone. Waiting: out at once. Running: out at the end of the step in flight, with no token."""
        self.interrupt(now_ns)
        self._note_lost(request)
        if request.state == WAITING:
            if request.held_blocks:
                self.ready_count -= 1
            self.waiting.remove(request)
            self.waiting_tokens -= request.target_tokens - request.computed_tokens
            self.kv.release(request, request.computed_tokens)
        elif self.stretch_steps:
            if self.stretch_steps > 1:
                self._split_stretch()
                self._note_lost(request)
            self._given_up.append(request)
            return
        else:
            if request.state == HELD:
                self._rejoin_held()
            self._drop_running(request)
        request.state = ENDED

    def _note_lost(self, request: Request) -> None:
        """What it had got by now, for the log."""
        columns = self._recorder.columns
        generated = request.generated_tokens
        if request.state == DECODING:
            generated += self.decode_step - request.joined_step
            if request not in self._behind:
                self._note_gap(request)
        columns.generated_tokens[request.id] = generated
        if generated > 1:
            columns.max_gap_ns[request.id] = request.max_gap_ns

    def _drop_given_up(self) -> None:
        """At the end of the step that they were still part of."""
        for request in self._given_up:
            if request.state == DECODING and self._decodes:
                self.kv.free_blocks += self.kv.growth_blocks_of(request, self.decode_step)
                self._decodes -= 1
            elif request.state == HELD:
                self._held.remove(request)
            self._drop_running(request)
            request.state = ENDED
        self._given_up.clear()
        self._changed = True

    def _split_stretch(self) -> None:
        """All steps of the stretch but the one in flight have happened; make that one a stretch of its own."""
        steps = self.stretch_steps
        duration = int(self._durations[steps - 1])
        end = int(self.ends_ns[steps - 1])
        start = int(self.ends_ns[steps - 2])
        self.stretch_steps = steps - 1
        self.stretch_end_ns = start
        self._apply()
        self.kv.free_blocks -= self.kv.growth_blocks(self.decode_step, 1)
        self.note_peak(self.kv.free_blocks)
        self._durations = [duration]
        self._ends = None
        self.stretch_start_ns = start
        self.stretch_steps = 1
        self.stretch_end_ns = self.due_ns = end

    # ---- records

    def _count_seconds(self, ends: Sequence[int], steps: int, end: int, decodes: int, sampled: int) -> None:
        """Tokens of a stretch that ends in a new second: book each step's in the second in which it ended."""
        counter = self._recorder.tokens_by_second
        if self._second_tokens:
            counter[self._second_end_ns // SECOND - 1] += self._second_tokens
        last = end // SECOND
        done = 0
        second = int(ends[0]) // SECOND
        while second < last:
            upto = bisect_left(ends, (second + 1) * SECOND, done, steps)
            counter[second] += decodes * (upto - done)
            done = upto
            second = int(ends[done]) // SECOND
        self._second_tokens = decodes * (steps - done) + sampled
        self._second_end_ns = (last + 1) * SECOND

    def _count_seconds_paced(self, pace: PaceTable, context: int, start: int, steps: int, end: int) -> None:
        """The same for decodes whose pace is in a table."""
        counter = self._recorder.tokens_by_second
        if self._second_tokens:
            counter[self._second_end_ns // SECOND - 1] += self._second_tokens
        last = end // SECOND
        decodes = pace.stride
        begin_ns = start - pace.before[context]
        done = 0
        while (second := (begin_ns + pace.before[context + (done + 1) * decodes]) // SECOND) < last:
            upto = pace.ends_before((second + 1) * SECOND, context, steps, start)
            counter[second] += decodes * (upto - done)
            done = upto
        self._second_tokens = decodes * (steps - done)
        self._second_end_ns = (last + 1) * SECOND

    def _sample(self, until_ns: int) -> None:
        """Timeline rows for the instants before ``until_ns``; only steps have gone by since the last row."""
        samples = self._samples
        if self.stretch_steps:
            self._sample_steps(
                self.stretch_start_ns, self._durations, self._shape, self.decode_step, self._decodes, until_ns
            )
            return
        samples.skip_gap(until_ns)
        while samples.next_ns < until_ns:
            free = self.kv.free_blocks - self._booked_by(samples.next_ns)
            samples.add((
                samples.next_ns, 0, len(self.waiting), len(self.running_now), 0, 0, 0,
                self.total_blocks - free, 0, free,
            ))  # fmt: skip

    def _sample_steps(
        self,
        start_ns: int,
        durations: Sequence[float] | NDArray[np.int64],
        shape: BatchShape,
        decode_step: int,
        decodes: int,
        until_ns: int,
    ) -> None:
        """Rows for the instants before ``until_ns`` in a stretch whose first step has its blocks."""
        samples, kv, inbox = self._samples, self.kv, self.inbox
        prefill, batch_decodes = shape.prefill_tokens, shape.decode_requests
        i = 0
        end_ns = start_ns + int(durations[0])
        while (time_ns := samples.next_ns) < until_ns:
            while end_ns <= time_ns:
                i += 1
                end_ns += int(durations[i])
            free = kv.free_blocks - self._booked_by(time_ns)
            if i and decodes:
                free -= kv.growth_blocks(decode_step + 1, i)
            waiting = len(self.waiting)
            if inbox and inbox[0].enters_ns <= time_ns:
                waiting += sum(request.enters_ns <= time_ns and request.state != ENDED for request in inbox)
            samples.add((
                time_ns, int(durations[i]), waiting, len(self.running_now), prefill + batch_decodes, prefill,
                batch_decodes, self.total_blocks - free, 0, free,
            ))  # fmt: skip
            if samples.every_step:
                samples.next_ns = end_ns if i + 1 < self.stretch_steps else FOREVER

    def _check_books(self) -> None:
        """Recount what the totals say, request by request. Raises AssertionError with the numbers."""
        blocks = self._simulation.blocks_between_pools(self)
        context = squares = decodes = other = 0
        for request in self.running_now:
            tokens = self.context_tokens_of(request)
            held = self.kv.missing_blocks(Request(0, 0, 1, 1), tokens)
            if request.state == DECODING:
                decodes += 1
                context += tokens
                squares += tokens * tokens
            else:
                other += tokens
                held = max(held, request.held_blocks)
            blocks += held
        blocks += sum(request.held_blocks for request in self.waiting)
        counted = (
            decodes,
            context,
            squares,
            other,
            blocks,
            sum(r.target_tokens - r.computed_tokens for r in self.waiting),
        )
        booked = (
            self.decoding_count, self._context, self._squares, self.other_context,
            self.total_blocks - self.kv.free_blocks,
            self.waiting_tokens - self._simulation.tokens_between_pools(self),
        )  # fmt: skip
        assert counted == booked, f"replica {self.id} at {self.boundary_ns} ns: counted {counted}, booked {booked}"
        assert self.kv.free_blocks >= 0, f"replica {self.id}: {self.kv.free_blocks} free blocks"
        assert self.boundary_ns >= self.stretch_start_ns, f"replica {self.id}: time went back"

    def stop(self, now_ns: int) -> None:
        """Let happen what is due by now; of a stretch in flight, the step in flight stays as it is."""
        self.settle(now_ns)
        if self.stretch_steps:
            self.interrupt(now_ns)
        self.plan_at(now_ns)
        if self.stretch_steps > 1:
            self._cut(now_ns)
        if self.stretch_steps > 1:
            self._split_stretch()
        self.note_peak(self.kv.free_blocks)

    def close(self, end_ns: int) -> None:
        """The run is over: write what is still open."""
        if self._samples.next_ns <= end_ns:
            self._sample(end_ns + 1)
        if self._second_tokens:
            self._recorder.tokens_by_second[self._second_end_ns // SECOND - 1] += self._second_tokens
            self._second_tokens = 0
        for request in self.running_now:
            if request.state != ENDED:
                self._note_lost(request)
        for request in self.waiting:
            self._note_lost(request)
