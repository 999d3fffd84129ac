"""To recompute a victim or to swap it: the prompt length from which the other is cheaper, on paper and simulated.

A victim with n tokens in KV costs the replica a prefill of n (+ 1) tokens, or two copies of its blocks, which take
``max(block bytes / link, copies per block * least time of a copy)`` each. For short prompts a prefill takes as long
as reading the weights, so swapping wins; then recomputation wins where a token is computed faster than it is copied
twice. (Attention makes prefills of tens of thousands of tokens dear again: beyond this model's length.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from kvsim.core.runlog import RunLog
from kvsim.core.shape import BatchShape
from kvsim.engine import simulate
from kvsim.hardware import HOST_LINKS
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, resolve
from tests.worlds import requests

BLOCK = 16
MODEL = "llama-2-7b"
"""Every head has its own KV: 512 KiB a token. (With a fourth of that, as in Llama-3.1, swapping nearly always wins.)"""

KV_BYTES_PER_TOKEN = 2 * 32 * 4096 * 2  # keys and values, layers, width, 16 bit
COPIES_PER_BLOCK = 2 * 32
COPY_S = 2.3e-6


def resolved(gpu: str, **scheduler: Any) -> Resolved:
    """A server of vLLM 0.6 with a quarter of its KV pool."""
    scenario = Scenario(
        workload={"generate": {"requests": 1, "arrivals": "at_once", "lengths": {"prompt": 1, "output": 1}}},
        model=MODEL,
        engine="vllm@0.6",
        cluster={"gpu": gpu},
        scheduler={"watermark": 0.0, "swap_space_gib": 64.0, **scheduler},
    )
    whole = resolve(scenario).pools[0].ledger.num_gpu_blocks
    return resolve(scenario.replace(**{"kv.num_gpu_blocks_override": whole // 4}))


@dataclass(frozen=True)
class Server:
    resolved: Resolved

    def run(self, prompt_tokens: int) -> RunLog:
        """A full pool in which one victim, the last to come, has a prompt of so many tokens (a multiple of 16).

        All prompts end with their blocks, so all need a block for the next token, and one is missing. The victim comes
        back when the first request ends, and ends before the last of the others.
        """
        pool = self.resolved.pools[0].pool
        others = -(-pool.kv_blocks * BLOCK // 3800)
        free = pool.kv_blocks - prompt_tokens // BLOCK - others
        blocks = [free // others + (i < free % others) for i in range(others)]
        rows = [(0.0, BLOCK * n, 60) for n in blocks]
        rows[0] = (0.0, BLOCK * blocks[0], 8)
        return simulate(requests(*rows, (0.0, prompt_tokens, 20)), self.resolved.cluster)

    def prefill_s(self, tokens: float) -> float:
        """By the price list, between whole tokens on a straight line."""
        n = int(tokens)
        one, two = (
            self.resolved.pools[0].pool.cost.step_s(
                BatchShape(prefill_tokens=k, prefill_chunk_squares=k * k, prefill_requests=1, sampled_requests=1)
            )
            for k in (n, n + 1)
        )
        return one + (tokens - n) * (two - one)

    def decode_share_s(self, tokens: int) -> float:
        """Of a decode with so many tokens of context in a step with others."""
        step_s = self.resolved.pools[0].pool.cost.step_s
        alone = BatchShape(decode_requests=7, sampled_requests=7, decode_context_tokens=25_000)
        joined = BatchShape(decode_requests=8, sampled_requests=8, decode_context_tokens=25_000 + tokens)
        return step_s(joined) - step_s(alone)


@cache
def recomputing(gpu: str) -> Server:
    return Server(resolved(gpu, preemption_mode="recompute"))


def swapping(gpu: str, link: str) -> Server:
    return Server(resolved(gpu, preemption_mode="swap", swap_link=link))


def extra_s(gpu: str, link: str, prompt_tokens: int) -> float:
    """By how much later the last request ends if the victim is swapped, not recomputed."""
    swap, recompute = swapping(gpu, link).run(prompt_tokens), recomputing(gpu).run(prompt_tokens)
    assert (swap.swaps[-1], swap.preemptions.sum()) == (1, 1)
    assert (recompute.swaps.sum(), recompute.preemptions[-1], recompute.preemptions.sum()) == (0, 1, 1)
    return (int(swap.finish_ns.max()) - int(recompute.finish_ns.max())) / 1e9


def copies_s(link: str, tokens: float) -> float:
    """There and back."""
    return 2 * tokens * max(KV_BYTES_PER_TOKEN / HOST_LINKS[link], COPIES_PER_BLOCK * COPY_S / BLOCK)


def crossing(more: Callable[[int], float], step: int, most: int) -> float | None:
    """The first length (on a straight line between multiples of ``step``) at which ``more`` passes 0 upwards."""
    before = more(step)
    for tokens in range(2 * step, most + 1, step):
        now = more(tokens)
        if before <= 0 < now:
            return tokens - step * now / (now - before)
        before = now
    return None


@pytest.mark.parametrize(
    ("gpu", "link", "about"),
    [
        ("gb200", "pcie-3-x16", 50),
        ("gb200", "pcie-4-x16", 100),
        ("gb200", "pcie-5-x16", 180),
        ("gb200", "nvlink-c2c", 180),
        ("h100-sxm", "pcie-3-x16", 100),
        ("h100-sxm", "pcie-4-x16", 200),
    ],
)
def test_where_recomputation_becomes_cheaper_than_swapping(gpu: str, link: str, about: int) -> None:
    on_paper = crossing(lambda n: copies_s(link, n) - recomputing(gpu).prefill_s(n), 1, 400)
    simulated = crossing(lambda n: extra_s(gpu, link, n), BLOCK, 400)
    assert on_paper is not None
    assert simulated is not None
    assert simulated == pytest.approx(on_paper, rel=0.03)
    assert simulated == pytest.approx(about, rel=0.25)


@pytest.mark.parametrize("link", ["pcie-5-x16", "nvlink-c2c"])
def test_where_swapping_is_always_cheaper(link: str) -> None:
    """On an H100 a token is copied twice in less time than it is computed, at any length.

    Exactly: a swapped victim gets its next token in a step of all, for its share, a recomputed one in its prefill.
    """
    gpu = "h100-sxm"
    for tokens in range(BLOCK, 3800, 16 * BLOCK):
        server = recomputing(gpu)
        assert copies_s(link, tokens) < server.prefill_s(tokens)
        on_paper = copies_s(link, tokens) + server.decode_share_s(tokens) - server.prefill_s(tokens + 1)
        assert extra_s(gpu, link, tokens) == pytest.approx(on_paper, rel=1e-3, abs=1e-6)
