"""Continuous batching with chunked prefill, as vLLM's V1 scheduler does it."""

from dataclasses import dataclass
from typing import Literal

from kvsim.core.request import WAITING, Request
from kvsim.core.seats import Plan, ReplicaView


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
    ``async_scheduling``: a step is planned while another one runs (``kvsim/engine/ahead.py``). Null: in a scenario as in
    vLLM, on unless it cannot be (pools that prefill or decode only, clients that give up); off where there is none.
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

    every_step = False
    preempts_by_choice = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        max_chunk = self._max_chunk(replica) if self.long_prefill_token_threshold else None
        if plan.tight(max_chunk):
            for request in plan.in_order():
                if plan.budget_tokens == 0:
                    break
                tokens = plan.budget_tokens if max_chunk is None else min(max_chunk, plan.budget_tokens)
                while not plan.run(request, tokens):  # not more of them when a victim gives some back
                    victim = self._victim(replica)
                    plan.preempt(victim)
                    if victim is request:
                        break
                if request.state == WAITING and self.policy == "fcfs":
                    return
        else:
            for request in replica.prefilling:
                plan.prefill(request, max_chunk)
        if plan.preempted:
            return
        waiting = replica.waiting
        while waiting and plan.budget_tokens and replica.running_count < self.max_num_seqs:
            keep_free_blocks = 0
            if self.watermark and replica.running_count:
                keep_free_blocks = int(self.watermark * (replica.total_blocks + 1))  # vLLM counts its null block too
            if not plan.admit(
                waiting.first,
                max_chunk,
                whole=not self.enable_chunked_prefill,
                reserve_full=self.scheduler_reserve_full_isl,
                keep_free_blocks=keep_free_blocks,
            ):
                return

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
            return max(self.long_prefill_token_threshold, self.max_num_batched_tokens // requests)
        return self.long_prefill_token_threshold
