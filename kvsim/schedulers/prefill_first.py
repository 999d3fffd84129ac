"""Whole prompts first: the batching of vLLM's first generation."""

from dataclasses import dataclass

from kvsim.core.seats import Plan, ReplicaView


@dataclass(frozen=True)
class PrefillFirst:
    """While requests wait, a step takes whole prompts only and the decodes pause; otherwise all decodes run.

    ``watermark`` is the share of blocks that stays free on admission. When the decodes cannot all grow, the youngest
    running request is preempted for recomputation, until the rest can.

    Source: Kwon et al., SOSP 2023 (PagedAttention), section 4.5; vLLM's default scheduler until 2024 (0.6), which
    set ``max_num_batched_tokens`` to at least the model's length, since a longer prompt could never run.
    """

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 4096
    watermark: float = 0.01

    every_step = False
    preempts_by_choice = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if replica.waiting:
            plan.hold_decodes()
            admitted = False
            while replica.waiting and replica.running_count < self.max_num_seqs:
                if not plan.admit(
                    replica.waiting.first,
                    whole=True,
                    keep_free_blocks=int(self.watermark * replica.total_blocks),
                ):
                    break
                admitted = True
            if admitted:
                return
            plan.hold_decodes(False)
        plan.make_room()
