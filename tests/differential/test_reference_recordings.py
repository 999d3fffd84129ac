"""The reference against vLLM's own scheduler: every field of every step of 18 recordings."""

from pathlib import Path

import pytest

from tests.differential.recordings import FCFS_CASES, RecordedCost, load
from tests.reference import Options, PoolSpec, Reference


@pytest.mark.parametrize("case", FCFS_CASES)
def test_reference_decides_every_step_as_vllm(shared_data: Path, case: str) -> None:
    recording = load(shared_data / "vllm_decisions", case)
    config = recording.config
    pool = PoolSpec(
        cost=RecordedCost(**recording.cost),
        kv_blocks=config["usable_blocks"],
        block_size=config["block_size"],
        **recording.scheduler,
    )
    options = Options(max_model_len=config["max_model_len"], reject_oversized=False)
    outcome = Reference(recording.trace, [pool], options).run()

    for ours, theirs in zip(outcome.decisions[0], recording.steps, strict=True):
        assert ours == theirs
    ours_by_request = [
        (
            r.status,
            r.generated,
            r.first_scheduled,
            r.first_token,
            None if r.status == "rejected" else r.finish,
            r.preemptions,
        )
        for r in outcome.requests
    ]
    assert ours_by_request == recording.outcome()
    assert outcome.stuck == any(row["status"].startswith("stuck") for row in recording.requests)
