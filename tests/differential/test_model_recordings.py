"""The block-by-block model against vLLM's own scheduler: every field of every step of all 28 recordings."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.differential.recordings import CASES
from tests.vllm_model import Config, Request, Token, VllmModel


def tokens_of(segments: str) -> list[Token]:
    """``name[a:b];...`` as tokens: positions a to b - 1 of the stream ``name``."""
    tokens: list[Token] = []
    for segment in filter(None, segments.split(";")):
        name, _, bounds = segment.removesuffix("]").partition("[")
        start, _, end = bounds.partition(":")
        tokens += [(name, position) for position in range(int(start), int(end))]
    return tokens


@pytest.mark.parametrize("case", CASES)
def test_model_decides_every_step_as_vllm(shared_data: Path, case: str) -> None:
    folder = shared_data / "vllm_decisions" / case
    about = json.loads((folder / "config.json").read_text())
    with open(folder / "requests.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    cost = about["cost"]

    def step_ns(prefill_tokens: int, decode_requests: int, context_tokens: int) -> int:
        ns: int = cost["base_ns"] + cost["per_prefill_token_ns"] * prefill_tokens
        ns += cost["per_decode_request_ns"] * decode_requests + cost["per_context_token_ns"] * context_tokens
        return ns

    config = Config(**{name: about["config"][name] for name in Config.__dataclass_fields__ if name in about["config"]})
    assert config.watermark_blocks == about["config"]["watermark_blocks"]
    requests = [
        Request(int(r["id"]), int(r["arrival_ns"]), tokens_of(r["segments"]), int(r["max_tokens"]), int(r["priority"]))
        for r in rows
    ]
    assert [len(request.prompt) for request in requests] == [int(r["prompt_tokens"]) for r in rows]
    model = VllmModel(config, step_ns, requests)
    model.run()

    with gzip.open(folder / "steps.jsonl.gz", "rt") as file:
        theirs = [json.loads(line) for line in file]
    for ours, step in zip(model.steps, theirs, strict=True):
        assert ours == step
    model.pool.check(request.table for request in requests)

    def text(value: Any) -> str:
        return "" if value is None else str(value)

    for request, row in zip(requests, rows, strict=True):
        cached = request.cached_tokens
        outcome = {
            "status": request.status,
            "generated_tokens": text(request.generated),
            "first_scheduled_ns": text(request.first_scheduled_ns),
            "first_token_ns": text(request.first_token_ns),
            "finish_ns": text(request.finish_ns),
            "admissions": text(request.admissions),
            "preemptions": text(request.preemptions),
            "cached_tokens_first": text(cached[0] if cached else None),
            "cached_tokens_total": text(sum(cached)),
        }
        assert outcome == {name: row[name] for name in outcome}
