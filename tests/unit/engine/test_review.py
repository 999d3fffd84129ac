"""A policy that asks to be called again at a time still hears of what comes before it."""

from dataclasses import dataclass, replace

import pytest

from kvsim.core.cluster import RunOptions
from kvsim.core.seats import Plan, ReplicaView
from kvsim.engine import simulate
from tests.worlds import ROUND, Options, cluster, replica, requests


@dataclass(frozen=True)
class Batcher:
    """Admits when four requests wait, or 50 ms after the first was seen."""

    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    every_step = False

    def plan(self, view: ReplicaView, plan: Plan) -> None:
        if not view.waiting or view.running_count:
            return
        due_s = view.waiting.first.arrival_ns / 1e9 + 0.05
        if len(view.waiting) < 4 and view.now_s < due_s:
            plan.review_at(due_s)
            return
        while view.waiting and plan.admit(view.waiting.first):
            pass


@dataclass(frozen=True)
class Restless(Batcher):
    """Admits at once and asks to be called again, whatever happens."""

    every_step = True

    def plan(self, view: ReplicaView, plan: Plan) -> None:
        plan.review_at(view.now_s + 1e-4)
        while view.waiting and plan.admit(view.waiting.first):
            pass


@pytest.mark.parametrize("mode", ["leap", "step"])
def test_a_review_of_an_empty_replica_does_not_keep_the_run_going(mode: str) -> None:
    plain = cluster(replica(cost=ROUND), options=Options())
    restless = replace(plain, pools=(replace(plain.pools[0], scheduler=Restless()),))
    log = simulate(requests((0.0, 10, 2), (1.0, 10, 2)), restless, RunOptions(mode=mode))  # type: ignore[arg-type]
    assert (log.finish_ns // 1_000_000).tolist() == [3, 1003]
    assert log.end_ns == log.finish_ns[1]


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize(
    ("arrivals_s", "first_scheduled_ms"),
    [((0.0, 0.001, 0.002, 0.003), 3), ((0.0, 0.001, 0.002), 50)],  # the fourth completes the batch; nobody does
)
def test_an_idle_replica_wakes_for_an_arrival_before_its_review(
    arrivals_s: tuple[float, ...], first_scheduled_ms: int, mode: str
) -> None:
    plain = cluster(replica(cost=ROUND), options=Options())
    batching = replace(plain, pools=(replace(plain.pools[0], scheduler=Batcher()),))
    log = simulate(requests(*((at_s, 10, 2) for at_s in arrivals_s)), batching, RunOptions(mode=mode))  # type: ignore[arg-type]
    assert set((log.first_scheduled_ns // 1_000_000).tolist()) == {first_scheduled_ms}
