"""What asynchronous scheduling changes, one consequence a test, in worlds whose times are known on paper.

A step takes 1 ms, blocks hold 4 tokens. Step k + 1 is planned when step k starts. The engine and the block-by-block
model of vLLM are asked alike (``PLAYERS``); where the host takes time, the engine alone.
"""

from typing import Any

import pytest

from kvsim.core.cluster import Cluster, Pool
from kvsim.core.runlog import RunLog
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.oracles.test_vllm_rules import MS, PLAYERS, Play, Row, Step, batches, hits, preempted
from tests.worlds import affine, requests


@pytest.fixture(params=PLAYERS)
def play(request: pytest.FixtureRequest) -> Play:
    player: Play = PLAYERS[request.param]
    return player


def in_both(play: Play, *rows: Row, **config: Any) -> tuple[list[Step], list[Step]]:
    """The steps of synchronous and of asynchronous scheduling."""
    return play(*rows, **config), play(*rows, **config, async_scheduling=True)


def start_ms(steps: list[Step], request: int) -> float:
    """When the first step with this request starts."""
    start_ns: int = next(step["start_ns"] for step in steps if request in step["id"])
    return start_ns / MS


def end_ms(steps: list[Step], request: int) -> float:
    """When it gets its last token."""
    end_ns: int = next(step["end_ns"] for step in steps if request in step.get("finished", ()))
    return end_ns / MS


def one_place(device_ms: float, host_ms: float, *outputs: int, ahead: bool = True) -> RunLog:
    """Requests of one chunk, one after the other; each step takes the device so long, and the host so long."""
    cost = affine(base_s=device_ms / 1e3, hidden_host_s=host_ms / 1e3)
    scheduler = ChunkedPrefill(max_num_seqs=1, async_scheduling=ahead)
    pool = Pool("mixed", 1, scheduler, Paged(), 100, cost, RoundRobin())
    return simulate(requests(*((0.0, 40, output) for output in outputs)), Cluster((pool,), 4096))


@pytest.mark.parametrize(("device_ms", "host_ms"), [(3.0, 0.0), (3.0, 2.0), (3.0, 3.0), (3.0, 7.0)])
def test_consequence_1_the_host_is_hidden_as_far_as_a_step_is_long(device_ms: float, host_ms: float) -> None:
    """Alone, the first token takes both; from then on the longer of the two, not their sum."""
    log = one_place(device_ms, host_ms, 5)
    assert log.first_token_ns.tolist() == [(device_ms + host_ms) * MS]
    assert dict(zip(log.gaps.gap_ns.tolist(), log.gaps.count.tolist(), strict=True)) == {
        max(device_ms, host_ms) * MS: 4
    }
    one_after_the_other = one_place(device_ms, host_ms, 5, ahead=False)
    assert one_after_the_other.first_token_ns.tolist() == log.first_token_ns.tolist()
    assert one_after_the_other.max_gap_ns.tolist() == [(device_ms + host_ms) * MS]


def test_consequence_2_an_end_that_nobody_foresees_costs_a_step(play: Play) -> None:
    """Three tokens in three steps; by EOS a fourth runs for nothing, and an arrival in it waits for its end."""
    foreseen = play((0, "u0[0:4]", 3), (3.5, "u1[0:4]", 1), async_scheduling=True)
    assert sum(0 in step["id"] for step in foreseen) == 3
    assert start_ms(foreseen, 1) == 3.5
    unforeseen = play((0, "u0[0:4]", 3, 0, "eos"), (3.5, "u1[0:4]", 1), async_scheduling=True)
    assert sum(0 in step["id"] for step in unforeseen) == 4
    assert end_ms(unforeseen, 0) == end_ms(foreseen, 0) == 3
    assert start_ms(unforeseen, 1) == 4


def test_consequence_3_an_arrival_runs_after_the_step_that_is_queued_already(play: Play) -> None:
    synchronous, ahead = in_both(play, (0, "u0[0:4]", 20), (5.5, "u1[0:4]", 1), (6, "u2[0:4]", 1))
    assert [start_ms(synchronous, request) for request in range(3)] == [0, 6, 6]
    assert [start_ms(ahead, request) for request in range(3)] == [0, 7, 7]


def test_consequence_4_a_slot_and_blocks_are_free_one_step_later(play: Play) -> None:
    """Request 1 ends at 3 ms; the step that starts then was planned at 2 ms, when it held one of two places, and two
    of four blocks."""
    rows: tuple[Row, ...] = ((0, "u0[0:4]", 9), (0, "u1[0:4]", 3), (0.5, "u2[0:8]", 1))
    for limit in ({"max_num_seqs": 2}, {"usable_blocks": 4}):
        synchronous, ahead = in_both(play, *rows, **limit)
        assert end_ms(synchronous, 1) == end_ms(ahead, 1) == 3
        assert (start_ms(synchronous, 2), start_ms(ahead, 2)) == (3, 4)


def test_consequence_5_an_end_that_nobody_foresees_takes_a_slot_more(play: Play) -> None:
    """4 + 5 tokens: eight are computed, in two blocks; by EOS a ninth in a third."""
    for row, blocks in (((0, "u0[0:4]", 5), 2), ((0, "u0[0:4]", 5, 0, "eos"), 3)):
        steps = play(row, async_scheduling=True)
        assert 100 - min(step["free_blocks"] for step in steps) == blocks
        assert steps[-1]["free_blocks_end"] == 100


def test_consequence_6_a_victim_gets_the_token_that_was_under_way(play: Play) -> None:
    """Request 1 is preempted by the plan made at 0 ms, before its first token comes at 1 ms: it resumes with it."""
    steps = play((0, "u0[0:8]", 3), (0, "u1[0:8]", 3), usable_blocks=4, async_scheduling=True)
    assert steps[1]["preempted"] == [[1, 8, 0, 2]]
    resumed = next(step for step in steps if [1, 0, 1] in step.get("admitted", []))
    assert (resumed["id"], resumed["n"]) == ([1], [9])
    assert sum(1 in step["id"] for step in steps) == 3  # three tokens in three steps: none lost, none twice
    last = play((0, "u0[0:8]", 3), (0, "u1[0:8]", 1), usable_blocks=4, async_scheduling=True)
    assert preempted(last) == [(1, 1)]
    assert end_ms(last, 1) == 1
    assert hits(last) == [(0, 0), (1, 0)]  # it never comes back


def test_consequence_7_a_step_without_tokens_takes_no_time(play: Play) -> None:
    """One slot: the step after the last token of request 0 is empty, so request 1 starts as early as in sync."""
    synchronous, ahead = in_both(play, (0, "u0[0:4]", 3), (0, "u1[0:4]", 2), max_num_seqs=1)
    assert start_ms(synchronous, 1) == start_ms(ahead, 1) == 3
    assert batches(synchronous) == [[(0, 4)], [(0, 1)], [(0, 1)], [(1, 4)], [(1, 1)]]
    assert batches(ahead) == [[(0, 4)], [(0, 1)], [(0, 1)], [], [(1, 4)], [(1, 1)], []]


@pytest.mark.parametrize(("device_ms", "host_ms"), [(3.0, 2.0), (1.0, 3.0)])
def test_consequence_7_with_a_host_that_takes_time(device_ms: float, host_ms: float) -> None:
    """The empty step is planned when the other one begins, at h, and takes the host until 2 h. Request 1 is planned
    then or at the end of that step, at h + d, whichever is later, and has its token h + d after that."""
    log = one_place(device_ms, host_ms, 1, 1)
    first, planned = host_ms + device_ms, max(2 * host_ms, host_ms + device_ms)
    assert log.first_token_ns.tolist() == [first * MS, (planned + host_ms + device_ms) * MS]


def test_consequence_8_the_last_block_is_found_once_the_end_is_seen(play: Play) -> None:
    """Request 0 fills its second block in its last step, from 4 ms on. Whoever is planned at that time cannot find it
    when steps are planned ahead: the scheduler has not heard yet what that block contains."""

    def found(arrival_ms: float, output: int) -> list[tuple[int, int]]:
        rows: tuple[Row, ...] = ((0, "A[0:4]", output), (arrival_ms, "A[0:4];o0[0:4];u1[0:3]", 1))
        return [hits(steps)[-1] for steps in in_both(play, *rows, enable_prefix_caching=True)]

    assert found(4, output=5) == [(1, 8), (1, 4)]
    assert found(4.5, output=5) == [(1, 8), (1, 8)]
    assert found(4, output=6) == [(1, 8), (1, 8)]  # it is in the next step too
