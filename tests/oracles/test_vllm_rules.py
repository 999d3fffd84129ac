"""The rules of vLLM 0.33's scheduler, one test each, in worlds so small that the answer is known on paper.

The numbers (settings at the end have none) are those of the recorded rules (``vllm_decisions/README.md`` of the shared
data). A step takes 1 ms; blocks hold 4 tokens. ``PLAYERS`` says who is asked; vLLM 0.33.0 itself, asked through
``tools/record_vllm``, answers the same.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import pytest

from kvsim.testing.conformance import Recording, replay
from tests.differential.test_model_recordings import tokens_of
from tests.vllm_model import Config, Request, VllmModel

MS = 1_000_000
Step = dict[str, Any]
Row = tuple[float, str, int] | tuple[float, str, int, int] | tuple[float, str, int, int, str]
"""Arrival in ms, prompt in segments, output tokens, priority (0 if left out), and ``eos`` if a stop token ends it."""


WORLD: dict[str, Any] = {
    "usable_blocks": 100,
    "block_size": 4,
    "max_model_len": 200,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 16,
}


class Play(Protocol):
    def __call__(self, *rows: Row, **config: Any) -> list[Step]: ...


def play_model(*rows: Row, **config: Any) -> list[Step]:
    requests = [
        Request(index, round(row[0] * MS), tokens_of(row[1]), row[2], row[3] if len(row) > 3 else 0, len(row) > 4)
        for index, row in enumerate(rows)
    ]
    model = VllmModel(Config(**(WORLD | config)), lambda prefill, decodes, context: MS, requests)
    model.run(1000)
    model.pool.check(request.table for request in requests)
    return model.steps


def play_engine(*rows: Row, **config: Any) -> list[Step]:
    cost = {"base_ns": MS, "per_prefill_token_ns": 0, "per_decode_request_ns": 0, "per_context_token_ns": 0}
    requests = [
        {
            "id": str(index),
            "arrival_ns": str(round(row[0] * MS)),
            "prompt_tokens": str(len(tokens_of(row[1]))),
            "max_tokens": str(row[2]),
            "priority": str(row[3] if len(row) > 3 else 0),
            "segments": row[1],
            "ends": row[4] if len(row) > 4 else "",
        }
        for index, row in enumerate(rows)
    ]
    full = dataclasses.asdict(Config(**(WORLD | config)))
    _, steps = replay(Recording("rule", full, cost, requests, []), "step", check_laws=True)
    return steps


PLAYERS: dict[str, Callable[..., list[Step]]] = {"model": play_model, "engine": play_engine}


@pytest.fixture(params=PLAYERS)
def play(request: pytest.FixtureRequest) -> Play:
    player: Play = PLAYERS[request.param]
    return player


def batches(steps: list[Step]) -> list[list[tuple[int, int]]]:
    """Per step (request, tokens) in scheduling order."""
    return [list(zip(step["id"], step["n"], strict=True)) for step in steps]


def hits(steps: list[Step]) -> list[tuple[int, int]]:
    """(request, cached tokens) of each admission."""
    return [(entry[0], entry[1]) for step in steps for entry in step.get("admitted", ())]


def preempted(steps: list[Step]) -> list[tuple[int, int]]:
    """(step, request)."""
    return [(step["step"], entry[0]) for step in steps for entry in step.get("preempted", ())]


# -- order of work ---------------------------------------------------------------------------------------------------


def test_rule_1_running_requests_come_first_in_admission_order(play: Play) -> None:
    """Request 0 is cut by the threshold and stands before the decode of request 1."""
    steps = play((0, "u0[0:12]", 1), (0, "u1[0:3]", 3), (1, "u2[0:2]", 1), long_prefill_token_threshold=4)
    assert batches(steps)[:2] == [[(0, 4), (1, 3)], [(0, 4), (1, 1), (2, 2)]]
    fewer = {"long_prefill_token_threshold": 1, "long_prefill_token_threshold_adaptive": True}
    rows: tuple[Row, ...] = ((0, "u0[0:40]", 1), (0, "u1[0:2]", 9), (0, "u2[0:1]", 1))
    short = play(*rows, **fewer, max_num_scheduled_tokens=8)  # of two requests, half of 16 tokens is all
    assert batches(short)[:2] == [[(0, 5), (1, 2), (2, 1)], [(0, 8)]]


def test_rule_2_a_chunk_takes_what_is_left_of_the_budget(play: Play) -> None:
    steps = play((0, "u0[0:2]", 9), (1, "u1[0:40]", 1))
    assert batches(steps)[:5] == [[(0, 2)], [(0, 1), (1, 15)], [(0, 1), (1, 15)], [(0, 1), (1, 10)], [(0, 1)]]


def test_rule_3_the_threshold_cuts_chunks_unless_a_request_is_alone(play: Play) -> None:
    alone = play((0, "u0[0:20]", 1), long_prefill_token_threshold=4)
    assert batches(alone) == [[(0, 16)], [(0, 4)]]
    two = play((0, "u0[0:10]", 1), (0, "u1[0:10]", 1), long_prefill_token_threshold=4)
    assert batches(two) == [[(0, 4), (1, 4)], [(0, 4), (1, 4)], [(0, 2), (1, 2)]]
    adaptive = {"long_prefill_token_threshold": 4, "long_prefill_token_threshold_adaptive": True}
    assert batches(play((0, "u0[0:10]", 1), (0, "u1[0:10]", 1), **adaptive)) == [[(0, 8), (1, 8)], [(0, 2), (1, 2)]]


def test_rule_4_a_step_that_preempts_admits_nothing(play: Play) -> None:
    """At step 1 request 0 takes a block from request 1. One is left, and would do for request 2, which is next."""
    rows: tuple[Row, ...] = ((0, "u0[0:8]", 3, 0), (0, "u1[0:8]", 3, 5), (1, "u2[0:2]", 1, 1))
    steps = play(*rows, usable_blocks=4, policy="priority")
    assert preempted(steps) == [(1, 1)]
    assert (steps[1]["free_blocks"], steps[1]["waiting"]) == (1, 2)
    assert "admitted" not in steps[1]
    assert steps[2]["admitted"] == [[2, 0, 0]]


def test_rule_5_nobody_overtakes_a_refused_head(play: Play) -> None:
    steps = play((0, "u0[0:12]", 4), (1, "u1[0:12]", 1), (1, "u2[0:2]", 1), usable_blocks=5)
    assert steps[1]["alloc_failed"] == [[1, "w"]]
    assert hits(steps) == [(0, 0), (1, 0), (2, 0)]
    limited = play((0, "u0[0:20]", 1), (0, "u1[0:2]", 1), max_num_seqs=1)
    assert batches(limited) == [[(0, 16)], [(0, 4)], [(1, 2)]]  # half a prompt counts as running


def test_rule_6_without_chunked_prefill_a_prompt_runs_at_once_or_not(play: Play) -> None:
    rows: tuple[Row, ...] = ((0, "u0[0:10]", 1), (0, "u1[0:10]", 1))
    assert batches(play(*rows)) == [[(0, 10), (1, 6)], [(1, 4)]]
    off = {"enable_chunked_prefill": False, "max_model_len": 16}
    assert batches(play(*rows, **off)) == [[(0, 10)], [(1, 10)]]
    cut = play(*rows, **off, long_prefill_token_threshold=8)
    assert batches(cut)[0] == [(0, 8), (1, 8)]  # the threshold cuts before the test


def test_rule_7_a_short_prompt_yields_its_first_token_in_the_step_that_admits_it(play: Play) -> None:
    (step,) = play((0, "u0[0:3]", 1))
    assert step["admitted"] == [[0, 0, 0]]
    assert step["finished"] == [0]


# -- blocks ----------------------------------------------------------------------------------------------------------


def test_rule_8_and_9_blocks_are_taken_for_the_tokens_scheduled_now(play: Play) -> None:
    """A prompt of a block: the second block comes with the first decode, for the token sampled before; none for the
    last token sampled."""
    steps = play((0, "u0[0:4]", 5), usable_blocks=10)
    assert [10 - step["free_blocks"] for step in steps] == [1, 2, 2, 2, 2]
    assert steps[-1]["free_blocks_end"] == 10


def test_rule_10_reserve_full_is_a_test_at_admission_and_reserves_nothing(play: Play) -> None:
    """Request 1 needs five blocks, four are free: with the test it waits for request 0, without it starts."""
    rows: tuple[Row, ...] = ((0, "u0[0:4]", 3), (1, "u1[0:20]", 1))
    limits = {"usable_blocks": 6, "max_num_batched_tokens": 4, "max_num_seqs": 4}
    assert hits(play(*rows, **limits)[:2]) == [(0, 0)]
    off = play(*rows, **limits, scheduler_reserve_full_isl=False)
    assert hits(off[:2]) == [(0, 0), (1, 0)]
    assert off[1]["free_blocks"] == 3  # one for the first chunk of three tokens: nothing is held back


def test_rule_10_what_a_victim_had_generated_counts_as_its_prompt(play: Play) -> None:
    """Request 1 removes itself with two blocks filled and a token generated: two blocks are free, three needed."""
    steps = play((0, "u0[0:8]", 9), (0, "u1[0:8]", 3), usable_blocks=5, max_num_batched_tokens=5, max_num_seqs=4)
    assert steps[4]["preempted"] == [[1, 8, 1, 2]]
    assert steps[5]["alloc_failed"] == [[1, "w"]]
    assert steps[5]["free_blocks"] == 2


def test_rule_11_a_hit_that_lies_in_the_free_queue_costs_a_free_block(play: Play) -> None:
    """Request 1 holds 3 of 5 blocks; of request 0's two, one is registered. Request 2 needs three: 1 hit, 2 new."""
    steps = play(
        (0, "A[0:5]", 1), (1, "u1[0:9]", 4), (2, "A[0:5];u2[0:5]", 1), usable_blocks=5, enable_prefix_caching=True
    )
    assert steps[2]["alloc_failed"] == [[2, "w"]]  # 3 blocks - 1 hit + 1 hit in the queue = 3 > 2 free
    assert hits(steps)[-1] == (2, 4)
    chunked = play(
        (0, "A[0:5]", 1), (2, "u1[0:9]", 4), (5, "A[0:5];u2[0:5]", 1),
        usable_blocks=5, enable_prefix_caching=True, max_num_batched_tokens=4, max_num_seqs=4,
    )  # fmt: skip
    assert chunked[5]["alloc_failed"] == [[2, "w"]]  # the first chunk's 2 blocks would be there, for all it takes 3
    assert chunked[5]["free_blocks"] == 2


def test_rule_12_the_watermark_holds_for_admissions_while_anything_runs(play: Play) -> None:
    """20 % of 11 blocks (10 and the null block) are 2."""
    idle = play((0, "u0[0:40]", 1), usable_blocks=10, watermark=0.2, max_num_batched_tokens=64)
    assert hits(idle) == [(0, 0)]
    busy = play((0, "u0[0:4]", 4), (1, "u1[0:28]", 1), usable_blocks=10, watermark=0.2, max_num_batched_tokens=64)
    assert busy[1]["alloc_failed"] == [[1, "w"]]  # 7 + 2 > 8 free
    assert busy[1]["free_blocks"] == 8
    rows: tuple[Row, ...] = ((0, "u0[0:4]", 4), (1, "u1[0:28]", 1))
    null_block = play(*rows, usable_blocks=10, watermark=0.19, max_num_batched_tokens=64)
    assert null_block[1]["alloc_failed"] == [[1, "w"]]  # 19 % of 11 are 2, of 10 only 1
    chunked = play(*rows, usable_blocks=10, watermark=0.2, max_num_batched_tokens=8)
    assert chunked[1]["alloc_failed"] == [[1, "w"]]  # the first chunk takes 2 blocks; all 7 and 2 are more than 8
    same_step = play((0, "u0[0:4]", 4), (0, "u1[0:32]", 1), usable_blocks=10, watermark=0.2, max_num_batched_tokens=64)
    assert same_step[0]["alloc_failed"] == [[1, "w"]]  # 8 + 2 > 9 free, since request 0 runs by now


def test_rule_12_the_watermark_holds_for_those_who_come_back(play: Play) -> None:
    """Request 2 was preempted and needs three blocks. Request 1 ends and four are free; two have to stay so."""
    rows: tuple[Row, ...] = ((0, "u0[0:8]", 12), (0, "u1[0:4]", 4), (0, "u2[0:8]", 3))
    steps = play(*rows, usable_blocks=7, watermark=0.25, max_num_batched_tokens=64)
    assert preempted(steps) == [(1, 2)]
    assert (steps[4]["alloc_failed"], steps[4]["free_blocks"]) == ([[2, "w"]], 4)
    assert hits(steps)[-1] == (2, 0)


def test_rule_13_blocks_of_a_finished_request_are_free_for_the_next_step(play: Play) -> None:
    steps = play((0, "u0[0:8]", 1), (0, "u1[0:8]", 1), usable_blocks=2)
    assert [(step["free_blocks"], step["free_blocks_end"]) for step in steps] == [(0, 2), (0, 2)]


# -- preemption ------------------------------------------------------------------------------------------------------


def test_rule_14_the_victim_is_the_last_running_request_perhaps_the_one_that_asks(play: Play) -> None:
    steps = play((0, "u0[0:8]", 3), (0, "u1[0:8]", 3), usable_blocks=4)
    assert steps[1]["alloc_failed"] == [[0, "r"]]
    assert preempted(steps) == [(1, 1)]
    itself = play((0, "u0[0:7]", 3), (0, "u1[0:8]", 3), usable_blocks=4)
    assert itself[1]["alloc_failed"] == [[1, "r"]]
    assert itself[1]["preempted"] == [[1, 8, 1, 2]]


def test_rule_15_a_victim_keeps_its_tokens_and_goes_to_the_front(play: Play) -> None:
    steps = play((0, "u0[0:8]", 3), (0, "u1[0:8]", 3), (1, "u2[0:2]", 1), usable_blocks=4)
    assert steps[1]["preempted"] == [[1, 8, 1, 2]]
    assert [request for request, _ in hits(steps)] == [0, 1, 1, 2]


def test_rule_16_a_resumed_request_recomputes_everything_and_samples_its_next_token(play: Play) -> None:
    steps = play((0, "u0[0:8]", 3), (0, "u1[0:8]", 3), usable_blocks=4)
    resumed = next(step for step in steps if [1, 0, 1] in step.get("admitted", []))
    assert (resumed["n"], resumed["c"], resumed["k"]) == ([9], [0], "p")  # 8 of the prompt, 1 generated
    assert sum(1 in step["id"] for step in steps) == 3  # three tokens in three steps: none lost, none twice


def test_rule_17_a_request_that_outgrows_the_pool_preempts_itself_and_blocks_the_queue(play: Play) -> None:
    steps = play((0, "u0[0:7]", 9), (1, "u1[0:2]", 1), usable_blocks=2)
    assert preempted(steps) == [(2, 0)]
    assert steps[-1]["waiting"] == 2
    assert steps[-1]["alloc_failed"] == [[0, "w"]]


# -- priorities ------------------------------------------------------------------------------------------------------


def test_rule_18_waiting_requests_are_served_by_priority_arrival_and_id(play: Play) -> None:
    rows: tuple[Row, ...] = ((0, "u0[0:2]", 3, 5), (1, "u1[0:2]", 1, 2), (1, "u2[0:2]", 1, 1), (1, "u3[0:2]", 1, 1))
    steps = play(*rows, policy="priority", max_num_seqs=1)
    assert [request for request, _ in hits(steps)] == [0, 2, 3, 1]
    assert preempted(steps) == []  # whoever waits displaces nobody


def test_rule_19_the_victim_has_the_lowest_priority_even_if_planned_in_this_step(play: Play) -> None:
    """Request 0 (priority 9) is planned already in step 2 when request 1 finds no block: it leaves the step again."""
    rows: tuple[Row, ...] = ((0, "u0[0:4]", 9, 9), (1, "u1[0:8]", 4, 0))
    steps = play(*rows, policy="priority", usable_blocks=4)
    assert batches(steps)[1] == [(0, 1), (1, 8)]
    assert steps[2]["alloc_failed"] == [[1, "r"]]
    assert steps[2]["preempted"] == [[0, 5, 2, 2]]
    assert batches(steps)[2] == [(1, 1)]
    younger = play((0, "u0[0:4]", 9, 1), (1, "u1[0:8]", 4, 1), policy="priority", usable_blocks=4)
    assert preempted(younger)[0] == (2, 1)  # of one priority the one that arrived last
    equals = play((0, "u0[0:4]", 4, 1), (0, "u1[0:8]", 4, 1), policy="priority", usable_blocks=4)
    assert preempted(equals)[0] == (1, 0)  # of equals the first in the running list


def test_rule_19_the_tokens_of_a_victim_return_to_the_budget(play: Play) -> None:
    """Request 1 takes a block from request 0, which is planned already. Its tokens go to request 2, behind them."""
    off = {"scheduler_reserve_full_isl": False, "policy": "priority"}
    decode: tuple[Row, ...] = ((0, "u0[0:4]", 20, 9), (1, "u1[0:4]", 20, 0), (2, "u2[0:36]", 1, 1))
    steps = play(*decode, **off, usable_blocks=11, max_num_batched_tokens=8)
    assert batches(steps)[5] == [(0, 1), (1, 1), (2, 6)]
    assert steps[6]["preempted"] == [[0, 9, 6, 3]]
    assert batches(steps)[6] == [(1, 1), (2, 7)]
    chunk: tuple[Row, ...] = ((0, "u0[0:30]", 1, 9), (1, "u1[0:4]", 20, 0), (2, "u2[0:20]", 1, 1))
    limits = {"max_num_batched_tokens": 5, "max_num_seqs": 5, "long_prefill_token_threshold": 3}
    steps = play(*chunk, **off, **limits, usable_blocks=10)
    assert batches(steps)[6] == [(0, 3), (1, 1), (2, 1)]
    assert steps[7]["preempted"] == [[0, 23, 0, 7]]
    assert batches(steps)[7] == [(1, 1), (2, 3)]


def test_rule_20_with_priorities_the_scan_goes_on_behind_a_request_that_removes_itself(play: Play) -> None:
    steps = play((0, "u0[0:8]", 9, 9), (1, "u1[0:1]", 9, 0), policy="priority", usable_blocks=4)
    assert steps[5]["alloc_failed"] == [[0, "r"]]
    assert steps[5]["preempted"] == [[0, 12, 5, 3]]
    assert batches(steps)[5] == [(1, 1)]


# -- prefix cache ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "cached"), [(11, 8), (12, 8), (13, 12)])
def test_rule_21_a_hit_ends_at_a_block_and_leaves_a_token_to_compute(play: Play, tokens: int, cached: int) -> None:
    prompt = f"A[0:{tokens}]"
    steps = play((0, prompt, 1), (5, prompt, 1), enable_prefix_caching=True)
    assert hits(steps) == [(0, 0), (1, cached)]
    inside = play((0, "A[0:12]", 1), (5, "A[0:6];u1[0:6]", 1), enable_prefix_caching=True)
    assert hits(inside) == [(0, 0), (1, 4)]  # they part inside the second block


def test_rule_22_a_block_is_registered_when_it_is_scheduled(play: Play) -> None:
    same_step = play((0, "A[0:7]", 1), (0, "A[0:7]", 1), enable_prefix_caching=True)
    assert hits(same_step[:1]) == [(0, 0), (1, 4)]
    chunked = play((0, "A[0:30]", 1), (0.5, "A[0:30]", 1), max_num_batched_tokens=20, enable_prefix_caching=True)
    assert hits(chunked[:2]) == [(0, 0), (1, 28)]


def test_rule_23_generated_blocks_are_registered_as_they_fill_the_last_token_never(play: Play) -> None:
    """4 + 5 generated: 8 tokens are computed, the ninth is not. A prompt that repeats all 9 finds two blocks."""
    nine = play((0, "A[0:4]", 5), (9, "A[0:4];o0[0:5];u1[0:3]", 1), enable_prefix_caching=True)
    assert hits(nine)[-1] == (1, 8)
    eight = play((0, "A[0:4]", 4), (9, "A[0:4];o0[0:4];u1[0:3]", 1), enable_prefix_caching=True)
    assert hits(eight)[-1] == (1, 4)


def test_rule_24_equal_blocks_stay_separate_copies_and_the_oldest_is_taken(play: Play) -> None:
    steps = play((0, "A[0:8]", 1), (5, "A[0:8]", 1), enable_prefix_caching=True)
    assert hits(steps)[-1] == (1, 4)  # its second block is computed again
    assert [step["cached_blocks"] for step in steps] == [2, 3]
    older_is_held = play((0, "A[0:8]", 9), (2, "A[0:8]", 1), (4, "A[0:8];u2[0:1]", 1), enable_prefix_caching=True)
    assert hits(older_is_held)[-1] == (2, 8)
    assert 100 - older_is_held[4]["free_blocks"] == 3 + 1  # request 0 holds the block that is hit


def test_rule_25_the_end_of_a_request_is_evicted_before_its_beginning(play: Play) -> None:
    """Four blocks, A's three registered. B takes the free one and A's last: the first two are still there."""
    steps = play(
        (0, "A[0:12]", 1), (1, "B[0:8]", 1), (2, "A[0:12];C[0:1]", 1), usable_blocks=4, enable_prefix_caching=True
    )
    assert steps[1]["evicted"] == 1
    assert hits(steps)[-1] == (2, 8)
    rows: tuple[Row, ...] = ((0, "X[0:4]", 1), (1, "A[0:7]", 1), (2, "B[0:8]", 1))
    never_full = play(*rows, usable_blocks=4, enable_prefix_caching=True)
    assert "evicted" not in never_full[2]  # A's last block was not full: it is handed out before X, which is older


def test_rule_26_a_failed_attempt_does_not_refresh_the_order_of_eviction(play: Play) -> None:
    """A is older than B. Request 3 finds A and is refused; the block that request 2 takes at 7 ms is still A's."""
    rows: tuple[Row, ...] = ((0, "A[0:4]", 1), (1, "B[0:4]", 1), (2, "u2[0:8]", 6), (3, "A[0:4];u3[0:16]", 1))
    steps = play(*rows, usable_blocks=5, max_num_batched_tokens=32, enable_prefix_caching=True)
    assert [step["step"] for step in steps if step.get("alloc_failed") == [[3, "w"]]] == [3, 4, 5, 6, 7]
    assert (steps[7]["start_ns"], steps[7]["evicted"]) == (7 * MS, 1)
    assert hits(steps)[-1] == (3, 0)


def test_rule_27_requests_that_finish_together_release_in_scheduling_order(play: Play) -> None:
    """A is given back before B, so A's blocks are evicted first."""
    rows: tuple[Row, ...] = ((0, "A[0:4]", 1), (0, "B[0:4]", 1), (1, "C[0:4]", 1))
    steps = play(*rows, (2, "B[0:4];u3[0:1]", 1), usable_blocks=2, enable_prefix_caching=True)
    assert steps[0]["finished"] == [0, 1]
    assert hits(steps)[-1] == (3, 4)


# -- limits ----------------------------------------------------------------------------------------------------------


def test_rule_28_prompts_that_fill_the_context_are_rejected_and_outputs_end_there(play: Play) -> None:
    steps = play(
        (0, "u0[0:20]", 5), (0, "u1[0:19]", 5), (0, "u2[0:17]", 5), max_model_len=20, max_num_batched_tokens=64
    )
    assert steps[0]["arrived"] == [1, 2]
    assert [step.get("finished") for step in steps] == [[1], None, [2]]
    assert [sum(request in step["id"] for step in steps) for request in (0, 1, 2)] == [0, 1, 3]


# -- settings that recordings of our own show ------------------------------------------------------------------------


def test_max_num_active_seqs_ends_admission_before_max_num_seqs(play: Play) -> None:
    """Three places, two for requests that run: the third waits for an end, the half-prefilled first one counts."""
    rows: tuple[Row, ...] = ((0, "u0[0:20]", 2), (0, "u1[0:2]", 2), (0, "u2[0:2]", 1))
    steps = play(*rows, max_num_seqs=3, max_num_active_seqs=2, long_prefill_token_threshold=8)
    assert [step["running"] for step in steps] == [2, 2, 2, 1]
    assert batches(steps)[2:4] == [[(0, 4), (2, 2)], [(0, 1)]]
    assert max(step["running"] for step in play(*rows, max_num_seqs=3, long_prefill_token_threshold=8)) == 3


def test_max_num_scheduled_tokens_is_the_budget_of_a_step(play: Play) -> None:
    """The adaptive threshold still reckons with max_num_batched_tokens."""
    rows: tuple[Row, ...] = ((0, "u0[0:20]", 1), (0, "u1[0:20]", 1))
    steps = play(*rows, max_num_scheduled_tokens=9)
    assert batches(steps)[:3] == [[(0, 9)], [(0, 9)], [(0, 2), (1, 7)]]
    adaptive = {"long_prefill_token_threshold": 1, "long_prefill_token_threshold_adaptive": True}
    assert batches(play(*rows, **adaptive, max_num_scheduled_tokens=10))[0] == [(0, 8), (1, 2)]
    assert batches(play(*rows, max_num_scheduled_tokens=99))[0] == [(0, 16)]  # never more than max_num_batched_tokens


def starts(steps: list[Step], request: int) -> list[int]:
    """Numbers of the steps in which the request is scheduled."""
    return [step["step"] for step in steps if request in step["id"]]


def test_prefill_schedule_interval_holds_prompts_back_while_others_decode(play: Play) -> None:
    """Steps 0, 3, 6, ... may take prompts: request 1 arrives for step 1. Nobody decodes beside request 2: no hold."""
    steps = play((0, "u0[0:2]", 6), (1, "u1[0:2]", 1), (20, "u2[0:40]", 1), prefill_schedule_interval=3)
    assert starts(steps, 0) == [0, 1, 2, 3, 4, 5]
    assert starts(steps, 1) == [3]
    assert starts(steps, 2) == [6, 7, 8]


def test_prefill_schedule_interval_holds_later_chunks_too(play: Play) -> None:
    """Request 1 needs three chunks beside a decode, each a turn after the one before."""
    steps = play((0, "u0[0:2]", 12), (1, "u1[0:40]", 1), prefill_schedule_interval=4)
    assert starts(steps, 1) == [4, 8, 12]
    assert [step["n"] for step in steps[4:6]] == [[1, 15], [1]]


def test_prefill_schedule_interval_stops_while_somebody_is_left_waiting(play: Play) -> None:
    """At step 3 the budget leaves request 2 waiting, so step 4 takes prompts as well; from then on there is a hold."""
    rows: tuple[Row, ...] = ((0, "u0[0:2]", 20), (1, "u1[0:15]", 3), (1, "u2[0:3]", 2), (5, "u3[0:3]", 1))
    steps = play(*rows, prefill_schedule_interval=3)
    assert [starts(steps, request)[0] for request in (1, 2, 3)] == [3, 4, 7]


def test_prefill_schedule_interval_lets_the_last_token_of_a_prompt_pass(play: Play) -> None:
    """One token that is not in the prefix cache is as good as a decode, and does not count as a prompt."""
    rows: tuple[Row, ...] = ((0, "A[0:4]", 12), (1, "A[0:4];u1[0:1]", 1), (1, "A[0:4];u2[0:2]", 1))
    steps = play(*rows, prefill_schedule_interval=4, enable_prefix_caching=True)
    assert [starts(steps, request)[0] for request in (1, 2)] == [1, 4]


@pytest.mark.parametrize("ahead", [False, True])
def test_prefill_schedule_interval_does_not_hold_a_decode_that_sat_out(play: Play, ahead: bool) -> None:
    """In step 3 the chunk of request 0 leaves nothing to request 1, which is no prompt: it runs in the steps after."""
    limits = {"max_num_scheduled_tokens": 8, "prefill_schedule_interval": 3, "async_scheduling": ahead}
    adaptive = {"long_prefill_token_threshold": 1, "long_prefill_token_threshold_adaptive": True}
    steps = play((0, "u0[0:40]", 1), (0, "u1[0:2]", 9), (0, "u2[0:1]", 1), **limits, **adaptive)
    assert batches(steps)[:4] == [[(0, 5), (1, 2), (2, 1)], [(1, 1)], [(1, 1)], [(0, 8)]]
    assert batches(steps)[4:7] == [[(1, 1)], [(1, 1)], [(0, 8)]]


# -- limits of the front end (read, not recorded) --------------------------------------------------------------------


def arrived(steps: list[Step]) -> list[int]:
    """Requests that the front end took."""
    return [request for step in steps for request in step.get("arrived", ())]


@pytest.mark.parametrize("ahead", [False, True])
def test_max_num_queued_reqs_refuses_at_arrival_while_so_many_are_alive(play: Play, ahead: bool) -> None:
    """Request 0 ends at 3 ms: request 2 comes half a millisecond too early."""
    rows: tuple[Row, ...] = ((0, "u0[0:4]", 3), (0.5, "u1[0:4]", 9), (2.5, "u2[0:4]", 1), (3, "u3[0:4]", 1))
    assert arrived(play(*rows, max_num_queued_reqs=2, async_scheduling=ahead)) == [0, 1, 3]
    assert arrived(play(*rows, max_num_queued_reqs=0, async_scheduling=ahead)) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_max_num_queued_tokens_counts_whole_prompts_until_their_first_token(play: Play, ahead: bool) -> None:
    """Request 0 has its first token at 2 ms, after two chunks. The prompt of whoever asks does not count."""
    rows: tuple[Row, ...] = ((0, "u0[0:20]", 9), (1.5, "u1[0:1]", 1), (2, "u2[0:30]", 1), (2.5, "u3[0:1]", 1))
    assert arrived(play(*rows, max_num_queued_tokens=5, async_scheduling=ahead)) == [0, 2]
    assert arrived(play(*rows, max_num_queued_tokens=21, async_scheduling=ahead)) == [0, 1, 2]
