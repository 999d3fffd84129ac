"""From the keys of a scheduler that swaps to host memory and the time of a copy."""

from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from ruamel.yaml import YAML

from kvsim.core.cluster import HostMemory
from kvsim.core.errors import InputError
from kvsim.hardware import GPUS, HOST_LINKS, load_gpu
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.schedulers.prefill_first import PrefillFirst

DOCS = Path(__file__).parents[3] / "docs"


def resolved(scheduler: dict[str, Any], **keys: Any) -> Resolved:
    cluster = {"max_model_len": 4096, **keys.pop("cluster", {})}
    generate = {"requests": 1, "arrivals": "at_once", "lengths": {"prompt": 1, "output": 1}}
    workload = {"generate": generate}
    return resolve(
        Scenario(engine="vllm@0.6", workload=workload, cluster=cluster, scheduler=scheduler, **keys),
        allow_plugins=False,
    )


def host(**keys: Any) -> HostMemory | None:
    return resolved({"preemption_mode": "swap", **keys}).pools[0].pool.host


def test_copies_are_bound_by_the_link_or_by_their_number() -> None:
    block_bytes = 16 * 131_072  # Llama-3.1-8B, 32 layers
    assert host(swap_call_s=0.0) == HostMemory(4 * 2**30 // block_bytes, block_bytes / 63e9)  # an H100's own link
    assert host(swap_link="pcie-3-x16", swap_call_s=0.0) == HostMemory(2048, block_bytes / 15.75e9)
    assert host(swap_bytes_per_s="1GB/s") == HostMemory(2048, block_bytes / 1e9)
    assert host(swap_link="nvlink-c2c") == HostMemory(2048, 64 * 2.3e-6)
    assert host(swap_space_gib=0.5) == HostMemory(256, 64 * 2.3e-6)
    assert host(preemption_mode="recompute") is None


def test_ranks_copy_their_shares_side_by_side() -> None:
    one, two = (
        resolved({"preemption_mode": "swap", "swap_call_s": 0.0}, cluster={"tensor_parallel_size": n})
        .pools[0]
        .pool.host
        for n in (1, 2)
    )
    assert one
    assert two
    assert two == HostMemory(2 * one.blocks, one.block_copy_s / 2)


def test_the_links_are_those_that_the_scheduler_takes_and_the_gpus_have() -> None:
    (names, _) = get_args(get_type_hints(PrefillFirst)["swap_link"])
    assert set(get_args(names)) == set(HOST_LINKS)
    rates = {load_gpu(name).host_link_bytes_per_s for name in GPUS}
    assert rates - {None} <= set(HOST_LINKS.values())


@pytest.mark.parametrize(
    ("scheduler", "keys", "said"),
    [
        ({"swap_link": "pcie-4"}, {}, "scheduler.swap_link: 'pcie-4' is not allowed"),
        ({"swap_link": "nvlink-c2c", "swap_bytes_per_s": 1e9}, {}, "scheduler.swap_bytes_per_s: swap_link is given"),
        ({"swap_space_gib": -1.0}, {}, "scheduler.swap_space_gib: -1.0 is not allowed"),
        ({"async_scheduling": True}, {}, "scheduler.async_scheduling: unknown key"),
        ({}, {"kv": {"enable_prefix_caching": True}}, "scheduler.preemption_mode: swapping is not modelled with pre"),
        ({}, {"cluster": {"pools": [{"role": "prefill"}, {"role": "decode"}], "link": {"bytes_per_s": "1GB/s"}}},
         "scheduler.preemption_mode: swapping is not modelled with pools of role prefill"),
    ],
)  # fmt: skip
def test_what_is_refused(scheduler: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        resolved({"preemption_mode": "swap", **scheduler}, **keys)
    assert said in str(raised.value)


def test_defaults_of_vllm_0_6() -> None:
    found = resolved({})
    scheduler = found.pools[0].pool.scheduler
    assert isinstance(scheduler, PrefillFirst)
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (256, 4096)
    assert found.pools[0].ledger.gpu_memory_utilization == 0.9
    assert any("read, not recorded" in note for note in found.notes)
    assert not any("vLLM's default is on" in note for note in found.notes)


def test_the_scenario_in_the_docs() -> None:
    text = (DOCS / "preemption.md").read_text(encoding="utf-8")
    yaml = text.split("```yaml\n")[1].split("```")[0].replace("  # swap_", "  swap_")
    assert "swap_bytes_per_s: 25GB/s" in yaml
    workload = "workload: {generate: {requests: 1, arrivals: at_once, lengths: {prompt: 1, output: 1}}}\n"
    with pytest.raises(InputError, match="swap_link is given as well"):
        resolve(_scenario(workload + yaml))
    without = "\n".join(line for line in yaml.splitlines() if "swap_bytes_per_s" not in line)
    assert resolve(_scenario(workload + without)).pools[0].pool.host


def _scenario(text: str) -> Scenario:
    return Scenario(**YAML(typ="safe").load(StringIO(text)))
