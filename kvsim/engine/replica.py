"""A replica in time: what is due happens, leap after leap, when somebody looks or something arrives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import accumulate

import numpy as np

from kvsim.core.request import DECODING, ENDED, HELD, WAITING, Request
from kvsim.core.shape import BatchShape
from kvsim.engine.books import SECOND
from kvsim.engine.clock import FOREVER
from kvsim.engine.pace import PaceTable
from kvsim.engine.recorder import LONGEST_PACKED_NS, PACK_AT
from kvsim.engine.steps import LONGEST_LEAP, Steps

_LONGEST_LIST = 256
"""Beyond so many steps arrays beat lists by more than the way to the plain path costs."""
_SHORTEST_PACED = 4
"""A list of so few steps is cheaper than look-ups all over a table (cache misses)."""
_INBOX = 512
_INBOX_OF_MANY = 128
"""With more than one replica: what is created must still be in the processor's cache when it is looked at."""
ROUND = 6755399441055744.0
"""1.5 * 2^52: x + ROUND - ROUND is x rounded half to even, for x below 2^51, in a third of the time of round()."""


class Replica(Steps):
    """What one engine does in time; ``ReplicaState`` is what it holds, ``Books`` its totals, ``Steps`` its steps."""

    __slots__ = ()

    # ---- time

    def settle(self, now_ns: int) -> None:
        """Let happen every arrival and end at or before ``now_ns``, and every plan before it."""
        inbox = self.inbox
        while True:
            if self.stretch_steps:
                if inbox and inbox[0].enters_ns <= (self.stretch_end_ns if self.stretch_end_ns < now_ns else now_ns):
                    self._arrive_in_flight(inbox[0].enters_ns, now_ns)
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
            and not self._circles
            and not self.offers
            and not self._given_up
            and not self.given_up_coming
        )

    def _run(self, now_ns: int) -> None:
        """Step after step and leap after leap until ``now_ns`` or until something is not as usual.

        The same as ``_launch`` and ``_apply`` in turn, in one loop that keeps its counters in locals: this is where a
        simulation spends its time. What is not as usual (a preemption, a held decode, a sample due, an end beyond now)
        is left to them. Each round is one stretch: arrive, plan, launch, apply.

        A replica that plans ahead differs in what a plan knows (what arrived until ``known``), in when an end is seen
        (after the next plan), and in the host's time, which its steps do not take unless nothing ran meanwhile.
        """
        (
            inbox, waiting, prefilling, running_now, finishing, kv, growth_blocks, release, join, step_s, steps_s,
            decode_line, gap_starts, gap_sizes, values, weights, decode_shape, samples, longest_last, total_blocks,
            behind, bookings, paces, paced, finish_column, max_gap_column, first_token_column, computed_column, cache,
        ) = self._tools  # fmt: skip
        ahead, leaving, host_ns = self.ahead, self._leaving, self._host_ns
        rounding = ROUND + host_ns
        sample_ns = samples.next_ns
        steps_run = stretches_run = 0
        least_free = total_blocks - self.peak_used_blocks
        start = self.boundary_ns
        known = self._seen_ns if ahead else start
        idle = self._idle
        decodes = self.decoding_count
        context, squares, step = self._context, self._squares, self.decode_step
        duration, leap = self._duration, self._leap
        place = 0
        sums: Sequence[int]
        flying = self.stretch_steps > 0
        while True:
            if flying:  # a stretch that was launched earlier has ended by now
                flying = False
                start, end, steps = self.stretch_start_ns, self.stretch_end_ns, self.stretch_steps
                if sample_ns < end:
                    self._sample(end)
                    sample_ns = samples.next_ns
                chunks = self._chunks
                self._chunks = ()
                self.stretch_steps = 0
                free = kv.free_blocks
                if steps > 1:
                    kv.free_blocks = free = free - growth_blocks(step + 1, steps - 1)
                pace = self._flight
                if pace:
                    place = self._flight_place
                    largest = lasted = pace.duration[place + steps - 1]
                else:
                    launched = self.durations_ns
                    if len(launched) != steps:
                        launched = launched[:steps]
                    lasted = int(launched[-1])
                    largest = lasted if longest_last else int(max(launched))
                    durations = launched if isinstance(launched, list) else launched.tolist()
                    if behind:
                        self._gaps.add(durations[:1], decodes - len(behind), durations[0])
                        self._gaps.add(durations[1:], decodes, largest)
                    elif decodes:
                        self._gaps.add(launched, decodes, largest)
            else:
                # ---- arrive
                arrival_ns = inbox[0].enters_ns if inbox else FOREVER
                if arrival_ns <= known:
                    while arrival_ns <= known:
                        request = inbox.popleft()
                        if request.state:
                            self._deliver(request)
                        else:
                            waiting.append(request)
                            self.waiting_tokens += request.prompt_tokens
                        arrival_ns = inbox[0].enters_ns if inbox else FOREVER
                    self._changed = True
                if known >= now_ns:
                    break
                # ---- plan and launch
                wait_ns = 0
                if ahead:
                    if known > start and (waiting or running_now):  # the device is idle
                        if decodes or sample_ns < known:
                            break
                        start = known
                    if known + host_ns > start:
                        wait_ns = known + host_ns - start
                pace = None
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
                    # Nothing planned, or somebody was preempted or held, or swapped in, or has a last step for nothing:
                    if (
                        not (chunks or plan.joined)
                        or self._decodes != decodes + plan.joined
                        or plan.preempted
                        or self._asking
                        or self._to_copy
                        or self._unforeseen
                    ):
                        self._seen_ns, self._idle = known, idle
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
                    lasted = round(step_s(shape) * 1e9) - host_ns
                    largest = wait_ns + lasted
                    end = start + largest
                    free = kv.free_blocks
                    if leaving:
                        if free < least_free:
                            self.note_peak(free)
                            least_free = free
                        self._see_results()
                        free = kv.free_blocks
                    if end > now_ns or largest >= LONGEST_PACKED_NS:
                        self._chunks = chunks
                        self._seen_ns, self._idle = known, False
                        self._device_ns = (lasted,) if wait_ns else ()
                        self._duration = duration
                        self.steps += steps_run
                        self.stretches += stretches_run
                        self._fly(start, end, 1, [largest], None, 0, shape, decodes, leap)
                        return
                    if sample_ns < end:
                        self._sample_steps(start, (0, largest), 0, 1, shape, step, decodes, end)
                        sample_ns = samples.next_ns
                    if decodes:
                        values.append(largest)
                        weights += (decodes - len(behind) if behind else decodes, 1)
                elif self._unforeseen:
                    break
                elif not decodes:
                    if leaving and not (waiting or prefilling) and sample_ns >= start + wait_ns:
                        self._see_results()
                        known = start + wait_ns  # a plan without tokens takes the host's time, while nothing else runs
                        idle = True
                        continue
                    if leaving or waiting or prefilling or arrival_ns > now_ns or sample_ns < arrival_ns:
                        break
                    if start < arrival_ns:
                        start = arrival_ns  # idle until then
                    known, idle = start, True
                    continue
                else:
                    finish, admission, request = finishing[0]
                    while request.finish_step != finish or request.admission != admission or request.state != DECODING:
                        heappop(finishing)
                        finish, admission, request = finishing[0]
                    steps = finish - step
                    if prefilling or once:
                        steps = 1
                    if decodes < paced and steps > _SHORTEST_PACED:
                        pace = paces[decodes]
                        if pace is None or pace.size <= context + steps * decodes:
                            pace, steps = self._pace.reach(decodes, context, steps)
                    if pace:
                        sums = pace.before
                        place = context // decodes + context % decodes * pace.rounds
                        begin_ns = start - sums[place]
                        after = place + steps
                        # The last one is launched after the arrival (ahead: all but one more are planned after it).
                        if begin_ns + sums[after - 1] >= arrival_ns:
                            after = ahead + bisect_left(sums, arrival_ns - begin_ns, place + 1 - ahead, after)
                            steps = after - place
                        end = begin_ns + sums[after]
                        if end > now_ns and steps > leap:
                            steps = leap
                            after = place + steps
                            end = begin_ns + sums[after]
                        duration = lasted = largest = pace.duration[after - 1]
                        if host_ns and (wait_ns or pace.duration[place] < host_ns):
                            break  # the host is not hidden: what is waited for only ``_launch`` keeps
                    else:
                        if steps > leap:
                            steps = leap
                        if duration and arrival_ns < FOREVER:
                            # Not many more than there is time for: what is beyond the arrival is thrown away.
                            until_arrival = (arrival_ns - start) // duration + 2 + ahead
                            if steps > until_arrival:
                                steps = until_arrival if until_arrival > 0 else 1
                        if steps > _LONGEST_LIST:
                            break
                        if decode_line:
                            fixed_s, token_s = decode_line(decodes)
                            upto = context + steps * decodes
                            durations = [
                                (fixed_s + tokens * token_s) * 1e9 + ROUND - rounding
                                for tokens in range(context, upto, decodes)
                            ]
                        else:
                            decode_shape.decode_requests = decode_shape.sampled_requests = decodes
                            decode_shape.decode_context_tokens = context
                            decode_shape.decode_context_squares = squares
                            seconds = steps_s(decode_shape, steps)
                            if type(seconds) is not list:
                                seconds = np.asarray(seconds).tolist()
                            durations = [s * 1e9 + ROUND - rounding for s in seconds]
                        end = start + int(sum(durations))
                        duration = int(durations[-1])
                        while end - duration >= arrival_ns:  # this one would be launched after the arrival
                            if ahead and (len(durations) == 1 or end - duration - int(durations[-2]) < arrival_ns):
                                break  # but planned before it
                            durations.pop()
                            end -= duration
                            duration = int(durations[-1])
                        steps = len(durations)
                        lasted = duration
                        largest = duration if longest_last else int(max(durations))
                        if host_ns and (wait_ns or min(durations) < host_ns):
                            break
                    growth = growth_blocks(step, steps)
                    free = kv.free_blocks - growth
                    if free < 0 or largest >= LONGEST_PACKED_NS:
                        break
                    taken = 0
                    if leaving:
                        taken = growth_blocks(step, 1)
                        kv.free_blocks = free = kv.free_blocks - taken
                        if free < least_free:
                            self.note_peak(free)
                            least_free = free
                        self._see_results()
                        free = kv.free_blocks + taken - growth
                    if steps == leap < LONGEST_LEAP:
                        leap = steps * 2
                    if end > now_ns:
                        self.boundary_ns = self._cohort_ns = start
                        self.decoding_count = decodes
                        self._context, self._squares, self.decode_step = context, squares, step
                        kv.free_blocks -= growth_blocks(step, 1) - taken
                        self._seen_ns, self._idle, self._device_ns = known, False, ()
                        self._duration = duration
                        self.steps += steps_run
                        self.stretches += stretches_run
                        decode_shape.decode_requests = decode_shape.sampled_requests = decodes
                        decode_shape.decode_context_tokens = context
                        decode_shape.decode_context_squares = squares
                        flown = None if pace else [int(d) for d in durations]
                        self._fly(start, end, steps, flown, pace, place, decode_shape, decodes, leap)
                        return
                    if sample_ns < end:
                        kv.free_blocks -= growth_blocks(step, 1) - taken
                        decode_shape.decode_requests = decodes
                        if not pace:
                            place, sums = 0, [0, *map(int, accumulate(durations))]
                        self._sample_steps(start, sums, place, steps, decode_shape, step, decodes, end)
                        sample_ns = samples.next_ns
                    kv.free_blocks = free
                    if not pace:
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
                if pace:
                    begun = pace.begun
                    begun[place] += decodes
                    begun[place + steps] -= decodes
                    if behind:
                        begun[place] -= len(behind)
                        begun[place + 1] += len(behind)
                squares += steps * (2 * context + tokens)
                context += tokens
                step += steps
                if behind:
                    first, later = largest, 0
                    if steps > 1:
                        first = pace.duration[place] if pace else int(durations[0])
                        later = largest if longest_last else int(max(durations[1:]))
                    self._pause_ends(start, start + first, decodes, later)
                else:
                    while gap_sizes and gap_sizes[-1] <= largest:
                        gap_sizes.pop()
                        gap_starts.pop()
                    gap_sizes.append(largest)
                    gap_starts.append(start)
                if cache and chunks and finishing and finishing[0][0] <= step:
                    self._release_in_order(chunks, step)
                while finishing and finishing[0][0] <= step:
                    finish, admission, request = heappop(finishing)
                    if request.finish_step != finish or request.admission != admission or request.state != DECODING:
                        continue
                    if ahead:
                        self.decoding_count, self._context, self._squares = decodes, context, squares
                        self.decode_step, self._cohort_ns = step, end
                        self._finish_decode(request, end)
                        decodes, context, squares = self.decoding_count, self._context, self._squares
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
                        request.generated_tokens
                        or request.output_tokens == 1
                        or after < request.target_tokens
                        or (before and prefilling)
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
                    if before:
                        self.other_context -= before  # found in the cache
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
                self._count_seconds_paced(pace, place, start, steps, end, tokens // steps)
            else:
                ends = [start + int(e) for e in accumulate(durations)]
                self._count_seconds(ends, steps, end, tokens // steps, 0)
            start = known = end
            idle = False
            if ahead:
                known -= lasted
        self.boundary_ns = self._cohort_ns = start
        self.decoding_count = decodes
        self._context, self._squares, self.decode_step = context, squares, step
        self._duration, self._leap = duration, leap
        self.steps += steps_run
        self.stretches += stretches_run
        if ahead:
            self._seen_ns, self._idle = known, idle
        self.due_ns = known + 1 if running_now or waiting or ahead else FOREVER
        if len(values) >= PACK_AT:
            self._gaps.pack()
        if known < now_ns and self.due_ns < FOREVER and arrival_ns > known:
            self._launch()

    def _see_results(self) -> bool:
        """Whoever was found to be done leaves. Returns False if a step is computed for nothing."""
        return True

    def _fly(
        self,
        start: int,
        end: int,
        steps: int,
        durations: list[int] | None,
        pace: PaceTable | None,
        place: int,
        shape: BatchShape,
        decodes: int,
        leap: int,
    ) -> None:
        """A stretch of the fast loop that does not end at once: in flight like any other."""
        self._decodes = decodes
        self._shape = shape
        self._durations = durations
        self._flight = pace
        self._flight_place = place
        self._leap = leap
        self._ends = None
        self.stretch_start_ns = start
        self.stretch_steps = steps
        self.stretch_end_ns = self.due_ns = end
        self.note_peak(self.kv.free_blocks)
        if len(self._gaps.values) >= PACK_AT:
            self._gaps.pack()

    def plan_at(self, now_ns: int) -> None:
        """Let happen everything up to and including the plan at ``now_ns``."""
        self.settle(now_ns)
        if self._asleep and self.due_ns == now_ns + 1 < FOREVER:
            self._wake(now_ns)  # a review is due
        self.plan_now(now_ns)

    def plan_now(self, now_ns: int) -> None:
        """Plan and launch if that is due now; everything before it has happened."""
        while not self.stretch_steps and self.boundary_ns == now_ns and self.due_ns == now_ns + 1 < FOREVER:
            self._launch()
            if self.due_ns <= now_ns:
                self.settle(now_ns)

    @property
    def _asleep(self) -> bool:
        """Nothing is in flight or due: until something comes, or until a review."""
        return not self.stretch_steps and self.due_ns > self.boundary_ns + 1

    def _wake(self, now_ns: int) -> None:
        """It slept, and may have something to do from now on."""
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        if self.boundary_ns < now_ns:
            self.boundary_ns = now_ns
        self.due_ns = self.boundary_ns + 1
        self._circles = False
        self._rounds = 0

    # ---- interruptions

    def interrupt(self, now_ns: int) -> None:
        """Something changes now: settle, and let the step in flight be the last of its stretch."""
        self.settle(now_ns)
        if self.stretch_steps > 1:
            self._cut(now_ns)
            if self.stretch_end_ns <= now_ns:
                self._apply()
        if self.stretch_steps:
            self.note_peak(self.blocks_free_now)
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        self._changed = True
        self._circles = False
        if self._asleep:
            self._wake(now_ns)

    def _split_stretch(self) -> None:
        """All steps of the stretch but the one in flight have happened; make that one a stretch of its own."""
        steps = self.stretch_steps
        duration = int(self.durations_ns[steps - 1])
        end = int(self.end_of(steps))
        start = int(self.end_of(steps - 1))
        self.stretch_steps = steps - 1
        self.stretch_end_ns = start
        self._apply()
        self.kv.free_blocks -= self.kv.growth_blocks(self.decode_step, 1)
        self.note_peak(self.kv.free_blocks)
        self._durations = [duration]
        self._ends = self._flight = None
        self.stretch_start_ns = start
        self.stretch_steps = 1
        self.stretch_end_ns = self.due_ns = end

    # ---- visitors: requests that arrive, are sent on, or give up

    def enqueue(self, request: Request, now_ns: int) -> None:
        """A request arrives. Unless somebody watches, it is enough to look at the inbox once it is full."""
        self.inbox.append(request)
        if self.eager or len(self.inbox) >= _INBOX_OF_MANY:
            self.settle(now_ns)

    def enqueue_rows(
        self, rows: Sequence[tuple[int, int, int, int]], complete: Callable[[Request], None] | None
    ) -> None:
        """The same for many requests (id, arrival ns, prompt tokens, output tokens) that nobody watches."""
        for first in range(0, len(rows), _INBOX):
            requests = [Request(*row) for row in rows[first : first + _INBOX]]
            if complete:
                for request in requests:
                    complete(request)
            self.inbox.extend(requests)
            self.settle(self.inbox[-1].enters_ns)

    def _arrive_in_flight(self, first_ns: int, now_ns: int) -> None:
        """A request arrives before the stretch in flight has ended, and perhaps others behind it."""
        if self.stretch_steps > 1:
            self._cut(first_ns)
        self._arrive(min(now_ns, self.stretch_end_ns))

    def book_ahead(self, request: Request, now_ns: int) -> bool:
        """Book blocks for a request that is on its way, if no request could possibly be short of blocks here.

        Nothing that happens here matters to anybody then, so unless somebody wants this replica as it is now, the
        steps until now can wait, and be taken together.
        """
        if not self._books_ahead or self.watchers or self.offers:
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
        if self.eager or len(self.bookings) >= _INBOX:
            self.settle(now_ns)
            if not self.stretch_steps:
                self.note_peak(self.kv.free_blocks)  # its client may give up before anything is launched
        return True

    def _recount_sure_blocks(self, now_ns: int) -> None:
        self.settle(now_ns)
        here = [*self.running_now, *self.waiting, *self._simulation.on_their_way_to(self)]
        self._sure_blocks = sum(self._blocks_of(r.prompt_tokens + r.output_tokens) for r in here)
        if not self.takes_offers:
            self._sure_blocks = FOREVER  # not before those who were preempted run again
        self._recount_in = len(here)  # a constant cost per request, however many there are

    def give_back(self, left: Request, now_ns: int) -> bool:
        """The KV of a request that was sent on is not needed here any more. True if that sets something going."""
        if self.due_ns <= now_ns:
            self.settle(now_ns)
        if self._samples.next_ns < now_ns:
            self._sample(now_ns)
        self.kv.release(left, 0)
        self._changed = True
        if self._asleep and (self.waiting or self.running_now):
            self._wake(now_ns)
            return True
        return False

    def give_up(self, request: Request, now_ns: int) -> None:
        """The client has gone. Waiting: out at once. Running: out at the end of the step in flight, with no token."""
        self.interrupt(now_ns)
        self._note_lost(request)
        if request.state == WAITING:
            if request.held_blocks:
                self.ready_count -= 1
                self.kv.release(request, request.computed_tokens)
            elif request.computed_tokens:  # swapped
                self.ready_count -= 1
                self.host_free_blocks += self._host_blocks_of(request.computed_tokens)
            self.waiting.remove(request)
            self.waiting_tokens -= request.target_tokens - request.computed_tokens
            self._asking |= self.memory is not None  # what is remembered may not be so any more
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

    # ---- the end

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
