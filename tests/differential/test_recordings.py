"""The engine against vLLM's own scheduler: 18 recordings, per request in both modes, per step in one."""

from pathlib import Path
from typing import Any

import pytest

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.runlog import NEVER, STATUS_NAMES, RunLog
from kvsim.costs.affine import Affine
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.differential.recordings import FCFS_CASES, Recording, load
from tests.worlds import GPU, MODEL, Mode


def play(recording: Recording, **options: Any) -> RunLog:
    config, cost = recording.config, recording.cost
    affine = Affine(
        base_s=cost["base_ns"] / 1e9,
        prefill_token_s=cost["per_prefill_token_ns"] / 1e9,
        decode_request_s=cost["per_decode_request_ns"] / 1e9,
        context_token_s=cost["per_context_token_ns"] / 1e9,
    )
    pool = Pool(
        role="mixed",
        replicas=1,
        scheduler=ChunkedPrefill(**recording.scheduler),
        kv=Paged(block_size=config["block_size"]),
        kv_blocks=config["usable_blocks"],
        cost=affine.start(MODEL, GPU, 1),
        router=RoundRobin(),
    )
    cluster = Cluster((pool,), config["max_model_len"], reject_oversized=False)
    return simulate(recording.trace, cluster, RunOptions(**options))


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("case", FCFS_CASES)
def test_every_request_ends_as_in_vllm(shared_data: Path, case: str, mode: Mode) -> None:
    recording = load(shared_data / "vllm_decisions", case)
    log = play(recording, mode=mode, check_laws=True)

    def happened(time_ns: int) -> int | None:
        return None if time_ns == NEVER else time_ns

    ours = [
        (
            STATUS_NAMES[log.status[i]],
            int(log.generated_tokens[i]),
            happened(int(log.first_scheduled_ns[i])),
            happened(int(log.first_token_ns[i])),
            happened(int(log.finish_ns[i])) if STATUS_NAMES[log.status[i]] == "finished" else None,
            int(log.preemptions[i]),
        )
        for i in range(len(log))
    ]
    assert ours == recording.outcome()
    assert (log.diagnosis is not None) == any(row["status"].startswith("stuck") for row in recording.requests)


@pytest.mark.parametrize("case", FCFS_CASES)
def test_every_step_is_decided_as_in_vllm(shared_data: Path, case: str) -> None:
    recording = load(shared_data / "vllm_decisions", case)
    decisions: list[dict[str, Any]] = []
    play(recording, mode="step", decisions=lambda replica, decision: decisions.append(decision))
    for ours, theirs in zip(decisions, recording.steps, strict=True):
        assert ours == theirs
