"""The reference against vLLM's own scheduler: every field of every step of 18 recordings."""

from pathlib import Path

import pytest

from kvsim.testing.conformance import recorded_outcome
from tests.differential.recordings import FCFS_CASES, RecordedCost, scheduler_of, shared
from tests.reference import Options, PoolSpec, Reference


@pytest.mark.parametrize("case", FCFS_CASES)
def test_reference_decides_every_step_as_vllm(shared_data: Path, case: str) -> None:
    recording = shared(shared_data, case)
    config = recording.config
    pool = PoolSpec(
        cost=RecordedCost(**recording.cost),
        kv_blocks=config["usable_blocks"],
        block_size=config["block_size"],
        **scheduler_of(recording),
    )
    options = Options(max_model_len=config["max_model_len"], reject_oversized=False)
    outcome = Reference(recording.trace(), [pool], options).run()

    for ours, theirs in zip(outcome.decisions[0], recording.steps, strict=True):
        assert ours == theirs
    ours_by_request = [
        {
            "status": r.status,
            "generated_tokens": r.generated,
            "preemptions": r.preemptions,
            "cached_tokens": 0,
            "first_scheduled_ns": r.first_scheduled,
            "first_token_ns": r.first_token,
            "finish_ns": None if r.status == "rejected" else r.finish,
        }
        for r in outcome.requests
    ]
    assert ours_by_request == recorded_outcome(recording)
    assert outcome.stuck == any(row["status"].startswith("stuck") for row in recording.requests)
