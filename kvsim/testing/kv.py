"""What a KV manager promises: blocks are conserved, questions change nothing, an allocation is whole or not at all."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import KVManager, KVPool
from kvsim.metrics.laws import broken_laws
from kvsim.testing.checks import Look
from kvsim.testing.worlds import World, first_difference, other_worlds

SEEDS = range(5)


def looks(kv: KVManager) -> Iterator[Look]:
    """The checks of a KV manager: its ledger alone, then inside an engine."""
    mixed_only = getattr(kv.start(1), "caches", False)  # between pools blocks have no names
    worlds = [
        _of_same_size(world, kv)
        for world in other_worlds()
        if not mixed_only or all(pool.role == "mixed" for pool in world.cluster.pools)
    ]

    def runs() -> str | None:
        for world in worlds:
            world.run()
        return None

    def laws() -> str | None:
        for world in worlds:
            for law in broken_laws(world.run(check_laws=True)):
                return f"{world.name}: {law}"
        return None

    def leaps() -> str | None:
        for world in worlds:
            difference = first_difference(world.run(), world.run("step"))
            if difference:
                return f"{world.name}, leaping and stepping: {difference}"
        return None

    yield "lookup and every other question change nothing", lambda: _first(_question, kv)
    yield "allocate says yes or no, never half, as can_admit foretells", lambda: _first(_allocation, kv)
    yield "free + held = total, and what was taken comes back", lambda: _first(_conservation, kv)
    yield "growth over many steps is the sum over steps and requests", lambda: _first(_growth, kv)
    yield "stored and attended are tokens from 0 to the context", lambda: _retention(kv)
    yield "runs", runs
    yield "laws hold: blocks, tokens and times add up", laws
    yield "leaping and stepping agree in ns", leaps


def _of_same_size(world: World, kv: KVManager) -> World:
    """The world with this manager, with as many tokens of KV as before."""
    pools = tuple(
        dataclasses.replace(pool, kv=kv, kv_blocks=-(-pool.kv_blocks * pool.kv.block_size // kv.block_size))
        for pool in world.cluster.pools
    )
    return dataclasses.replace(world, cluster=dataclasses.replace(world.cluster, pools=pools))


class _Ledger:
    """A pool and the requests in it, moved as an engine moves them."""

    def __init__(self, kv: KVManager, seed: int) -> None:
        self.kv = kv
        self.rng = np.random.default_rng(seed)
        self.total_blocks = int(self.rng.integers(20, 200))
        self.pool: KVPool = kv.start(self.total_blocks)
        self.step = int(self.rng.integers(0, 1000))
        self.context: dict[Request, int] = {}
        self.made = 0

    def fill(self, requests: int) -> None:
        """Let so many requests in, if they fit; they decode from the present step on."""
        for _ in range(requests):
            prompt = int(self.rng.integers(1, 4 * self.kv.block_size + 40))
            request = Request(self.made, 0, prompt, 1000)
            self.made += 1
            if self.pool.can_admit(request, prompt, 0) and self.pool.allocate(request, prompt):
                self.pool.join(request, prompt, self.step)
                self.context[request] = prompt

    def advance(self, steps: int) -> None:
        """All decode so many steps, as far as blocks last."""
        steps = self.pool.steps_until_short(self.step, steps)
        self.pool.free_blocks -= self.pool.growth_blocks(self.step, steps)
        self.step += steps
        for request in self.context:
            self.context[request] += steps

    def drop(self, request: Request) -> None:
        """The request ends (released as it decodes), or is preempted (leaves the decodes first)."""
        context = self.context.pop(request)
        if self.rng.integers(2):
            self.pool.leave(request, context)
        self.pool.release(request, context)

    def blocks_of(self, tokens: int) -> int:
        """Blocks for a context of so many tokens."""
        return self.pool.missing_blocks(Request(-1, 0, 1, 1), tokens)


def _first(fault: Callable[[_Ledger], str | None], kv: KVManager) -> str | None:
    for seed in SEEDS:
        problem = fault(_Ledger(kv, seed))
        if problem:
            return problem
    return None


def _question(ledger: _Ledger) -> str | None:
    pool, rng = ledger.pool, ledger.rng
    ledger.fill(12)
    newcomer = Request(-1, 0, 50, 10)
    requests = [*ledger.context, newcomer]
    for _ in range(20):
        request = requests[int(rng.integers(len(requests)))]
        tokens, steps = int(rng.integers(1, 200)), int(rng.integers(1, 80))
        for name, arguments in (
            ("lookup", (request,)),
            ("can_admit", (request, tokens, 3)),
            ("missing_blocks", (request, tokens)),
            ("growth_blocks_of", (request, ledger.step)),
            ("growth_blocks", (ledger.step, steps)),
            ("steps_until_short", (ledger.step, steps)),
        ):
            if name == "growth_blocks_of" and request is newcomer:
                continue
            before = (pool.free_blocks, [r.held_blocks for r in requests])
            answers = [getattr(pool, name)(*arguments) for _ in range(2)]
            after = (pool.free_blocks, [r.held_blocks for r in requests])
            if before != after:
                return f"{name} moved free blocks, held blocks from {before} to {after}"
            if answers[0] != answers[1]:
                return f"{name} said {answers[0]}, and asked again {answers[1]}"
    return None


def _allocation(ledger: _Ledger) -> str | None:
    pool, rng = ledger.pool, ledger.rng
    requests = [Request(i, 0, 1, 1) for i in range(8)]
    tokens = dict.fromkeys(requests, 0)
    for _ in range(60):
        request = requests[int(rng.integers(len(requests)))]
        wanted = tokens[request] + int(rng.integers(1, 30 * ledger.kv.block_size))
        free, held, missing = pool.free_blocks, request.held_blocks, pool.missing_blocks(request, wanted)
        foretold = pool.can_admit(request, wanted, 0)
        said = pool.allocate(request, wanted)
        if said != foretold:
            return f"can_admit said {foretold}, allocate {said}, for {missing} blocks of {free} free"
        taken, kept = free - pool.free_blocks, request.held_blocks - held
        due = missing if said else 0
        if (taken, kept) != (due, due):
            return f"allocate said {said} for {missing} blocks: free fell by {taken}, held grew by {kept}"
        if pool.free_blocks < 0:
            return f"{pool.free_blocks} free blocks"
        if said:
            tokens[request] = wanted
        elif rng.integers(2):
            pool.release(request, tokens[request])
            tokens[request] = 0
    return None


def _conservation(ledger: _Ledger) -> str | None:
    pool, rng = ledger.pool, ledger.rng
    other = ledger.kv.start(7)
    for _ in range(40):
        ledger.fill(int(rng.integers(0, 3)))
        ledger.advance(int(rng.integers(1, 50)))
        if ledger.context and rng.integers(2):
            leaving = list(ledger.context)
            ledger.drop(leaving[int(rng.integers(len(leaving)))])
        held = sum(ledger.blocks_of(context) for context in ledger.context.values())
        if pool.free_blocks + held != ledger.total_blocks:
            return f"{pool.free_blocks} free + {held} held by {len(ledger.context)} requests, of {ledger.total_blocks}"
    for request in list(ledger.context):
        ledger.drop(request)
    if pool.free_blocks != ledger.total_blocks:
        return f"everything was released, and {pool.free_blocks} of {ledger.total_blocks} blocks are free"
    if other.free_blocks != 7:
        return "two ledgers from start() share their blocks"
    return None


def _growth(ledger: _Ledger) -> str | None:
    pool = ledger.pool
    for _ in range(4):
        ledger.fill(4)
        ledger.advance(13)
    step, longest, total = ledger.step, 4 * ledger.kv.block_size + 3, 0
    until_short = longest
    for n in range(1, longest + 1):
        each = pool.growth_blocks(step + n - 1, 1)
        by_request = sum(pool.growth_blocks_of(request, step + n - 1) for request in ledger.context)
        contexts = [context + n for context in ledger.context.values()]
        needed = sum(ledger.blocks_of(context) - ledger.blocks_of(context - 1) for context in contexts)
        if not each == by_request == needed:
            return f"step {n}: growth_blocks {each}, growth_blocks_of added up {by_request}, by contexts {needed}"
        total += each
        if pool.growth_blocks(step, n) != total:
            return f"growth_blocks over {n} steps is {pool.growth_blocks(step, n)}, one step after the other {total}"
        if total > pool.free_blocks and until_short == longest:
            until_short = n - 1
    said = pool.steps_until_short(step, longest)
    if said != until_short:
        return f"steps_until_short says {said} of {longest}, one step after the other {until_short}"
    return None


def _retention(kv: KVManager) -> str | None:
    for context in (0, 1, 15, 16, 17, 1000, 100_000):
        for name in ("stored", "attended"):
            tokens = getattr(kv, name)(context)
            if not isinstance(tokens, int) or not 0 <= tokens <= context:
                return f"{name}({context}) is {tokens!r}"
    return None
