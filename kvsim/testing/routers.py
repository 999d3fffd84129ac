"""What a router promises: it looks at counters, changes nothing, and names a replica."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import ReplicaView, Router
from kvsim.metrics.laws import broken_laws
from kvsim.testing.checks import Look
from kvsim.testing.worlds import World, first_difference, other_worlds

COUNTERS = ("requests_count", "running_count", "decoding_count", "waiting_tokens", "resident_tokens", "free_blocks")


class _Watched:
    """The same router, with a look at every answer; the engine keeps the counters it reads up to date."""

    reads_counters = True

    def __init__(
        self, router: Router, look: Callable[[Request, Sequence[ReplicaView], Callable[[], int]], int]
    ) -> None:
        self._router = router
        self._look = look

    def start(self, rng: np.random.Generator) -> object:
        return self._router.start(rng)

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: object) -> int:
        return self._look(request, replicas, lambda: self._router.route(request, replicas, memory))


def looks(router: Router) -> Iterator[Look]:
    """The checks of a router."""
    worlds = [world.having(router=router) for world in other_worlds()]

    def names_a_replica() -> str | None:
        return _first_fault(router, _index_fault)

    def reads_only() -> str | None:
        return _first_fault(router, _change_fault)

    def laws() -> str | None:
        for world in worlds:
            for law in broken_laws(world.run(check_laws=True)):
                return f"{world.name}: {law}"
        return None

    def repeats() -> str | None:
        return _compare(worlds, "run twice", worlds, "leap")

    def leaps() -> str | None:
        return _compare(worlds, "leaping and stepping", worlds, "step")

    def declares() -> str | None:
        fresh = [world.having(router=_Watched(router, lambda request, replicas, ask: ask())) for world in worlds]
        difference = _compare(worlds, "as it declares and with counters up to date", fresh, "leap")
        return difference and f"{difference}; leave reads_counters out if it reads any"

    yield "runs", names_a_replica
    yield "reads counters and changes none", reads_only
    yield "laws hold: blocks, tokens and times add up", laws
    yield "the same run twice is the same log", repeats
    yield "leaping and stepping agree in ns", leaps
    yield "reads_counters = False only if it reads none", declares


def _compare(worlds: Sequence[World], how: str, others: Sequence[World], mode: Any) -> str | None:
    for world, other in zip(worlds, others, strict=True):
        difference = first_difference(world.run(), other.run(mode))
        if difference:
            return f"{world.name}, {how}: {difference}"
    return None


def _first_fault(
    router: Router, fault: Callable[[Request, Sequence[ReplicaView], Callable[[], int]], tuple[int, str | None]]
) -> str | None:
    """The first thing that is wrong with an answer in any world; the answer is made good, so that the run goes on."""
    found: list[str] = []

    def look(request: Request, replicas: Sequence[ReplicaView], ask: Callable[[], int]) -> int:
        answer, problem = fault(request, replicas, ask)
        if problem:
            found.append(problem)
        return answer

    for world in other_worlds():
        world.having(router=_Watched(router, look)).run()
        if found:
            return f"{world.name}: {found[0]}"
    return None


def _index_fault(request: Request, replicas: Sequence[ReplicaView], ask: Callable[[], int]) -> tuple[int, str | None]:
    answer = ask()
    if isinstance(answer, int | np.integer) and not isinstance(answer, bool) and 0 <= answer < len(replicas):
        return int(answer), None
    return 0, f"{request!r} was sent to replica {answer!r}; needed: 0 to {len(replicas) - 1}"


def _change_fault(request: Request, replicas: Sequence[ReplicaView], ask: Callable[[], int]) -> tuple[int, str | None]:
    before = _state(request, replicas)
    answer = ask()
    changed = [name for name, value in _state(request, replicas).items() if value != before[name]]
    return answer, f"routing {request!r} changed {', '.join(changed)}" if changed else None


def _state(request: Request, replicas: Sequence[ReplicaView]) -> dict[str, object]:
    state: dict[str, object] = {
        f"{name} of replica {replica.id}": getattr(replica, name) for replica in replicas for name in COUNTERS
    }
    for replica in replicas:
        state[f"the waiting queue of replica {replica.id}"] = [waiting.id for waiting in replica.waiting]
        state[f"the running list of replica {replica.id}"] = [running.id for running in replica.running]
    for name in ("prompt_tokens", "output_tokens", "priority", "arrival_ns"):
        state[f"the request's {name}"] = getattr(request, name)
    return state
