"""Paged KV: fixed blocks, taken as tokens are scheduled, given back when a request ends or is preempted."""

from dataclasses import dataclass

from kvsim.core.request import Request


class PagedPool:
    """Block counts of one replica. Nothing has a name: without prefix reuse any free block is as good as another.

    A decode at context c needs a new block in a step exactly when c is a multiple of the block size. All decodes
    advance together, so the remainder (decode step number - context) mod block size of a request never changes:
    one counter per remainder says how many blocks each coming step needs.
    """

    __slots__ = ("_block_size", "_phases", "free_blocks", "total_blocks")

    def __init__(self, total_blocks: int, block_size: int) -> None:
        self.total_blocks = total_blocks
        self.free_blocks = total_blocks
        self._block_size = block_size
        self._phases = [0] * block_size

    def lookup(self, request: Request) -> int:
        """No reuse: 0 tokens."""
        return 0

    def missing_blocks(self, request: Request, tokens: int) -> int:
        return max(0, -(-tokens // self._block_size) - request.held_blocks)

    def can_admit(self, request: Request, tokens: int, keep_free_blocks: int) -> bool:
        return self.missing_blocks(request, tokens) + keep_free_blocks <= self.free_blocks

    def allocate(self, request: Request, tokens: int) -> bool:
        missing = -(-tokens // self._block_size) - request.held_blocks
        if missing > 0:
            if missing > self.free_blocks:
                return False
            self.free_blocks -= missing
            request.held_blocks += missing
        return True

    def release(self, request: Request, context_tokens: int) -> None:
        # A decode's growth is counted in bulk, so what it holds follows from its context; before it decoded
        # (or while blocks wait for a transfer) it may hold more than its context fills.
        blocks = -(-context_tokens // self._block_size)
        self.free_blocks += blocks if blocks > request.held_blocks else request.held_blocks
        request.held_blocks = 0
        if request.phase >= 0:
            self._phases[request.phase] -= 1
            request.phase = -1

    def join(self, request: Request, context_tokens: int, step: int) -> None:
        phase = (step - context_tokens) % self._block_size
        request.phase = phase
        self._phases[phase] += 1

    def leave(self, request: Request, context_tokens: int) -> None:
        self._phases[request.phase] -= 1
        request.phase = -1
        request.held_blocks = -(-context_tokens // self._block_size)

    def growth_blocks_of(self, request: Request, step: int) -> int:
        return 1 if step % self._block_size == request.phase else 0

    def growth_blocks(self, step: int, steps: int) -> int:
        size, phases = self._block_size, self._phases
        first = step % size
        if steps == 1:
            return phases[first]
        blocks = 0
        if steps >= size:
            rounds, steps = divmod(steps, size)
            blocks = rounds * sum(phases)
        last = first + steps
        if last <= size:
            return blocks + sum(phases[first:last])
        return blocks + sum(phases[first:]) + sum(phases[: last - size])

    def steps_until_short(self, step: int, limit: int) -> int:
        size = self._block_size
        free = self.free_blocks
        decodes = sum(self._phases)
        if decodes * -(-limit // size) <= free:
            return limit
        rounds = free // decodes  # every decode takes one block in each full round of phases
        steps = rounds * size
        if steps >= limit:
            return limit
        free -= rounds * decodes
        while steps < limit:
            free -= self._phases[(step + steps) % size]
            if free < 0:
                break
            steps += 1
        return steps


@dataclass(frozen=True)
class Paged:
    """Blocks of ``block_size`` tokens, allocated for the tokens scheduled now and nothing ahead (vLLM, PagedAttention).

    ``enable_prefix_caching``: blocks keep their content when they are free, and a request begins with those of its
    prompt that are there (``kvsim/kv/prefix_cache.py``). Null: in a scenario as the engine has it, where it is modelled
    (mixed pools that do not swap); off where there is none.

    Source: Kwon et al., SOSP 2023; what is allocated when: rules 8 to 13 of the recorded vLLM 0.33 scheduler.

    >>> pool = Paged(block_size=16).start(4)
    >>> request = Request(0, 0, prompt_tokens=40, output_tokens=8)
    >>> pool.allocate(request, 40), pool.free_blocks
    (True, 1)
    >>> pool.release(request, 40); pool.free_blocks
    4
    """

    block_size: int = 16
    enable_prefix_caching: bool | None = None

    def start(self, total_blocks: int) -> PagedPool:
        if self.enable_prefix_caching:
            from kvsim.kv.prefix_cache import PrefixPool

            return PrefixPool(total_blocks, self.block_size)
        return PagedPool(total_blocks, self.block_size)

    def stored(self, context_tokens: int) -> int:
        """Every token is kept."""
        return context_tokens

    def attended(self, context_tokens: int) -> int:
        """Every token is read."""
        return context_tokens
