"""The engine against the block-by-block model of vLLM on random small worlds: hits, evictions, free blocks, times."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.testing.conformance import Mode, Recording, first_difference, replay, simulated_outcome
from tests.differential.test_model_recordings import model_of
from tests.vllm_model import Config

COST = {"base_ns": 1000, "per_prefill_token_ns": 7, "per_decode_request_ns": 3, "per_context_token_ns": 1}


@st.composite
def worlds(draw: st.DrawFn, policies: tuple[str, ...] = ("fcfs",)) -> Recording:
    """Prompts that share beginnings with each other and with what others generate, in a pool that is hardly enough."""
    block_size = draw(st.sampled_from((1, 2, 4, 5)))
    n = draw(st.integers(2, 14))
    rows: list[dict[str, str]] = []
    prompts: list[str] = []
    outputs: list[int] = []
    arrival_ns = 0
    for i in range(n):
        kind = draw(st.sampled_from(("stream", "stream", "again", "turn", "own")))
        tail = draw(st.integers(0, 3 * block_size + 1))
        if kind == "again" and i:
            prompt = draw(st.sampled_from(prompts))
        elif kind == "turn" and i:
            other = draw(st.integers(0, i - 1))
            prompt = f"{prompts[other]};o{other}[0:{draw(st.integers(1, outputs[other]))}]"
            prompt += f";t{draw(st.integers(0, 1))}[0:{tail}]" if tail else ""
        elif kind == "own":
            prompt = f"u{i}[0:{tail + 1}]"
        else:
            prompt = f"s{draw(st.integers(0, 2))}[0:{draw(st.integers(1, 5 * block_size + 1))}]"
            prompt += f";t{draw(st.integers(0, 1))}[0:{tail}]" if tail else ""
        arrival_ns += draw(st.sampled_from((0, 0, 1, 900, 1500, 7000, 30000)))
        prompts.append(prompt)
        outputs.append(draw(st.one_of(st.integers(1, 3), st.integers(1, 30))))
        rows.append({
            "id": str(i), "arrival_ns": str(arrival_ns), "prompt_tokens": str(tokens_in(prompt)),
            "max_tokens": str(outputs[i]), "priority": str(draw(st.integers(0, 2))), "segments": prompt,
        })  # fmt: skip
    longest = max(tokens_in(p) + o for p, o in zip(prompts, outputs, strict=True))
    config = Config(
        usable_blocks=-(-longest // block_size) + draw(st.integers(0, 12)),  # so large that everybody ends
        max_model_len=longest + 1,
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.integers(6, 40)),
        block_size=block_size,
        enable_prefix_caching=True,
        policy=draw(st.sampled_from(policies)),
        long_prefill_token_threshold=draw(st.sampled_from((0, 0, 3, 8))),
        long_prefill_token_threshold_adaptive=draw(st.booleans()),
        enable_chunked_prefill=draw(st.sampled_from((True, True, False))),
        scheduler_reserve_full_isl=draw(st.booleans()),
        watermark=draw(st.sampled_from((0.0, 0.0, 0.1))),
        max_num_active_seqs=draw(st.sampled_from((None, None, 1, 3))),
        max_num_scheduled_tokens=draw(st.sampled_from((None, None, 6, 11))),
        prefill_schedule_interval=draw(st.sampled_from((1, 1, 2, 3, 8))),
        max_num_queued_reqs=draw(st.sampled_from((None, None, None, 0, 1, 3, 8))),
        max_num_queued_tokens=draw(st.sampled_from((None, None, None, 0, 1, 20, 60))),
    )
    return Recording("random", dataclasses.asdict(config), COST, rows, [])


def tokens_in(prompt: str) -> int:
    bounds = (segment.removesuffix("]").partition("[")[2].partition(":") for segment in prompt.split(";"))
    return sum(int(end) - int(start) for start, _, end in bounds)


def outcome(recording: Recording) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What the model does: its steps, and what became of each request."""
    model = model_of(recording)
    model.run(50_000)
    model.pool.check(request.table for request in model.requests)
    ends = [
        {
            "status": "unfinished" if request.status.startswith("stuck") else request.status,
            "generated_tokens": request.generated,
            "preemptions": request.preemptions,
            "cached_tokens": sum(request.cached_tokens),
            "first_scheduled_ns": request.first_scheduled_ns,
            "first_token_ns": request.first_token_ns,
            "finish_ns": request.finish_ns,
        }
        for request in model.requests
    ]
    return model.steps, ends


def check(recording: Recording) -> None:
    steps, ends = outcome(recording)
    log, decisions = replay(recording, "step", check_laws=True)
    difference = first_difference("step", steps, decisions)
    difference = difference or first_difference("request, stepping", ends, simulated_outcome(log))
    log, _ = replay(recording, "leap")
    difference = difference or first_difference("request, leaping", ends, simulated_outcome(log))
    assert difference is None, "\n".join(difference.lines())


@given(worlds())
def test_hits_evictions_and_times_are_those_of_the_model(recording: Recording) -> None:
    check(recording)


@given(worlds(("priority",)))
def test_and_by_priority(recording: Recording) -> None:
    check(recording)


def world(*rows: tuple[int, str, int], **config: Any) -> Recording:
    """(arrival in steps of 1 us, prompt, output tokens) of each request; blocks of 4 tokens."""
    requests = [
        {
            "id": str(i),
            "arrival_ns": str(steps * 1000),
            "prompt_tokens": str(tokens_in(prompt)),
            "max_tokens": str(output),
            "priority": "0",
            "segments": prompt,
        }
        for i, (steps, prompt, output) in enumerate(rows)
    ]
    common: dict[str, Any] = {"block_size": 4, "max_model_len": 100, "max_num_seqs": 8, "max_num_batched_tokens": 64}
    cost = dict.fromkeys(COST, 0) | {"base_ns": 1000}
    full = dataclasses.asdict(Config(**common | {"enable_prefix_caching": True} | config))
    return Recording("by hand", full, cost, requests, [])


def test_a_refused_head_is_asked_again_when_a_decode_fills_the_block_it_waits_for() -> None:
    """It lacks one block, and finds one more before the decode ends: leaping must stop there."""
    recording = world((0, "s[0:8]", 20), (6, "s[0:8];o0[0:8];t[0:24]", 1), usable_blocks=10)
    steps, _ = outcome(recording)
    assert [step["step"] for step in steps if "admitted" in step] == [0, 8]
    assert all("alloc_failed" in step for step in steps[6:8])
    check(recording)


def test_requests_that_end_together_give_back_their_blocks_in_the_order_they_were_scheduled() -> None:
    """A chunk before a decode: the next request evicts the last block of the chunk's, and spares the decode's."""
    recording = world(
        (0, "s[0:12]", 1), (0, "t[0:2]", 3), (3, "u[0:20]", 1), (4, "t[0:2];o1[0:2];v[0:2]", 1),
        usable_blocks=8, long_prefill_token_threshold=4,
    )  # fmt: skip
    steps, ends = outcome(recording)
    assert steps[2]["finished"] == [0, 1]
    assert ends[3]["cached_tokens"] == 4
    check(recording)


@pytest.mark.parametrize("interval", [1, 8])
@pytest.mark.parametrize("mode", ["step", "leap"])
def test_prompts_that_displace_each_other_for_ever_end_with_a_diagnosis(mode: Mode, interval: int) -> None:
    """Admitted without blocks for all of it, the younger takes what the older gave up, and the other way round."""
    recording = world(
        (0, "u[0:57]", 1), (0, "v[0:65]", 1),
        usable_blocks=11, block_size=8, max_num_seqs=6, max_num_batched_tokens=6, long_prefill_token_threshold=3,
        scheduler_reserve_full_isl=False, policy="priority", prefill_schedule_interval=interval,
        enable_prefix_caching=False,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="no end after 3000 steps"):
        model_of(recording).run(3000)
    log, _ = replay(recording, mode, check_laws=True)
    assert log.diagnosis is not None
    assert "1 waiting and 1 running" in log.diagnosis
