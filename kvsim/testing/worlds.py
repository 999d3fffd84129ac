"""Small seeded runs that reach the corners in which policies go wrong, and the first thing in which two logs differ."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.hardware import Gpu, Link
from kvsim.core.model import ModelSpec
from kvsim.core.runlog import FINISHED, STATUS_NAMES, UNFINISHED, RunLog
from kvsim.core.seats import KVManager, Router, Scheduler, StepCost
from kvsim.core.trace import Trace
from kvsim.costs.affine import Affine
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.least_tokens import LeastTokens
from kvsim.schedulers.chunked_prefill import ChunkedPrefill

MODEL: Final = ModelSpec.dense("llama-2-7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096)
GPU: Final = Gpu("an 80 GB GPU", 80 * 10**9, 2e12, 3e14, 3e11)

COST: Final[StepCost] = Affine(1.2345678e-3, 6.1e-6, 2.3456e-5, 2.3456789e-9).start(MODEL, GPU, 1)
"""Few milliseconds a step, and never a whole number of nanoseconds: rounding matters."""

HORIZON_NS: Final = 3600 * 10**9
"""What has not ended after an hour never will: every world is done in minutes."""

_OPTIONS: Final = RunOptions(horizon_ns=HORIZON_NS, timeline_instants=200)


@dataclass(frozen=True)
class World:
    """A trace and a cluster under a name that says what happens there."""

    name: str
    trace: Trace
    cluster: Cluster
    options: RunOptions = _OPTIONS

    def run(self, mode: Literal["leap", "step"] = "leap", *, check_laws: bool = False) -> RunLog:
        """Play it."""
        return simulate(self.trace, self.cluster, dataclasses.replace(self.options, mode=mode, check_laws=check_laws))

    def having(self, **fields: Any) -> "World":
        """The same world with other policies in every pool."""
        pools = tuple(dataclasses.replace(pool, **fields) for pool in self.cluster.pools)
        return dataclasses.replace(self, cluster=dataclasses.replace(self.cluster, pools=pools))


def make_trace(seed: int, n: int, gaps_ms: tuple[int, ...], prompt: tuple[int, int], output: tuple[int, int]) -> Trace:
    """``n`` requests: gaps drawn from ``gaps_ms``, lengths uniform in [first, last], every fifth output one token."""
    rng = np.random.default_rng(seed)
    arrival_ms = np.cumsum(rng.choice(gaps_ms, n))
    output_tokens = rng.integers(output[0], output[1] + 1, n)
    output_tokens[::5] = 1
    return Trace(
        (arrival_ms - arrival_ms[0]).astype(np.int64) * 1_000_000,
        rng.integers(prompt[0], prompt[1] + 1, n),
        output_tokens,
    )


def splits_prompts(scheduler: Scheduler) -> bool:
    """Does it run a prompt longer than ``max_num_batched_tokens``, in chunks?"""
    prompt = 2 * scheduler.max_num_batched_tokens
    trace = Trace(np.array([0]), np.array([prompt]), np.array([2]))
    alone = World("alone", trace, Cluster((_pool(scheduler, prompt + 2),), max_model_len=1 << 30))
    return bool((alone.run().status == FINISHED).all())


def scheduler_worlds(scheduler: Scheduler, splits: bool) -> Iterator[World]:
    """Worlds in which this scheduler, as it is and with small limits, has everything to decide.

    With ``splits`` off no request outgrows a step, since after a preemption it is recomputed whole.
    """
    for limits, policy in (("", scheduler), (", small limits", _small(scheduler, 96 if splits else 300))):
        if policy is None:
            continue
        budget = policy.max_num_batched_tokens
        most = min(120, budget if splits else budget // 2)
        out = min(150, budget if splits else budget - most)
        longest = budget * 5 // 2 if splits else budget - out
        scarce, roomy = most + out + 10, 60 * (budget + 500)
        for name, trace, kv_tokens, replicas, timeout_ns in (
            ("ties", make_trace(1, 60, (0, 0, 0, 25), (1, most), (1, 40)), roomy, 1, None),
            ("preemption", make_trace(2, 60, (0, 0, 2, 30), (1, most), (out // 4, out)), scarce, 1, None),
            ("long prompts", make_trace(3, 40, (0, 5, 40), (1, longest), (1, min(60, out))), longest + 300, 1, None),
            ("sparse arrivals", make_trace(4, 60, (7, 300, 1100), (1, most), (80, 400)), roomy, 1, None),
            ("three replicas", make_trace(5, 60, (0, 1, 9), (1, most), (out // 8, out // 2)), 2 * scarce, 3, None),
            ("clients give up", make_trace(6, 60, (0, 0, 4), (1, most), (1, out)), 2 * scarce, 1, 150_000_000),
        ):
            cluster = Cluster((_pool(policy, kv_tokens, replicas=replicas),), max_model_len=1 << 30)
            options = dataclasses.replace(_OPTIONS, client_timeout_ns=timeout_ns)
            yield World(name + limits, trace, cluster, options)


def _small(scheduler: Scheduler, tokens: int) -> Scheduler | None:
    """The same policy with room for few requests and tokens; None if it cannot be made."""
    names = {field.name for field in dataclasses.fields(scheduler)}  # type: ignore[arg-type]
    if not {"max_num_seqs", "max_num_batched_tokens"} <= names:
        return None
    limits = {
        "max_num_seqs": min(6, scheduler.max_num_seqs),
        "max_num_batched_tokens": min(tokens, scheduler.max_num_batched_tokens),
    }
    small: Scheduler = dataclasses.replace(scheduler, **limits)  # type: ignore[type-var]
    return small


def other_worlds() -> tuple[World, ...]:
    """Worlds for the other seats: one replica, several, and a prefill pool that hands over to a decode pool."""
    policy = ChunkedPrefill(max_num_seqs=8, max_num_batched_tokens=96)
    trace = make_trace(7, 80, (0, 0, 3, 40), (1, 120), (1, 120))
    one = Cluster((_pool(policy, 1000),), max_model_len=8192)
    three = Cluster((_pool(policy, 400, replicas=3),), max_model_len=8192)
    handoff = Cluster(
        (_pool(policy, 400, replicas=2, role="prefill"), _pool(policy, 500, replicas=3, role="decode")),
        max_model_len=8192,
        link=Link(10_000_000, 1e-3),
    )
    return World("one replica", trace, one), World("three replicas", trace, three), World("handoff", trace, handoff)


def _pool(
    scheduler: Scheduler,
    kv_tokens: int,
    *,
    replicas: int = 1,
    role: Literal["mixed", "prefill", "decode"] = "mixed",
    router: Router = LeastTokens(),  # noqa: B008  (frozen)
    kv: KVManager = Paged(),  # noqa: B008  (frozen)
) -> Pool:
    return Pool(role, replicas, scheduler, kv, -(-kv_tokens // kv.block_size), COST, router, kv_bytes_per_token=1000)


def alive(log: RunLog, world: World) -> str | None:
    """Which request has not ended, or None."""
    open_rows = np.flatnonzero(log.status == UNFINISHED)
    if not len(open_rows):
        return None
    i = int(open_rows[0])
    return (
        f"{len(open_rows)} requests had not ended after {HORIZON_NS // 10**9} s, first request {i} (prompt of "
        f"{world.trace.prompt_tokens[i]} tokens, {log.generated_tokens[i]} of {log.output_tokens[i]} output tokens)"
    )


def first_difference(one: RunLog, other: RunLog) -> str | None:
    """The first thing in which two logs differ ("finish_ns of request 3: 17 and 18"), or None.

    What only says how the engine got there (events and stretches) may differ.
    """
    for field in dataclasses.fields(RunLog):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in ("events", "stretches"):
            continue
        if dataclasses.is_dataclass(a):
            for inner in dataclasses.fields(a):
                if not np.array_equal(getattr(a, inner.name), getattr(b, inner.name)):
                    return f"{field.name}.{inner.name}"
        elif isinstance(a, np.ndarray):
            rows = np.flatnonzero(a != b)
            if len(rows):
                i = int(rows[0])
                was, now = (STATUS_NAMES[x[i]] if field.name == "status" else int(x[i]) for x in (a, b))
                return f"{field.name} of request {i}: {was} and {now}"
        elif a != b:
            return f"{field.name}: {a} and {b}"
    return None
