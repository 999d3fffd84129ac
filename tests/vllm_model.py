"""vLLM 0.33's scheduler and KV cache manager for one replica: block by block, slow, obvious, on its own.

Nothing of kvsim is imported. Every KV block is an object that knows its number, its content and how many requests hold
it; the free queue holds those very objects; a prompt is a list of tokens; every step walks every request. What
``schedule()`` decides is handed out step by step in the format of the recordings of vLLM's own scheduler, so that one
comparison of two lists says whether the two agree.

Source: vLLM 0.33.0, ``vllm/v1/core/sched/scheduler.py``, ``async_scheduler.py``, ``kv_cache_manager.py``,
``block_pool.py`` and ``single_type_kv_cache_manager.py`` (one full-attention group, no connector, no speculation);
the queue limits from ``vllm/v1/engine/async_llm.py``, two steps in flight from ``vllm/v1/engine/core.py``.
"""

from collections import OrderedDict, deque
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
    async_scheduling: bool = False
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
    ends_by_eos: bool = False  # the scheduler learns that token ``max_tokens`` was the last when it sees it

    tokens: list[Token] = field(default_factory=list)  # prompt and generated ones
    chain: list[int] = field(default_factory=list)  # identity of every full block of ``tokens``
    computed: int = 0  # tokens in KV
    table: list[Block] = field(default_factory=list)
    registered: int = 0  # how many blocks of the table have been registered (hits count)
    in_prefill: bool = False  # its last step left prompt to compute
    in_flight: int = 0  # computed tokens whose step has not ended for the scheduler (asynchronous scheduling)
    expected: int = 0  # tokens that those steps will sample
    stale: int = 0  # of ``in_flight``: scheduled before the last preemption

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

    @property
    def length(self) -> int:
        """Tokens of prompt and output, those included that steps in flight will sample."""
        return len(self.tokens) + self.expected

    def __repr__(self) -> str:
        return f"Request({self.id})"


@dataclass(frozen=True)
class Step:
    """A planned step: (request, tokens, whether it samples) in scheduling order, when it runs, how it is recorded."""

    chunks: list[tuple[Request, int, bool]]
    start_ns: int
    end_ns: int
    record: dict[str, Any]

    @property
    def idle(self) -> bool:
        return not self.chunks and "preempted" not in self.record


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
        self.taken: list[Request] = []  # by the front end
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
        self.max_steps = max_steps
        self.coming = deque(sorted(self.requests, key=lambda r: (r.arrival_ns, r.id)))
        if self.config.async_scheduling:
            self.run_two_in_flight()
        else:
            self.run_one_at_a_time()
        for request in self.waiting:
            request.status = "stuck_preempted" if request.preemptions else "stuck_waiting"

    def run_one_at_a_time(self) -> None:
        now = 0
        rests = False  # nothing could be scheduled: not before somebody is handed over
        while True:
            arrived = self.hand_over(now)
            rests = rests and not arrived
            if (self.waiting or self.running) and not rests:
                step = self.plan(now, now, arrived)
                self.apply(step)
                now = step.end_ns
                if not step.idle:
                    continue
            if not self.coming:
                return
            rests = True
            now = self.coming[0].arrival_ns

    def run_two_in_flight(self) -> None:
        """A step is planned as soon as fewer than two are in flight: one runs, one waits for the device."""
        now, device_free_ns = 0, 0
        in_flight: deque[Step] = deque()
        rests = False
        while True:
            arrived = self.hand_over(now)
            rests = rests and not arrived
            if (self.waiting or self.running) and not rests:
                step = self.plan(now, max(now, device_free_ns), arrived)
                if step.chunks:
                    device_free_ns = step.end_ns
                in_flight.append(step)
                if len(in_flight) < 2 and step.chunks:
                    continue
            if in_flight and not rests:
                step = in_flight.popleft()
                self.apply(step)
                now = max(now, step.end_ns)
                if not (step.idle and all(other.idle for other in in_flight)):
                    continue
            if not self.coming:
                return
            rests = True
            now = max(now, self.coming[0].arrival_ns)

    def hand_over(self, now: int) -> list[Request]:
        arrived = []
        while self.coming and self.coming[0].arrival_ns <= now:
            request = self.coming.popleft()
            if self.accepted(request):
                self.taken.append(request)
                request.tokens = list(request.prompt)
                self.extend_chain(request)
                self.waiting.append(request)
                arrived.append(request)
            else:
                request.status = "rejected"
        return arrived

    def accepted(self, request: Request) -> bool:
        """The front end's own limits, at arrival: context length, requests alive, prompt tokens not yet answered."""
        now = request.arrival_ns
        alive = [r for r in self.taken if r.finish_ns is None or r.finish_ns > now]
        unanswered = sum(len(r.prompt) for r in alive if r.first_token_ns is None or r.first_token_ns > now)
        requests, tokens = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        if len(request.prompt) >= self.config.max_model_len:
            return False
        if requests is not None and len(alive) + 1 > requests:
            return False
        return tokens is None or unanswered < tokens

    def extend_chain(self, request: Request) -> None:
        """A block's identity is its tokens and the identity of the block before it."""
        size = self.config.block_size
        while (len(request.chain) + 1) * size <= len(request.tokens):
            start = len(request.chain) * size
            before = request.chain[-1] if request.chain else -1
            content = (before, tuple(request.tokens[start : start + size]))
            request.chain.append(self.identities.setdefault(content, len(self.identities)))

    def plan(self, now: int, start_ns: int, arrived: list[Request]) -> Step:
        """One ``schedule()`` at ``now`` for a step that begins at ``start_ns``."""
        if len(self.steps) >= self.max_steps:
            raise RuntimeError(f"no end after {self.max_steps} steps")
        self.pool.evicted = 0
        planned, admitted, preempted, refused = self.schedule()
        kinds, contexts = "", []
        for request, _ in planned:
            one_left = request.length - request.computed == 1
            kinds += "d" if one_left and request.length > len(request.prompt) else "p"
            contexts.append(request.computed)
        prefill_tokens = sum(tokens for (_, tokens), kind in zip(planned, kinds, strict=True) if kind == "p")
        counts = (prefill_tokens, kinds.count("d"), sum(contexts))
        start_ns = start_ns if planned else now
        end_ns = start_ns + (self.step_ns(*counts) if planned else 0)
        record: dict[str, Any] = {"step": len(self.steps), "start_ns": start_ns, "end_ns": end_ns}
        if self.config.async_scheduling:
            record["plan_ns"] = now
        record |= {
            "id": [request.id for request, _ in planned],
            "n": [tokens for _, tokens in planned],
            "c": contexts,
            "k": kinds,
        }
        for name, entries in (
            ("arrived", [request.id for request in arrived]),
            ("admitted", admitted),
            ("preempted", preempted),
            ("alloc_failed", refused),
        ):
            if entries:
                record[name] = entries
        record |= dict(zip(("prefill_tokens", "decode_requests", "context_tokens"), counts, strict=True))
        record |= {"waiting": len(self.waiting), "running": len(self.running), "free_blocks": len(self.pool.free)}
        if self.pool.evicted:
            record["evicted"] = self.pool.evicted
        self.steps.append(record)
        chunks = []
        for request, tokens in planned:
            if request.first_scheduled_ns is None:
                request.first_scheduled_ns = start_ns
            request.computed += tokens
            request.in_flight += tokens
            request.in_prefill = request.computed < request.length
            if not request.in_prefill:
                request.expected += 1
            chunks.append((request, tokens, not request.in_prefill))
        return Step(chunks, start_ns, end_ns, record)

    def apply(self, step: Step) -> None:
        """The step has ended: one token for every request whose tokens were all computed; the complete ones leave."""
        finished = []
        for request, tokens, samples in step.chunks:
            request.in_flight -= tokens
            stale = request.stale > 0
            request.stale -= tokens if stale else 0
            if request.status == "finished" or not samples:  # finished: this token came too late
                continue
            request.tokens.append((f"o{request.id}", request.generated))
            self.extend_chain(request)
            if request.first_token_ns is None:
                request.first_token_ns = step.end_ns
            if not stale:
                request.expected -= 1
                if self.config.async_scheduling:
                    self.register(request, request.computed - request.in_flight)
            if request.generated >= request.max_tokens or len(request.tokens) >= self.config.max_model_len:
                request.status = "finished"
                request.finish_ns = step.end_ns
                self.release(request)
                finished.append(request)
        self.running = [request for request in self.running if request not in finished]
        self.waiting = [request for request in self.waiting if request not in finished]
        if finished:
            step.record["finished"] = [request.id for request in finished]
        step.record["free_blocks_end"] = len(self.pool.free)
        if self.config.enable_prefix_caching:
            step.record["cached_blocks"] = self.pool.registered_blocks()

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
            left = min(request.length, config.max_model_len - 1) - request.computed
            tokens = min(left, threshold or budget, budget)
            if self.certainly_last(request) or (hold_prefill and request.in_prefill) or tokens == 0:
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

    def certainly_last(self, request: Request) -> bool:
        """The step in flight will sample token ``max_tokens``: nothing is left to schedule."""
        most = self.config.max_model_len if request.ends_by_eos else request.max_tokens
        to_come = len(request.prompt) + most - (request.computed + 2 - request.expected)
        return request.expected > 0 and to_come <= 0

    def head(self) -> Request:
        """Who is admitted next. (Nobody waits for a result in flight: a victim's is applied before the next plan.)"""
        assert not any(request.stale for request in self.waiting)
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
        request.expected = 0
        request.stale = request.in_flight
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
        self.register(request, tokens)

    def register(self, request: Request, tokens: int) -> None:
        """The blocks that ``tokens`` fill and whose content is known."""
        if self.config.enable_prefix_caching:
            full = min(tokens, len(request.tokens)) // self.config.block_size
            for index in range(request.registered, full):
                self.pool.register(request.table[index], request.chain[index])
            request.registered = max(request.registered, full)

    def release(self, request: Request) -> None:
        self.pool.release(request.table)
        request.table = []
        request.registered = 0
