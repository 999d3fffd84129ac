"""A closed loop on paper: with a replica for everybody, when a request ends is the longest path through the graph."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import kvsim
from kvsim.core.runlog import FINISHED, RunLog
from kvsim.core.trace import Trace
from kvsim.workload import read_trace
from kvsim.workload.generate import composed
from kvsim.workload.generate.arrivals import Poisson
from kvsim.workload.generate.distributions import Constant, Lognormal, Uniform
from kvsim.workload.generate.lengths import Independent
from kvsim.workload.generate.sessions import AgentChains
from tests.worlds import Mode, affine, replica, requests, traces, world

BASE, PREFILL, DECODE, CONTEXT = 4_000_000, 60_000, 20_000, 20  # ns
COST = affine(base_s=BASE / 1e9, prefill_token_s=PREFILL / 1e9, decode_request_s=DECODE / 1e9, context_token_s=2e-8)
MODES = pytest.mark.parametrize("mode", ["leap", "step"])


def ends_ns(trace: Trace) -> NDArray[np.int64]:
    """When each request ends if none ever meets another: a prompt in one step, then a step per token."""
    prompt, steps = trace.prompt_tokens, trace.output_tokens - 1
    alone = BASE + prompt * PREFILL + steps * (BASE + DECODE + CONTEXT * prompt) + CONTEXT * steps * (steps - 1) // 2
    assert trace.wait_for is not None
    ends = np.zeros(len(trace), np.int64)
    for i in range(len(trace)):
        waits = trace.wait_for.row(i)
        think = 0 if trace.think_ns is None else trace.think_ns[i]
        start = ends[waits].max() + think if len(waits) else trace.arrival_ns[i]
        ends[i] = start + alone[i]
    return ends


def play_alone(trace: Trace, mode: Mode = "leap") -> RunLog:
    """Every request on a replica of its own: round robin, and as many replicas as requests."""
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    everybody = replica(cost=COST, replicas=len(trace), kv_blocks=longest, block_size=1, max_num_batched_tokens=longest)
    return world(trace, everybody, closed_sessions=True).simulate(mode, timeline_instants=1)


@MODES
def test_an_agent_that_joins_two_sub_agents(mode: Mode) -> None:
    """0 starts 1 and 2; 3 follows 1; 4 joins 2 and 3 after thinking; 5 is nobody's and starts at its own time."""
    log = play_alone(
        requests(
            (1.0, 10, 1), (1.0, 20, 1), (1.0, 500, 1), (1.0, 40, 1), (1.0, 10, 1), (9.0, 10, 1),
            wait_for=[[], [0], [0], [1], [2, 3], []],
            think_s=[7.0, 0.0, 0.1, 0.0, 0.5, 7.0],
        ),
        mode,
    )  # fmt: skip
    first = 1_004_600_000  # 4 ms and 0.06 ms a token
    assert log.finish_ns.tolist()[0] == first
    assert log.arrival_ns.tolist() == [
        1_000_000_000,
        first,
        first + 100_000_000,
        first + 5_200_000,
        first + 100_000_000 + 34_000_000 + 500_000_000,  # 2 ends last
        9_000_000_000,
    ]


@given(traces(links="graph"), st.sampled_from(["leap", "step"]))
def test_ends_are_the_longest_paths(trace: Trace, mode: Mode) -> None:
    log = play_alone(trace, mode)
    assert log.finish_ns.tolist() == ends_ns(trace).tolist()


def test_made_agents() -> None:
    """Generated agents, half of whose steps start two to four sub-agents."""
    agents = AgentChains(
        Uniform(2, 6),
        Lognormal(1.0, median=2),
        Constant(20),
        fan_out_frac=0.5,
        children=Uniform(2, 4),
        child_steps=Uniform(1, 3),
    )
    trace = composed(Poisson(0.2), Independent(Uniform(10, 400), Uniform(1, 30)), requests=400, sessions=agents, seed=4)
    assert trace.wait_for is not None
    assert (trace.wait_for.counts > 2).sum() > 20
    assert play_alone(trace).finish_ns.tolist() == ends_ns(trace).tolist()


def test_recorded_agents(shared_data: Path) -> None:
    """Nineteen sessions of kv-cache-tester as they are, three of them with sub-agents: prompts of up to 838k tokens."""
    trace = read_trace(shared_data / "traces" / "kv_cache_tester" / "samples")
    assert trace.wait_for is not None
    assert (trace.wait_for.counts > 1).any()
    log = play_alone(trace)
    assert (log.status == FINISHED).all()
    assert log.finish_ns.tolist() == ends_ns(trace).tolist()


def bailian(path: Path, rows: int) -> Path:
    """Chats in Bailian's format that branch: a turn answers any of the turns before it, or opens a chat."""
    rng = np.random.default_rng(3)
    with path.open("w") as file:
        for i in range(rows):
            parent = -1 if i == 0 or rng.random() < 0.3 else int(rng.integers(max(0, i - 20), i))
            prompt = int(rng.integers(1, 900))
            row: dict[str, object] = {
                "chat_id": 100 + i,
                "parent_chat_id": parent if parent < 0 else 100 + parent,
                "timestamp": i * 0.37,
            }
            row |= {"input_length": prompt, "output_length": int(rng.integers(1, 80)), "type": "text", "turn": 1}
            file.write(json.dumps(row | {"hash_ids": [i * 100 + k for k in range(-(-prompt // 16))]}) + "\n")
    return path


def test_chats_that_branch(tmp_path: Path) -> None:
    trace = read_trace(bailian(tmp_path / "chats.jsonl", 300))
    assert trace.format == "bailian"
    assert trace.wait_for is not None
    followers = np.bincount(trace.wait_for.values)
    assert (followers > 1).sum() > 20
    assert play_alone(trace).finish_ns.tolist() == ends_ns(trace).tolist()


def a_sample(shared_data: Path, _: Path) -> Path:
    return shared_data / "traces" / "kv_cache_tester" / "samples"


def a_chat(_: Path, tmp_path: Path) -> Path:
    return bailian(tmp_path / "chats.jsonl", 300)


@pytest.mark.parametrize(("file", "served"), [(a_sample, 0.5), (a_chat, 1.0)], ids=["kv_cache_tester", "bailian"])
def test_every_row_is_accounted_for(
    file: Callable[[Path, Path], Path], served: float, shared_data: Path, tmp_path: Path
) -> None:
    """Two GPUs with prefix caching, a closed loop: prompts beyond the model are refused, and their sessions go on."""
    result = kvsim.run(
        kvsim.Scenario(
            workload={"trace": {"path": str(file(shared_data, tmp_path))}, "sessions": "closed", "max_concurrency": 12},
            cluster={"replicas": 2},
            kv={"enable_prefix_caching": True},
        )
    )
    log, trace, own = result.log, result.trace, result.summary["kvsim"]
    assert log is not None
    assert trace is not None
    assert trace.wait_for is not None
    assert own["trace_rows"]["replayed"] == len(log) == sum(own["requests_by_status"].values())
    assert own["requests_by_status"]["unfinished"] == own["requests_by_status"]["abandoned"] == 0
    assert result.summary["completed"] >= served * len(log)
    ready_ns = log.arrival_ns - log.client_queue_ns
    for i in range(len(trace)):
        waits = trace.wait_for.row(i)
        think = 0 if trace.think_ns is None else trace.think_ns[i]
        assert ready_ns[i] == (log.finish_ns[waits].max() + think if len(waits) else trace.arrival_ns[i])
    assert not any("wait_for" in note or "sub-agents" in note for note in own["approximation"])
