"""The batching of Vidur's vLLM scheduler, as a plug-in."""

from dataclasses import dataclass

from kvsim.core.seats import Plan, ReplicaView


@dataclass(frozen=True)
class Vidur:
    """Prompts go first, whole, and never share a step with decodes; a batch of prompts is charged as if padded.

    A prompt is admitted while (prompts in the batch) x (longest of them) stays within ``max_num_batched_tokens``
    and the ``watermark`` share of all blocks stays free.

    Source: Vidur 7d47513 (Agrawal et al., MLSys 2024), ``vllm_replica_scheduler``.
    """

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 4096
    watermark: float = 0.01

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        plan.hold_decodes()
        admitted = longest = 0
        while replica.waiting and replica.running_count < self.max_num_seqs:
            request = replica.waiting.first
            longest = max(longest, request.target_tokens)
            if (admitted + 1) * longest > self.max_num_batched_tokens:
                break
            if not plan.admit(request, whole=True, keep_free_blocks=int(self.watermark * replica.total_blocks)):
                break
            admitted += 1
        if not admitted:
            plan.hold_decodes(False)
            plan.make_room()
