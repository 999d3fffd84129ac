"""What goes on between a prefill and a decode pool, in worlds so small that each moment can be named."""

from dataclasses import dataclass, replace

import pytest

from kvsim.core.cluster import RunOptions
from kvsim.core.seats import Plan, ReplicaView
from kvsim.engine import simulate
from tests.worlds import ROUND, Options, assert_equal_logs, cluster, replica, requests, world


@dataclass(frozen=True)
class Patient:
    """Prefills and admits what fits, and asks to be called again in ten seconds."""

    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    every_step = False

    def plan(self, view: ReplicaView, plan: Plan) -> None:
        for request in view.prefilling:
            plan.prefill(request)
        while view.waiting and plan.admit(view.waiting.first):
            pass
        plan.review_at(10.0)


@pytest.mark.parametrize("mode", ["leap", "step"])
def test_blocks_that_come_back_wake_a_replica_that_sleeps_until_a_review(mode: str) -> None:
    prefill = replica(role="prefill", cost=ROUND, kv_blocks=2, kv_bytes_per_token=1000)
    decode = replica(role="decode", cost=ROUND, kv_blocks=100)
    built = cluster(prefill, decode, options=Options(link=(1_000_000, 0.0)))
    first, second = built.pools
    patient = replace(built, pools=(replace(first, scheduler=Patient()), second))
    log = simulate(requests((0, 32, 3), (0, 32, 3)), patient, RunOptions(mode=mode))  # type: ignore[arg-type]
    assert log.first_token_ns[0] == 4_200_000  # 1 ms and 0.1 ms a prompt token
    assert log.first_scheduled_ns[1] == 36_200_000  # when the 32,000 bytes are gone, not at 10 s


def test_a_row_for_each_step_ends_where_the_steps_end() -> None:
    """A leap that is cut after the row of a step that then does not come, and nothing to do after it."""
    played = world(
        requests((0.007, 2, 2), (0.008, 1, 3), (0.009, 2, 2)),
        replica(role="prefill", kv_bytes_per_token=1, max_num_batched_tokens=7, enable_chunked_prefill=False),
        replica(role="decode"),
        link=(3000, 0.0),
        client_timeout_ns=3_000_000,
    )
    logs = [played.simulate(mode, timeline_instants=None) for mode in ("leap", "step")]  # type: ignore[arg-type]
    assert_equal_logs(*logs, but=("stretches", "events", "timeline"))
    assert all(0 < len(log.timeline.time_ns) < 50 for log in logs)


def test_a_handoff_sends_something() -> None:
    built = cluster(replica(role="prefill"), replica(role="decode"), options=Options(link=(1_000_000, 0.0)))
    with pytest.raises(ValueError, match="at least one byte per token"):
        simulate(requests((0, 1, 2)), built, RunOptions())
