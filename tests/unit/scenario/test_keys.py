"""What a scenario may say, and how a mistake is worded."""
# ruff: noqa: E501  (a table of cases: one per line)

from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.scenario import Scenario, parse_set

BASE = "workload:\n  trace: {path: a.csv}\n"

KNOWN = "cluster, cost, engine, expect, kv, lock, measure, model, output, router, scheduler, seed, slo, workload"


def test_defaults() -> None:
    scenario = Scenario(workload={"trace": {"path": "a.csv"}})
    assert (scenario.model, scenario.cluster.gpu, scenario.cluster.replicas) == ("llama-3.1-8b", "h100-sxm", 1)
    assert (scenario.engine.preset, scenario.engine.mode, scenario.seed) == ("vllm@0.33", "leap", 0)
    assert (scenario.label, scenario.output_dir) == ("scenario", Path("runs/scenario"))


def test_sizes_and_rates_carry_units() -> None:
    pools = [{"role": "decode"}, {"role": "prefill"}]
    scenario = Scenario(
        workload={"trace": {"path": "a"}},
        kv={"kv_cache_memory_bytes": "20GiB"},
        cluster={"pools": pools, "link": {"bytes_per_s": "25GB/s"}},
    )
    assert scenario.kv.kv_cache_memory_bytes == 20 * 2**30
    assert scenario.cluster.link is not None
    assert scenario.cluster.link.bytes_per_s == 25_000_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BASE + "modle: x\n", f"3: modle: unknown key; did you mean 'model'? known: {KNOWN}"),
        ("workload:\n  trace:\n    pth: a\n", "3: workload.trace.pth: unknown key; did you mean 'path'? known: format, limit, on_bad_row, path, rate_scale"),
        (BASE + "cluster:\n  max_num_seqs: 3\n", "4: cluster.max_num_seqs: unknown key; did you mean 'scheduler.max_num_seqs'? known: data_parallel_size, decode_context_parallel_size, enable_expert_parallel, gpu, link, max_model_len, pipeline_parallel_size, pools, prefill_context_parallel_size, quantization, reject_oversized, replicas, tensor_parallel_size"),
        (BASE + "cluster: {async_scheduling: true}\n", "3: cluster.async_scheduling: vLLM's async_scheduling is written scheduler.async_scheduling here; remove it"),
        (BASE + "cluster:\n  replicas: two\n", "4: cluster.replicas: expected a whole number, found 'two'"),
        (BASE + "cluster:\n  replicas: 0\n", "4: cluster.replicas: 0 is not allowed; it must be at least 1"),
        (BASE + "seed: true\n", "3: seed: expected a whole number, found true"),
        (BASE + "seed: 1.5\n", "3: seed: expected a whole number, found 1.5"),
        (BASE + "model: 3\n", "3: model: expected text, found 3"),
        (BASE + "scheduler: 3\n", "3: scheduler: expected keys and values, found 3"),
        (BASE + "cluster: {pools: 5}\n", "3: cluster.pools: expected a list, found 5"),
        (BASE + "slo: {ttft_ms: .nan}\n", "3: slo.ttft_ms: expected a finite number, found nan"),
        (BASE + "slo: {ttft_ms: -1}\n", "3: slo.ttft_ms: -1 is not allowed; it must be at least 0"),
        (BASE + "engine: {mode: stp}\n", "3: engine.mode: 'stp' is not allowed; did you mean 'step'? allowed: leap, step"),
        (BASE + "kv: {gpu-memory-utilization: 1.5}\n", "3: kv.gpu_memory_utilization: 1.5 is not allowed; it must be at most 1"),
        (BASE + "kv: {kv_cache_memory_bytes: 20GiBs}\n", "3: kv.kv_cache_memory_bytes: '20GiBs' is not a number of bytes; write 80GiB, 80GB or a number"),
        (BASE + "cluster: {pools: [{role: decode}]}\n", "3: cluster: pools must be one prefill and one decode, or one mixed; found decode"),
        (BASE + "cluster: {pools: [{role: decode}, {role: prefill}]}\n", "3: cluster: a prefill and a decode pool need link: {bytes_per_s: ...}"),
        (BASE + "cluster: {link: {bytes_per_s: 1GB/s}}\n", "3: cluster: link joins a prefill and a decode pool, and there are none"),
        (BASE + "cluster: {replicas: 2, pools: [{role: mixed}]}\n", "3: cluster: replicas is stated per pool when there are pools"),
        (BASE + "cluster:\n  pools:\n    - role: prefil\n", "5: cluster.pools.0.role: 'prefil' is not allowed; did you mean 'prefill'? allowed: mixed, prefill, decode"),
        ("workload: {sessions: closed}\n", "1: workload: give either trace: {path: ...} or generate: {name: ...}"),
        ("workload: {trace: {}}\n", "1: workload.trace.path: is missing; needed: The trace: a file (packed or not), a tar archive or a folder of documents."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place_and_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refusal:
        Scenario.load(path)
    assert str(refusal.value) == f"{path}:{message}"


def test_a_mistake_in_an_override_names_the_override(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(BASE)
    for setting, message in (
        ("workload.trace.pth=3", "--set workload.trace.pth: unknown key; did you mean 'path'? known: format, limit, on_bad_row, path, rate_scale"),
        ("workload.trace.limit=ten", "--set workload.trace.limit: expected a whole number, found 'ten'"),
        ("seed.x=1", "--set seed: expected a whole number, found a mapping"),
        ("cluster.replicas=", "--set cluster.replicas: expected a whole number, found null"),
    ):  # fmt: skip
        with pytest.raises(InputError) as refusal:
            Scenario.load(path, [parse_set(setting)])
        assert str(refusal.value) == message
    with pytest.raises(InputError) as refusal:
        Scenario(workload={"trace": {"path": "a"}}, sed=1)
    assert str(refusal.value) == f"sed: unknown key; did you mean 'seed'? known: {KNOWN}"


def test_replace_makes_another_and_leaves_the_first() -> None:
    first = Scenario(workload={"trace": {"path": "a"}}, cluster={"gpu": "l40s"})
    second = first.replace(seed=4, cluster={"replicas": 2})
    assert (second.seed, second.cluster.gpu, second.cluster.replicas) == (4, "l40s", 2)
    assert (first.seed, first.cluster.replicas) == (0, 1)
