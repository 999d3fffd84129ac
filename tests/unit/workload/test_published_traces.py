"""Every published trace at hand, read unmodified: the statistics that were computed from the files on their own.

The figures are those of README.md in the folder with published data, in the precision given there.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvsim.cli import main
from kvsim.metrics.trace_stats import describe
from kvsim.workload import read_trace

AZURE = "azure_2023/AzureLLMInferenceTrace_conv.csv"
MOONCAKE = "mooncake/conversation_trace.jsonl"

FIGURES: dict[str, dict[str, Any]] = {
    AZURE: {
        "rows.read": 19_366,
        "arrivals.span_s": 3_501.7,
        "prompt_tokens": [1154.7, 1020, 2735, 4142, 14050, 2],
        "output_tokens": [211.1, 129, 424, 601, 1000, 7],
        "arrivals.requests_per_min": 331.8,
        "arrivals.requests_per_min_min": 37,
        "arrivals.requests_per_min_max": 507,
        "arrivals.requests_per_s_max": 16,
        "arrivals.gap_cv": 1.09,
        "arrivals.longest_gap_s": 4.3,
        "arrivals.tied": 0,
        "length_correlation": -0.11,
    },
    "burstgpt/BurstGPT_1_head400.csv": {
        "rows.read": 400,
        "rows.source_failed": 17,
        "prompt_tokens_with_failed": [520.5, 314, 1418, 1958, 2126, 0],
        "output_tokens_with_failed": [276.5, 230, 571, 1421, 2019, 0],
        "arrivals.span_s": 37_269,
        "arrivals.requests_per_min": 0.64,
        "arrivals.requests_per_min_max": 8,
        "arrivals.gap_cv": 4.56,
        "arrivals.tied": 4,
        "arrivals.longest_gap_s": 6_651,
        "tenants.API log": 2,
        "models.ChatGPT": 320,
        "models.GPT-4": 80,
    },
    "burstgpt/BurstGPT_3_rows001-200.csv": {
        "rows.read": 200,
        "rows.source_failed": 1,
        "prompt_tokens_with_failed": [761.6, 272, 1223, 12575, 25085, 0],
        "output_tokens_with_failed": [179.4, 100, 479, 862, 1101, 0],
        "arrivals.span_s": 36_447,
        "arrivals.requests_per_min": 0.33,
        "arrivals.requests_per_min_max": 7,
        "arrivals.gap_cv": 2.22,
        "arrivals.tied": 0,
        "arrivals.longest_gap_s": 2_892,
        "sessions.requests_outside": 6,
        "sessions.sessions": 74,
    },
    MOONCAKE: {
        "rows.read": 12_031,
        "arrivals.span_s": 3_537.0,
        "arrivals.distinct_times": 1_180,
        "arrivals.requests_per_min": 204.1,
        "arrivals.requests_per_min_min": 144,
        "arrivals.requests_per_min_max": 247,
        "arrivals.requests_per_s_max": 28,
        "arrivals.gap_cv": 3.03,
        "prompt_tokens": [12035, 6909, 27367, 85400, 126195, 891],
        "output_tokens": [342.6, 350, 597, 1119, 2000, 1],
        "prefix.block_tokens": 512,
        "prefix.blocks": 288_500,
        "prefix.distinct_blocks": 182_790,
        "prefix.blocks_used_once": 138_646,
        "prefix.hit_blocks_frac": 0.366,
        "prefix.hit_tokens_frac": 0.374,
        "prefix.requests_hit_in_full": 118,
        "prefix.lru_hit_blocks_frac.1000": 0.044,
        "prefix.lru_hit_blocks_frac.5000": 0.110,
        "prefix.lru_hit_blocks_frac.10000": 0.211,
        "prefix.lru_hit_blocks_frac.30000": 0.326,
        "prefix.lru_hit_blocks_frac.50000": 0.355,
    },
    "mooncake/mooncake_arxiv_trace_head1000.jsonl": {
        "rows.read": 1_000,
        "arrivals.span_s": 177.1,
        "arrivals.requests_per_min": 338.8,
        "arrivals.requests_per_min_min": 313,
        "arrivals.requests_per_min_max": 357,
        "arrivals.gap_cv": 4.03,
        "prompt_tokens": [9792, 6558, 19789, 77828, 121290, 891],
        "output_tokens": [199.1, 34, 534, 831, 2000, 1],
        "prefix.hit_blocks_frac": 0.380,
        "prefix.hit_tokens_frac": 0.391,
    },
    "dynamo/pi_request_trace.jsonl.gz": {
        "rows.read": 61,
        "rows.replayed": 17,
        "sessions.sessions": 5,
        "prefix.block_tokens": 16,
        "prompt_tokens.mean": 3913,
        "prompt_tokens.max": 8780,
        "output_tokens.mean": 476,
    },
    "tracelab/example_round_trace.jsonl": {"rows.read": 19, "sessions.sessions": 2},
    "length_distributions/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv": {
        "rows.read": 28_257,
        "arrivals.span_s": 0,
        "prompt_tokens.mean": 2588,
        "prompt_tokens.p50": 2730,
        "prompt_tokens.p90": 3702,
        "prompt_tokens.max": 4054,
        "output_tokens.mean": 291,
        "output_tokens.p50": 167,
        "output_tokens.p90": 372,
        "output_tokens.p99": 3271,
    },
    "length_distributions/sharegpt_val_10k_llama2.csv": {
        "rows.read": 10_000,
        "prompt_tokens.mean": 246,
        "prompt_tokens.p50": 35,
        "prompt_tokens.p90": 761,
        "prompt_tokens.p99": 2862,
        "output_tokens.mean": 326,
        "output_tokens.p50": 286,
        "output_tokens.p90": 681,
        "output_tokens.p99": 1000,
    },
}


def found(statistics: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        statistics = statistics[part]
    return statistics


def assert_rounds_to(value: Any, figure: Any, what: str) -> None:
    if isinstance(figure, list):
        for name, each in zip(("mean", "p50", "p90", "p99", "max", "min"), figure, strict=True):
            assert_rounds_to(value[name], each, f"{what}.{name}")
        return
    decimals = len(str(figure).partition(".")[2]) if isinstance(figure, float) else 0
    assert abs(value - figure) <= 0.5 * 10**-decimals + 1e-9, f"{what} is {value}, the file has {figure}"


@pytest.mark.parametrize("file", FIGURES)
def test_info_prints_the_statistics_of_the_file(
    file: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        main(["trace", "info", str(shared_data / "traces" / file), "--format", "json"])
    assert done.value.code == 0
    statistics = json.loads(capsys.readouterr().out)
    for key, figure in FIGURES[file].items():
        assert_rounds_to(found(statistics, key), figure, key)


@pytest.mark.parametrize(
    ("name", "format", "first"),
    [
        ("AzureLLMInferenceTrace_code_2024_head5", "azure_2024", (7_405_000, 2162, 5)),
        ("AzureLLMInferenceTrace_conv_2024_head5", "azure_2024", (40_520_000, 1452, 3)),
        ("AzureLMMInferenceTrace_multimodal_2025_head5", "azure_2025", (5_550_000_000, 770, 491)),
    ],
)
def test_azure_samples(name: str, format: str, first: tuple[int, int, int], shared_data: Path) -> None:
    trace = read_trace(shared_data / f"traces/azure_format_samples/{name}.csv")
    assert (trace.format, len(trace)) == (format, 5)
    assert (int(trace.arrival_ns[1]), int(trace.prompt_tokens[0]), int(trace.output_tokens[0])) == first
    if format == "azure_2025":
        assert trace.images is not None
        assert trace.images[:2].tolist() == [0, 1]


def test_agent_sessions_in_a_folder(shared_data: Path) -> None:
    """The 19 documents, three with sub-agents, against what a plain walk over the JSON counts."""
    folder = shared_data / "traces/kv_cache_tester/samples"
    requests, agents, blocks, prompt = 0, 0, 0, 0
    for file in folder.glob("*.json"):
        pending = json.loads(file.read_bytes())["requests"]
        while pending:
            entry = pending.pop()
            if entry["type"] == "subagent":
                agents += 1
                pending += entry["requests"]
            else:
                requests += 1
                blocks += len(entry["hash_ids"])
                prompt += entry["in"]
    trace = read_trace(folder)
    assert trace.rows is not None
    assert trace.prefix_hashes is not None
    assert trace.wait_for is not None
    assert trace.session_names is not None
    assert (len(trace), trace.rows.read) == (requests, requests)
    assert (len(trace.prefix_hashes.values), int(trace.prompt_tokens.sum())) == (blocks, prompt)
    assert (len(trace.session_names), agents) == (19, 9)
    statistics = describe(trace)
    assert statistics["waits"]["first"] == 19
    assert statistics["prefix"]["hit_blocks_frac"] == pytest.approx(0.905, abs=0.0005)
    assert trace.session is not None
    assert (trace.session[trace.wait_for.values] == trace.session[trace.wait_for.rows]).all()


def test_mooncake_ids_are_the_files_own(shared_data: Path) -> None:
    """Its ids are chained and numbered in order of appearance already, so nothing is renumbered."""
    path = shared_data / "traces" / MOONCAKE
    trace = read_trace(path)
    assert trace.prefix_hashes is not None
    first = [json.loads(line)["hash_ids"] for line in path.read_text().splitlines()[:500]]
    assert [trace.prefix_hashes.row(i).tolist() for i in range(500)] == first


def test_dynamo_is_in_order_of_arrival_with_hashes_above_2_63(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/dynamo/pi_request_trace.jsonl.gz")
    assert trace.prefix_hashes is not None
    assert (np.diff(trace.arrival_ns) >= 0).all()
    assert trace.model_names == ["Qwen/Qwen3-14B-FP8"]
    assert sum(trace.rows.dropped.values()) == 44 if trace.rows else False
    assert (trace.prefix_hashes.counts == -(-trace.prompt_tokens // 16)).all()
