"""A request that has the replica to itself: its latencies in closed form, to the nanosecond."""

import pytest

from tests.worlds import affine, replica, requests, world

BASE, PREFILL, DECODE, CONTEXT = 4_000_000, 60_000, 20_000, 20  # ns
COST = affine(base_s=BASE / 1e9, prefill_token_s=PREFILL / 1e9, decode_request_s=DECODE / 1e9, context_token_s=2e-8)


@pytest.mark.parametrize("prompt", [1, 15, 16, 512, 513, 5000])
@pytest.mark.parametrize("output", [1, 2, 17, 1000])
@pytest.mark.parametrize("budget", [512, 8192])
def test_a_lone_request(prompt: int, output: int, budget: int) -> None:
    log = world(requests((1.5, prompt, output)), replica(cost=COST, max_num_batched_tokens=budget)).simulate()

    # Chunks of the whole budget; the k-th finds k budgets in KV.
    chunks = -(-prompt // budget)
    ttft = chunks * BASE + prompt * PREFILL + CONTEXT * budget * chunks * (chunks - 1) // 2
    # Decode step j (from 0) finds the prompt and the j tokens before in KV.
    steps = output - 1
    decode = steps * (BASE + DECODE + CONTEXT * prompt) + CONTEXT * steps * (steps - 1) // 2
    assert log.first_token_ns.tolist() == [1_500_000_000 + ttft]
    assert log.finish_ns.tolist() == [1_500_000_000 + ttft + decode]
    assert log.steps == (chunks + steps,)
    assert log.peak_used_blocks == (-(-(prompt + output - 1) // 16),)
    longest = BASE + DECODE + CONTEXT * (prompt + steps - 1)
    assert log.max_gap_ns.tolist() == [longest if steps else -1]


def test_a_lone_request_handed_over() -> None:
    """TTFT belongs to the prefill pool; the second token waits for the link."""
    prefill = replica(cost=COST, role="prefill", kv_bytes_per_token=1000)
    decode = replica(cost=COST, role="decode")
    log = world(requests((0.0, 100, 3)), prefill, decode, link=(1_000_000, 0.007)).simulate()

    ttft = BASE + 100 * PREFILL
    transfer = 100 * 1000 * 1_000_000_000 // 1_000_000 + 7_000_000
    first_decode = BASE + DECODE + CONTEXT * 100
    assert log.first_token_ns.tolist() == [ttft]
    assert log.transfers.start_ns.tolist() == [ttft]
    assert log.transfers.end_ns.tolist() == [ttft + transfer]
    assert log.finish_ns.tolist() == [ttft + transfer + 2 * first_decode + CONTEXT]
    assert log.max_gap_ns.tolist() == [transfer + first_decode]
