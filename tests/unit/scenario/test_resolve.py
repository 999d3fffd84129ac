"""From a scenario to what the engine runs, and to its lock."""
# ruff: noqa: E501  (files and messages in one line each)

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kvsim.core.errors import InputError
from kvsim.core.hardware import Link
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import resolve

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,100,10\n1,50,5\n2,60,1\n"
SESSIONS = "arrival_s,prompt_tokens,output_tokens,session_id,think_s\n0,100,10,a,0\n1,50,5,a,2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TRACE)
    (tmp_path / "sessions.csv").write_text(SESSIONS)
    return tmp_path


def written(folder: Path, text: str, trace: str = "t.csv") -> Path:
    path = folder / "s.yaml"
    path.write_text(f"workload:\n  trace: {{path: {trace}}}\n{text}")
    return path


def refusal(folder: Path, text: str) -> str:
    path = written(folder, text)
    with pytest.raises(InputError) as error:
        resolve(Scenario.load(path))
    return str(error.value).removeprefix(f"{path}:")


def test_defaults_are_those_of_the_preset(folder: Path) -> None:
    resolved = resolve(Scenario.load(written(folder, "")))
    (pool,) = resolved.pools
    assert (resolved.model.name, pool.gpu.name, resolved.gpus) == ("llama-3.1-8b", "h100-sxm", 1)
    assert (pool.pool.scheduler.max_num_seqs, pool.pool.scheduler.max_num_batched_tokens) == (1024, 8192)
    assert {seat: pool.keys[seat]["name"] for seat in ("router", "scheduler", "kv", "cost")} == {
        "router": "least_requests",
        "scheduler": "chunked_prefill",
        "kv": "paged",
        "cost": "roofline",
    }
    assert (pool.keys["kv"]["block_size"], pool.keys["kv"]["gpu_memory_utilization"]) == (16, 0.92)
    assert pool.pool.kv_blocks == pool.ledger.blocks
    assert resolved.cluster.max_model_len == 131072
    assert pool.pool.scheduler.async_scheduling is True
    assert resolved.notes == (
        "prefix caching: the trace does not say what prompts share, so only preempted requests find blocks",
    )


def test_keys_beat_the_preset(folder: Path) -> None:
    text = "scheduler: {max-num-seqs: 64, watermark: 0.1}\nkv: {num_gpu_blocks_override: 513}\ncluster: {gpu: l40s, replicas: 2, max_model_len: 4096}\n"
    (pool,) = resolve(Scenario.load(written(folder, text))).pools
    scheduler: Any = pool.pool.scheduler
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens, scheduler.watermark) == (64, 2048, 0.1)
    assert (pool.pool.replicas, pool.pool.kv_blocks) == (2, 512)  # the null block of vLLM holds no tokens


def test_options_of_the_run(folder: Path) -> None:
    text = "engine: {mode: step}\nmeasure: {horizon_s: 2.5, timeline_instants: null}\nseed: 7\n"
    options = resolve(
        Scenario.load(
            written(folder, text, "sessions.csv"),
            {"workload": {"sessions": "closed", "max_concurrency": 3, "client_timeout_s": 0.5}},
        )
    ).options
    assert (options.mode, options.seed, options.closed_sessions, options.max_concurrency) == ("step", 7, True, 3)
    assert (options.client_timeout_ns, options.horizon_ns, options.timeline_instants) == (
        500_000_000,
        2_500_000_000,
        None,
    )


def test_pools_come_as_prefill_and_decode_and_take_what_they_do_not_say(folder: Path) -> None:
    text = (
        "cluster:\n  gpu: l40s\n  max_model_len: 4096\n  link: {bytes_per_s: 25GB/s, latency_s: 1e-3}\n  pools:\n"
        "    - {role: decode, replicas: 3, tensor_parallel_size: 2, scheduler: {max_num_seqs: 9}}\n"
        "    - {role: prefill, gpu: h100-sxm}\nrouter: round_robin\n"
    )
    resolved = resolve(Scenario.load(written(folder, text)))
    prefill, decode = resolved.pools
    assert [(p.pool.role, p.pool.replicas, p.gpu.name, p.layout.gpus) for p in resolved.pools] == [
        ("prefill", 1, "h100-sxm", 1),
        ("decode", 3, "l40s", 2),
    ]
    assert (prefill.pool.scheduler.max_num_seqs, decode.pool.scheduler.max_num_seqs) == (1024, 9)
    assert prefill.pool.kv_bytes_per_token == decode.pool.kv_bytes_per_token == 131072  # all ranks together
    assert resolved.cluster.link == Link(25_000_000_000, 1e-3)
    assert resolved.gpus == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: lama-3.1-8b\n", "3: model: unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'? kvsim list "),
        ("cluster:\n  gpu: h10\n", "4: cluster.gpu: unknown GPU 'h10'; did you mean 'h100-sxm'? known: "),
        ("model: llama-3.1-70b\n", "3: model: llama-3.1-70b does not fit on h100-sxm with tensor_parallel_size 1: "),
        ("kv: {kv_cache_memory_bytes: 200GiB}\n", "3: kv.kv_cache_memory_bytes: llama-3.1-8b does not fit on "),
        ("engine: vllm@0.3\n", "3: engine.preset: unknown preset 'vllm@0.3'; did you mean 'vllm@0.33'? known: "),
        ("router: least_token\n", "3: router.name: unknown router 'least_token'; did you mean 'least_tokens'? known: "),
        (
            "scheduler: {max_num_seq: 3}\n",
            "3: scheduler.max_num_seq: unknown key; did you mean 'max_num_seqs'? known: ",
        ),
        ("scheduler: {stream_interval: 3}\n", "3: scheduler.stream_interval: vLLM's stream_interval is not modelled"),
        ("kv: {watermark: 0.1}\n", "3: kv.watermark: unknown key; did you mean 'scheduler.watermark'? known: "),
        ("kv: {block_size: '16'}\n", "3: kv.block_size: expected a whole number, found '16'"),
        ("kv: {block_size: 0}\n", "3: kv.block_size: 0 is not allowed; it must be at least 1"),
        ("cost: {name: affine, base_s: -1}\n", "3: cost.base_s: -1.0 is not allowed; it must be at least 0"),
        ("cost: table\n", "3: cost: table needs linear_csv, decode_csv, prefill_csv"),
        (
            "cluster: {tensor_parallel_size: 3}\n",
            "3: cluster.tensor_parallel_size: llama-3.1-8b: 3 ranks cannot share 32 attention heads; it must divide them",
        ),
        (
            "cluster: {pipeline_parallel_size: 2}\n",
            "3: cluster.pipeline_parallel_size: 2 is not modelled yet: its memory is counted, but cost roofline can",
        ),
        (
            "model: qwen3-30b-a3b\ncluster: {tensor_parallel_size: 2, enable_expert_parallel: true}\ncost: {name: affine}\n",
            "4: cluster.enable_expert_parallel: True is not modelled yet: its memory is counted, but cost affine cannot",
        ),
        ("cluster: {pipeline_parallel_size: 40}\n", "3: cluster.pipeline_parallel_size: 40 stages cannot share the 32"),
        ("cluster: {data_parallel_size: 2}\n", "3: cluster.data_parallel_size: llama-3.1-8b has no experts to share; "),
        (
            "cluster: {pools: [{role: mixed, enable_expert_parallel: true}]}\n",
            "3: cluster.pools.0.enable_expert_parallel: llama-3.1-8b has no experts to share; copies of a model are",
        ),
        ("cluster: {quantization: awq}\n", "3: cluster.quantization: 'awq' is not modelled; allowed: fp8"),
        ("kv: {kv_cache_dtype: int4}\n", "3: kv.kv_cache_dtype: 'int4' is not modelled; allowed: auto, bfloat16, "),
        (
            "model: llama-3.1-8b\ncluster: {gpu: a100-80gb-sxm}\ncost: calibrated\nkv: {kv_cache_dtype: fp8}\n",
            "6: kv.kv_cache_dtype: llama-3.1-8b has KV of fewer bits, not measured on a100-80gb-sxm, which the cost model ",
        ),
        (
            "model: deepseek-v3.2\ncluster: {tensor_parallel_size: 16}\n",
            "3: model: deepseek-v3.2 has sparse attention, which the cost model cannot time yet; cost table and cost ",
        ),
        (
            "cluster: {max_model_len: 999999}\n",
            "3: cluster.max_model_len: 999999 is not allowed: llama-3.1-8b ends at ",
        ),
        ("scheduler: {max_num_seqs: 9000}\n", "3: scheduler.max_num_seqs: 9000 is not allowed: every running request "),
        (
            "scheduler: {max_num_seqs: 9, max_num_active_seqs: 10}\n",
            "3: scheduler.max_num_active_seqs: 10 is not allowed: max_num_seqs is 9; at most 9",
        ),
        (
            "scheduler: {max_num_scheduled_tokens: 500, prefill_schedule_interval: 2}\n",
            "3: scheduler.max_num_scheduled_tokens: 500 is not allowed: every running request takes a token of a step, "
            "and max_num_seqs is 1024 by default; at least 1024, or a smaller max_num_seqs",
        ),
        (
            "scheduler: {max_num_seqs: 600, max_num_scheduled_tokens: 500, prefill_schedule_interval: 2}\n",
            "3: scheduler.max_num_seqs: 600 is not allowed: every running request takes a token of a step, and "
            "max_num_scheduled_tokens is 500; at most 500",
        ),
        ("scheduler: {watermark: -0.1}\n", "3: scheduler.watermark: -0.1 is not allowed; it must be at least 0"),
        ("scheduler: {watermark: 1}\n", "3: scheduler.watermark: 1.0 is not allowed; it must be less than 1"),
        ("scheduler: {watermark: .inf}\n", "3: scheduler.watermark: expected a finite number, found inf"),
        (
            "scheduler: {name: prefill_first, watermark: 1.5}\n",
            "3: scheduler.watermark: 1.5 is not allowed; it must be less than 1",
        ),
        (
            "scheduler: {name: prefill_first, preemption_mode: swap, swap_space_gib: .inf}\n",
            "3: scheduler.swap_space_gib: expected a finite number, found inf",
        ),
        ("scheduler: {long_prefill_token_threshold: -1}\n", "3: scheduler.long_prefill_token_threshold: -1 is not all"),
        ("scheduler: {prefill_schedule_interval: 0}\n", "3: scheduler.prefill_schedule_interval: 0 is not allowed"),
        (
            "scheduler: {name: prefill_first, max_num_batched_tokens: 2048}\n",
            "3: scheduler.max_num_batched_tokens: 2048 is not allowed: prompts are not split, so one of up to "
            "max_model_len = 131072 tokens has to fit in a step; at least 131072",
        ),
        (
            "scheduler: {enable_chunked_prefill: false, max_num_batched_tokens: 2048}\n",
            "3: scheduler.max_num_batched_tokens: 2048 is not allowed: prompts are not split",
        ),
        (
            "cluster: {pools: [{role: prefill}, {role: decode}], link: {bytes_per_s: 25GB/s}}\nkv: {enable_prefix_caching: true}\n",
            "4: kv.enable_prefix_caching: prefix caching is modelled in mixed pools only, this is a prefill pool",
        ),
        (
            "cluster: {pools: [{role: prefill}, {role: decode}], link: {bytes_per_s: 25GB/s}}\nscheduler: {async_scheduling: true}\n",
            "4: scheduler.async_scheduling: asynchronous scheduling is modelled in mixed pools only, this is a prefill pool",
        ),
        (
            "  client_timeout_s: 3.0\nscheduler: {async_scheduling: true}\n",
            "4: scheduler.async_scheduling: clients that give up are not modelled with asynchronous scheduling yet",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(folder: Path, text: str, message: str) -> None:
    assert refusal(folder, text).startswith(message)


def test_a_budget_below_max_num_seqs_is_allowed_where_nobody_can_be_admitted_beyond_it(folder: Path) -> None:
    whole = "scheduler: {max_num_scheduled_tokens: 512, enable_chunked_prefill: false}\n"
    scenario = Scenario.load(written(folder, f"cluster: {{max_model_len: 400}}\n{whole}"))
    assert resolve(scenario).pools[0].pool.scheduler.max_num_seqs == 1024


def test_prefix_caching_is_on_where_it_can_be_and_said_to_be_off_or_to_have_nothing_to_find(folder: Path) -> None:
    def notes(text: str) -> list[str]:
        return [note for note in resolve(Scenario.load(written(folder, text))).notes if "prefix caching" in note]

    assert notes("kv: {enable_prefix_caching: false}\n") == ["prefix caching: off (vLLM's default is on)"]
    assert notes("scheduler: {name: prefill_first, preemption_mode: swap}\n") == [
        "prefix caching: off (vLLM's default is on)"
    ]
    assert (
        notes("")
        == notes("kv: {enable_prefix_caching: true}\n")
        == ["prefix caching: the trace does not say what prompts share, so only preempted requests find blocks"]
    )


def test_async_scheduling_is_on_unless_it_cannot_be_and_outputs_may_end_by_a_stop_token(folder: Path) -> None:
    path = written(folder, "")
    for keys in ({"scheduler": {"async_scheduling": False}}, {"workload": {"client_timeout_s": 5.0}}):
        off = resolve(Scenario.load(path, keys))
        assert off.pools[0].pool.scheduler.async_scheduling is False
        assert "async scheduling: off (vLLM's default is on)" in off.notes
    on = resolve(Scenario.load(written(folder, ""), {"workload": {"outputs_end_by": "eos"}}))
    assert on.pools[0].pool.scheduler.async_scheduling is True
    assert not any("async" in note for note in on.notes)
    assert on.trace.ends_by_eos is not None
    assert on.trace.ends_by_eos.all()


def test_whole_prompts_get_a_budget_of_the_longest(folder: Path) -> None:
    for text in ("scheduler: prefill_first\n", "scheduler: {enable_chunked_prefill: false}\n"):
        (pool,) = resolve(Scenario.load(written(folder, text + "cluster: {max_model_len: 32768}\n"))).pools
        assert pool.pool.scheduler.max_num_batched_tokens == 32768


def test_closed_sessions_need_sessions(folder: Path) -> None:
    scenario = Scenario.load(written(folder, ""), {"workload.sessions": "closed"})
    with pytest.raises(InputError, match="closed sessions need a trace that has sessions"):
        resolve(scenario)


def test_a_trace_is_cut_and_made_denser(folder: Path) -> None:
    scenario = Scenario.load(written(folder, ""), {"workload.trace.limit": 2, "workload.trace.rate_scale": 4.0})
    assert resolve(scenario).trace.arrival_ns.tolist() == [0, 250_000_000]


def test_a_generated_trace_follows_the_seed() -> None:
    workload = {"generate": {"name": "lognormal_poisson", "n": 20, "prompt_range": [16, 1000]}}

    def arrivals(seed: int) -> list[int]:
        return resolve(Scenario(workload=workload, seed=seed)).trace.arrival_ns.tolist()

    assert arrivals(1) == arrivals(1) != arrivals(2)
    with pytest.raises(InputError, match=r"workload.generate.nn: unknown key; did you mean 'n'"):
        resolve(Scenario(workload={"generate": {"name": "lognormal_poisson", "nn": 20}}))
    with pytest.raises(InputError, match="did you mean 'lognormal_poisson'"):
        resolve(Scenario(workload={"generate": "lognormal_poison"}))
    with pytest.raises(InputError, match="lognormal_poisson needs n"):
        resolve(Scenario(workload={"generate": "lognormal_poisson"}))


def test_a_pool_smaller_than_the_longest_request_is_noted(folder: Path) -> None:
    notes = resolve(Scenario.load(written(folder, "kv: {num_gpu_blocks_override: 101}\n"))).notes
    assert notes[1] == (
        "KV holds 1600 tokens, less than max_model_len 131072: vLLM would not start; here requests that can never "
        "fit are rejected"
    )


# ---- policies of others


@dataclass(frozen=True)
class AlwaysFirst:
    """A router outside of kvsim, with a parameter of each kind that a scenario can give."""

    bias: float = 0.0
    weights: tuple[float, ...] = ()
    file: Path = Path()

    def start(self, rng: object) -> None:
        return None

    def route(self, request: object, replicas: object, memory: object) -> int:
        return 0


@dataclass(frozen=True)
class NoRouter:
    """Lacks route."""

    def start(self, rng: object) -> None:
        return None


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "outside", sys.modules[__name__])
    return "outside:AlwaysFirst"


def test_a_policy_of_others_gets_its_parameters(folder: Path, plugin: str) -> None:
    (folder / "w.csv").write_text("x\n")
    router = f"router: {{name: '{plugin}', bias: 1, weights: [1, 0.5], file: w.csv}}\n"
    resolved = resolve(Scenario.load(written(folder, router)))
    assert resolved.pools[0].pool.router == AlwaysFirst(1.0, (1.0, 0.5), folder / "w.csv")
    assert f"  name: {plugin}\n  bias: 1.0\n  weights:\n  - 1.0\n  - 0.5\n  file: {folder}/w.csv\n" in resolved.lock
    assert "    router.file: " in resolved.lock


def test_a_policy_of_others_is_checked(folder: Path, plugin: str) -> None:
    scenario = Scenario.load(written(folder, f"router: '{plugin}'\n"))
    with pytest.raises(
        InputError, match=r"3: router.name: router 'outside:AlwaysFirst' is a plug-in, and plug-ins are"
    ):
        resolve(scenario, allow_plugins=False)
    assert (
        refusal(folder, f"router: {{name: '{plugin}', bias: high}}\n")
        == "3: router.bias: expected a number, found 'high'"
    )
    assert (
        refusal(folder, f"router: {{name: '{plugin}', bias: .nan}}\n")
        == "3: router.bias: expected a finite number, found nan"
    )
    assert (
        refusal(folder, f"router: {{name: '{plugin}', weights: [1, .inf]}}\n")
        == "3: router.weights: expected a finite number, found inf"
    )
    assert (
        refusal(folder, "router: outside:NoRouter\n")
        == "3: router.name: outside:NoRouter cannot be a router: it has no route"
    )
    assert refusal(folder, "router: outside:TRACE\n").startswith(
        "3: router.name: router 'outside:TRACE' is not a class"
    )
    assert refusal(folder, "router: collections:OrderedDict\n").startswith(
        "3: router.name: OrderedDict is not a dataclass"
    )
    assert refusal(folder, "router: nowhere.at_all:X\n").startswith(
        "3: router.name: router 'nowhere.at_all:X' cannot be imported"
    )


# ---- the lock


def test_a_lock_of_a_lock_is_the_same_text(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "scenario.lock.yaml"
    pools = (
        "cluster:\n  max_model_len: 4096\n  link: {bytes_per_s: 1GB/s}\n  pools: [{role: decode}, {role: prefill}]\n"
    )
    for text in ("", "cost: {name: affine, base_s: 1e-5}\n", pools):
        first = resolve(Scenario.load(written(folder, text)))
        elsewhere.write_text(first.lock)
        second = resolve(Scenario.load(elsewhere))
        assert second.lock == first.lock
        assert second.scenario_hash == first.scenario_hash
        assert second.scenario.label == "s"
        assert [p.pool.scheduler for p in second.pools] == [p.pool.scheduler for p in first.pools]


def test_a_lock_refuses_a_changed_file_unless_another_is_named(folder: Path) -> None:
    lock = folder / "scenario.lock.yaml"
    lock.write_text(resolve(Scenario.load(written(folder, ""))).lock)
    (folder / "t.csv").write_text(TRACE + "3,1,1\n")
    with pytest.raises(InputError) as error:
        resolve(Scenario.load(lock))
    sums = re.search(
        r"t.csv has changed since the lock was written: SHA-256 was (\w{64}), is (\w{64});", str(error.value)
    )
    assert sums is not None
    assert sums[2] == hashlib.sha256((folder / "t.csv").read_bytes()).hexdigest() != sums[1]
    resolve(Scenario.load(lock, {"workload.trace.path": str(folder / "t.csv")}))


def test_the_hash_is_of_content_not_of_places(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "u.csv").write_text(TRACE)
    here = resolve(Scenario.load(written(folder, "output: {dir: a}\n")))
    there = resolve(Scenario.load(written(other, "output: {dir: b}\n", "u.csv")))
    assert here.scenario_hash == there.scenario_hash
    assert here.scenario_hash != resolve(Scenario.load(written(folder, "seed: 1\n"))).scenario_hash
