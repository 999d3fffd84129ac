"""The block-by-block model against vLLM's own scheduler: every field of every step, and what became of each request."""

from pathlib import Path
from typing import Any

import pytest

from kvsim.testing.conformance import Recording, load
from tests.differential.recordings import CASES, OWN, OWN_CASES, shared
from tests.vllm_model import Config, Request, Token, VllmModel


def tokens_of(segments: str) -> list[Token]:
    """``name[a:b];...`` as tokens: positions a to b - 1 of the stream ``name``."""
    tokens: list[Token] = []
    for segment in segments.split(";"):
        name, _, bounds = segment.removesuffix("]").partition("[")
        start, _, end = bounds.partition(":")
        tokens += [(name, position) for position in range(int(start), int(end))]
    return tokens


def model_of(recording: Recording) -> VllmModel:
    known = Config.__dataclass_fields__
    config = Config(**{name: value for name, value in recording.config.items() if name in known})
    requests = [
        Request(
            int(row["id"]),
            int(row["arrival_ns"]),
            tokens_of(row["segments"]),
            int(row["max_tokens"]),
            int(row["priority"]),
            row.get("ends") == "eos",
        )
        for row in recording.requests
    ]
    return VllmModel(config, recording.step_ns, requests)


def outcome(request: Request) -> dict[str, Any]:
    cached = request.cached_tokens
    return {
        "prompt_tokens": len(request.prompt),
        "status": request.status,
        "generated_tokens": request.generated,
        "first_scheduled_ns": request.first_scheduled_ns,
        "first_token_ns": request.first_token_ns,
        "finish_ns": request.finish_ns,
        "admissions": request.admissions,
        "preemptions": request.preemptions,
        "cached_tokens_first": cached[0] if cached else None,
        "cached_tokens_total": sum(cached),
    }


def check(recording: Recording) -> None:
    model = model_of(recording)
    assert model.config.watermark_blocks == recording.config["watermark_blocks"]
    model.run()
    for ours, theirs in zip(model.steps, recording.steps, strict=True):
        assert ours == theirs
    for request, row in zip(model.requests, recording.requests, strict=True):
        assert {
            name: "" if value is None else str(value) for name, value in outcome(request).items()
        }.items() <= row.items()
    model.pool.check(request.table for request in model.requests)


@pytest.mark.parametrize("case", CASES)
def test_the_model_decides_every_step_as_vllm(shared_data: Path, case: str) -> None:
    check(shared(shared_data, case))


@pytest.mark.parametrize("case", OWN_CASES)
def test_the_model_decides_every_step_as_vllm_in_our_own_recordings(case: str) -> None:
    check(load(OWN / case))
