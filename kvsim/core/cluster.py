"""What is simulated: pools of equal replicas, their routers, the link between them, and the limits of a run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kvsim.core.hardware import Link
from kvsim.core.seats import KVManager, Router, Scheduler, StepCost

Role = Literal["mixed", "prefill", "decode"]


QUEUE_LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")
"""Fields of a scheduler that limit what the front end of its pool takes, and the reasons for which it refuses."""


@dataclass(frozen=True)
class HostMemory:
    """Where a replica puts the KV of requests that it swaps out: so many blocks, each copied in so many seconds.

    Copies run before the step in which they were decided, one after the other in either direction, and the step waits
    for them, as in vLLM 0.6. Ranks copy their shares side by side, each over a link of its own.
    """

    blocks: int
    block_copy_s: float


def not_with_swapping(role: Role, scheduler: Scheduler, kv: KVManager) -> str | None:
    """What of a pool swapping to host memory is not modelled with, None if all is well."""
    for refused, what in (
        (role != "mixed", f"pools of role {role}"),
        (getattr(scheduler, "async_scheduling", False), "asynchronous scheduling"),
        (getattr(scheduler, "policy", "fcfs") == "priority", "queues by priority"),
        (getattr(kv, "enable_prefix_caching", False), "prefix caching"),
    ):
        if refused:
            return what
    return None


@dataclass(frozen=True)
class Pool:
    """Equal replicas of one role. ``kv_bytes_per_token`` (all ranks together) prices a handoff's transfer.

    ``host``: memory to swap to; None: preempted requests are recomputed.
    """

    role: Role
    replicas: int
    scheduler: Scheduler
    kv: KVManager
    kv_blocks: int
    cost: StepCost
    router: Router
    kv_bytes_per_token: int = 0
    host: HostMemory | None = None

    @property
    def queue_limits(self) -> tuple[int | None, ...]:
        """Limits in the order of QUEUE_LIMITS; None: there is none."""
        return tuple(getattr(self.scheduler, name, None) for name in QUEUE_LIMITS)


@dataclass(frozen=True)
class Cluster:
    """One ``mixed`` pool, or one ``prefill`` and one ``decode`` pool joined by ``link``.

    ``max_model_len``: prompt + output limit in tokens; a prompt that reaches it is rejected, an output is cut at it.
    ``reject_oversized``: reject a request whose KV can never fit in the pool (off: it waits for ever, as in vLLM).
    """

    pools: tuple[Pool, ...]
    max_model_len: int
    link: Link | None = None
    reject_oversized: bool = True


@dataclass(frozen=True)
class RunOptions:
    """How a trace is played and what is watched.

    ``mode``: ``leap`` or ``step`` (visits every step; same results). ``closed_sessions``: a row is sent think time
    after the last of those that it waits for has ended, instead of at its recorded time. ``max_concurrency``: at most
    so many requests in flight. ``client_timeout_ns``: the client gives up; ``give_up_at_deadline``: also at the
    request's own deadline. ``horizon_ns``: stop there. ``timeline_instants``: sampling instants; None records every
    step. ``decisions``: called with replica id and one dict per step in the format of the vLLM recordings; leaping, one
    per stretch (``kvsim.engine.decisions``; not if clients give up). ``check_laws``: verify conservation laws
    throughout. ``progress``: called now and then with the number of requests sent.
    """

    mode: Literal["leap", "step"] = "leap"
    seed: int = 0
    closed_sessions: bool = False
    max_concurrency: int | None = None
    client_timeout_ns: int | None = None
    give_up_at_deadline: bool = False
    horizon_ns: int | None = None
    timeline_instants: int | None = 2000
    decisions: Callable[[int, dict[str, Any]], None] | None = None
    check_laws: bool = False
    progress: Callable[[int], None] | None = None

    @property
    def clients_give_up(self) -> bool:
        """Some request may be abandoned."""
        return self.client_timeout_ns is not None or self.give_up_at_deadline
