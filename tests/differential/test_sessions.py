"""Turn n + 1 carries on turn n: the engine, told of sessions alone, and the block-by-block model, told every token."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvsim.core.cluster import RunOptions
from kvsim.core.content import carried_on
from kvsim.core.runlog import ABANDONED, FINISHED, NEVER, RunLog
from kvsim.core.trace import Ragged, Trace
from kvsim.engine import simulate
from kvsim.testing.conformance import COST, Mode, Recording, first_difference, simulated_outcome
from kvsim.testing.worlds import first_difference as first_column
from kvsim.workload import read_trace
from kvsim.workload.generate import composed
from kvsim.workload.generate.arrivals import Poisson
from kvsim.workload.generate.distributions import Lognormal
from kvsim.workload.generate.lengths import Independent
from kvsim.workload.generate.prefixes import SystemPrompts
from kvsim.workload.generate.sessions import Chat
from tests.differential.test_prefix_caching import outcome
from tests.vllm_model import Config

STEP = dict.fromkeys(COST, 0) | {"base_ns": 1000}


def spelled_out(trace: Trace, log: RunLog, config: Config, cost: dict[str, int]) -> tuple[Recording, list[int]]:
    """The same requests, in the order in which they were sent, with every token of their prompts; and their rows.

    A turn that is as long as the one before it and its answer repeats both; all else is the row's own.
    """
    sent = [i for i in np.lexsort((np.arange(len(trace)), log.arrival_ns)).tolist() if log.arrival_ns[i] != NEVER]
    number = {row: place for place, row in enumerate(sent)}
    last: dict[int, int] = {}
    prompts: dict[int, str] = {}
    for row in range(len(trace)):
        session = -1 if trace.session is None else int(trace.session[row])
        prompt, history = int(trace.prompt_tokens[row]), ""
        if session >= 0 and session in last:
            turn = last[session]
            rest = prompt - int(trace.prompt_tokens[turn] + trace.output_tokens[turn])
            if rest >= 0:
                history, prompt = f"{prompts[turn]};o{number.get(turn, -9)}[0:{int(trace.output_tokens[turn])}]", rest
        last[session] = row
        prompts[row] = ";".join(part for part in (history, f"u{row}[0:{prompt}]" if prompt else "") if part)
    rows = [
        {
            "id": str(place),
            "arrival_ns": str(int(log.arrival_ns[row])),
            "prompt_tokens": str(int(trace.prompt_tokens[row])),
            "max_tokens": str(int(trace.output_tokens[row])),
            "priority": "0",
            "segments": prompts[row],
        }
        for place, row in enumerate(sent)
    ]
    return Recording("sessions", dataclasses.asdict(config), cost, rows, []), sent


def check(trace: Trace, config: Config, options: RunOptions, cost: dict[str, int] = STEP) -> RunLog:
    """Leaping, stepping and the model agree on hits, preemptions and times. Returns the log."""
    cluster = Recording("", dataclasses.asdict(config), cost, [], []).cluster()
    log = simulate(trace, cluster, options)
    step = simulate(trace, cluster, dataclasses.replace(options, mode="step", check_laws=True))
    assert first_column(log, step) is None
    recording, rows = spelled_out(trace, log, config, cost)
    ours = simulated_outcome(log)
    difference = first_difference("request", outcome(recording)[1], [ours[row] for row in rows])
    assert difference is None, "\n".join(difference.lines())
    return log


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Trace, Config]:
    """Turns that carry on, turns whose history was cut, and rows of no session, in a pool that is hardly enough."""
    block_size = draw(st.sampled_from((1, 2, 4, 5)))
    rows: list[tuple[int, int, int, int, int]] = []  # arrival, session, prompt, output, think
    history: dict[int, int] = {}
    arrival_ns = 0
    for _ in range(draw(st.integers(2, 14))):
        session = draw(st.integers(-1, 2))
        before = history.get(session, 0)
        message = draw(st.integers(0, 3 * block_size + 1))
        kept = draw(st.sampled_from((before, before, before, before // 2, max(before - 1, 0))))
        prompt = max(1, (kept if session >= 0 else 0) + message)
        output = draw(st.one_of(st.integers(1, 3), st.integers(1, 30)))
        history[session] = prompt + output
        arrival_ns += draw(st.sampled_from((0, 1, 900, 1500, 7000, 30000)))
        rows.append((arrival_ns, session, prompt, output, draw(st.sampled_from((1, 17, 1003, 5009, 40009)))))
    arrival, sessions, prompts, outputs, think = np.array(rows, np.int64).T
    longest = int((prompts + outputs).max())
    config = Config(
        usable_blocks=-(-longest // block_size) + draw(st.integers(0, 12)),
        max_model_len=longest + 1,
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.integers(6, 40)),
        block_size=block_size,
        enable_prefix_caching=True,
        async_scheduling=draw(st.booleans()),
    )
    return Trace(arrival, prompts, outputs, session=sessions, think_ns=think), config


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_hits_and_times_are_those_of_the_model(closed: bool, world: tuple[Trace, Config]) -> None:
    check(*world, RunOptions(closed_sessions=closed))


ROOMY = Config(16_000, 32_768, 64, 2048, 16, enable_prefix_caching=True)
SERVER = {
    "base_ns": 8_000_000,
    "per_prefill_token_ns": 40_000,
    "per_decode_request_ns": 20_000,
    "per_context_token_ns": 20,
}


def found(trace: Trace, block_size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """What each turn finds if it is sent after the one before, and nothing is ever evicted: in whole blocks, all of the
    prompt and the answer of the turn before but the last token, which was never computed."""
    before = carried_on(trace)
    kept = trace.prompt_tokens[before] + trace.output_tokens[before] - 1
    return np.where(before >= 0, kept, 0) // block_size * block_size


def test_a_lone_conversation_finds_all_but_the_last_token_of_the_turn_before() -> None:
    prompts, outputs = [40, 91, 170, 171, 400], [7, 70, 1, 100, 3]  # 171 + 100 < 400; 91 + 70 < 170 = 169 + 1
    trace = Trace(
        np.arange(5) * 10**10, np.array(prompts), np.array(outputs), session=np.zeros(5, np.int64),
        think_ns=np.full(5, 10**9),
    )  # fmt: skip
    for closed in (False, True):
        log = check(trace, ROOMY, RunOptions(closed_sessions=closed), SERVER)
        assert log.cached_tokens.tolist() == [0, 32, 160, 160, 256]
        assert log.cached_tokens.tolist() == [(n - 1) // 16 * 16 for n in (1, 47, 161, 171, 271)]
        assert (log.computed_tokens == trace.prompt_tokens - log.cached_tokens).all()


def test_a_history_that_was_cut_begins_anew() -> None:
    """Nobody knows which part of it is left. (Clients leave out the beginning.) What follows carries on the cut one."""
    lengths = np.array([200, 150, 300]), np.array([20, 30, 10])
    trace = Trace(np.arange(3) * 10**10, *lengths, session=np.zeros(3, np.int64))
    assert carried_on(trace).tolist() == [-1, -1, 1]
    assert check(trace, ROOMY, RunOptions(), SERVER).cached_tokens.tolist() == [0, 0, 176]


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_burstgpt_3(shared_data: Path, closed: bool) -> None:
    """Its answers come within minutes and its users think for longer, so in either loop a turn finds the one before."""
    (path,) = (shared_data / "traces" / "burstgpt").glob("BurstGPT_3_*.csv")
    trace = read_trace(path)
    cluster = Recording("", dataclasses.asdict(ROOMY), SERVER, [], []).cluster()
    options = RunOptions(closed_sessions=closed, check_laws=True)
    log = simulate(trace, cluster, options)
    assert first_column(log, simulate(trace, cluster, dataclasses.replace(options, mode="step"))) is None
    assert (log.status == FINISHED).all()
    assert (carried_on(trace) >= 0).sum() == 89
    assert (log.cached_tokens == found(trace, 16)).all()


def test_burstgpt_3_in_a_pool_that_forgets(shared_data: Path) -> None:
    (path,) = (shared_data / "traces" / "burstgpt").glob("BurstGPT_3_*.csv")
    trace = read_trace(path).select(slice(100))
    config = dataclasses.replace(ROOMY, usable_blocks=250, max_model_len=4_001)
    log = check(trace, config, RunOptions(), SERVER)
    assert 0 < log.cached_tokens.sum() < found(trace, 16).sum()


def test_of_an_answer_that_nobody_waited_for_only_what_was_computed_is_found() -> None:
    """The client gives up in the middle of turn 1. Turn 2 is the trace's: it has all of the recorded answer."""
    trace = Trace(
        np.array([0, 1]), np.array([100, 1200]), np.array([1000, 10]), session=np.zeros(2, np.int64),
        think_ns=np.array([0, 10**9]),
    )  # fmt: skip
    cluster = Recording("", dataclasses.asdict(ROOMY), SERVER, [], []).cluster()
    options = RunOptions(closed_sessions=True, client_timeout_ns=2 * 10**9, check_laws=True)
    log = simulate(trace, cluster, options)
    assert log.status.tolist() == [ABANDONED, FINISHED]
    computed = 100 + int(log.generated_tokens[0]) - 1  # and one that was under way, for nobody
    assert 0 < log.generated_tokens[0] < 1000
    assert log.cached_tokens[1] in (computed // 16 * 16, (computed + 1) // 16 * 16)
    assert first_column(log, simulate(trace, cluster, dataclasses.replace(options, mode="step"))) is None


def generated(**more: object) -> Trace:
    return composed(
        Poisson(0.3),
        Independent(Lognormal(0.6, median=150, most=1000), Lognormal(0.6, median=60, most=500)),
        requests=120,
        sessions=Chat(most_prompt_tokens=4000),
        seed=4,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_generated_sessions(closed: bool) -> None:
    trace = generated()
    log = check(trace, ROOMY, RunOptions(closed_sessions=closed), SERVER)
    assert 0 < log.cached_tokens.sum() <= found(trace, 16).sum()
    if closed:
        assert (log.cached_tokens == found(trace, 16)).all()


def test_answers_are_found_as_well_where_blocks_have_ids() -> None:
    """Of 16 tokens each. A system prompt is found in another session; what comes behind it, in the session's own."""
    trace = generated(prefixes=SystemPrompts(groups=2, tokens=Lognormal(0.5, median=300)))
    cluster = Recording("", dataclasses.asdict(ROOMY), SERVER, [], []).cluster()
    options = RunOptions(closed_sessions=True, check_laws=True)
    log = simulate(trace, cluster, options)
    assert first_column(log, simulate(trace, cluster, dataclasses.replace(options, mode="step"))) is None
    assert first_column(log, simulate(trace, cluster, RunOptions(closed_sessions=True))) is None
    later = carried_on(trace) >= 0
    assert (log.cached_tokens[later] == found(trace, 16)[later]).all()
    assert (log.cached_tokens[~later] > 0).mean() > 0.9  # all but the first of either group
    apart = dataclasses.replace(trace, history=np.full(len(trace), -1))
    prompts_only = simulate(trace=apart, cluster=cluster, options=options)
    before = carried_on(trace)[later]
    assert (prompts_only.cached_tokens[later] == trace.prompt_tokens[before] // 16 * 16).all()


def test_a_recorded_server_found_answers(shared_data: Path) -> None:
    """NVIDIA Dynamo logged how many tokens of each of an agent's requests were cached. Prompts alone explain fewer."""
    (path,) = (shared_data / "traces" / "dynamo").glob("*.jsonl.gz")
    with gzip.open(path, "rt") as file:
        metrics = [json.loads(line)["event"].get("request") for line in file]
    recorded = {
        (one["input_tokens"], one["output_tokens"]): one["cached_tokens"]
        for one in metrics
        if one and one["cached_tokens"]
    }
    trace = read_trace(path)
    cluster = Recording("", dataclasses.asdict(ROOMY), SERVER, [], []).cluster()
    apart = dataclasses.replace(trace, history=np.full(len(trace), -1))
    rows = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    row_of = {row: i for i, row in enumerate(rows)}
    theirs = np.array(list(recorded.values()))
    ours, prompts = (simulate(t, cluster).cached_tokens[[row_of[row] for row in recorded]] for t in (trace, apart))
    assert len(theirs) == 12
    assert (ours >= theirs).all()  # nothing is lost here; there, a second worker and another clock
    assert (ours == theirs).sum() == 4
    assert ours.sum() / theirs.sum() == pytest.approx(1, abs=0.04)
    assert (prompts < theirs).sum() == 9
    assert prompts.sum() / theirs.sum() < 0.93


@pytest.mark.parametrize("hash_block_tokens", [5, 16, 64])
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_ids_of_blocks_say_no_less_than_sessions(closed: bool, hash_block_tokens: int) -> None:
    """Whatever their size, and in a pool that forgets: both traces are the same conversations."""
    config = dataclasses.replace(ROOMY, usable_blocks=330, max_model_len=5000, max_num_seqs=4)
    cluster = Recording("", dataclasses.asdict(config), SERVER, [], []).cluster()
    logs = []
    for trace in (generated(), generated(hash_block_tokens=hash_block_tokens)):
        dense = dataclasses.replace(trace, arrival_ns=trace.arrival_ns // 8)
        logs += [simulate(dense, cluster, RunOptions(mode, closed_sessions=closed)) for mode in MODES]
    assert 0 < logs[0].cached_tokens.sum() < found(generated(), 16).sum()
    for log in logs[1:]:
        assert first_column(logs[0], log) is None


MODES: tuple[Mode, Mode] = ("leap", "step")


def test_no_block_is_named_by_two_answers() -> None:
    """The same conversation twice: who fills first what both fill is chance: one answer alone has names."""
    ids = [[0, 1], [0, 1, 2, 3], [0, 1], [0, 1, 2, 3]]
    hashes = Ragged(np.concatenate(ids), np.array([0, 2, 6, 8, 12]))
    trace = Trace(
        np.arange(4) * 10**10, np.array([32, 64, 32, 64]), np.array([20, 5, 20, 5]),
        session=np.array([0, 0, 1, 1]), prefix_hashes=hashes, hash_block_tokens=16,
    )  # fmt: skip
    cluster = Recording("", dataclasses.asdict(ROOMY), SERVER, [], []).cluster()
    assert simulate(trace, cluster).cached_tokens.tolist() == [0, 48, 16, 48]
