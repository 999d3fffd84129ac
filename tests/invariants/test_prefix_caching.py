"""What prefix caching must keep whatever happens: blocks, leap = step, and a cache that does not grow with the run."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.content import Contents
from kvsim.core.runlog import FINISHED
from kvsim.core.trace import Ragged, Trace
from kvsim.costs.affine import Affine
from kvsim.engine import simulate
from kvsim.hardware import load_gpu
from kvsim.kv.paged import Paged
from kvsim.metrics.laws import broken_laws
from kvsim.models import load_model
from kvsim.routers.least_tokens import LeastTokens
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.schedulers.prefill_first import PrefillFirst
from kvsim.testing import kv as kv_checks
from kvsim.testing.worlds import first_difference

CHUNKED = ChunkedPrefill(max_num_seqs=8, max_num_batched_tokens=64)


def families(seed: int, n: int = 120, hash_block_tokens: int = 12) -> Trace:
    """Prompts that follow one of four paths for a while; every path forks."""
    rng = np.random.default_rng(seed)
    numbers: dict[tuple[int, ...], int] = {}
    rows = []
    prompts = []
    for _ in range(n):
        path = (int(rng.integers(4)), *rng.integers(0, 2, int(rng.integers(0, 6))).tolist())
        rows.append([numbers.setdefault(path[: k + 1], len(numbers)) for k in range(len(path))])
        prompts.append(len(path) * hash_block_tokens + int(rng.integers(1 - hash_block_tokens, 20)))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return Trace(
        np.cumsum(rng.integers(0, 12_000_000, n)),
        np.array(prompts),
        rng.integers(1, 40, n),
        prefix_hashes=Ragged(np.concatenate(rows), offsets),
        hash_block_tokens=hash_block_tokens,
    )


def cluster(blocks: int, scheduler: ChunkedPrefill | PrefillFirst = CHUNKED, replicas: int = 1) -> Cluster:
    cost = Affine(0.004, 0.00006, 0.00002, 0.00000002).start(load_model("llama-2-7b"), load_gpu("h100-sxm"), 1)
    pool = Pool("mixed", replicas, scheduler, Paged(8, enable_prefix_caching=True), blocks, cost, LeastTokens())
    return Cluster((pool,), 4096)


OPTIONS = {
    "plain": RunOptions(),
    "clients give up": RunOptions(client_timeout_ns=90_000_000),
    "few clients": RunOptions(max_concurrency=5),
    "cut short": RunOptions(horizon_ns=400_000_000),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scheduler", [CHUNKED, PrefillFirst(8, 4096)], ids=["chunked", "prefill first"])
@pytest.mark.parametrize("seed", range(4))
def test_leaping_is_stepping_and_laws_hold(
    seed: int, scheduler: ChunkedPrefill | PrefillFirst, options: RunOptions
) -> None:
    trace = families(seed)
    world = cluster(18 + 6 * seed, scheduler, 1 + seed % 2)
    leap = simulate(trace, world, replace(options, check_laws=True))
    assert leap.cached_tokens.sum() > 0
    assert not broken_laws(leap)
    step = simulate(trace, world, replace(options, mode="step", check_laws=True))
    assert first_difference(leap, step) is None
    assert first_difference(simulate(trace, world, options), step) is None


def test_hits_of_a_pool_that_is_never_full_are_the_leading_blocks_seen_before() -> None:
    """One after the other: a prompt finds whatever earlier ones share with it, in whole blocks, all but one token."""
    trace = families(9)
    trace = replace(trace, arrival_ns=np.arange(len(trace)) * 10**9)
    log = simulate(trace, cluster(100_000))
    assert trace.prefix_hashes is not None
    seen: dict[int, int] = {}  # id -> most tokens of its block that were in a prompt
    for i, prompt in enumerate(trace.prompt_tokens.tolist()):
        ids = trace.prefix_hashes.row(i).tolist()
        inside = [min(12, prompt - 12 * k) for k in range(len(ids))]
        shared = 0
        for name, tokens in zip(ids, inside, strict=True):
            common = min(tokens, seen.get(name, 0))
            shared += common
            if common < 12:
                break
        for name, tokens in zip(ids, inside, strict=True):
            seen[name] = max(seen.get(name, 0), tokens)
        assert log.cached_tokens[i] == min(shared, prompt - 1) // 8 * 8
        assert log.computed_tokens[i] == prompt - log.cached_tokens[i]


def test_a_cache_as_large_as_the_pool_costs_nothing_when_nobody_shares() -> None:
    trace = replace(families(3), prefix_hashes=None, hash_block_tokens=None)
    on = cluster(200)
    off = Cluster((replace(on.pools[0], kv=Paged(8)),), 4096)
    a, b = simulate(trace, on), simulate(trace, off)
    assert not a.preemptions.any()
    assert (a.status == FINISHED).all()
    assert (a.finish_ns == b.finish_ns).all()
    assert not a.cached_tokens.any()


def test_only_what_others_may_share_has_content() -> None:
    trace = families(2, 30)
    contents = Contents(trace)
    assert trace.prefix_hashes is not None
    often = np.bincount(trace.prefix_hashes.values) > 1
    for i in range(len(trace)):
        shared = int(np.cumprod(often[trace.prefix_hashes.row(i)]).sum())
        content = contents.of(i, int(trace.prompt_tokens[i]), 1)
        assert (content.tokens if content else 0) == min(12 * shared, trace.prompt_tokens[i])


LOOKS = dict(kv_checks.looks(Paged(8, enable_prefix_caching=True)))


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_the_ledger_keeps_what_a_kv_manager_promises(look: Callable[[], str | None]) -> None:
    assert look() is None
