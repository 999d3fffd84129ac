"""A `vllm serve` line in, a `vllm serve` line out, and nothing dropped in silence."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvsim.cli import main
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.seats import StepCost
from kvsim.costs.affine import Affine
from kvsim.scenario import Scenario
from kvsim.scenario.engine_args import BARE, EFFECT, NO_EFFECT, SHORT, SWITCHES, read_engine_args, serve_lines
from kvsim.scenario.resolve import resolve
from kvsim.scenario.source import Override, dotted

SCENARIO = """\
workload: {generate: {name: lognormal_poisson, n: 20, rate_per_s: 100}}
model: llama-3.1-8b
cluster: {gpu: h100-sxm}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    return path


def keys(line: str) -> dict[str, object]:
    return {dotted(override.key): override.value for override in read_engine_args(line).overrides}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(str(ended.value.code))


def test_arguments_become_keys_of_the_scenario() -> None:
    line = """CUDA_VISIBLE_DEVICES=0 vllm serve Qwen/Qwen2.5-7B-Instruct --tensor-parallel-size=2 -dp 3 \\
        --max_num_seqs 64 --max-num-batched-tokens 8K --max-model-len 16k --block-size 32 --watermark 0.05
        --gpu-memory-utilization .9 --kv-cache-memory-bytes 1.5g --long-prefill-token-threshold 512
        --no-scheduler-reserve-full-isl --disable-chunked-prefill --async-scheduling"""
    assert keys(line) == {
        "model": "qwen2.5-7b",
        "cluster.tensor_parallel_size": 2,
        "cluster.replicas": 3,
        "scheduler.max_num_seqs": 64,
        "scheduler.max_num_batched_tokens": 8192,
        "cluster.max_model_len": 16000,
        "kv.block_size": 32,
        "scheduler.watermark": 0.05,
        "kv.gpu_memory_utilization": 0.9,
        "kv.kv_cache_memory_bytes": 1_500_000_000,
        "scheduler.long_prefill_token_threshold": 512,
        "scheduler.scheduler_reserve_full_isl": False,
        "scheduler.enable_chunked_prefill": False,
        "scheduler.async_scheduling": True,
    }
    assert read_engine_args(line).notes == ()


def test_data_parallel_ranks_are_replicas_unless_they_share_experts() -> None:
    assert keys("-dp 8") == {"cluster.replicas": 8}
    assert keys("-dp 8 -ep") == {"cluster.data_parallel_size": 8, "cluster.enable_expert_parallel": True}


@pytest.mark.parametrize(
    ("written", "value"), [("4096", 4096), ("4k", 4000), ("4K", 4096), ("25.6k", 25600), ("1m", 10**6), ("1M", 2**20)]
)
def test_numbers_are_read_as_vllm_reads_them(written: str, value: int) -> None:
    assert keys(f"--max-num-batched-tokens {written}") == {"scheduler.max_num_batched_tokens": value}


@pytest.mark.parametrize("written", ["-1", "auto"])
def test_a_length_left_to_the_model(written: str) -> None:
    assert keys(f"--max-model-len {written}") == {"cluster.max_model_len": None}


def test_every_argument_of_vllm_is_a_key_or_is_mentioned() -> None:
    """Nothing is dropped in silence, whatever the argument, and nothing that vLLM knows is refused."""
    for name in sorted((EFFECT - {"model"}) | NO_EFFECT | set(SHORT)):
        value = "" if SHORT.get(name, name) in BARE else "7"
        read = read_engine_args(f"--{name.replace('_', '-')} {value}")
        assert bool(read.overrides) != bool(read.notes), name
    assert BARE < EFFECT | NO_EFFECT


def test_switches_are_turned_off_as_vllm_turns_them_off() -> None:
    """--no-x; of enable_x and disable_x also the other one. Nothing else has such a form, nor do flags."""
    off = {"kv.enable_prefix_caching": False}
    assert keys("--no-enable-prefix-caching") == keys("--disable-prefix-caching") == off
    assert keys("--no-async-scheduling") == {"scheduler.async_scheduling": False}
    for name in sorted(EFFECT | NO_EFFECT):
        line = f"--no-{name.replace('_', '-')}"
        if name in SWITCHES:
            assert not read_engine_args(line).overrides or set(keys(line).values()) == {False}
        else:
            with pytest.raises(InputError, match="vLLM has no argument --no-"):
                read_engine_args(f"{line} 0.1")


@pytest.mark.parametrize("written", ["-O3", "-O=3", "-O 3", "-O.level=3", "--optimization-level 3"])
def test_the_level_of_optimisation_is_mentioned(written: str) -> None:
    (note,) = read_engine_args(written).notes
    assert note.endswith(" is not modelled")


@pytest.mark.parametrize(
    "line",
    [
        "--no-enable-expert-parallel --disable-lora --no-enforce-eager",
        "--pipeline-parallel-size 1 --scheduling-policy fcfs --kv-cache-dtype auto --stream-interval 1",
    ],
)
def test_what_is_off_needs_no_mention(line: str) -> None:
    assert read_engine_args(line).notes == ()


def test_what_is_not_modelled_is_said() -> None:
    line = '--speculative-config \'{"method": "ngram"}\' --cpu-offload-gb 4 -cc.level 3 --port 8000 --api-key a b'
    assert read_engine_args(line).notes == (
        "--speculative-config is not modelled yet",
        "--cpu-offload-gb is not modelled",
        "-cc.level is not modelled",
        "no effect here: --port, --api-key",
    )
    assert read_engine_args("vllm serve acme/unheard-of").notes == (
        "acme/unheard-of is not in the catalogue of models: the scenario's own is used",
    )


def test_the_mode_for_throughput() -> None:
    assert keys("--performance-mode throughput") == {"engine.performance_mode": "throughput"}
    refused = read_engine_args("--performance-mode interactivity")
    assert (refused.overrides, refused.notes) == ((), ("--performance-mode is not modelled",))


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
    ],
)
def test_repositories_are_found_in_the_catalogue(name: str, entry: str) -> None:
    assert keys(f"vllm serve {name}") == keys(f"--model {name}") == {"model": entry}


def test_a_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert keys(f"vllm serve {tmp_path}") == {"model": str(tmp_path / "config.json")}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("--max-num-seq 3", "vLLM has no argument --max-num-seq; did you mean --max-num-seqs?"),
        ("--xyzzy", "vLLM has no argument --xyzzy"),
        ("--enable-chunked-prefill llama", "--enable-chunked-prefill takes no value, found 'llama'"),
        ("--no-watermark 0.1", "vLLM has no argument --no-watermark; did you mean --watermark?"),
        ("--disable-async-scheduling", "vLLM has no argument --disable-async-scheduling; did you mean --async-sched"),
        ("--swap-space 4", "vLLM's --swap-space no longer exists: preemption is by recomputation"),
        ("--model", "--model needs a value"),
        ("--max-num-seqs= --port 80", "--max-num-seqs needs a value"),
        ("--async-scheduling yes", "--async-scheduling takes no value, found 'yes'"),
        ("--kv-cache-memory-bytes 10GB", "--kv-cache-memory-bytes: '10GB' is not a whole number; 4096, 4k (thousands)"),
        ("--max-num-batched-tokens 1.5K", "--max-num-batched-tokens: '1.5K' is not a whole number"),
        ("--max-num-seqs '3", "cannot be taken apart: No closing quotation"),
    ],
)
def test_mistakes_are_refused(line: str, problem: str) -> None:
    with pytest.raises(InputError) as refused:
        read_engine_args(line)
    assert f"--engine-args: {problem}" in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--max-num-seqs 17 --max-num-batched-tokens 999 -tp 2",
        "--watermark 0.01 --long-prefill-token-threshold 128 --long-prefill-token-threshold-adaptive --block-size 8",
        "--max-num-active-seqs 7 --max-num-scheduled-tokens 1500 --prefill-schedule-interval 3",
        "--max-num-queued-reqs 0 --max-num-queued-tokens 100000",
        "--no-scheduler-reserve-full-isl --max-model-len 1000 --no-enable-chunked-prefill -dp 2",
        "--kv-cache-memory-bytes 5G --gpu-memory-utilization 0.5 --num-gpu-blocks-override 100",
        "--async-scheduling --enable-prefix-caching",
        "--no-async-scheduling --no-enable-prefix-caching",
    ],
)
def test_the_line_of_a_scenario_is_that_scenario(scenario: Path, arguments: str) -> None:
    """There and back: with the line read over a bare scenario, everything resolves to the same lock."""
    asked = resolve(Scenario.load(scenario, read_engine_args(arguments).overrides))
    (line,), _ = serve_lines(asked)
    again = read_engine_args(line)
    assert again.notes == ()
    assert resolve(Scenario.load(scenario, again.overrides)).scenario_hash == asked.scenario_hash


@dataclass(frozen=True)
class SixteenBit:
    """A cost model that times 16 bit models only."""

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> StepCost:
        if model.quantization is not None:
            raise model.untimed("weights of fewer bits")
        if model.kv_format.value_bytes != 2:
            raise model.untimed("KV of fewer bits")
        return Affine(base_s=0.001).start(model, gpu, tensor_parallel_size)


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("--max-num-seqs -1", "--engine-args scheduler.max_num_seqs: -1 is not allowed; it must be at least 1"),
        ("--max-num-seqs 4k", "--engine-args scheduler.max_num_seqs: expected a whole number, found '4k'"),
        ("--kv-cache-dtype fp8", "--engine-args kv.kv_cache_dtype: llama-3.1-8b has KV of fewer bits"),
        ("--quantization fp8", "--engine-args cluster.quantization: llama-3.1-8b has weights of fewer bits"),
        ("-q fp8 --kv-cache-dtype fp8", "--engine-args cluster.quantization: llama-3.1-8b has weights of fewer bits"),
    ],
)
def test_what_a_line_asks_for_is_refused_at_the_line(
    scenario: Path, line: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "outside", sys.modules[__name__])
    cost = Override(("cost",), "outside:SixteenBit")
    with pytest.raises(InputError) as refused:
        resolve(Scenario.load(scenario, [*read_engine_args(line).overrides, cost]))
    assert str(refused.value).startswith(place)


def test_formats_of_weights_and_kv_are_said(scenario: Path) -> None:
    stored = {"cluster.quantization": "fp8", "kv.kv_cache_dtype": "fp8"}
    (line,), _ = serve_lines(resolve(Scenario.load(scenario, stored | {"cost": "affine"})))
    assert stored.items() <= keys(line).items()


def test_a_line_for_each_pool(scenario: Path) -> None:
    pools = [{"role": "prefill", "replicas": 2}, {"role": "decode"}]
    cluster = {"cluster.pools": pools, "cluster.link": {"bytes_per_s": "25GB/s"}}
    lines, notes = serve_lines(resolve(Scenario.load(scenario, cluster)))
    assert [line.rpartition("kv_role")[2] for line in lines] == ['":"kv_producer"}\'', '":"kv_consumer"}\'']
    assert "--data-parallel-size 2" in lines[0]
    assert notes[0].startswith("prefill pool: vLLM balances data-parallel ranks")


def test_a_policy_that_is_not_vllms_has_no_line(scenario: Path) -> None:
    with pytest.raises(InputError, match="prefill_first is not what vLLM does"):
        serve_lines(resolve(Scenario.load(scenario, {"scheduler": "prefill_first"})))


def test_lines_are_those_of_one_version(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM 0.6 has other arguments under other names, --preemption-mode and --swap-space among them."""
    scenario.write_text(SCENARIO + "engine: vllm@0.6\n")
    for command in (("engine-args", scenario), ("validate", scenario, "--engine-args", "--max-num-seqs 5")):
        assert run(*command) == 2
        problem = (
            "the lines that are read and written are those of vllm@0.33, whose arguments are not those of vllm@0.6"
        )
        assert f"engine.preset: {problem}" in capsys.readouterr().err
    assert run("validate", scenario) == 0


def mentions(err: str) -> Sequence[str]:
    return [line for line in err.splitlines() if line.startswith("Note:")]


def test_run_takes_a_line_under_set_and_over_the_file(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--max-num-seqs 5 --max-num-batched-tokens 100 --enforce-eager"
    out = tmp_path / "out"
    assert run("run", scenario, "--out", out, "--engine-args", line, "--set", "scheduler.max_num_seqs=7", "-q") == 0
    lock = (out / "scenario.lock.yaml").read_text()
    assert "max_num_seqs: 7" in lock
    assert "max_num_batched_tokens: 100" in lock
    assert mentions(capsys.readouterr().err) == ["Note: --engine-args: --enforce-eager is not modelled yet"]
    assert run("validate", scenario, "--engine-args", "--gpu-memory-utilization 1.5") == 2
    assert "--engine-args kv.gpu_memory_utilization: 1.5 is not allowed" in capsys.readouterr().err


def test_what_a_pool_states_itself_stays_and_is_mentioned(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pools = "cluster.pools=[{role: mixed, scheduler: {name: chunked_prefill, max_num_seqs: 9}}]"
    assert run("validate", scenario, "--set", pools, "--engine-args", "--max-num-seqs 5") == 0
    assert mentions(capsys.readouterr().err) == [
        "Note: --engine-args: the mixed pool has scheduler of its own, which stays"
    ]


def test_the_command_prints_a_line_that_a_shell_takes(scenario: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("engine-args", scenario, "--engine-args", "--max-num-seqs 5") == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("vllm serve meta-llama/Llama-3.1-8B --max-model-len 131072 --max-num-seqs 5 ")
    assert mentions(printed.err) == ["Note: to be run on h100-sxm"]
