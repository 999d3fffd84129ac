"""The verbs a scheduler speaks. They check and book blocks and budget as they go, so every ledger stays whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kvsim.core.request import DECODING, PREFILLING, WAITING, Request
from kvsim.core.shape import BatchShape

if TYPE_CHECKING:
    from kvsim.engine.books import Books


class Plan:
    """One step being planned, as a difference to "everybody who decodes goes on".

    ``chunks`` are the bookings so far, (request, context before, tokens), and ``shape`` their totals; the decodes
    are added when the step is launched. Blocks are taken from the pool as they are booked: those of the chunks by
    the verbs, those by which the decodes grow in this step (``growth``) when planning begins, if they are there.
    """

    __slots__ = (
        "_max_tokens",
        "_replica",
        "budget_tokens",
        "chunk_decodes",
        "chunks",
        "decodes_held",
        "growth",
        "joined",
        "preempted",
        "refused",
        "review_ns",
        "review_steps",
        "runs",
        "shape",
        "short",
        "simple",
    )

    def __init__(self, replica: Books, max_tokens: int) -> None:
        self._replica = replica
        self._max_tokens = max_tokens
        self.growth = 0
        self.joined = 0  # planned requests that were found to be decodes like any other
        self.short = False
        self.simple = False  # nothing but admissions and prefills so far
        self.shape = BatchShape()
        self.chunks: list[tuple[Request, int, int]] = []
        self.refused: list[tuple[int, str]] | None = None
        self.review_ns: int | None = None
        self.review_steps: int | None = None
        self.runs: dict[Request, int] | None = None

    def begin(self) -> None:
        """Nothing is booked yet, and every decode is expected to go on."""
        replica = self._replica
        if self.chunks:
            self.clear()
        self.chunk_decodes = self.joined = 0
        if not self.simple:
            self.simple = True
            self.decodes_held = False
            self.runs = None
            self.preempted = 0
            self.review_ns = None
            self.review_steps = None
        self.budget_tokens = self._max_tokens - replica.decoding_count
        kv = replica.kv
        self.growth = blocks = kv.growth_blocks(replica.decode_step, 1)
        kv.free_blocks -= blocks
        self.short = kv.free_blocks < 0
        if self.short:
            kv.free_blocks += blocks
            self.growth = 0

    def clear(self) -> None:
        """No chunks."""
        self.chunks = []
        shape = self.shape
        shape.prefill_tokens = 0
        shape.prefill_chunk_squares = 0
        shape.prefill_chunk_contexts = 0
        shape.prefill_context_tokens = 0
        shape.prefill_requests = 0
        shape.sampled_requests = 0
        shape.decode_context_tokens = 0
        shape.decode_context_squares = 0

    def hold_unserved(self) -> None:
        """The policy left no blocks for some decodes: they are held. Unfair perhaps, never inconsistent."""
        if self.runs is None and not self.decodes_held:
            chunks, budget = self.chunks, self.budget_tokens
            self.chunks = []
            for request in self.in_order():
                if request.state == DECODING:
                    self.run(request)
            self.chunks, self.budget_tokens = chunks, budget

    # ---- what a policy says

    def admit(
        self,
        request: Request,
        max_tokens: int | None = None,
        *,
        whole: bool = False,
        reserve_full: bool = False,
        keep_free_blocks: int = 0,
        most_left: int | None = None,
    ) -> bool:
        replica = self._replica
        waiting = replica.waiting
        if request.state != WAITING or waiting[0] is not request:
            raise ValueError(f"only the head of the waiting queue can be admitted, not {request!r}")
        if self.preempted and request.generated_tokens >= request.output_tokens:
            return False  # its last token is under way
        kv = replica.kv
        context = request.computed_tokens
        found = 0
        if request.content is not None:
            self._tell_step()
            found = kv.lookup(request)
            context += found
        tokens = left = request.target_tokens - context
        if most_left is not None and left > most_left:
            self._look_again(request)
            return False
        if max_tokens is not None and tokens > max_tokens:
            tokens = max_tokens
        if tokens > self.budget_tokens:
            if whole:
                self._look_again(request)
                return False
            tokens = self.budget_tokens
        if tokens <= 0:
            return False
        if (
            (reserve_full and tokens < left and not kv.can_admit(request, request.target_tokens, keep_free_blocks))
            or (keep_free_blocks and not kv.can_admit(request, context + tokens, keep_free_blocks))
            or not kv.allocate(request, context + tokens)
        ):
            if self.refused is not None:
                self.refused.append((request.id, "w"))
            self._look_again(request)
            return False
        waiting.popleft()
        replica.waiting_tokens -= left + found
        if replica.ready_count and request.computed_tokens:
            replica.ready_count -= 1
            if replica.host:
                replica.swapped_in(request)
        if found:
            replica.cached_column[request.id] += found
            request.computed_tokens = context
        if not request.admission and context == found:
            replica.first_scheduled_column[request.id] = replica.boundary_ns
        replica.admissions = request.admission = replica.admissions + 1
        request.state = PREFILLING
        replica.running_now[request] = None
        if replica.decisions:
            replica.decisions.admitted(request)
        if context or request.generated_tokens:
            replica.other_context += context
            self._book(request, context, tokens)
            return True
        # A fresh prompt: the common case of ``_book``, without the context that it does not have.
        self.chunks.append((request, 0, tokens))
        self.budget_tokens -= tokens
        shape = self.shape
        shape.prefill_requests += 1
        shape.prefill_tokens += tokens
        shape.prefill_chunk_squares += tokens * tokens
        if tokens == left:
            shape.sampled_requests += 1
        return True

    def prefill(self, request: Request, max_tokens: int | None = None) -> int:
        if request.state != PREFILLING:
            raise ValueError(f"{request!r} is not being prefilled")
        if any(chunk[0] is request for chunk in self.chunks):
            raise ValueError(f"{request!r} already has a chunk in this step")
        context = request.computed_tokens
        tokens = request.target_tokens - context
        if max_tokens is not None and tokens > max_tokens:
            tokens = max_tokens
        if tokens > self.budget_tokens:
            tokens = self.budget_tokens
        if tokens <= 0:
            return 0
        if request.content is not None:
            self._tell_step()
        if not self._replica.kv.allocate(request, context + tokens):
            if self.refused is not None:
                self.refused.append((request.id, "r"))
            return 0
        self._book(request, context, tokens)
        return tokens

    def preempt(self, request: Request, *, swap: bool = False) -> bool:
        replica = self._replica
        if request not in replica.running_now:
            raise ValueError(f"{request!r} does not run, so it cannot be preempted")
        self.simple = False
        if self.runs is None:
            replica.kv.free_blocks += self.growth
            self.growth = 0
        scheduled = 0
        if request.state == DECODING:
            if self.runs is None:
                if not self.decodes_held:
                    self.budget_tokens += 1
            elif request in self.runs:
                self.growth -= self.runs.pop(request)
                self.budget_tokens += 1
                scheduled = 1
        else:
            scheduled = self._unbook(request)
        swapped = replica.preempt(request, scheduled, swap)
        self.preempted += 1
        if self.runs is None and not self.decodes_held:
            self._take_growth()
        return swapped

    def make_room(self) -> int:
        replica = self._replica
        victims = 0
        while self.short:
            self.preempt(replica.youngest)
            victims += 1
        return victims

    def hold_decodes(self, hold: bool = True) -> None:
        if self.runs is not None:
            raise ValueError("hold_decodes does not go with in_order: leave the decodes out of run instead")
        self.simple = False
        if hold != self.decodes_held:
            self.decodes_held = hold
            decodes = self._replica.decoding_count
            self.budget_tokens += decodes if hold else -decodes
            self._replica.kv.free_blocks += self.growth
            self.growth = 0
            self.short = False
            if not hold:
                self._take_growth()

    def tight(self, max_tokens: int | None = None) -> bool:
        if self.short:
            return True
        replica = self._replica
        prefilling = replica.prefilling
        if not prefilling:
            return False
        budget = self.budget_tokens
        blocks = 0
        for request in prefilling:
            tokens = request.target_tokens - request.computed_tokens
            if max_tokens is not None and tokens > max_tokens:
                tokens = max_tokens
            if tokens > budget:
                if request is not replica.youngest:
                    return True  # what it leaves to those behind it depends on the order
                tokens = budget
            budget -= tokens
            blocks += replica.kv.missing_blocks(request, request.computed_tokens + tokens)
        return blocks > replica.kv.free_blocks

    def in_order(self) -> Iterator[Request]:
        if self.chunks:
            raise ValueError("in_order comes before any other verb of a plan")
        self.simple = False
        replica = self._replica
        replica.kv.free_blocks += self.growth
        self.growth = 0
        self.short = False
        self.runs = {}
        self.decodes_held = False
        self.budget_tokens = self._max_tokens
        for request in list(replica.running_now):
            if request.state in (PREFILLING, DECODING):
                yield request

    def run(self, request: Request, max_tokens: int | None = None) -> int:
        if request.state == PREFILLING:
            return self.prefill(request, max_tokens)
        if self.runs is None:
            raise ValueError("run goes with in_order; without it every decode takes part anyway")
        if request.state != DECODING or request in self.runs:
            raise ValueError(f"{request!r} does not decode, or runs in this step already")
        kv = self._replica.kv
        blocks = kv.growth_blocks_of(request, self._replica.decode_step)
        if blocks > kv.free_blocks:
            if self.refused is not None:
                self.refused.append((request.id, "r"))
            return 0
        kv.free_blocks -= blocks
        self.growth += blocks
        self.runs[request] = blocks
        self.budget_tokens -= 1
        return 1

    def review_at(self, time_s: float) -> None:
        self.simple = False
        self.review_ns = round(time_s * 1e9)

    def review_after(self, steps: int) -> None:
        self.simple = False
        soonest = max(1, steps)
        self.review_steps = soonest if self.review_steps is None else min(soonest, self.review_steps)

    # ---- books

    def _take_growth(self) -> None:
        """Book the blocks by which the decodes grow, or find that they are short."""
        kv = self._replica.kv
        blocks = kv.growth_blocks(self._replica.decode_step, 1)
        free = kv.free_blocks - blocks
        if free >= 0:
            kv.free_blocks = free
            self.growth = blocks
            self.short = False
        else:
            self.growth = 0
            self.short = True

    def _book(self, request: Request, context: int, tokens: int) -> None:
        self.chunks.append((request, context, tokens))
        self.budget_tokens -= tokens
        shape = self.shape
        left = request.target_tokens - context
        if tokens == left:
            shape.sampled_requests += 1
        if left == 1 and request.generated_tokens:
            self.chunk_decodes += 1
            shape.decode_context_tokens += context
            shape.decode_context_squares += context * context
        else:
            shape.prefill_requests += 1
            shape.prefill_tokens += tokens
            shape.prefill_chunk_squares += tokens * tokens
            shape.prefill_chunk_contexts += tokens * context
            shape.prefill_context_tokens += context

    def _tell_step(self) -> None:
        """The blocks that decodes fill in this step have their content from now on, if all decodes take part.

        A replica that plans ahead does not know yet what the tokens are that they compute: one step later.
        """
        replica = self._replica
        assert replica.cache
        all_run = not self.decodes_held if self.runs is None else len(self.runs) == replica.decoding_count
        replica.cache.step = replica.decode_step + (all_run and not replica.ahead)

    def _look_again(self, request: Request) -> None:
        """It was refused with what it found. Once a decode has registered what it would find next, ask again."""
        if request.content is not None:
            assert self._replica.cache
            steps = self._replica.cache.steps_until_more(request)
            if steps is not None:
                self.review_after(steps)

    def _unbook(self, request: Request) -> int:
        """Undo this request's chunk, if any: the tokens return to the budget, the blocks go with all it holds.

        Returns its tokens.
        """
        chunk = next((chunk for chunk in self.chunks if chunk[0] is request), None)
        if chunk is None:
            return 0
        self.chunks.remove(chunk)
        _, context, tokens = chunk
        self.budget_tokens += tokens
        shape = self.shape
        left = request.target_tokens - context
        if tokens == left:
            shape.sampled_requests -= 1
        if left == 1 and request.generated_tokens:
            self.chunk_decodes -= 1
            shape.decode_context_tokens -= context
            shape.decode_context_squares -= context * context
        else:
            shape.prefill_requests -= 1
            shape.prefill_tokens -= tokens
            shape.prefill_chunk_squares -= tokens * tokens
            shape.prefill_chunk_contexts -= tokens * context
            shape.prefill_context_tokens -= context
        return tokens
