"""Continuous batching with chunked prefill, as vLLM's V1 scheduler does it."""

from dataclasses import dataclass
from typing import Literal

from kvsim.core.request import WAITING, Request
from kvsim.core.seats import Plan, ReplicaView


class Cadence:
    """What ``prefill_schedule_interval`` has to know of a replica's past.

    ``last_prefill``: number of the last step with prompts, the first step being 1. ``more_waits``: the last plan that
    did not hold prompts back left somebody waiting; then the next one does not either.

    Source: vLLM 0.33.0, ``vllm/v1/core/sched/scheduler.py``.
    """

    __slots__ = ("interval", "last_prefill", "more_waits")

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.last_prefill = -interval
        self.more_waits = False

    def holds(self, replica: ReplicaView) -> bool:
        """Prompts have to sit out the coming step: it is too soon, and there is somebody who decodes."""
        return (
            not self.more_waits
            and replica.steps + 1 - self.last_prefill < self.interval
            and replica.running_count > sum(request.in_prefill for request in replica.prefilling)
        )

    def note(self, replica: ReplicaView, plan: Plan, holds: bool, carries: bool, runs: bool) -> None:
        """Afterwards: prompts were held back, or they are ``carried`` in the step, which is one if it ``runs``."""
        if carries:
            self.last_prefill = replica.steps + runs
        if holds:
            if replica.waiting or replica.prefilling:
                plan.review_after(self.last_prefill + self.interval - 1 - replica.steps)
        elif not plan.preempted:
            self.more_waits = bool(replica.waiting)


@dataclass(frozen=True)
class ChunkedPrefill:
    """Running requests first, in admission order; the token budget that is left goes to the waiting queue, in chunks.

    The rules are those that recordings of vLLM 0.33 show (numbers in brackets, ``docs`` of the recordings): prompts
    are cut to the budget [6] and to ``long_prefill_token_threshold`` unless a request is alone [3]; when blocks run
    short the youngest is preempted, for recomputation, until the rest fit [14]; a step that preempted admits nothing
    [4]; nobody overtakes a refused head [5]. ``scheduler_reserve_full_isl`` admits only if blocks for the whole prompt
    are free at that moment [10]; ``watermark`` is the share of blocks kept free on admission while anything runs [12].
    With ``policy`` priority the waiting queue is ordered by (priority, arrival, id) [18], and the victim is the running
    request with the largest (priority, arrival), of equals the one admitted first [19, 20].
    ``async_scheduling``: a step is planned while another one runs (``kvsim/engine/ahead.py``). Null: in a scenario on,
    as in vLLM, unless it cannot be (pools that prefill or decode only, clients that give up); off where there is none.
    ``max_num_active_seqs`` ends admission before ``max_num_seqs``, ``max_num_scheduled_tokens`` the budget before
    ``max_num_batched_tokens``; None: the same. With ``prefill_schedule_interval`` n, prompts take part in one step of
    n only, as long as anybody decodes and nobody is left waiting by a step in which they do.

    The front end, which is one for all replicas, refuses a request if there would be more than ``max_num_queued_reqs``,
    waiting or running, or if the prompts without a first token make ``max_num_queued_tokens`` already.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool = True
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    policy: Literal["fcfs", "priority"] = "fcfs"
    async_scheduling: bool | None = None
    max_num_active_seqs: int | None = None
    max_num_scheduled_tokens: int | None = None
    prefill_schedule_interval: int = 1
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None

    every_step = False
    preempts_by_choice = False

    def start(self) -> Cadence | None:
        """What is to be remembered of a replica from plan to plan."""
        return Cadence(self.prefill_schedule_interval) if self.prefill_schedule_interval > 1 else None

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        max_chunk = self._max_chunk(replica) if self.long_prefill_token_threshold else None
        cadence: Cadence | None = replica.memory
        holds = carries = False  # prompts are not to take part in this step; prompts do
        if cadence:
            holds = cadence.holds(replica)
            budget_tokens = plan.budget_tokens + replica.decoding_count
        if plan.tight(max_chunk):
            for request in plan.in_order():
                if plan.budget_tokens == 0:
                    break
                if holds and request.in_prefill:
                    continue
                tokens = plan.budget_tokens if max_chunk is None else min(max_chunk, plan.budget_tokens)
                while not plan.run(request, tokens):  # not more of them when a victim gives some back
                    victim = self._victim(replica)
                    plan.preempt(victim)
                    if victim is request:
                        break
                if request.state == WAITING and self.policy == "fcfs":
                    break
                carries |= request.in_prefill
        else:
            for request in replica.prefilling:
                if not (holds and request.in_prefill) and plan.prefill(request, max_chunk):
                    carries |= request.in_prefill
        waiting = replica.waiting
        most_running = self.max_num_active_seqs or self.max_num_seqs
        while waiting and not plan.preempted and plan.budget_tokens and replica.running_count < most_running:
            request = waiting.first
            keep_free_blocks = 0
            if self.watermark and replica.running_count:
                keep_free_blocks = int(self.watermark * (replica.total_blocks + 1))  # vLLM counts its null block too
            if not plan.admit(
                request,
                max_chunk,
                whole=not self.enable_chunked_prefill,
                reserve_full=self.scheduler_reserve_full_isl,
                keep_free_blocks=keep_free_blocks,
                most_left=1 if holds else None,
            ):
                break
            carries |= request.target_tokens - request.computed_tokens > 1
        if cadence:
            cadence.note(replica, plan, holds, carries, plan.budget_tokens < budget_tokens)

    def _victim(self, replica: ReplicaView) -> Request:
        """Who gives up its blocks when a running request finds none."""
        if self.policy == "priority":
            return max(replica.running, key=lambda request: (request.priority, request.arrival_ns))
        return replica.youngest

    def _max_chunk(self, replica: ReplicaView) -> int | None:
        """Most tokens of one prompt in one step; None without a limit."""
        requests = len(replica.waiting) + replica.running_count
        if requests == 1:
            return None
        if self.long_prefill_token_threshold_adaptive:
            return max(self.long_prefill_token_threshold, self.max_num_batched_tokens // max(1, requests))
        return self.long_prefill_token_threshold
