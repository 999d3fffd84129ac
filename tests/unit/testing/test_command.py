"""``python -m kvsim.testing``, and the built-in policies under it."""

from pathlib import Path
from typing import Any

import pytest

from kvsim.costs import COSTS
from kvsim.kv import MANAGERS
from kvsim.routers import ROUTERS
from kvsim.schedulers import SCHEDULERS
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.schedulers.prefill_first import PrefillFirst
from kvsim.testing import check_target
from kvsim.testing.__main__ import main
from kvsim.testing.worlds import other_worlds, scheduler_worlds, splits_prompts
from kvsim.workload.readers import READERS

TRACES = Path(__file__).parents[3] / "traces"


@pytest.mark.parametrize(
    "target",
    [
        *SCHEDULERS.values(),
        *ROUTERS.values(),
        *MANAGERS.values(),
        COSTS["affine"],
        COSTS["roofline"],
        COSTS["calibrated"],
    ],
)
def test_built_in_policies_keep_the_contract(target: str) -> None:
    assert not [str(check) for check in check_target(target) if check.problem]


@pytest.mark.parametrize(("name", "sample"), [("burstgpt", "burstgpt_like.csv"), ("plain", "chat_sessions.csv")])
def test_built_in_readers_keep_the_contract(name: str, sample: str) -> None:
    assert not [str(check) for check in check_target(READERS[name], sample=TRACES / sample) if check.problem]


@pytest.mark.parametrize(
    "parameters",
    [
        {"enable_chunked_prefill": False},
        {"watermark": 0.1, "max_num_seqs": 3},
        {"long_prefill_token_threshold": 32, "long_prefill_token_threshold_adaptive": True},
        {"scheduler_reserve_full_isl": False, "max_num_batched_tokens": 64},
    ],
)
def test_a_policy_is_checked_with_its_parameters(parameters: dict[str, Any]) -> None:
    assert not [str(check) for check in check_target(SCHEDULERS["chunked_prefill"], parameters) if check.problem]


def test_the_worlds_reach_the_corners() -> None:
    assert splits_prompts(ChunkedPrefill())
    assert not splits_prompts(PrefillFirst())
    logs = {world.name: (world, world.run()) for world in scheduler_worlds(ChunkedPrefill(), splits=True)}
    for limits in ("", ", small limits"):
        assert logs["preemption" + limits][1].preemptions.sum() > 20
        world, log = logs["long prompts" + limits]
        assert (world.trace.prompt_tokens > world.cluster.pools[0].scheduler.max_num_batched_tokens).sum() > 10
        assert log.peak_used_blocks[0] > 0.8 * log.total_blocks[0]
        world, log = logs["sparse arrivals" + limits]
        assert sum(log.steps) > 30 * sum(log.stretches)
        world, log = logs["clients give up" + limits]
        assert 10 < (log.finish_ns - log.arrival_ns == world.options.client_timeout_ns).sum() < 50
        assert (logs["ties" + limits][0].trace.arrival_ns[1:] == logs["ties" + limits][0].trace.arrival_ns[:-1]).any()
    one, three, handoff = (world.run() for world in other_worlds())
    assert one.preemptions.sum() > 0
    assert set(three.replica_prefill.tolist()) == {0, 1, 2}
    assert len(handoff.transfers.request) > 50


POLICY = """
from dataclasses import dataclass
from kvsim.schedulers.chunked_prefill import ChunkedPrefill

@dataclass(frozen=True)
class Mine(ChunkedPrefill):
    lazy: bool = False

    def plan(self, replica, plan):
        if not self.lazy:
            super().plan(replica, plan)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A policy in a module in the working directory."""
    module = f"policy_of_{request.node.name}"
    (tmp_path / f"{module}.py").write_text(POLICY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return f"{module}:Mine"


def test_a_sound_policy_exits_0(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([mine]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok    ") for line in lines)
    assert len(lines) == 8
    assert last == f"{mine} keeps the contract of its seat"


def test_a_wrong_policy_exits_1(mine: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([mine, "lazy=true"]) == 1
    out = capsys.readouterr().out
    assert "WRONG every request ends" in out
    assert out.endswith("breaks the contract of its seat\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chunked_prefill"], "'chunked_prefill' is not package.module:Class"),
        (["no_such_module:A"], "'no_such_module:A' cannot be imported"),
        (["kvsim.core.shape:BatchShape"], "BatchShape fits no seat"),
        (["kvsim.schedulers.chunked_prefill:ChunkedPrefill", "max_num_seq=3"], "did you mean 'max_num_seqs'?"),
        (["kvsim.schedulers.chunked_prefill:ChunkedPrefill", "max_num_seqs=many"], "max_num_seqs"),
        (["kvsim.schedulers.chunked_prefill:ChunkedPrefill", "3"], "'3' is not FIELD=VALUE"),
        (["kvsim.workload.readers.plain:Plain"], "a reader is checked on a file"),
        (["kvsim.workload.readers.plain:Plain", "--sample", "none.csv"], "none.csv: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exits_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("Error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
