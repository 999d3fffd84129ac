"""Victims that are swapped to host memory: reference = step = leap, a case by hand, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsim.core.cluster import Cluster, HostMemory, Pool
from kvsim.core.runlog import FINISHED
from kvsim.core.seats import Plan, ReplicaView
from kvsim.core.trace import Trace
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.schedulers.prefill_first import PrefillFirst
from tests.worlds import ODD, ROUND, assert_equal_logs, assert_same, replica, requests, traces, world

MS = 1_000_000


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    trace=traces(max_requests=30),
    block_size=st.sampled_from([1, 4, 16]),
    tokens=st.sampled_from([176, 256, 400]),
    host_tokens=st.sampled_from([0, 64, 200, 10_000]),
    block_copy_s=st.sampled_from([0.0, 1e-4, 3.3333333e-5]),
    victim=st.sampled_from(["latest", "least_context", "most_context"]),
    watermark=st.sampled_from([0.0, 0.01, 0.2]),
    max_num_seqs=st.sampled_from([3, 64]),
    replicas=st.sampled_from([1, 2]),
    client_timeout_ns=st.sampled_from([None, None, 20 * MS, 150 * MS]),
    horizon_ns=st.sampled_from([None, None, 100 * MS]),
    reject_oversized=st.booleans(),
)
def test_random_worlds_that_swap_agree(
    trace: Trace,
    block_size: int,
    tokens: int,
    host_tokens: int,
    block_copy_s: float,
    victim: str,
    watermark: float,
    max_num_seqs: int,
    replicas: int,
    client_timeout_ns: int | None,
    horizon_ns: int | None,
    reject_oversized: bool,
) -> None:
    """Blocks on the device and in host memory are recounted by the reference at every moment, here at every step."""
    spec = replica(
        cost=ODD, scheduler="prefill_first", preemption_mode="swap", preempt_victim=victim, watermark=watermark,
        block_size=block_size, kv_blocks=tokens // block_size, host_blocks=host_tokens // block_size,
        block_copy_s=block_copy_s, max_num_seqs=max_num_seqs, max_num_batched_tokens=512, replicas=replicas,
        router="least_tokens",
    )  # fmt: skip
    played = world(
        trace, spec, client_timeout_ns=client_timeout_ns, horizon_ns=horizon_ns, reject_oversized=reject_oversized
    )
    leap, step = played.simulate("leap"), played.simulate("step", check_laws=True)
    assert_same(leap, played.reference())
    assert_equal_logs(leap, step)


TWO = requests((0.0, 32, 10), (0.0, 32, 5))
SHORT = replica(
    scheduler="prefill_first", preemption_mode="swap", kv_blocks=5, host_blocks=2, block_copy_s=2.5e-3,
    max_num_batched_tokens=64,
)  # fmt: skip
"""Both prompts fill two blocks of 16; for their second token each needs a third, and five blocks are all there is."""


@pytest.mark.parametrize("mode", ["leap", "step"])
def test_a_lone_victim_by_hand(mode: str) -> None:
    """Two blocks go out before the first decode (5 ms), and back when the other request has ended (5 ms)."""
    log = world(TWO, SHORT).simulate(mode)  # type: ignore[arg-type]
    prefill, decode, copy = 7_400_000, 1_100_000, 5_000_000
    other_ends = prefill + copy + 9 * decode
    assert log.finish_ns.tolist() == [other_ends, other_ends + copy + 4 * decode]
    assert log.computed_tokens.tolist() == [32, 32]  # nothing twice
    assert (log.preemptions.tolist(), log.swaps.tolist(), log.swapped_tokens.tolist()) == ([0, 1], [0, 1], [0, 32])
    assert (log.copied_blocks, log.copy_ns) == ((4,), (2 * copy,))
    assert log.max_gap_ns.tolist() == [copy + decode, other_ends + copy + decode - prefill]


def test_a_full_host_memory_means_recomputation() -> None:
    """The victim comes back as a prompt of 33 tokens, 4.3 ms, which samples its second token."""
    log = world(TWO, replace(SHORT, host_blocks=1)).simulate()
    other_ends = 7_400_000 + 9 * 1_100_000
    assert log.finish_ns.tolist() == [other_ends, other_ends + 4_300_000 + 3 * 1_100_000]
    assert (log.computed_tokens.tolist(), log.swaps.tolist(), log.copy_ns) == ([32, 65], [0, 0], (0,))


def test_who_is_swapped_can_be_chosen() -> None:
    three = requests((0.0, 32, 9), (0.0, 64, 9), (0.0, 48, 9))
    swapped = {
        victim: world(three, replace(SHORT, kv_blocks=11, host_blocks=99, max_num_batched_tokens=200,
                                     preempt_victim=victim)).simulate().swaps.tolist()
        for victim in ("latest", "least_context", "most_context")
    }  # fmt: skip
    assert swapped == {"latest": [0, 0, 1], "least_context": [1, 0, 0], "most_context": [0, 1, 0]}


def test_a_request_that_outgrows_its_pool_is_diagnosed() -> None:
    log = world(requests((0.0, 32, 60)), SHORT, reject_oversized=False).simulate()
    assert log.swaps.tolist() == [0]  # host memory holds two blocks, not five
    assert log.diagnosis is not None
    roomy = world(requests((0.0, 32, 60)), replace(SHORT, host_blocks=9), reject_oversized=False).simulate()
    assert (roomy.swaps.tolist(), roomy.generated_tokens.tolist()) == ([1], [5 * 16 - 32 + 1])
    assert "nothing can move" in str(roomy.diagnosis)


class Everybody:
    """Swaps out all who decode whenever blocks are short, and takes back who fits."""

    max_num_seqs, max_num_batched_tokens = 64, 512
    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if replica.blocks_short:
            for request in replica.running:
                assert plan.preempt(request, swap=True)
            return
        while replica.waiting and replica.running_count < self.max_num_seqs:
            if not plan.admit(replica.waiting.first):
                return


def test_a_plan_that_only_swaps_out_is_paid_for_by_the_next_step() -> None:
    """All are in host memory, and some come back at the same moment: the copies of both plans before one step."""
    pool = Pool("mixed", 1, Everybody(), Paged(), 5, ROUND, RoundRobin(), host=HostMemory(99, 1e-3))
    log = simulate(TWO, Cluster((pool,), 4096))
    assert (log.status == FINISHED).all()
    assert log.swaps.tolist() == [1, 1]
    assert log.max_gap_ns[0] == 4 * MS + 2 * MS + 1_100_000  # four blocks out, two of them back
    assert log.copy_ns == (8 * MS,)


class Ahead(PrefillFirst):
    async_scheduling = True


@pytest.mark.parametrize(
    ("scheduler", "kv", "role", "said"),
    [
        (Ahead(), Paged(), "mixed", "asynchronous scheduling"),
        (PrefillFirst(), Paged(), "decode", "pools of role decode"),
        (ChunkedPrefill(policy="priority"), Paged(), "mixed", "priority"),
        (PrefillFirst(), Paged(enable_prefix_caching=True), "mixed", "prefix caching"),
    ],
)
def test_what_swapping_is_not_modelled_with_is_refused(scheduler, kv, role, said: str) -> None:  # type: ignore[no-untyped-def]
    pool = Pool(role, 1, scheduler, kv, 5, ROUND, RoundRobin(), host=HostMemory(9, 0.0))
    with pytest.raises(ValueError, match=said):
        simulate(TWO, Cluster((pool,), 4096))
