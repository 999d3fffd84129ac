"""vLLM 0.33's scheduler and KV cache manager for one replica: block by block, slow, obvious, on its own.

Nothing of kvsim is imported. Every KV block is an object that knows its number, its content and how many requests hold
it; the free queue holds those very objects; a prompt is a list of tokens; every step walks every request. What
``schedule()`` decides is handed out step by step in the format of the recordings of vLLM's own scheduler, so that one
comparison of two lists says whether the two agree.

Source: vLLM 0.33.0, ``vllm/v1/core/sched/scheduler.py``, ``kv_cache_manager.py``, ``block_pool.py`` and
``single_type_kv_cache_manager.py`` (one full-attention group, synchronous scheduling, no connector, no speculation);
the queue limits from ``vllm/v1/engine/async_llm.py``.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Token: TypeAlias = tuple[str, int]
"""A token's content: the name of an endless stream and a position in it. Equal tokens are equal pairs."""

StepCost: TypeAlias = Callable[[int, int, int], int]
"""(prefill tokens, decode requests, context tokens) -> duration of the step in ns."""


@dataclass(frozen=True)
class Config:
    """vLLM's own names and, where it has one, its own default."""

    usable_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int = 16
    enable_prefix_caching: bool = False
    policy: Literal["fcfs", "priority"] = "fcfs"
    max_num_active_seqs: int | None = None
    max_num_scheduled_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool = True
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    prefill_schedule_interval: int = 1
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None

    @property
    def watermark_blocks(self) -> int:
        """vLLM counts its null block as well, which no request ever holds."""
        return int(self.watermark * (self.usable_blocks + 1))


class Block:
    """One block of the pool. ``identity`` is what it is registered as, None if it is not."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.identity: int | None = None
        self.holders = 0


class BlockPool:
    """All blocks, the queue of the free ones (front: the next to be handed out) and the registered ones."""

    def __init__(self, blocks: int) -> None:
        self.blocks = [Block(number) for number in range(1, blocks + 1)]
        self.free: OrderedDict[Block, None] = OrderedDict.fromkeys(self.blocks)
        self.registered: dict[int, list[Block]] = {}  # identity -> copies, the first registered first
        self.evicted = 0

    def take(self) -> Block:
        """The front of the free queue; if it was registered it no longer is."""
        block, _ = self.free.popitem(last=False)
        if block.identity is not None:
            copies = self.registered[block.identity]
            copies.remove(block)
            if not copies:
                del self.registered[block.identity]
            block.identity = None
            self.evicted += 1
        block.holders = 1
        return block

    def touch(self, block: Block) -> None:
        """One more request holds the block, which may have been free."""
        if block.holders == 0:
            del self.free[block]
        block.holders += 1

    def register(self, block: Block, identity: int) -> None:
        block.identity = identity
        self.registered.setdefault(identity, []).append(block)

    def find(self, identity: int) -> Block | None:
        """The copy that was registered first among those still registered."""
        copies = self.registered.get(identity)
        return copies[0] if copies else None

    def release(self, table: list[Block]) -> None:
        """One request gives back all its blocks, the last one first."""
        to_front: list[Block] = []
        to_back: list[Block] = []
        for block in reversed(table):
            block.holders -= 1
            if block.holders == 0:
                (to_front if block.identity is None else to_back).append(block)
        for block in reversed(to_front):  # so that the queue begins in the order of the list
            self.free[block] = None
            self.free.move_to_end(block, last=False)
        for block in to_back:
            self.free[block] = None

    def registered_blocks(self) -> int:
        return sum(len(copies) for copies in self.registered.values())

    def check(self, tables: Iterable[list[Block]]) -> None:
        """Every block is free or held, as often as tables name it, and known under its identity."""
        held = [block for table in tables for block in table]
        for block in self.blocks:
            assert block.holders == held.count(block)
            assert (block in self.free) == (block.holders == 0)
            assert block.identity is None or block in self.registered[block.identity]


@dataclass(eq=False)
class Request:
    """One request: its input, its state in the scheduler, and what became of it."""

    id: int
    arrival_ns: int
    prompt: list[Token]
    max_tokens: int
    priority: int = 0

    tokens: list[Token] = field(default_factory=list)  # prompt and generated ones
    chain: list[int] = field(default_factory=list)  # identity of every full block of ``tokens``
    computed: int = 0  # tokens in KV
    table: list[Block] = field(default_factory=list)
    registered: int = 0  # how many blocks of the table have been registered (hits count)
    in_prefill: bool = False  # its last step left prompt to compute

    status: str = "waiting"
    first_scheduled_ns: int | None = None
    first_token_ns: int | None = None
    finish_ns: int | None = None
    admissions: int = 0
    preemptions: int = 0
    cached_tokens: list[int] = field(default_factory=list)  # at each admission

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt) if self.tokens else 0

    def __repr__(self) -> str:
        return f"Request({self.id})"


class VllmModel:
    """Plays requests on one replica; ``steps`` and the requests hold what happened.

    Requests that wait for ever end with a status of ``stuck_waiting`` or ``stuck_preempted``.
    """

    def __init__(self, config: Config, step_ns: StepCost, requests: Iterable[Request]) -> None:
        self.config = config
        self.step_ns = step_ns
        self.requests = sorted(requests, key=lambda r: r.id)
        self.pool = BlockPool(config.usable_blocks)
        self.identities: dict[tuple[int, tuple[Token, ...]], int] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.steps: list[dict[str, Any]] = []
        self.executed_steps = 0
        self.last_prefill_step = -config.prefill_schedule_interval
        self.more_prefill_than_fits = False

    # -- the clock ------------------------------------------------------------------------------------------------

    def run(self, max_steps: int = 1_000_000) -> None:
        """Until every request has ended or nothing can happen any more.

        Raises:
            RuntimeError: there were more than ``max_steps`` steps (requests can displace each other for ever).
        """
        coming = sorted(self.requests, key=lambda r: (r.arrival_ns, r.id))
        now = 0
        while coming or self.waiting or self.running:
            arrived = []
            while coming and coming[0].arrival_ns <= now:
                request = coming.pop(0)
                if self.accepted(request):
                    request.tokens = list(request.prompt)
                    self.extend_chain(request)
                    self.waiting.append(request)
                    arrived.append(request)
                else:
                    request.status = "rejected"
            if not self.waiting and not self.running:
                if not coming:
                    return
                now = coming[0].arrival_ns
                continue
            if len(self.steps) >= max_steps:
                raise RuntimeError(f"no end after {max_steps} steps")
            step, end_ns = self.step(now, arrived)
            self.steps.append(step)
            if not step["id"] and not step.get("preempted"):
                if not coming:
                    for request in self.waiting:
                        request.status = "stuck_preempted" if request.preemptions else "stuck_waiting"
                    return
                end_ns = coming[0].arrival_ns
            now = end_ns

    def accepted(self, request: Request) -> bool:
        """The front end's own limits: context length, requests in flight, prompt tokens not yet answered."""
        alive = self.waiting + self.running
        requests, tokens = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        if len(request.prompt) >= self.config.max_model_len:
            return False
        if requests is not None and len(alive) + 1 > requests:
            return False
        return tokens is None or sum(len(r.prompt) for r in alive if r.generated == 0) < tokens

    def extend_chain(self, request: Request) -> None:
        """A block's identity is its tokens and the identity of the block before it."""
        size = self.config.block_size
        while (len(request.chain) + 1) * size <= len(request.tokens):
            start = len(request.chain) * size
            before = request.chain[-1] if request.chain else -1
            content = (before, tuple(request.tokens[start : start + size]))
            request.chain.append(self.identities.setdefault(content, len(self.identities)))

    def step(self, now: int, arrived: list[Request]) -> tuple[dict[str, Any], int]:
        """One ``schedule()`` at ``now`` and its results: the step as it is recorded, and when it ends."""
        self.pool.evicted = 0
        planned, admitted, preempted, refused = self.schedule()
        kinds, contexts = [], []
        for request, _tokens in planned:
            one_left = len(request.tokens) - request.computed == 1
            kinds.append("d" if one_left and request.generated else "p")
            contexts.append(request.computed)
        prefill_tokens = sum(tokens for (_, tokens), kind in zip(planned, kinds, strict=True) if kind == "p")
        counts = (prefill_tokens, kinds.count("d"), sum(contexts))
        end_ns = now + (self.step_ns(*counts) if planned else 0)
        record: dict[str, Any] = {
            "step": len(self.steps),
            "start_ns": now,
            "end_ns": end_ns,
            "id": [request.id for request, _ in planned],
            "n": [tokens for _, tokens in planned],
            "c": contexts,
            "k": "".join(kinds),
            "arrived": [request.id for request in arrived],
            "admitted": admitted,
            "preempted": preempted,
            "alloc_failed": refused,
            "prefill_tokens": counts[0],
            "decode_requests": counts[1],
            "context_tokens": counts[2],
            "waiting": len(self.waiting),
            "running": len(self.running),
            "free_blocks": len(self.pool.free),
        }
        for request, tokens in planned:
            if request.first_scheduled_ns is None:
                request.first_scheduled_ns = now
            request.computed += tokens
            request.in_prefill = request.computed < len(request.tokens)
        record["finished"] = [request.id for request in self.sample(planned, end_ns)]
        record["free_blocks_end"] = len(self.pool.free)
        if self.config.enable_prefix_caching:
            record["cached_blocks"] = self.pool.registered_blocks()
            if self.pool.evicted:
                record["evicted"] = self.pool.evicted
        optional = ("arrived", "admitted", "preempted", "alloc_failed", "finished")
        return {name: value for name, value in record.items() if value or name not in optional}, end_ns

    def sample(self, planned: list[tuple[Request, int]], end_ns: int) -> list[Request]:
        """One token for every request whose tokens are all computed; those that are complete leave, in order."""
        finished = []
        for request, _ in planned:
            if request.in_prefill:
                continue
            request.tokens.append((f"o{request.id}", request.generated))
            self.extend_chain(request)
            if request.first_token_ns is None:
                request.first_token_ns = end_ns
            if request.generated >= request.max_tokens or len(request.tokens) >= self.config.max_model_len:
                request.status = "finished"
                request.finish_ns = end_ns
                self.release(request)
                finished.append(request)
        self.running = [request for request in self.running if request not in finished]
        return finished

    # -- schedule() -----------------------------------------------------------------------------------------------

    def schedule(
        self,
    ) -> tuple[list[tuple[Request, int]], list[list[int]], list[list[int]], list[list[Any]]]:
        """What runs now, in order, with its tokens; who was admitted, preempted and refused blocks on the way."""
        config = self.config
        plan: dict[Request, int] = {}
        admitted: list[list[int]] = []
        preempted: list[list[int]] = []
        refused: list[list[Any]] = []
        budget = min(config.max_num_scheduled_tokens or config.max_num_batched_tokens, config.max_num_batched_tokens)
        alive = len(self.running) + len(self.waiting)
        threshold = config.long_prefill_token_threshold if alive > 1 else 0
        if threshold and config.long_prefill_token_threshold_adaptive:
            threshold = max(threshold, config.max_num_batched_tokens // alive)
        hold_prefill = self.prefill_is_held()
        carries_prefill = False

        position = 0
        while position < len(self.running) and budget > 0:
            request = self.running[position]
            tokens = min(len(request.tokens) - request.computed, threshold or budget, budget)
            if hold_prefill and request.in_prefill:
                position += 1
                continue
            while not self.allocate(request, tokens):
                refused.append([request.id, "r"])
                victim = self.victim()
                index = self.running.index(victim)
                del self.running[index]
                if index < position:
                    position -= 1
                budget += plan.pop(victim, 0)
                preempted.append([victim.id, victim.computed, victim.generated, len(victim.table)])
                self.preempt(victim)
                if victim is request:
                    break
            if request not in self.running:
                if config.policy == "priority":
                    continue  # ``position`` is the next one already
                break
            plan[request] = tokens
            budget -= tokens
            carries_prefill |= request.in_prefill
            position += 1

        if not preempted:
            limit = config.max_num_active_seqs or config.max_num_seqs
            while self.waiting and budget > 0 and len(self.running) < limit:
                request = self.head()
                hits = self.look_up(request)
                cached = len(hits) * config.block_size
                rest = len(request.tokens) - cached
                if hold_prefill and rest > 1:
                    break
                tokens = min(rest, threshold or rest)
                if tokens > budget and not config.enable_chunked_prefill:
                    break
                tokens = min(tokens, budget)
                if not self.admit(request, hits, tokens):
                    refused.append([request.id, "w"])
                    break
                plan[request] = tokens
                budget -= tokens
                carries_prefill |= rest > 1
                admitted.append([request.id, cached, 1 if request.preemptions else 0])
            if not hold_prefill:
                self.more_prefill_than_fits = bool(self.waiting)

        if plan:
            self.executed_steps += 1
        if carries_prefill:
            self.last_prefill_step = self.executed_steps
        return list(plan.items()), admitted, preempted, refused

    def prefill_is_held(self) -> bool:
        """``prefill_schedule_interval``: between two steps with prefill there are so many less one without."""
        return (
            self.config.prefill_schedule_interval > 1
            and not self.more_prefill_than_fits
            and self.executed_steps + 1 - self.last_prefill_step < self.config.prefill_schedule_interval
            and any(not request.in_prefill for request in self.running)
        )

    def head(self) -> Request:
        if self.config.policy == "priority":
            return min(self.waiting, key=lambda r: (r.priority, r.arrival_ns, r.id))
        return self.waiting[0]

    def victim(self) -> Request:
        if self.config.policy == "priority":  # ``max`` takes the first of equals
            return max(self.running, key=lambda r: (r.priority, r.arrival_ns))
        return self.running[-1]

    def preempt(self, request: Request) -> None:
        self.release(request)
        request.computed = 0
        request.preemptions += 1
        request.status = "waiting"
        self.waiting.insert(0, request)

    # -- KV blocks ------------------------------------------------------------------------------------------------

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def look_up(self, request: Request) -> list[Block]:
        """The longest chain of registered blocks from the start that leaves at least one token to compute."""
        hits: list[Block] = []
        if self.config.enable_prefix_caching:
            for identity in request.chain[: (len(request.tokens) - 1) // self.config.block_size]:
                block = self.pool.find(identity)
                if block is None:
                    break
                hits.append(block)
        return hits

    def allocate(self, request: Request, tokens: int) -> bool:
        """Blocks for the next tokens of a running request, or False."""
        needed = self.blocks(request.computed + tokens) - len(request.table)
        if needed > len(self.pool.free):
            return False
        self.append_blocks(request, needed, request.computed + tokens)
        return True

    def admit(self, request: Request, hits: list[Block], tokens: int) -> bool:
        """From waiting to running with these hits and blocks for the first tokens, or False and nothing changed."""
        config = self.config
        free = len(self.pool.free)
        from_queue = sum(block.holders == 0 for block in hits)
        watermark = config.watermark_blocks if self.running else 0
        if config.scheduler_reserve_full_isl:
            whole = self.blocks(min(len(request.tokens), config.max_model_len))
            if whole - len(hits) + from_queue + watermark > free:
                return False
        computed = len(hits) * config.block_size
        needed = self.blocks(computed + tokens) - len(hits)
        if needed + from_queue + watermark > free:
            return False
        for block in hits:
            self.pool.touch(block)
        request.table = list(hits)
        request.registered = len(hits)
        request.computed = computed
        self.append_blocks(request, needed, computed + tokens)
        request.cached_tokens.append(computed)
        request.admissions += 1
        request.status = "running"
        self.waiting.remove(request)
        self.running.append(request)
        return True

    def append_blocks(self, request: Request, blocks: int, tokens: int) -> None:
        """New blocks from the free queue; whatever is full once ``tokens`` are computed is registered at once."""
        request.table += [self.pool.take() for _ in range(blocks)]
        if self.config.enable_prefix_caching:
            full = min(tokens, len(request.tokens)) // self.config.block_size
            for index in range(request.registered, full):
                self.pool.register(request.table[index], request.chain[index])
            request.registered = max(request.registered, full)

    def release(self, request: Request) -> None:
        self.pool.release(request.table)
        request.table = []
        request.registered = 0
