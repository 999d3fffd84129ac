"""Every decision of a replica, step by step, in the format of the vLLM recordings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvsim.core.request import DECODING, Request
from kvsim.engine.plan import Plan

if TYPE_CHECKING:
    from kvsim.engine.state import ReplicaState


class DecisionRecorder:
    """Collects what happens to one replica and hands out one dict per call of its scheduler.

    Keys: ``step start_ns end_ns``; parallel lists in scheduling order ``id n c k`` (request, tokens, context
    before, kind ``d`` or ``p``); only where not empty ``arrived admitted preempted swapped alloc_failed finished``
    (``swapped``: those of ``preempted`` whose KV went to host memory; they are admitted with all of their context);
    ``prefill_tokens decode_requests context_tokens``; ``waiting running free_blocks`` after scheduling and
    ``free_blocks_end`` after results; with prefix caching ``evicted`` where not 0, and ``cached_blocks`` at the end.

    Leaping there is one dict per stretch: of its first step, but for ``finished``, ``free_blocks_end`` and
    ``cached_blocks``, which are of its last one. ``evicted`` counts since the last dict, and ``step`` counts all; in
    between nobody is asked again, so a refusal that stepping would repeat is not there.
    """

    def __init__(self, replica_id: int, write: Callable[[int, dict[str, Any]], None]) -> None:
        self._replica_id = replica_id
        self._write = write
        self._without_tokens = 0
        self._evicted = 0
        self._open: deque[dict[str, Any]] = deque()  # steps whose end has not been recorded
        self._arrived: list[int] = []
        self._admitted: list[list[int]] = []
        self._preempted: list[list[int]] = []
        self._swapped: list[int] = []
        self._finished: list[tuple[int, int]] = []

    def arrived(self, request: Request) -> None:
        self._arrived.append(request.id)

    def admitted(self, request: Request) -> None:
        self._admitted.append([request.id, request.computed_tokens, 1 if request.preemptions else 0])

    def preempted(self, request: Request, context: int, generated: int, blocks: int, swapped: bool) -> None:
        self._preempted.append([request.id, context, generated, blocks])
        if swapped:
            self._swapped.append(request.id)

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
        if replica.stretch_steps > 1:
            end_ns = replica.end_of(1)
        step = replica.steps + self._without_tokens
        current: dict[str, Any] = {"step": step, "start_ns": start_ns, "end_ns": end_ns}
        current.update(id=ids, n=tokens_of, c=contexts, k="".join(kinds))
        refused = [list(entry) for entry in plan.refused] if plan and plan.refused else []
        for name, values in (
            ("arrived", self._arrived),
            ("admitted", self._admitted),
            ("preempted", self._preempted),
            ("swapped", self._swapped),
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
        self._open.append(current)
        if not ids:
            self._without_tokens += 1
            self.applied(replica)

    def applied(self, replica: ReplicaState) -> None:
        """The step has ended."""
        current = self._open.popleft()
        if self._finished:
            current["finished"] = [request_id for _, request_id in sorted(self._finished)]
            self._finished.clear()
        current["free_blocks_end"] = replica.kv.free_blocks
        if replica.cache:
            current["cached_blocks"] = replica.cache.cached_blocks(replica.scheduled_tokens())
        self._write(self._replica_id, current)


class AheadRecorder(DecisionRecorder):
    """The same for a replica that plans ahead. A step has ended when its results are seen, after the next plan.

    ``plan_ns`` is when a step was planned. A step that is planned and never looked at again has no end.
    """

    def planned(self, replica: ReplicaState, plan: Plan | None, plan_ns: int, start_ns: int, end_ns: int) -> None:
        """After the scheduler has spoken, before it sees results."""
        self.launched(replica, plan, start_ns, end_ns)
        self._open[-1]["plan_ns"] = plan_ns

    def seen(self, replica: ReplicaState) -> None:
        """Two steps are in flight, or one that does nothing: the older one is looked at."""
        if len(self._open) > 1 or (self._open and not self._open[0]["id"]):
            super().applied(replica)

    def rest(self, replica: ReplicaState) -> None:
        """Nothing is planned any more."""
        while self._open:
            super().applied(replica)

    def applied(self, replica: ReplicaState) -> None:
        """Its results are there; they are seen later."""

    def close(self) -> None:
        """The run is over."""
        while self._open:
            self._write(self._replica_id, self._open.popleft())
