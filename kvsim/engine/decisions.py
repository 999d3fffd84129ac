"""Every decision of a replica, step by step, in the format of the vLLM recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvsim.core.request import DECODING, Request
from kvsim.engine.plan import Plan

if TYPE_CHECKING:
    from kvsim.engine.state import ReplicaState


class DecisionRecorder:
    """Collects what happens to one replica and hands out one dict per call of its scheduler.

    Keys: ``step start_ns end_ns``; parallel lists in scheduling order ``id n c k`` (request, tokens, context
    before, kind ``d`` or ``p``); only where not empty ``arrived admitted preempted alloc_failed finished``;
    ``prefill_tokens decode_requests context_tokens``; ``waiting running free_blocks`` after scheduling and
    ``free_blocks_end`` after results; with prefix caching ``evicted`` where not 0, and ``cached_blocks`` at the end.
    """

    def __init__(self, replica_id: int, write: Callable[[int, dict[str, Any]], None]) -> None:
        self._replica_id = replica_id
        self._write = write
        self._step = 0
        self._evicted = 0
        self._current: dict[str, Any] | None = None
        self._arrived: list[int] = []
        self._admitted: list[list[int]] = []
        self._preempted: list[list[int]] = []
        self._finished: list[tuple[int, int]] = []

    def arrived(self, request: Request) -> None:
        self._arrived.append(request.id)

    def admitted(self, request: Request) -> None:
        self._admitted.append([request.id, request.computed_tokens, 1 if request.preemptions else 0])

    def preempted(self, request: Request, context: int, generated: int, blocks: int) -> None:
        self._preempted.append([request.id, context, generated, blocks])

    def finished(self, request: Request) -> None:
        self._finished.append((request.admission, request.id))

    def launched(self, replica: ReplicaState, plan: Plan | None, start_ns: int, end_ns: int) -> None:
        """After the scheduler has spoken (``plan`` None: there was nothing to decide)."""
        chunks = {request: (context, tokens) for request, context, tokens in plan.chunks} if plan else {}
        decodes_run = replica.decodes_in_flight > 0
        ids, tokens_of, contexts, kinds = [], [], [], []
        for request in replica.running_now:
            if request in chunks:
                context, tokens = chunks[request]
                decode = request.target_tokens - context == 1 and request.generated_tokens > 0
            elif request.state == DECODING and decodes_run:
                context, tokens, decode = replica.context_tokens_of(request), 1, True
            else:
                continue
            ids.append(request.id)
            tokens_of.append(tokens)
            contexts.append(context)
            kinds.append("d" if decode else "p")
        current: dict[str, Any] = {"step": self._step, "start_ns": start_ns, "end_ns": end_ns}
        current.update(id=ids, n=tokens_of, c=contexts, k="".join(kinds))
        refused = [list(entry) for entry in plan.refused] if plan and plan.refused else []
        for name, values in (
            ("arrived", self._arrived),
            ("admitted", self._admitted),
            ("preempted", self._preempted),
            ("alloc_failed", refused),
        ):
            if values:
                current[name] = list(values)
                values.clear()
        if plan and plan.refused:
            plan.refused.clear()
        current["prefill_tokens"] = sum(n for n, k in zip(tokens_of, kinds, strict=True) if k == "p")
        current["decode_requests"] = kinds.count("d")
        current["context_tokens"] = sum(contexts)
        current.update(
            waiting=len(replica.waiting), running=len(replica.running_now), free_blocks=replica.kv.free_blocks
        )
        if replica.cache:
            replica.cache.settle()
            if replica.cache.evicted > self._evicted:
                current["evicted"] = replica.cache.evicted - self._evicted
                self._evicted = replica.cache.evicted
        self._step += 1
        self._current = current
        if not ids:
            self.applied(replica)

    def applied(self, replica: ReplicaState) -> None:
        """The step has ended."""
        current = self._current
        assert current is not None
        if self._finished:
            current["finished"] = [request_id for _, request_id in sorted(self._finished)]
            self._finished.clear()
        current["free_blocks_end"] = replica.kv.free_blocks
        if replica.cache:
            running = replica.running_now
            current["cached_blocks"] = replica.cache.cached_blocks((r, replica.context_tokens_of(r)) for r in running)
        self._write(self._replica_id, current)
        self._current = None
