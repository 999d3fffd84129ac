"""A run in which nothing can move ends with a diagnosis, whatever it is that goes round in circles."""

import pytest

from kvsim.core.runlog import STATUS_NAMES
from tests.worlds import replica, requests, world


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize(
    ("first", "head"),
    [
        ((0.0, 300, 30), "whose 300 tokens need 19 blocks"),  # admitted chunk by chunk, outgrows the pool in its prompt
        ((0.0, 150, 30), "whose 161 tokens need 11 blocks"),  # outgrows it while it decodes
    ],
)
def test_a_request_that_outgrows_the_pool_is_named(first: tuple[float, int, int], head: str, mode: str) -> None:
    small = replica(kv_blocks=10, block_size=16, max_num_batched_tokens=64, scheduler_reserve_full_isl=False)
    log = world(requests(first, (0.1, 20, 5)), small, reject_oversized=False).simulate(mode)
    assert [STATUS_NAMES[status] for status in log.status] == ["unfinished", "unfinished"]
    assert {log.reasons[reason] for reason in log.reason} == {"stuck"}
    assert log.diagnosis is not None
    assert "2 waiting and 0 running, 10 of 10 KV blocks free" in log.diagnosis
    assert head in log.diagnosis


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_a_victim_that_the_watermark_keeps_out_is_named(mode: str) -> None:
    """It was admitted, grew, and is too long now for the pool less the watermark.

    (vLLM 0.6 drops such a prompt; swapped, it stays there for ever as well.)
    """
    small = replica(
        kv_blocks=10, scheduler="prefill_first", watermark=0.5, preemption_mode=mode, host_blocks=99,
        max_num_batched_tokens=200,
    )  # fmt: skip
    log = world(requests((0.0, 16, 65), (0.0, 60, 100)), small).simulate()
    assert [STATUS_NAMES[status] for status in log.status] == ["finished", "unfinished"]
    assert "10 of 10 KV blocks free" in str(log.diagnosis)
    assert "it is the scheduler that refuses" in str(log.diagnosis)
