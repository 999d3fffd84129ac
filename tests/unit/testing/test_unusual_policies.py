"""Sound schedulers that speak the verbs which the built-in ones leave out: the engine keeps its word to them, too."""

from dataclasses import dataclass
from math import ceil

import pytest

from kvsim.core.seats import Plan, ReplicaView, Scheduler
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.testing import check_policy


@dataclass(frozen=True)
class OneSmallChunk:
    """One chunk of one prompt a step. A chunk that finds no blocks waits for a decode to finish."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    chunk_tokens: int = 256

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if plan.make_room():
            return
        chunk = self.chunk_tokens if replica.decoding_count else None
        if replica.prefilling:
            plan.prefill(replica.prefilling[0], chunk)
        elif replica.waiting and replica.running_count < self.max_num_seqs:
            plan.admit(replica.waiting.first, chunk)


@dataclass(frozen=True)
class OnTheHour(ChunkedPrefill):
    """While anything runs, admits at multiples of ``every_s`` only: it looks at the clock and says when to be asked."""

    every_s: float = 0.05

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        ticks = ceil(replica.now_s / self.every_s - 1e-9)
        if replica.running_count and not replica.prefilling and replica.now_s < ticks * self.every_s - 1e-6:
            plan.make_room()
            plan.review_at(ticks * self.every_s)
        else:
            super().plan(replica, plan)


@dataclass(frozen=True)
class Bounded(ChunkedPrefill):
    """Preempts the youngest once contexts have grown beyond 300 tokens: it asks to be asked after every step."""

    every_step = False
    preempts_by_choice = True

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        plan.review_after(1)
        if replica.running_count > 1 and replica.resident_tokens > 300:
            plan.preempt(replica.youngest)
        super().plan(replica, plan)


@dataclass(frozen=True)
class FewAtATime(ChunkedPrefill):
    """Admits many, and runs the first three of them in each step; the others are held."""

    every_step = True

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        for position, request in enumerate(plan.in_order()):
            while position < 3 and plan.budget_tokens and not plan.run(request):
                victim = replica.youngest
                plan.preempt(victim)
                if victim is request:
                    return
        if not plan.preempted and replica.waiting and replica.running_count < self.max_num_seqs:
            plan.admit(replica.waiting.first, reserve_full=True)


@dataclass(frozen=True)
class LargestGoes(ChunkedPrefill):
    """When blocks run short, the request with the largest context goes, whoever came last."""

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        while replica.blocks_short:
            plan.preempt(max(replica.running, key=lambda request: (replica.context_tokens_of(request), request.id)))
        if not plan.preempted:
            super().plan(replica, plan)


@pytest.mark.parametrize("policy", [OneSmallChunk(), OnTheHour(), Bounded(), FewAtATime(), LargestGoes()], ids=repr)
def test_unusual_policies_keep_the_contract(policy: Scheduler) -> None:
    assert not [str(check) for check in check_policy(policy) if check.problem]
