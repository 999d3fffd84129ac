"""A step of a replica: planned, launched, applied."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from heapq import heappop

import numpy as np

from kvsim.core.request import DECODING, ENDED, Request
from kvsim.core.shape import BatchShape
from kvsim.engine.books import Books
from kvsim.engine.clock import FOREVER
from kvsim.engine.plan import Plan

SHORTEST_LEAP, LONGEST_LEAP = 4, 4096
_ROUNDS = 100


class Steps(Books):
    """The three moments of a step, each in its own methods; a stretch is one or more steps with the same batch."""

    __slots__ = ()

    # ---- planned and launched

    def _launch(self) -> None:
        """Plan the step that starts at the boundary and send it off, with as many like it as are sure to follow."""
        start = self.boundary_ns
        if self._circles:
            self.due_ns = FOREVER
            return
        if self.bookings:
            self._take_bookings(start)
        if self.offers:
            self._simulation.take_offers(self, start)
        self._send_off(self._planned(start))

    def _planned(self, start: int) -> Plan | None:
        """The step that starts there, by the scheduler if it has anything to decide (None: everybody decodes).

        The blocks for it are taken.
        """
        kv = self.kv
        growth = kv.growth_blocks(self.decode_step, 1)
        if (
            growth > kv.free_blocks
            or self._asking
            or ((self.waiting or self.prefilling) and (self._changed or not self._leaps))
        ):
            return self._consult(start)
        self._changed = False
        self._decodes = self.decoding_count
        kv.free_blocks -= growth
        return None

    def _send_off(self, plan: Plan | None) -> None:
        """Launch what was planned (None: everybody decodes). The blocks for its first step are taken."""
        self.stretch_start_ns = start = self.boundary_ns
        self.note_peak(self.kv.free_blocks)
        shape = self._compose(plan)
        if plan and plan.preempted:
            self._look_for_circles()
        if shape is None:
            self._sleep()
            if self.decisions and plan:
                self.decisions.launched(self, plan, start, start)
            return
        copy_ns = self._copy() if self._to_copy else 0
        steps = self._sure_steps() if self._leaps and not (self._changed or self._chunks or copy_ns) else 1
        if self._samples.every_step:
            self._samples.next_ns = start
        self.stretch_steps = steps
        if steps == 1:
            duration = copy_ns + round(self._step_s(shape) * 1e9)
            self._durations = [duration]
            self._ends = self._flight = None
            self.due_ns = self.stretch_end_ns = start + duration
        else:
            self._launch_leap(shape, steps)
        if self.decisions:
            self.decisions.launched(self, plan, start, self.stretch_end_ns)

    def _copy(self) -> int:
        """Blocks go to host memory or come back before the step that is sent off. Returns the ns that this takes."""
        assert self.host
        copy_ns = round(self._to_copy * self.host.block_copy_s * 1e9)
        self.copied_blocks += self._to_copy
        self.copy_ns += copy_ns
        self._to_copy = 0
        return copy_ns

    def _compose(self, plan: Plan | None) -> BatchShape | None:
        """What was planned, as the cost model sees it; None if it is nothing."""
        decodes = self._decodes
        if plan and plan.chunks:
            self._chunks = plan.chunks
            self._shape = shape = plan.shape
            if decodes:
                shape.decode_context_tokens += self._context
                shape.decode_context_squares += self._squares
                shape.sampled_requests += decodes
            shape.decode_requests = decodes + plan.chunk_decodes
            return shape
        if decodes:
            self._shape = shape = self._decode_shape
            shape.decode_requests = shape.sampled_requests = decodes
            shape.decode_context_tokens = self._context
            shape.decode_context_squares = self._squares
            return shape
        return None

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
        """Everybody was preempted, and as many blocks are free as the last time, for the same requests and tokens.

        A prompt that is admitted without blocks for all of it, and outgrows them each time, would go on for ever: the
        replica waits for something to change instead.
        """
        if self.running_now:
            return False
        was, self._emptied = self._emptied, (
            self.kv.free_blocks, [(request.id, request.target_tokens) for request in self.waiting]
        )  # fmt: skip
        return was == self._emptied

    def _look_for_circles(self) -> None:
        """After a plan that preempted: is all as it was after another one? Then it may go on like this for ever.

        Prompts that were admitted without blocks for all of them can displace each other. After ``_ROUNDS`` of it (a
        policy may look at the time, or remember) the replica stops planning until something comes or goes. (What is
        compared with is replaced at the 1st, 2nd, 4th, ... such plan: R. P. Brent, "An improved Monte Carlo
        factorization algorithm", BIT 20, 1980.)
        """
        self._with_victims += 1
        replaced = self._with_victims & (self._with_victims - 1) == 0
        brief = (self.kv.free_blocks, self.decode_step, len(self.running_now), len(self.waiting))
        if replaced or brief == self._was[:4]:
            requests = [*self.running_now, *self.waiting]
            state = (
                *brief,
                [(request.id, request.target_tokens, self.context_tokens_of(request)) for request in requests],
            )
            if state == self._was:
                self._rounds += 1
                self._circles = self._rounds >= _ROUNDS
            if replaced:
                self._was = state
                self._rounds = 0

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
            until_arrival = (self.inbox[0].enters_ns - self.stretch_start_ns) // self._duration + 1 + self.ahead
            if steps > until_arrival:
                steps = until_arrival
        if steps > 1:
            steps = 1 + self.kv.steps_until_short(step + 1, steps - 1)
        return steps

    def _launch_leap(self, shape: BatchShape, steps: int) -> None:
        seconds = self._steps_s(shape, steps)
        start = self.stretch_start_ns
        self._ends = self._flight = None
        if type(seconds) is list:
            self._durations = durations = [round(s * 1e9) for s in seconds]
            end = start + sum(durations)
        else:
            self._durations = rounded = np.rint(np.asarray(seconds) * 1e9).astype(np.int64)
            end = start + int(rounded.sum())
        if self._review_ns < FOREVER:
            self.stretch_steps = steps = min(steps, bisect_left(self.ends_ns, self._review_ns) + 1)
            end = int(self.ends_ns[steps - 1])
        if steps == self._leap < LONGEST_LEAP:
            self._leap = steps * 2
        self._duration = int(self._durations[-1])
        self.stretch_end_ns = self.due_ns = end

    def _sleep(self) -> None:
        """Nothing can be scheduled: until something comes, or until the time at which the policy asked to be called."""
        # With nobody here a review has nothing to look at; a policy that always asks for one would never end the run.
        later = bool(self.waiting or self.running_now) and self.boundary_ns < self._review_ns < FOREVER
        self.due_ns = self._review_ns + 1 if later else FOREVER

    # ---- applied

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
            durations = self.durations_ns
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
            if self.cache and self._chunks and finishing and finishing[0][0] <= step:
                self._release_in_order(self._chunks, step)
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
            self._finish_chunk(request, context, end)
        elif self.role == "prefill":
            del self.running_now[request]
            self._simulation.offer(request, end)
        else:
            self._join_decodes(request, context)
        return 1

    def _finish_chunk(self, request: Request, context: int, end: int) -> None:
        """Its last token came with the chunk that made its context whole."""
        del self.running_now[request]
        self.kv.release(request, context)
        self._end_request(request, end)

    def _release_in_order(self, chunks: Sequence[tuple[Request, int, int]], step: int) -> None:
        """Decodes end with this step. If requests end with a chunk as well, all give back their blocks as scheduled.

        Which blocks are reused first depends on it.
        """
        leaving = [
            (request, before + tokens)
            for request, before, tokens in chunks
            if before + tokens == request.target_tokens
            and request.generated_tokens + 1 == request.output_tokens
            and request.state != ENDED
        ]
        if leaving:
            for finish, admission, request in self._finishing:
                is_valid = request.finish_step == finish and request.admission == admission
                if finish <= step and is_valid and request.state == DECODING:
                    leaving.append((request, request.prompt_tokens + request.output_tokens - 1))
            leaving.sort(key=lambda entry: entry[0].admission)
            assert self.cache
            self.cache.release_all(leaving)

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

    # ---- in flight

    def _cut(self, now_ns: int) -> None:
        """Of a stretch of many steps only those follow that are launched before now."""
        steps = self.ended_before(now_ns) + 1
        if steps < self.stretch_steps:
            self.stretch_steps = steps
            self.stretch_end_ns = self.due_ns = self.end_of(steps)
            if self._leap > SHORTEST_LEAP:
                self._leap >>= 1

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
