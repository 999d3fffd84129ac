"""The books of a replica: requests that come, join the decodes, leave and end, and what is recorded of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heappush
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from kvsim.core.request import DECODING, ENDED, HELD, WAITING, Request
from kvsim.core.shape import BatchShape
from kvsim.engine.clock import FOREVER
from kvsim.engine.pace import PaceTable
from kvsim.engine.recorder import PACK_AT
from kvsim.engine.state import ReplicaState

SECOND = 1_000_000_000

_NOBODY = Request(0, 0, 1, 1)
"""A request that holds nothing."""


class Books(ReplicaState):
    """Keeps the totals right, whoever joins or leaves; knows nothing of plans and little of time."""

    __slots__ = ()

    # ---- requests come and go

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
        self._circles = False

    def _deliver(self, request: Request) -> None:
        """A request whose KV was sent here: it is served before those that still need a prefill."""
        if request.state == ENDED:  # abandoned on the way
            self.given_up_coming -= 1
            self.waiting_tokens -= request.prompt_tokens + 1
            later = self.kv.growth_blocks(self.decode_step + 1, self.stretch_steps - 1) if self.stretch_steps > 1 else 0
            self.note_peak(self.kv.free_blocks - later)
            self.kv.release(request, 0)
            return
        request.state = WAITING
        self.waiting_tokens -= request.prompt_tokens  # one token is left to do
        self.waiting.insert(self.ready_count, request)
        self.ready_count += 1

    def preempt(self, request: Request, scheduled: int, swap: bool = False) -> bool:
        """A running request loses its blocks and waits again, ahead of those that have not run.

        ``scheduled``: its tokens in the step being planned, out of which it is taken. ``swap``: its KV goes to host
        memory if there is room. Returns whether it did.
        """
        context = self.context_tokens_of(request)
        host_blocks = self._host_blocks_of(context) if swap and self.host else 0
        swap = 0 < host_blocks <= self.host_free_blocks
        if self.decisions:
            blocks = max(request.held_blocks, self._blocks_of(context + scheduled))
            self.decisions.preempted(request, context, self._known_tokens(request), blocks, swap)
        self._drop_running(request, scheduled, resumes=True)
        columns = self._recorder.columns
        request.state = WAITING
        request.finish_step = 0
        request.preemptions += 1
        columns.preemptions[request.id] += 1
        self.waiting.insert(self.ready_count, request)
        if swap:
            self.ready_count += 1
            self.host_free_blocks -= host_blocks
            self._to_copy += host_blocks
            columns.swaps[request.id] += 1
            columns.swapped_tokens[request.id] += context
        else:
            request.computed_tokens = 0
        self.waiting_tokens += request.target_tokens - request.computed_tokens
        self._changed = True
        return swap

    def swapped_in(self, request: Request) -> None:
        """A swapped request runs again: its KV is copied back before the coming step."""
        blocks = self._host_blocks_of(request.computed_tokens)
        self.host_free_blocks += blocks
        self._to_copy += blocks

    def _blocks_of(self, tokens: int) -> int:
        """Blocks that hold a context of so many tokens."""
        return self.kv.missing_blocks(_NOBODY, tokens)

    def _host_blocks_of(self, context_tokens: int) -> int:
        return -(-context_tokens // self._block_size)

    def _known_tokens(self, request: Request) -> int:
        """Generated tokens that the scheduler has seen."""
        generated = request.generated_tokens
        if request.state == DECODING:
            generated += self.decode_step - request.joined_step
        return generated

    def _drop_running(self, request: Request, scheduled: int = 0, resumes: bool = False) -> None:
        """Out of the running list, with all its blocks, those for ``scheduled`` tokens of this step included."""
        del self.running_now[request]
        if request.state == DECODING:
            self._leave_decodes(request)
        else:
            self.other_context -= request.computed_tokens
            if request in self.prefilling:
                self.prefilling.remove(request)
        if resumes and self.cache:
            self.cache.release(request, request.computed_tokens + scheduled, resumes=True)
        else:
            self.kv.release(request, request.computed_tokens + scheduled)

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

    def _leave_decodes(self, request: Request, registered: int | None = None) -> None:
        """Out of the totals before its end; what it knows of itself is brought up to date.

        ``registered``: so many of its tokens can be in blocks with a name by now (all, if it is not said).
        """
        steps = self.decode_step - request.joined_step
        context = request.computed_tokens + steps
        request.computed_tokens = context
        request.generated_tokens += steps
        request.target_tokens += steps
        self.decoding_count -= 1
        self._context -= context
        self._squares -= context * context
        self.kv.leave(request, context if registered is None else registered)
        if request in self._behind:
            self._behind.remove(request)
        else:
            self._note_gap(request)
            request.gap_from_ns = self._cohort_ns

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

    def _drop_given_up(self) -> None:
        """At the end of the step that they were still part of."""
        for request in self._given_up:
            scheduled = next((tokens for other, _, tokens in self._chunks if other is request), 0)
            if request.state == DECODING and self._decodes:
                scheduled = 1
                self._decodes -= 1
            elif request.state == HELD:
                self._held.remove(request)
            self._drop_running(request, scheduled)
            request.state = ENDED
        self._given_up.clear()
        self._changed = True

    def _take_bookings(self, until_ns: int) -> None:
        """Blocks that were booked ahead, by that time."""
        bookings = self.bookings
        while bookings and bookings[0][0] <= until_ns:
            booked_ns, _, request = bookings.popleft()
            if self._samples.next_ns < booked_ns:
                self._sample(booked_ns)
            self.waiting_tokens += request.prompt_tokens + 1
            self.kv.allocate(request, request.prompt_tokens + 1)

    @property
    def takes_offers(self) -> bool:
        """No preempted request waits here."""
        return len(self.waiting) == self.ready_count

    @property
    def blocks_free_now(self) -> int:
        """Free blocks, those taken for the step in flight counted out."""
        free = self.kv.free_blocks
        if self.stretch_steps > 1 and (done := self.ended_before(self._simulation.now_ns + 1)):
            free -= self.kv.growth_blocks(self.decode_step + 1, done)
        return free

    # ---- gaps between tokens

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

    # ---- records

    def note_peak(self, free_blocks: int) -> None:
        """So few blocks are free now."""
        used = self.total_blocks - free_blocks
        if used > self.peak_used_blocks:
            self.peak_used_blocks = used

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

    def _count_seconds(self, ends: Sequence[int], steps: int, end: int, decodes: int, sampled: int) -> None:
        """Tokens of a stretch that ends in a new second: book each step's in the second in which it ended."""
        counter = self._recorder.tokens_by_second
        if len(counter) >= PACK_AT:
            self._recorder.pack_seconds()
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

    def _count_seconds_paced(self, pace: PaceTable, place: int, start: int, steps: int, end: int, decodes: int) -> None:
        """The same for decodes whose pace is in a table."""
        counter = self._recorder.tokens_by_second
        if len(counter) >= PACK_AT:
            self._recorder.pack_seconds()
        if self._second_tokens:
            counter[self._second_end_ns // SECOND - 1] += self._second_tokens
        last = end // SECOND
        begin_ns = start - pace.before[place]
        done = 0
        while (second := (begin_ns + pace.before[place + done + 1]) // SECOND) < last:
            upto = pace.ended_before((second + 1) * SECOND, place, steps, start)
            counter[second] += decodes * (upto - done)
            done = upto
        self._second_tokens = decodes * (steps - done)
        self._second_end_ns = (last + 1) * SECOND

    def _sample(self, until_ns: int) -> None:
        """Timeline rows for the instants before ``until_ns``; only steps have gone by since the last row."""
        samples = self._samples
        if self.stretch_steps:
            sums: Sequence[int]
            if self._flight:
                sums, place = self._flight.before, self._flight_place
            else:
                sums, place = [self.stretch_start_ns, *self.ends_ns], 0
            self._sample_steps(
                self.stretch_start_ns,
                sums,
                place,
                self.stretch_steps,
                self._shape,
                self.decode_step,
                self._decodes,
                until_ns,
            )
            return
        if samples.every_step:  # the next row comes with the next step
            samples.next_ns = FOREVER
            return
        samples.skip_gap(until_ns)
        while samples.next_ns < until_ns:
            free = self.kv.free_blocks - self._booked_by(samples.next_ns)
            cached = min(free, self.cache.free_cached) if self.cache else 0
            samples.add((
                samples.next_ns, 0, len(self.waiting), len(self.running_now), 0, 0, 0,
                self.total_blocks - free, cached, free - cached,
            ))  # fmt: skip

    def _sample_steps(
        self,
        start_ns: int,
        sums: Sequence[int],
        place: int,
        steps: int,
        shape: BatchShape,
        decode_step: int,
        decodes: int,
        until_ns: int,
    ) -> None:
        """Rows for the instants before ``until_ns`` in a stretch whose first step has its blocks.

        Step i of the stretch, the first being 0, ends ``sums[place + i + 1] - sums[place]`` ns after its start.
        """
        samples, kv = self._samples, self.kv
        prefill, batch_decodes = shape.prefill_tokens, shape.decode_requests
        begin_ns = start_ns - sums[place]
        first = place + 1
        while (time_ns := samples.next_ns) < until_ns:
            following = bisect_right(sums, time_ns - begin_ns, first, first + steps)
            i = following - first
            free = kv.free_blocks
            if self.bookings:
                free -= self._booked_by(time_ns)
            if i and decodes:
                free -= kv.growth_blocks(decode_step + 1, i)
            cached = min(free, self.cache.free_cached) if self.cache else 0  # blocks without content are taken first
            waiting = len(self.waiting)
            for request in self.inbox:
                if request.enters_ns > time_ns:
                    break
                waiting += request.state != ENDED
            samples.add((
                time_ns, sums[following] - sums[following - 1], waiting, len(self.running_now),
                prefill + batch_decodes, prefill, batch_decodes, self.total_blocks - free, cached, free - cached,
            ))  # fmt: skip
            if samples.every_step:
                samples.next_ns = begin_ns + sums[following] if i + 1 < steps else FOREVER

    def _booked_by(self, time_ns: int) -> int:
        """Blocks booked ahead for that time or before, and not taken yet."""
        return sum(blocks for _, blocks, _ in takewhile(lambda booking: booking[0] <= time_ns, self.bookings))

    def _check_books(self) -> None:
        """Recount what the totals say, request by request. Raises AssertionError with the numbers."""
        blocks = self._simulation.blocks_between_pools(self)
        context = squares = decodes = other = 0
        for request in self.running_now:
            tokens = self.context_tokens_of(request)
            held = self._blocks_of(tokens)
            if request.state == DECODING:
                decodes += 1
                context += tokens
                squares += tokens * tokens
            else:
                other += tokens
                held = max(held, request.held_blocks)
            blocks += held
        blocks += sum(request.held_blocks for request in self.waiting)
        if self.host:
            swapped = sum(self._host_blocks_of(request.computed_tokens) for request in self.waiting)
            kept = self.host.blocks - self.host_free_blocks
            assert swapped == kept, f"replica {self.id}: counted {swapped} blocks in host memory, booked {kept}"
            assert self.host_free_blocks >= 0, f"replica {self.id}: {self.host_free_blocks} free blocks in host memory"
        if self.cache:
            self.cache.check([*self.running_now, *self.waiting])
            blocks -= self.cache.doubled
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
