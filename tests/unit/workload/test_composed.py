"""Requests put together from parts: sessions, shared prefixes, images, closed loops."""

import numpy as np
import pytest
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged, Trace
from kvsim.workload.generate import composed
from kvsim.workload.generate import distributions as d
from kvsim.workload.generate.arrivals import AtOnce, ClosedLoop, Deterministic, Diurnal, Gamma, Poisson, Spike
from kvsim.workload.generate.lengths import Independent
from kvsim.workload.generate.prefixes import RagChunks, Shared, SystemPrompts, name_blocks
from kvsim.workload.generate.sessions import AgentChains, Chat

SIZES = Independent(d.Lognormal(2.19, median=42, most=4000), d.Lognormal(1.22, median=100, most=1101))
TEN = Independent(d.Constant(10), d.Constant(4))


def hit_tokens(trace: Trace) -> NDArray[np.int64]:
    """Tokens of each prompt whose blocks an unlimited cache of the prompts before would hold; leading blocks only."""
    assert trace.prefix_hashes is not None
    assert trace.hash_block_tokens is not None
    seen: set[int] = set()
    hits = np.zeros(len(trace), np.int64)
    for i in range(len(trace)):
        ids = trace.prefix_hashes.row(i).tolist()
        found = next((k for k, block in enumerate(ids) if block not in seen), len(ids))
        hits[i] = min(found * trace.hash_block_tokens, trace.prompt_tokens[i])
        seen.update(ids)
    return hits


def assert_chained(blocks: Ragged) -> None:
    """An id occurs at one position only and always behind the same id."""
    before = np.full(len(blocks.values), -1)
    before[1:] = blocks.values[:-1]
    before[blocks.offsets[:-1][blocks.counts > 0]] = -1
    position = np.arange(len(blocks.values)) - blocks.offsets[blocks.rows]
    places = np.unique(np.column_stack((blocks.values, position, before)), axis=0)
    assert places[:, 0].tolist() == list(range(len(places)))  # numbered without gaps, one place each


# ---- without sessions


@pytest.mark.parametrize("seed", range(3))
def test_configured_times_are_those_of_the_trace(seed: int) -> None:
    """Also where the first request of a process would have come late: the clock starts with it."""
    spike = composed(Spike(0.005, factor=2000, at_s=1000, for_s=60), TEN, requests=300, seed=seed)
    many = np.flatnonzero(np.diff(spike.arrival_ns) < 2 * 10**9)
    assert spike.arrival_ns[many[0]] / 1e9 == pytest.approx(1000, abs=2)
    at_nine = composed(Diurnal(0.001, profile=(1.0,) * 24, start_hour=9), TEN, requests=5, seed=seed)
    assert at_nine.origin_ns == 9 * 3600 * 10**9
    nights = composed(Diurnal(1.0, profile=(0.0,) * 6 + (1.0,) * 18), TEN, requests=50, seed=seed)
    assert nights.origin_ns == 6 * 3600 * 10**9


def test_parts_are_drawn_apart() -> None:
    """Other lengths leave the arrivals as they were, and the other way round."""
    one = composed(Gamma(5, 2), SIZES, requests=500, seed=3)
    two = composed(Gamma(5, 2), TEN, requests=500, seed=3)
    three = composed(Poisson(1), SIZES, requests=500, seed=3)
    assert one.arrival_ns.tolist() == two.arrival_ns.tolist()
    assert one.prompt_tokens.tolist() == three.prompt_tokens.tolist()
    assert one.arrival_ns[0] == 0
    assert (one.session, one.prefix_hashes, one.wait_for, one.images) == (None, None, None, None)
    assert one.rows is not None
    assert one.rows.read == len(one) == 500


def test_a_duration_takes_all_that_arrive_before_it() -> None:
    assert len(composed(Deterministic(10), TEN, duration_s=60)) == 600
    trace = composed(Poisson(50), TEN, duration_s=200, seed=1)
    assert len(trace) == pytest.approx(10_000, rel=0.05)
    longer = composed(Poisson(50), TEN, duration_s=400, seed=1)
    assert trace.arrival_ns.tolist() == longer.arrival_ns[: len(trace)].tolist()


def test_images_count_and_add_their_tokens() -> None:
    trace = composed(Poisson(5), TEN, requests=2000, images=d.Uniform(0, 2), tokens_per_image=576, seed=2)
    assert trace.images is not None
    assert np.bincount(trace.images) == pytest.approx(667, rel=0.15)
    assert (trace.prompt_tokens == 10 + 576 * trace.images).all()


def test_system_prompts_are_as_popular_as_zipf_says_and_shared() -> None:
    prefixes = SystemPrompts(groups=4, tokens=d.Constant(100), zipf_a=1.0)
    trace = composed(Poisson(5), TEN, requests=4000, prefixes=prefixes, hash_block_tokens=16)
    assert (trace.prompt_tokens == 110).all()
    assert trace.prefix_hashes is not None
    assert_chained(trace.prefix_hashes)
    first = trace.prefix_hashes.values[trace.prefix_hashes.offsets[:-1]]
    popularity = np.sort(np.unique(first, return_counts=True)[1])[::-1] / 4000
    assert popularity == pytest.approx(np.array([12, 6, 4, 3]) / 25, abs=0.03)
    hits = hit_tokens(trace)
    assert (np.sort(hits)[:4] == 0).all()  # the first of each group
    assert (np.sort(hits)[4:] == 96).all()  # 6 whole blocks of 100 tokens


def test_retrieved_chunks_are_popular_and_shared_from_the_front_only() -> None:
    rag = RagChunks(chunks=50, chunks_per_request=3, chunk_tokens=64, system_tokens=32, zipf_a=1.0)
    trace = composed(Poisson(5), TEN, requests=3000, prefixes=rag, hash_block_tokens=32, seed=5)
    assert (trace.prompt_tokens == 32 + 3 * 64 + 10).all()
    assert trace.prefix_hashes is not None
    assert_chained(trace.prefix_hashes)
    chunk = rag.retrieved(3000, np.random.default_rng(5).spawn(5)[3])
    assert all(len(set(row)) == 3 for row in chunk.tolist())
    share = np.bincount(chunk[:, 0], minlength=50) / 3000
    assert share[0] == pytest.approx(1 / sum(1 / k for k in range(1, 51)), abs=0.03)  # the first draw is plain Zipf
    # Two prompts share as many blocks as their lists of chunks have in common at the front: 1 + 2 per chunk.
    seen: set[tuple[int, ...]] = {()}
    expected = []
    for number, row in enumerate(chunk.tolist()):
        common = max(k for k in range(4) if tuple(row[:k]) in seen)
        expected.append(32 * (1 + 2 * common) if number else 0)
        seen.update(tuple(row[:k]) for k in range(4))
    assert hit_tokens(trace).tolist() == expected


def test_blocks_by_hand() -> None:
    """Blocks of 4: two prompts with 6 shared tokens, a third that extends the first, one of another group."""
    shared = Shared(np.array([[0], [0], [0], [1]]), np.array([[6], [6], [6], [6]]))
    named = name_blocks(np.array([10, 9, 14, 8]), np.array([0, 1, 0, 2]), shared, 4)
    a, b, c, e = (named.row(i).tolist() for i in range(4))
    assert [len(ids) for ids in (a, b, c, e)] == [3, 3, 4, 2]
    assert a[0] == b[0] == c[0] != e[0]  # tokens 0 to 3 are shared
    assert a[1] == c[1] != b[1]  # 4 to 7: two shared tokens, then one's own
    assert len({a[2], b[2], c[2]}) == 3  # partial in a and b, full in c
    assert_chained(named)


# ---- sessions


def by_session(trace: Trace) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows in order of session and time, and which of them continue the one before."""
    assert trace.session is not None
    order = np.lexsort((np.arange(len(trace)), trace.session))
    return order, np.concatenate(([False], np.diff(trace.session[order]) == 0))


def test_chats_have_the_statistics_of_burstgpt_3() -> None:
    trace = composed(Poisson(1), SIZES, requests=60_000, sessions=Chat(), seed=4)
    assert len(trace) == 60_000
    assert trace.session is not None
    assert trace.think_ns is not None
    turns = np.bincount(trace.session)
    assert float((turns == 1).mean()) == pytest.approx(0.44, abs=0.01)
    assert float(turns.mean()) == pytest.approx(2.9, rel=0.03)
    assert int(turns.max()) == 24
    think_s = trace.think_ns[trace.think_ns > 0] / 1e9
    assert np.percentile(think_s, [50, 90]) == pytest.approx([116, 1372], rel=0.06)
    order, follows = by_session(trace)
    total = (trace.prompt_tokens + trace.output_tokens)[order]
    ratio = trace.prompt_tokens[order][follows] / total[:-1][follows[1:]]
    assert float((ratio < 1).mean()) == pytest.approx(0.27, abs=0.01)
    assert np.percentile(ratio, [10, 50, 90]) == pytest.approx([0.85, 1.06, 1.56], rel=0.12)


def test_turns_come_after_the_answer_and_the_pause() -> None:
    trace = composed(Poisson(1), SIZES, requests=5_000, sessions=Chat(answer_tokens_per_s=20), seed=4)
    assert trace.think_ns is not None
    order, follows = by_session(trace)
    arrival, think = trace.arrival_ns[order], trace.think_ns[order]
    gap = np.diff(arrival)[follows[1:]]
    answer_ns = trace.output_tokens[order][:-1][follows[1:]] * 50_000_000
    assert gap == pytest.approx(answer_ns + think[1:][follows[1:]], abs=3)
    assert not think[~follows].any()


def test_histories_are_prefixes_until_they_are_cut() -> None:
    """Of a later turn's prompt, an unlimited cache holds the whole blocks of the turn before, or the system prompt."""
    talk = Chat(turns_per_session=d.Constant(6), truncate_frac=0.25, kept_least_frac=0.5)
    trace = composed(
        Poisson(1), SIZES, requests=3_000, sessions=talk, prefixes=SystemPrompts(tokens=d.Constant(64)), seed=6
    )
    assert trace.prefix_hashes is not None
    assert_chained(trace.prefix_hashes)
    order, follows = by_session(trace)
    prompt, hits = trace.prompt_tokens[order], hit_tokens(trace)[order]
    total = (trace.prompt_tokens + trace.output_tokens)[order]
    cut = np.concatenate(([False], (prompt[1:] < total[:-1]) & follows[1:]))
    assert float(cut[follows].mean()) == pytest.approx(0.25, abs=0.03)
    grown = np.concatenate(([False], (prompt[1:] > total[:-1]) & follows[1:]))
    assert (hits[grown] == prompt[:-1][grown[1:]] // 16 * 16).all()
    assert (hits[cut] == 64).all()


def test_no_prompt_exceeds_the_limit_of_a_session() -> None:
    talk = Chat(turns_per_session=d.Constant(10), truncate_frac=0.0, most_prompt_tokens=300)
    trace = composed(Poisson(1), TEN, requests=500, sessions=talk)
    assert int(trace.prompt_tokens.max()) == 300


def test_requests_are_whole_sessions_but_for_the_last() -> None:
    talk = Chat(turns_per_session=d.Constant(4))
    trace = composed(Deterministic(1), TEN, requests=401, sessions=talk)
    assert trace.session is not None
    assert np.bincount(trace.session).tolist() == [4] * 100 + [1]
    assert np.bincount(composed(AtOnce(), TEN, duration_s=None, requests=8, sessions=talk).session) == pytest.approx(4)


# ---- agents


def test_agents_wait_for_their_sub_agents() -> None:
    """Every second step starts three sub-agents of two steps; the next step waits for all of them."""
    agents = AgentChains(
        steps=d.Constant(8),
        think_s=d.Constant(5),
        message=d.Constant(20),
        truncate_frac=0.0,
        fan_out_frac=0.5,
        children=d.Constant(3),
        child_steps=d.Constant(2),
    )
    trace = composed(Deterministic(0.01), TEN, requests=2_000, sessions=agents, seed=7)
    assert trace.session is not None
    assert trace.wait_for is not None
    first_of = {}
    last_of = {}
    for row, session in enumerate(trace.session.tolist()):
        first_of.setdefault(session, row)
        last_of[session] = row
    end = trace.arrival_ns + trace.output_tokens * 25_000_000
    joins = children = 0
    for row in range(len(trace)):
        waits = trace.wait_for.row(row).tolist()
        session = int(trace.session[row])
        if not waits:
            assert first_of[session] == row
            continue
        own = [w for w in waits if trace.session[w] == session]
        others = [w for w in waits if trace.session[w] != session]
        pause = 0 if first_of[session] == row else 5_000_000_000
        assert trace.arrival_ns[row] == pytest.approx(max(int(end[w]) for w in waits) + pause, abs=3)
        if first_of[session] == row:  # a sub-agent: started by one step of another session
            children += 1
            assert (len(own), len(others)) == (0, 1)
        elif others:
            joins += 1
            assert (len(own), len(others)) == (1, 3)
            assert all(last_of[int(trace.session[w])] == w for w in others)
        else:
            assert len(own) == 1
    assert children - 3 <= 3 * joins <= children
    steps = np.bincount(trace.session)
    assert set(np.unique(steps).tolist()) <= {1, 2, 8} | {int(steps[-1])} | set(range(1, 9))
    assert joins / (steps == 8).sum() == pytest.approx(3.5, rel=0.15)  # of seven steps that are not the last


def test_agents_have_the_statistics_of_the_recorded_ones() -> None:
    trace = composed(Poisson(0.01), SIZES, requests=40_000, sessions=AgentChains(), seed=8)
    assert trace.session is not None
    assert trace.think_ns is not None
    assert trace.wait_for is not None
    started = trace.wait_for.counts == 0
    steps = np.bincount(trace.session)[np.unique(trace.session[started])]
    assert np.percentile(steps, [50, 90]) == pytest.approx([45, 168], rel=0.15)
    think_s = trace.think_ns[trace.think_ns > 0] / 1e9
    assert np.percentile(think_s, [50, 90]) == pytest.approx([10, 160], rel=0.08)


# ---- closed loop


def test_users_of_a_closed_loop_take_turns() -> None:
    trace = composed(ClosedLoop(3, d.Constant(2.0), ramp_s=0.3), TEN, requests=8)
    assert trace.session is not None
    assert trace.think_ns is not None
    assert trace.session.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert (trace.think_ns / 1e9).tolist() == [0, 0, 0, 2, 2, 2, 2, 2]
    assert (trace.arrival_ns[:4] / 1e9).tolist() == pytest.approx([0, 0.1, 0.2, 2.0])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "requests: give either requests or duration_s"),
        ({"requests": 5, "duration_s": 5.0}, "requests: give either requests or duration_s"),
        ({"requests": 0}, "requests: 0 is not allowed"),
        ({"duration_s": -1.0}, "duration_s: -1.0 is not a positive number"),
        ({"requests": 5, "hash_block_tokens": 0}, "hash_block_tokens: 0 is too few"),
        ({"requests": 5, "tokens_per_image": -1}, "tokens_per_image: -1 is too few"),
    ],
)
def test_impossible_arguments_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        composed(Poisson(1), TEN, **keys)  # type: ignore[arg-type]


def test_impossible_parts_are_refused() -> None:
    with pytest.raises(InputError, match="arrivals: closed_loop makes sessions of its own and needs requests"):
        composed(ClosedLoop(3), TEN, requests=5, sessions=Chat())
    with pytest.raises(InputError, match="arrivals: the last arrival would be more than 146 years"):
        composed(Poisson(1e-12), TEN, requests=50)
    with pytest.raises(InputError, match="truncate_frac: 2 is not a share"):
        Chat(truncate_frac=2)
    with pytest.raises(InputError, match="chunks_per_request: 5 chunks of 3"):
        RagChunks(chunks=3)
    with pytest.raises(InputError, match="groups: 0 is too few"):
        SystemPrompts(0)
