"""A replica with asynchronous scheduling: it plans a step while another one runs.

vLLM 0.33 has two steps in flight, one on the device and one queued behind it. So step k + 1 is planned when step k
starts, with the arrivals up to then and without the results of step k: nobody knows yet which tokens it samples, or
that one of them is somebody's last. With h the host's time for a step, step k + 1 starts at the end of step k, or h
after it was planned if that is later: as long as h is shorter than a step, it is hidden.

Here nothing is done in advance. A step is planned when the one before it has ended, as in a synchronous replica, but
with what was known when that one started: later arrivals stay in the inbox, and a request whose last token came with
that step keeps its blocks and its place until the step is planned (``LEAVING``). It is the same decision at another
moment of the simulation, and the books of a synchronous replica hold.

Source: vLLM 0.33.0, ``vllm/v1/engine/core.py`` (``step_with_batch_queue``), ``vllm/v1/core/sched/async_scheduler.py``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

from kvsim.core.request import DECODING, ENDED, LEAVING, PREFILLING, WAITING, Request
from kvsim.core.shape import BatchShape
from kvsim.engine.clock import FOREVER
from kvsim.engine.decisions import AheadRecorder
from kvsim.engine.plan import Plan
from kvsim.engine.replica import Replica


class AheadReplica(Replica):
    """A replica that plans ahead.

    ``_seen_ns`` is when the coming step is planned: what arrived by then is known to it. ``_leaving`` are the requests
    that got their last token in the step before, which it has not seen; ``_unforeseen``: nor can it know of some that
    it is the last. ``_device_ns`` says how long each step of the stretch in flight runs, if that is not all it takes;
    ``_idle``, that the step before did nothing.
    """

    decisions: AheadRecorder | None

    __slots__ = ("_at_work", "_waiting_tokens")

    def __init__(self, *arguments: Any, host_ns: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ahead = True
        self._books_ahead = False
        self._host_ns = host_ns
        self._at_work = False

    # ---- what others see: also those who have arrived and whom no plan has seen

    @property
    def requests_count(self) -> int:
        here = len(self.running_now) + len(self.waiting)
        return here if self._at_work else here + len(self.inbox)

    @property
    def alive_count(self) -> int:
        return super().alive_count - len(self._leaving)

    @property
    def waiting_tokens(self) -> int:
        here = self._waiting_tokens
        return here if self._at_work else here + sum(request.prompt_tokens for request in self.inbox)

    @waiting_tokens.setter
    def waiting_tokens(self, tokens: int) -> None:
        self._waiting_tokens = tokens

    def scheduled_tokens(self) -> Iterator[tuple[Request, int]]:
        chunks = {request: tokens for request, _, tokens in self._chunks}
        return ((request, self.context_tokens_of(request) + chunks.get(request, 0)) for request in self.running_now)

    # ---- time

    def settle(self, now_ns: int) -> None:
        self._at_work = True
        inbox = self.inbox
        while True:
            if self.stretch_steps:
                if self.stretch_steps > 1 and inbox and inbox[0].enters_ns <= min(self.stretch_end_ns, now_ns):
                    self._cut_unseen(inbox[0].enters_ns)
                if self.stretch_end_ns > now_ns:
                    break
                if self._as_usual(self.stretch_start_ns) and self._decodes == self.decoding_count:
                    self._run(now_ns)
                else:
                    self._apply()
                continue
            seen_ns = self._seen_ns
            wake_ns = self.due_ns - 1
            if wake_ns > seen_ns:  # asleep
                if inbox and inbox[0].enters_ns <= (wake_ns if wake_ns < now_ns else now_ns):
                    self._wake(inbox[0].enters_ns)
                elif wake_ns < now_ns and self.due_ns < FOREVER:
                    self._wake(wake_ns)
                else:
                    break
            elif inbox and inbox[0].enters_ns <= seen_ns:
                self._arrive(seen_ns)
            elif seen_ns >= now_ns:
                break
            elif not self.eager and self._as_usual(self.boundary_ns):
                self._run(now_ns)
            else:
                self._launch()
        self._at_work = False

    def _as_usual(self, start_ns: int) -> bool:
        return super()._as_usual(start_ns) and not self._device_ns

    def plan_now(self, now_ns: int) -> None:
        while not self.stretch_steps and self._seen_ns == now_ns and self.due_ns == now_ns + 1 < FOREVER:
            self._at_work = True
            self._launch()
            self._at_work = False
            if self.due_ns <= now_ns:
                self.settle(now_ns)

    @property
    def _asleep(self) -> bool:
        return not self.stretch_steps and self.due_ns > self._seen_ns + 1

    def _wake(self, now_ns: int) -> None:
        super()._wake(now_ns)
        self._seen_ns = self.boundary_ns
        self._idle = True

    def _began(self, step: int) -> int:
        """When that step of the stretch in flight began to run; the first is 0."""
        if self._device_ns:
            return self.ends_ns[step] - self._device_ns[step]
        return self.end_of(step) if step else self.stretch_start_ns

    def _cut_unseen(self, arrival_ns: int) -> None:
        """Of a stretch only those steps follow that are planned, when the step before begins, without this arrival."""
        if self._flight:
            steps = 1 + (self.stretch_start_ns < arrival_ns) + self.ended_before(arrival_ns)
        else:
            steps = 1 + bisect_left(range(self.stretch_steps), arrival_ns, key=self._began)
        if steps < self.stretch_steps:
            self.stretch_steps = steps
            self.stretch_end_ns = self.due_ns = self.end_of(steps)

    # ---- planned and launched

    def _launch(self) -> None:
        """Plan the step that follows, with what was known when the last one began, and send it off."""
        if self._circles or not (self.running_now or self.waiting):
            self._rest()
            return
        if self._seen_ns > self.boundary_ns:  # the device is idle
            if self._samples.next_ns < self._seen_ns:
                self._sample(self._seen_ns)
            self.boundary_ns = self._seen_ns
        self._send_off(self._planned(self.boundary_ns))

    def _send_off(self, plan: Plan | None) -> None:
        self.stretch_start_ns = boundary_ns = self.boundary_ns
        self.note_peak(self.kv.free_blocks)
        shape = self._compose(plan)
        if self.decisions:
            self._record(self.decisions, plan, shape)
        alone = self._see_results()  # nobody else is in the steps that follow
        if self.decisions:
            self.decisions.seen(self)
        if plan and plan.preempted:
            self._look_for_circles()
        if shape is None:
            self._do_nothing(plan is not None and plan.preempted > 0)
            return
        self._idle = False
        if self._samples.every_step:
            self._samples.next_ns = boundary_ns
        news = bool(self.inbox) and self.inbox[0].enters_ns <= boundary_ns
        news = news or (self._changed and bool(self.waiting or self.prefilling))
        steps = 1 if news or self._chunks or not alone or not self._leaps else self._sure_steps()
        self.stretch_steps = steps
        if steps > 1:
            self._launch_leap(shape, steps)
            return
        self._durations, self._device_ns = self._with_host([round(self._step_s(shape) * 1e9)])
        self._ends = self._flight = None
        self.due_ns = self.stretch_end_ns = boundary_ns + self._durations[0]

    def _launch_leap(self, shape: BatchShape, steps: int) -> None:
        super()._launch_leap(shape, steps)
        if self._host_ns:
            durations = [int(duration) for duration in self.durations_ns[: self.stretch_steps]]
            self._durations, self._device_ns = self._with_host(durations)
            self._ends = None
            if self._review_ns < FOREVER:
                self.stretch_steps = bisect_left(self.ends_ns, self._review_ns, 0, self.stretch_steps - 1) + 1
            self.stretch_end_ns = self.due_ns = self.ends_ns[self.stretch_steps - 1]

    def _with_host(self, synchronous_ns: list[int]) -> tuple[list[int], Sequence[int]]:
        """Of steps that would take so long one after the other: from end to end if planned ahead, and on the device."""
        host_ns = self._host_ns
        if not host_ns:
            return synchronous_ns, ()
        device = [duration - host_ns for duration in synchronous_ns]
        waits = [max(0, self._seen_ns + host_ns - self.boundary_ns)]
        waits += [max(0, host_ns - duration) for duration in device[:-1]]
        if not any(waits):
            return device, ()
        return [wait + duration for wait, duration in zip(waits, device, strict=True)], device

    def _do_nothing(self, preempted: bool) -> None:
        """A step without tokens takes no time on the device: what comes next is planned at once, with its results."""
        again = preempted or not self._idle
        self._idle = not preempted
        self._seen_ns = max(self.boundary_ns, self._seen_ns + self._host_ns)
        if again:
            self.due_ns = self._seen_ns + 1
        else:
            self._sleep()

    def _goes_round(self) -> bool:
        """Whatever a step that only preempts leaves behind is looked at in the next one."""
        return True

    def _rest(self) -> None:
        """Nobody is here, or nobody who could get on."""
        self._idle = True
        self.due_ns = FOREVER
        if self.decisions:
            self.decisions.rest(self)

    def _join_ready(self, plan: Plan) -> int:
        """Their next token is known: it makes a difference to what is registered when."""
        return self.decoding_count

    def _hold(self, request: Request) -> None:
        """It sits out the coming step, and has one known token left to compute after it."""
        self._leave_decodes(request)
        request.state = PREFILLING
        self.other_context += request.computed_tokens
        insort(self.prefilling, request, key=lambda r: r.admission)

    # ---- the end of a request: at the end of a step for the client, a step later for the scheduler

    def _apply(self) -> None:
        seen_ns = self._began(self.stretch_steps - 1)
        super()._apply()
        self._device_ns = ()
        self._seen_ns = seen_ns
        self.due_ns = seen_ns + 1

    def _finish_decode(self, request: Request, end: int) -> None:
        if request.ends_by_eos:
            self._note_gap(request)
        else:
            context = self.context_tokens_of(request)
            # The last token that it computes gives its block a name when its own result is seen.
            self._leave_decodes(request, registered=context - 1 if self.cache else None)
            if self.cache:
                request.held_blocks = self._blocks_of(context)
            request.state = LEAVING
            self.other_context += context
            if not self.decoding_count:
                self._gap_starts.clear()
                self._gap_sizes.clear()
        self._end_request(request, end)

    def _finish_chunk(self, request: Request, context: int, end: int) -> None:
        if request.ends_by_eos:
            self._join_decodes(request, context)
        else:
            request.state = LEAVING
            request.joined_step = self.decode_step
            self.other_context += context
        self._end_request(request, end)

    def _end_request(self, request: Request, end_ns: int) -> None:
        """Its last token is delivered. The scheduler still counts on it."""
        state = request.state
        super()._end_request(request, end_ns)
        request.state = state
        self._leaving.append(request)
        self._unforeseen |= request.ends_by_eos
        self._changed = True

    def _release_in_order(self, chunks: Sequence[tuple[Request, int, int]], step: int) -> None:
        """That comes later."""

    def _see_results(self) -> bool:
        """After the plan the results of the step before are seen: whoever is done leaves, in scheduling order.

        Returns False if somebody who is done was planned again: a token is computed for nothing.
        """
        leaving = self._leaving
        if not leaving:
            return True
        alone = True
        if len(leaving) > 1:
            leaving.sort(key=lambda request: request.admission)
        for request in leaving:
            if request.state == WAITING:  # a victim of the plan
                self.waiting.remove(request)
                self.waiting_tokens -= request.target_tokens
                self.kv.release(request, 0)
            elif request.state == DECODING and self._decodes:
                self._decodes -= 1
                self._drop_running(request, 1)
                alone = False
            else:
                self._drop_running(request)
            request.state = ENDED
        leaving.clear()
        self._unforeseen = False
        self._changed = True
        return alone

    def _drop_running(self, request: Request, scheduled: int = 0, resumes: bool = False) -> None:
        decoded = request.state in (DECODING, LEAVING)
        in_flight = scheduled or (resumes and request.joined_step < self.decode_step)
        if self.cache is None or not decoded or not in_flight:
            super()._drop_running(request, scheduled, resumes)
            return
        # What the last of its tokens is was not known when that was planned: its block has no name yet.
        tokens = self.context_tokens_of(request) + scheduled
        del self.running_now[request]
        if request.state == DECODING:
            self._leave_decodes(request, registered=tokens - 1)
        else:
            self.other_context -= request.computed_tokens
        request.held_blocks = self._blocks_of(tokens)
        self.cache.release(request, tokens - 1, resumes=resumes)

    def _known_tokens(self, request: Request) -> int:
        """All but the one that the step before samples, if its results are not seen yet."""
        unseen = self._seen_ns < self.boundary_ns and request.state in (DECODING, LEAVING)
        return super()._known_tokens(request) - unseen

    # ---- records

    def _record(self, decisions: AheadRecorder, plan: Plan | None, shape: BatchShape | None) -> None:
        start_ns = end_ns = self._seen_ns
        if shape is not None:
            self.stretch_steps = 1
            start_ns = self.boundary_ns
            end_ns = start_ns + self._with_host([round(self._step_s(shape) * 1e9)])[0][0]
        decisions.planned(self, plan, self._seen_ns, start_ns, end_ns)

    def _check_books(self) -> None:
        """The inbox is not in the books."""
        was, self._at_work = self._at_work, True
        super()._check_books()
        self._at_work = was

    def close(self, end_ns: int) -> None:
        super().close(end_ns)
        if self.decisions:
            self.decisions.close()
