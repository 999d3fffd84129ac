"""Whole prompts first: the batching of vLLM's first generation."""

from dataclasses import dataclass
from typing import Literal

from kvsim.core.request import Request
from kvsim.core.seats import Plan, ReplicaView


@dataclass(frozen=True)
class PrefillFirst:
    """While requests wait, a step takes whole prompts only and the decodes pause; otherwise all decodes run.

    ``watermark`` is the share of blocks that stays free on admission. When the decodes cannot all grow, running
    requests are preempted until the rest can. ``preempt_victim`` says which: the one admitted ``latest``, as in vLLM,
    which is fair to those who came first; the one with ``least_context``, which is the cheapest to bring back; or with
    ``most_context``, so that the fewest suffice. Of equals it is the one admitted latest.

    ``preemption_mode`` recompute: a victim starts again as a longer prompt. swap: its blocks are copied to
    ``swap_space_gib`` of host memory (per GPU) before the step, and back when they fit, ahead of all who wait; while
    any are there no prompt is admitted. Where host memory is full the victim is recomputed (vLLM 0.6 ends there).
    ``swap_link`` names the path at its data-sheet rate, the GPU's own if it is left out; ``swap_bytes_per_s`` is what
    it reaches instead. ``swap_call_s`` is the least that a copy takes: vLLM 0.6 makes one for the keys and one for the
    values of each layer and block. 2.3 us: cudaMemcpyAsync on an H20, taco-project/FlexKV pull request 193.

    Source: Kwon et al., SOSP 2023 (PagedAttention), section 4.5; vLLM's default scheduler until 2024 (0.6), which
    set ``max_num_batched_tokens`` to at least the model's length, since a longer prompt could never run.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096
    watermark: float = 0.01
    preemption_mode: Literal["recompute", "swap"] = "recompute"
    preempt_victim: Literal["latest", "least_context", "most_context"] = "latest"
    swap_space_gib: float = 4.0
    swap_link: Literal["pcie-3-x16", "pcie-4-x16", "pcie-5-x16", "nvlink-c2c"] | None = None
    swap_bytes_per_s: float | None = None
    swap_call_s: float = 2.3e-6

    every_step = False
    preempts_by_choice = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        keep_free_blocks = int(self.watermark * replica.total_blocks)
        waiting = replica.waiting
        if waiting and not replica.swapped_count:
            plan.hold_decodes()
            admitted = False
            while waiting and replica.running_count < self.max_num_seqs:
                if not plan.admit(waiting.first, whole=True, keep_free_blocks=keep_free_blocks):
                    break
                admitted = True
            if admitted:
                return
            plan.hold_decodes(False)
        while replica.blocks_short:
            plan.preempt(self._victim(replica), swap=self.preemption_mode == "swap")
        if plan.preempted:
            return
        while replica.swapped_count and replica.running_count < self.max_num_seqs:
            if not plan.admit(waiting.first, keep_free_blocks=keep_free_blocks):
                return

    def _victim(self, replica: ReplicaView) -> Request:
        """Who gives up its blocks when the decodes cannot all grow."""
        if self.preempt_victim == "latest":
            return replica.youngest
        sign = -1 if self.preempt_victim == "least_context" else 1
        return max(reversed(replica.running), key=lambda request: sign * replica.context_tokens_of(request))
