"""A second simulator of the whole system, written to be obvious and to share nothing with the first.

It visits every step and walks every request in it, keeps explicit block counts per request, and looks at every
replica at every moment. Nothing of the engine, the schedulers, the KV pools or the routers is imported: two modes of
one code can agree on a wrong answer, two codes written apart seldom do. A new mechanism is written here first.

Time is integer nanoseconds. At one moment things happen in three phases: 0 ends of steps (by replica id), then ends
of transfers, then deliveries (by request id); 1 whatever concerns single requests (by request id, in rounds: what a
round creates for the same moment is the next round); 2 plans (by replica id).
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from kvsim.core.shape import BatchShape
from kvsim.core.trace import Trace

SECOND = 1_000_000_000


class Cost(Protocol):
    def step_s(self, shape: BatchShape) -> float: ...


@dataclass(frozen=True)
class PoolSpec:
    """One pool in plain parameters; the scheduler's parameters that its name does not use are ignored."""

    cost: Cost
    kv_blocks: int
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    replicas: int = 1
    block_size: int = 16
    router: Literal["round_robin", "random", "least_requests", "least_tokens"] = "round_robin"
    kv_bytes_per_token: int = 0
    scheduler: Literal["chunked_prefill", "prefill_first"] = "chunked_prefill"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    watermark: float = 0.0
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    enable_chunked_prefill: bool = True
    scheduler_reserve_full_isl: bool = True
    preemption_mode: Literal["recompute", "swap"] = "recompute"
    preempt_victim: Literal["latest", "least_context", "most_context"] = "latest"
    host_blocks: int = 0
    block_copy_s: float = 0.0
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None


@dataclass(frozen=True)
class Options:
    """How the trace is played; ``link`` joins a prefill and a decode pool: (bytes per second, latency in seconds)."""

    max_model_len: int = 1 << 40
    reject_oversized: bool = True
    link: tuple[int, float] | None = None
    closed_sessions: bool = False
    max_concurrency: int | None = None
    client_timeout_ns: int | None = None
    give_up_at_deadline: bool = False
    horizon_ns: int | None = None


class Request:
    """One request, from the trace to its end."""

    def __init__(self, id: int, prompt: int, output: int) -> None:
        self.id = id
        self.prompt = prompt
        self.output = output  # after the cut at max_model_len
        self.computed = 0  # c: tokens in KV
        self.generated = 0  # g
        self.place = "not sent"  # waiting, running, offered, flowing, travelling, ready, ended
        # What is reported:
        self.ready: int | None = None
        self.arrival: int | None = None
        self.first_scheduled: int | None = None
        self.first_token: int | None = None
        self.last_token: int | None = None
        self.finish: int | None = None
        self.status = "unfinished"
        self.reason = ""
        self.preemptions = 0
        self.swaps = 0
        self.swapped_tokens = 0
        self.admissions = 0
        self.gaps: list[int] = []
        self.computed_tokens = 0
        self.replica_prefill = -1
        self.replica_decode = -1

    @property
    def target(self) -> int:
        """T: what has to be in KV before the next token can be sampled."""
        return self.prompt + self.generated

    @property
    def missing(self) -> int:
        return self.target - self.computed

    @property
    def client_queue(self) -> int:
        return 0 if self.arrival is None or self.ready is None else self.arrival - self.ready

    @property
    def max_gap(self) -> int | None:
        return max(self.gaps, default=None)


class Step:
    """What one plan decided. ``work`` lists (request, tokens) in scheduling order."""

    def __init__(self) -> None:
        self.work: list[tuple[Request, int]] = []
        self.admitted: list[tuple[Request, bool]] = []
        self.preempted: list[tuple[int, int, int, int]] = []
        self.swapped: list[int] = []
        self.alloc_failed: list[tuple[int, str]] = []
        self.decision: dict[str, Any] = {}


class Replica:
    def __init__(self, id: int, pool: PoolSpec) -> None:
        self.id = id
        self.pool = pool
        self.ready: list[Request] = []  # delivered by a transfer, served before all who wait
        self.swapped: list[Request] = []  # their KV is in host memory
        self.waiting: list[Request] = []
        self.running: list[Request] = []  # in order of admission
        self.offers: list[Request] = []  # wait for blocks here
        self.incoming: list[Request] = []  # their KV is on its way here
        self.held: dict[int, int] = {}  # request id -> blocks
        self.free_blocks = pool.kv_blocks
        self.host: dict[int, int] = {}  # request id -> blocks in host memory
        self.to_copy = 0  # blocks, to or from there, before the coming step
        self.copied_blocks = 0
        self.copy_ns = 0
        self.peak_used_blocks = 0  # held for a time
        self.peak_in_passing = 0  # also within a moment, before something else gave blocks back
        self.step: Step | None = None  # in flight
        self.step_end = 0
        self.touched = False  # something happened here since the last plan
        self.emptied: tuple[int, list[tuple[int, int]]] | None = None  # free blocks and queue, when all were preempted
        self.steps = 0
        self.plans = 0
        self.arrived: list[int] = []
        self.decisions: list[dict[str, Any]] = []

    # ---- blocks

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.pool.block_size)

    def blocks_to_grow(self, request: Request, tokens: int) -> int:
        """Blocks that the request needs on top of what it holds to have ``tokens`` in KV."""
        return max(0, self.blocks(tokens) - self.held.get(request.id, 0))

    def grow(self, request: Request, tokens: int) -> None:
        new = self.blocks_to_grow(request, tokens)
        self.free_blocks -= new
        self.held[request.id] = self.held.get(request.id, 0) + new
        self.peak_in_passing = max(self.peak_in_passing, self.pool.kv_blocks - self.free_blocks)

    def release(self, request: Request) -> None:
        self.free_blocks += self.held.pop(request.id, 0)
        self.touched = True

    def check_blocks(self) -> None:
        assert self.free_blocks >= 0, f"replica {self.id}: {self.free_blocks} free blocks"
        assert self.free_blocks + sum(self.held.values()) == self.pool.kv_blocks, f"replica {self.id} lost blocks"
        scheduled = {request.id: tokens for request, tokens in self.step.work} if self.step else {}
        for request in self.running:
            tokens = request.computed + scheduled.get(request.id, 0)
            assert self.held[request.id] == self.blocks(tokens), f"request {request.id} on replica {self.id}"
        for request in self.waiting:
            assert request.id not in self.held, f"request {request.id} waits with blocks"
            assert request.computed == 0, f"request {request.id} waits with KV"
        assert self.host == {r.id: self.blocks(r.computed) for r in self.swapped}, f"host memory of {self.id}"
        assert sum(self.host.values()) <= self.pool.host_blocks, f"host memory of replica {self.id} overflows"
        assert not set(self.host) & set(self.held), f"replica {self.id} keeps KV twice"

    # ---- what a router sees

    def requests_count(self) -> int:
        return len(self.ready) + len(self.swapped) + len(self.waiting) + len(self.running)

    def tokens_count(self) -> int:
        waiting = sum(request.missing for request in self.ready + self.swapped + self.waiting)
        expected = sum(request.prompt + 1 for request in self.offers + self.incoming)
        return waiting + expected + sum(request.computed for request in self.running)

    # ---- schedulers

    def plan(self, max_model_len: int) -> Step:
        step = Step()
        if self.pool.scheduler == "chunked_prefill":
            self.plan_chunked_prefill(step, max_model_len)
        else:
            self.plan_prefill_first(step)
        return step

    def plan_chunked_prefill(self, step: Step, max_model_len: int) -> None:
        """vLLM 0.33: the running list in admission order, then the waiting queue (rules 1 to 17 of the recordings)."""
        pool = self.pool
        budget = pool.max_num_batched_tokens
        alive = len(self.running) + len(self.ready) + len(self.waiting)
        cap = 1 << 62
        if pool.long_prefill_token_threshold > 0 and alive != 1:
            cap = pool.long_prefill_token_threshold
            if pool.long_prefill_token_threshold_adaptive:
                cap = max(cap, pool.max_num_batched_tokens // alive)

        for request in list(self.running):
            if budget == 0 or request not in self.running:
                break  # nothing left to give, or this one was a victim, and so was everybody behind it
            tokens = min(request.missing, cap, budget)
            while self.blocks_to_grow(request, request.computed + tokens) > self.free_blocks:
                step.alloc_failed.append((request.id, "r"))
                victim = self.running[-1]
                self.preempt(victim, step)
                if victim is request:
                    break
            else:
                self.schedule(request, tokens, step)
                budget -= tokens

        while (self.ready or self.waiting) and not step.preempted:
            if budget == 0 or len(self.running) == pool.max_num_seqs:
                break
            request = (self.ready or self.waiting)[0]
            tokens = min(request.missing, cap)
            if tokens > budget and not pool.enable_chunked_prefill:
                break
            tokens = min(tokens, budget)
            keep_free = int(pool.watermark * (pool.kv_blocks + 1)) if self.running else 0
            needs = [request.computed + tokens]
            if pool.scheduler_reserve_full_isl:
                needs.append(min(request.target, max_model_len))
            if any(self.blocks_to_grow(request, need) + keep_free > self.free_blocks for need in needs):
                step.alloc_failed.append((request.id, "w"))
                break
            self.admit(request, step)
            self.schedule(request, tokens, step)
            budget -= tokens

    def plan_prefill_first(self, step: Step) -> None:
        """vLLM of 2024: a step of whole prompts if any can be admitted, else a step of all decodes."""
        pool = self.pool
        budget = pool.max_num_batched_tokens
        keep_free = int(pool.watermark * pool.kv_blocks)
        while (self.ready or self.waiting) and len(self.running) < pool.max_num_seqs and not self.swapped:
            request = (self.ready or self.waiting)[0]
            if request.missing > budget:
                break
            if self.blocks_to_grow(request, request.target) + keep_free > self.free_blocks:
                step.alloc_failed.append((request.id, "w"))
                break
            budget -= request.missing
            self.admit(request, step)
            self.schedule(request, request.missing, step)
        if step.work:
            return
        while sum(self.blocks_to_grow(r, r.computed + 1) for r in self.running) > self.free_blocks:
            step.alloc_failed.append((self.running[0].id, "r"))
            self.preempt(self.victim(), step)
        for request in self.running:
            self.schedule(request, 1, step)
        while self.swapped and not step.preempted and len(self.running) < pool.max_num_seqs:
            request = self.swapped[0]
            if len(step.work) >= pool.max_num_batched_tokens:
                break
            if self.blocks(request.computed + 1) + keep_free > self.free_blocks:
                step.alloc_failed.append((request.id, "w"))
                break
            self.swapped.remove(request)
            self.to_copy += self.host.pop(request.id)
            self.running.append(request)
            request.place = "running"
            step.admitted.append((request, True))
            self.schedule(request, 1, step)

    def victim(self) -> Request:
        """Of equals the one that was admitted last."""
        if self.pool.preempt_victim == "latest":
            return self.running[-1]
        best = self.running[0]
        for request in self.running:
            if self.pool.preempt_victim == "least_context" and request.computed <= best.computed:
                best = request
            if self.pool.preempt_victim == "most_context" and request.computed >= best.computed:
                best = request
        return best

    def schedule(self, request: Request, tokens: int, step: Step) -> None:
        assert 0 < tokens <= request.missing
        self.grow(request, request.computed + tokens)
        step.work.append((request, tokens))

    def admit(self, request: Request, step: Step) -> None:
        (self.ready if request in self.ready else self.waiting).remove(request)
        self.running.append(request)
        request.place = "running"
        request.admissions += 1
        step.admitted.append((request, request.preemptions > 0))

    def preempt(self, request: Request, step: Step) -> None:
        step.preempted.append((request.id, request.computed, request.generated, self.held[request.id]))
        self.release(request)
        self.running.remove(request)
        request.preemptions += 1
        blocks = self.blocks(request.computed)
        if self.pool.preemption_mode == "swap" and sum(self.host.values()) + blocks <= self.pool.host_blocks:
            step.swapped.append(request.id)
            self.host[request.id] = blocks
            self.to_copy += blocks
            self.swapped.append(request)
            request.place = "swapped"
            request.swaps += 1
            request.swapped_tokens += request.computed
        else:
            self.waiting.insert(0, request)
            request.place = "waiting"
            request.computed = 0


def is_decode(request: Request, tokens: int) -> bool:
    return tokens == 1 and request.missing == 1 and request.generated >= 1


def shape_of(work: Sequence[tuple[Request, int]]) -> BatchShape:
    shape = BatchShape()
    for request, tokens in work:
        context = request.computed
        if is_decode(request, tokens):
            shape.decode_requests += 1
            shape.decode_context_tokens += context
            shape.decode_context_squares += context**2
        else:
            shape.prefill_requests += 1
            shape.prefill_tokens += tokens
            shape.prefill_chunk_squares += tokens**2
            shape.prefill_chunk_contexts += tokens * context
            shape.prefill_context_tokens += context
        shape.sampled_requests += tokens == request.missing
    return shape


@dataclass
class Flow:
    """KV bytes of one request on the link. ``work`` is what is left, in bytes x 10^9."""

    request: Request
    source: Replica
    target: Replica
    start: int
    bytes: int
    work: int


class SharedLink:
    """Flows under way get equal shares; shares are worked out anew when a flow starts or ends."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self.flows: list[Flow] = []
        self.at = 0

    def advance(self, now: int) -> None:
        share = (now - self.at) * self.bytes_per_s // len(self.flows) if self.flows else 0
        for flow in self.flows:
            flow.work -= share
        self.at = now

    def next_end(self) -> int | None:
        if not self.flows:
            return None
        least = min(flow.work for flow in self.flows)
        return self.at + max(0, -(-least * len(self.flows) // self.bytes_per_s))


@dataclass
class Outcome:
    """What happened. ``requests`` is in order of id; ``decisions`` per replica in the format of the recordings."""

    requests: list[Request]
    gaps: Counter[int]
    tokens_by_second: Counter[int]
    transfers: list[tuple[int, int, int, int]]  # request, start, delivery, bytes; by (start, request)
    steps: tuple[int, ...]
    peak_used_blocks: tuple[int, ...]
    peak_in_passing: tuple[int, ...]
    copied_blocks: tuple[int, ...]
    copy_ns: tuple[int, ...]
    decisions: list[list[dict[str, Any]]]
    clipped: int
    stuck: bool
    end: int  # the last moment at which something happened, or the horizon


class Reference:
    """One run. ``router_rng(pool index)`` makes the generator of a ``random`` router."""

    def __init__(
        self,
        trace: Trace,
        pools: Sequence[PoolSpec],
        options: Options | None = None,
        router_rng: Callable[[int], np.random.Generator] | None = None,
    ) -> None:
        self.trace = trace
        self.options = options or Options()
        self.now = 0
        self.last = 0  # when something happened last: a timeout that comes too late is nothing
        self.requests = [
            Request(i, int(trace.prompt_tokens[i]), int(trace.output_tokens[i])) for i in range(len(trace))
        ]
        self.pools: list[list[Replica]] = []
        self.replicas: list[Replica] = []
        for pool in pools:
            members = [Replica(len(self.replicas) + k, pool) for k in range(pool.replicas)]
            self.pools.append(members)
            self.replicas += members
        self.routed = [0 for _ in pools]
        self.rng = [router_rng(k) if router_rng else np.random.default_rng(k) for k in range(len(pools))]
        self.link = SharedLink(self.options.link[0] if self.options.link else 1)
        self.agenda: list[tuple[int, int, int, Callable[[Request], None]]] = []  # (time, request id, rank, what)
        self.deliveries: list[tuple[int, int, Flow]] = []  # (time, request id, flow)
        self.in_flight = 0
        self.client_queue: list[tuple[int, int]] = []  # (ready, id)
        self.waits_for = [self.predecessors(i) for i in range(len(trace))]
        self.transfers: list[tuple[int, int, int, int]] = []
        self.tokens_by_second: Counter[int] = Counter()
        self.clipped = 0

    # ---- the clock

    def run(self) -> Outcome:
        self.first_sendings()
        while (time := self.next_time()) is not None:
            if self.options.horizon_ns is not None and time > self.options.horizon_ns:
                break
            assert time >= self.now, "time went back"
            self.now = time
            self.ends_of_steps_and_flows()
            while self.deliveries and self.deliveries[0][0] == self.now:
                flow = heapq.heappop(self.deliveries)[2]
                self.deliver(flow.request, flow)
            self.check_blocks()
            self.requests_by_id()
            self.check_blocks()
            self.plans()
            self.check_blocks()
            for replica in self.replicas:
                used = sum(replica.held.values())
                replica.peak_used_blocks = max(replica.peak_used_blocks, used)
        unending = self.options.horizon_ns is None
        stuck = unending and any(r.arrival is not None and r.finish is None for r in self.requests)
        for request in self.requests:
            if request.arrival is None:
                request.reason = "not_sent"
            elif request.finish is None:
                request.reason = "stuck" if stuck else "horizon"
        return Outcome(
            requests=self.requests,
            gaps=Counter(gap for request in self.requests for gap in request.gaps),
            tokens_by_second=self.tokens_by_second,
            transfers=sorted(self.transfers, key=lambda row: (row[1], row[0])),
            steps=tuple(replica.steps for replica in self.replicas),
            peak_used_blocks=tuple(replica.peak_used_blocks for replica in self.replicas),
            peak_in_passing=tuple(replica.peak_in_passing for replica in self.replicas),
            copied_blocks=tuple(replica.copied_blocks for replica in self.replicas),
            copy_ns=tuple(replica.copy_ns for replica in self.replicas),
            decisions=[replica.decisions for replica in self.replicas],
            clipped=self.clipped,
            stuck=stuck,
            end=self.last if self.options.horizon_ns is None else self.options.horizon_ns,
        )

    def next_time(self) -> int | None:
        times = [replica.step_end for replica in self.replicas if replica.step is not None]
        if (flow_end := self.link.next_end()) is not None:
            times.append(flow_end)
        times += [queue[0][0] for queue in (self.agenda, self.deliveries) if queue]
        return min(times, default=None)

    def at(self, time: int, request: Request, what: Callable[[Request], None]) -> None:
        """Put something that concerns one request on the agenda; a client's patience ends after all else."""
        rank = 1 if what == self.give_up else 0
        heapq.heappush(self.agenda, (time, request.id, rank, what))

    def check_blocks(self) -> None:
        for replica in self.replicas:
            replica.check_blocks()

    # ---- phase 0

    def ends_of_steps_and_flows(self) -> None:
        for replica in self.replicas:
            if replica.step is not None and replica.step_end == self.now:
                self.end_step(replica, replica.step)
        if self.link.next_end() == self.now:
            self.link.advance(self.now)
            ended = [flow for flow in self.link.flows if flow.work <= 0]
            for flow in sorted(ended, key=lambda flow: flow.request.id):
                self.end_flow(flow)

    def end_step(self, replica: Replica, step: Step) -> None:
        self.last = self.now
        replica.step = None
        replica.touched = True
        replica.steps += 1
        finished = []
        for request, tokens in step.work:
            if not is_decode(request, tokens):
                request.computed_tokens += tokens
            request.computed += tokens
            if request.computed == request.target and request.status != "abandoned":
                self.deliver_token(request)
                if request.generated == request.output:
                    self.end(request, "finished")
                    finished.append(request.id)
                elif replica.pool.role == "prefill":
                    request.place = "offered"
                    self.at(self.now, request, self.offer)
        for request in list(replica.running):
            if request.place != "running":
                replica.running.remove(request)
                if request.place == "ended":
                    replica.release(request)
        if finished:
            step.decision["finished"] = finished
        step.decision["free_blocks_end"] = replica.free_blocks

    def deliver_token(self, request: Request) -> None:
        request.generated += 1
        self.tokens_by_second[self.now // SECOND] += 1
        if request.last_token is None:
            request.first_token = self.now
        else:
            request.gaps.append(self.now - request.last_token)
        request.last_token = self.now

    def end_flow(self, flow: Flow) -> None:
        self.link.flows.remove(flow)
        flow.source.release(flow.request)
        if flow.request.place != "ended":
            flow.request.place = "travelling"
        latency_ns = 0 if self.options.link is None else round(self.options.link[1] * 1e9)
        heapq.heappush(self.deliveries, (self.now + latency_ns, flow.request.id, flow))

    # ---- phase 1

    def requests_by_id(self) -> None:
        while self.agenda and self.agenda[0][0] == self.now:
            this_round = []
            while self.agenda and self.agenda[0][0] == self.now:
                this_round.append(heapq.heappop(self.agenda))
            for _, id, _, what in this_round:
                what(self.requests[id])

    def predecessors(self, i: int) -> list[int]:
        """Rows that must have ended before row i is sent."""
        session = self.trace.session
        if not self.options.closed_sessions:
            return []
        if self.trace.wait_for is not None:
            return [int(k) for k in self.trace.wait_for.row(i)]
        if session is None or session[i] == -1:
            return []
        return [k for k in range(i) if session[k] == session[i]][-1:]

    def first_sendings(self) -> None:
        for request in self.requests:
            if not self.waits_for[request.id]:
                self.at(int(self.trace.arrival_ns[request.id]), request, self.become_ready)

    def become_ready(self, request: Request) -> None:
        request.ready = self.now
        limit = self.options.max_concurrency
        if limit is not None and self.in_flight >= limit:
            self.client_queue.append((self.now, request.id))
        else:
            self.in_flight += 1
            self.send(request)

    def end(self, request: Request, status: str, reason: str = "") -> None:
        """The request is over, in whatever way: its slot is free, and whoever waited for it alone by now follows."""
        assert request.finish is None, f"request {request.id} ended twice"
        self.last = self.now
        request.finish = self.now
        request.status, request.reason = status, reason
        request.place = "ended"
        self.in_flight -= 1
        if self.client_queue:
            longest_waiting = min(self.client_queue)
            self.client_queue.remove(longest_waiting)
            self.in_flight += 1  # the slot is taken from now on
            self.at(self.now, self.requests[longest_waiting[1]], self.send)
        for following in self.requests:
            waits_for = self.waits_for[following.id]
            if request.id in waits_for and all(self.requests[k].finish is not None for k in waits_for):
                think = 0 if self.trace.think_ns is None else int(self.trace.think_ns[following.id])
                self.at(self.now + think, following, self.become_ready)

    def send(self, request: Request) -> None:
        self.last = self.now
        request.arrival = self.now
        if request.prompt >= self.options.max_model_len:
            self.end(request, "rejected", "prompt_exceeds_max_model_len")
            return
        if request.output > self.options.max_model_len - request.prompt:
            request.output = self.options.max_model_len - request.prompt
            self.clipped += 1
        if self.options.reject_oversized and self.never_fits(request):
            self.end(request, "rejected", "exceeds_kv_pool")
            return
        if limit := self.broken_limit(request):
            self.end(request, "rejected", limit)
            return
        patience = [each for each in (self.options.client_timeout_ns, self.deadline(request)) if each is not None]
        if patience:
            self.at(self.now + min(patience), request, self.give_up)
        replica = self.route(request, 0)
        request.place = "waiting"
        request.replica_prefill = replica.id
        if replica.pool.role == "mixed":
            request.replica_decode = replica.id
        replica.waiting.append(request)
        replica.arrived.append(request.id)
        replica.touched = True

    def deadline(self, request: Request) -> int | None:
        """So long after it was sent its client gives up, if clients do so at their deadlines and it has one."""
        if not self.options.give_up_at_deadline or self.trace.deadline_ns is None:
            return None
        deadline = int(self.trace.deadline_ns[request.id])
        return None if deadline == -1 else deadline

    def broken_limit(self, request: Request) -> str:
        """The front end's limits on who is alive, and on prompt tokens without an answer."""
        pool = self.pools[0][0].pool
        alive = [r for r in self.requests if r.arrival is not None and r.finish is None and r is not request]
        if pool.max_num_queued_reqs is not None and len(alive) + 1 > pool.max_num_queued_reqs:
            return "max_num_queued_reqs"
        unanswered = sum(r.prompt for r in alive if r.generated == 0)
        if pool.max_num_queued_tokens is not None and unanswered >= pool.max_num_queued_tokens:
            return "max_num_queued_tokens"
        return ""

    def never_fits(self, request: Request) -> bool:
        peak = request.prompt + request.output - 1
        for members in self.pools:
            pool, blocks = members[0].pool, members[0].blocks
            if pool.role == "mixed" and blocks(peak) > pool.kv_blocks:
                return True
            if pool.role == "prefill" and blocks(request.prompt) > pool.kv_blocks:
                return True
            if pool.role == "decode" and request.output >= 2 and blocks(peak) > pool.kv_blocks:
                return True
        return False

    def route(self, request: Request, pool_index: int) -> Replica:
        members = self.pools[pool_index]
        router = members[0].pool.router
        if router == "round_robin":
            chosen = self.routed[pool_index] % len(members)
        elif router == "random":
            chosen = int(self.rng[pool_index].integers(len(members)))
        elif router == "least_requests":
            chosen = min(range(len(members)), key=lambda k: members[k].requests_count())
        else:
            chosen = min(range(len(members)), key=lambda k: members[k].tokens_count())
        self.routed[pool_index] += 1
        return members[chosen]

    def offer(self, request: Request) -> None:
        """The prompt is in KV and the first token is out: a decode replica is to take it over."""
        if request.place == "ended":
            return
        target = self.route(request, 1)
        target.offers.append(request)
        request.replica_decode = target.id
        if target.offers[0] is request:
            self.try_offers(target)

    def try_offers(self, target: Replica) -> None:
        """Start transfers of offers, in order, as far as blocks go and nobody preempted waits for them."""
        while target.offers and not target.waiting:
            request = target.offers[0]
            if target.blocks(request.prompt + 1) > target.free_blocks:
                return
            target.offers.pop(0)
            target.incoming.append(request)
            target.grow(request, request.prompt + 1)
            source = self.replicas[request.replica_prefill]
            size = request.prompt * source.pool.kv_bytes_per_token
            self.link.advance(self.now)
            self.link.flows.append(Flow(request, source, target, self.now, size, size * SECOND))
            request.place = "flowing"

    def deliver(self, request: Request, flow: Flow) -> None:
        self.last = self.now
        self.transfers.append((request.id, flow.start, self.now, flow.bytes))
        target = flow.target
        target.incoming.remove(request)
        target.touched = True
        if request.place == "ended":
            target.release(request)
            return
        request.place = "ready"
        target.ready.append(request)
        target.arrived.append(request.id)

    def give_up(self, request: Request) -> None:
        """The client leaves, unless the request has ended."""
        place = request.place
        if place == "ended":
            return
        source = self.replicas[request.replica_prefill]
        where = source if request.replica_decode == -1 else self.replicas[request.replica_decode]
        assert request.arrival is not None
        at_deadline = self.now - request.arrival == self.deadline(request)
        self.end(request, "abandoned", "deadline" if at_deadline else "client_timeout")
        if place == "waiting":
            where.waiting.remove(request)
            where.touched = True
        elif place == "swapped":
            where.swapped.remove(request)
            del where.host[request.id]
            where.touched = True
        elif place == "ready":
            where.ready.remove(request)
            where.release(request)
        elif place == "running" and where.step is None:
            where.running.remove(request)
            where.release(request)
        elif place == "offered":
            where.offers.remove(request)
            where.touched = True
            source.release(request)
        # In a step in flight it stays until the step ends; on the link, until the bytes have arrived.

    # ---- phase 2

    def plans(self) -> None:
        for replica in self.replicas:
            if replica.step is None and replica.touched:
                self.plan(replica)

    def plan(self, replica: Replica) -> None:
        replica.touched = False
        self.try_offers(replica)
        while replica.running or replica.waiting or replica.ready or replica.swapped:
            step = replica.plan(self.options.max_model_len)
            replica.touched = False
            self.launch(replica, step)
            if step.work or not step.preempted:
                return
            if not replica.running:
                was, replica.emptied = replica.emptied, (
                    replica.free_blocks, [(r.id, r.target) for r in replica.ready + replica.swapped + replica.waiting]
                )  # fmt: skip
                if was == replica.emptied:
                    return  # round and round: nobody got a token, nothing came or went since everybody was preempted

    def launch(self, replica: Replica, step: Step) -> None:
        shape = shape_of(step.work)
        duration = round(replica.pool.cost.step_s(shape) * 1e9) if step.work else 0
        if step.work and replica.to_copy:  # the step waits for the copies
            copy_ns = round(replica.to_copy * replica.pool.block_copy_s * 1e9)
            duration += copy_ns
            replica.copied_blocks += replica.to_copy
            replica.copy_ns += copy_ns
            replica.to_copy = 0
        self.record(replica, step, shape, duration)
        if not step.work:
            return
        replica.step = step
        replica.step_end = self.now + duration
        for request, _ in step.work:
            if request.first_scheduled is None:
                request.first_scheduled = self.now

    def record(self, replica: Replica, step: Step, shape: BatchShape, duration: int) -> None:
        """The decision in the words of the recordings; ``end_step`` adds what it changes."""
        decision: dict[str, Any] = {
            "step": replica.plans,
            "start_ns": self.now,
            "end_ns": self.now + duration,
            "id": [request.id for request, _ in step.work],
            "n": [tokens for _, tokens in step.work],
            "c": [request.computed for request, _ in step.work],
            "k": "".join("d" if is_decode(request, tokens) else "p" for request, tokens in step.work),
        }
        if replica.arrived:
            decision["arrived"] = replica.arrived
        if step.admitted:
            decision["admitted"] = [[request.id, 0, int(resumed)] for request, resumed in step.admitted]
        if step.preempted:
            decision["preempted"] = [list(row) for row in step.preempted]
        if step.swapped:
            decision["swapped"] = step.swapped
        if step.alloc_failed:
            decision["alloc_failed"] = [list(row) for row in step.alloc_failed]
        decision |= {
            "prefill_tokens": shape.prefill_tokens,
            "decode_requests": shape.decode_requests,
            "context_tokens": shape.prefill_context_tokens + shape.decode_context_tokens,
            "waiting": len(replica.ready) + len(replica.swapped) + len(replica.waiting),
            "running": len(replica.running),
            "free_blocks": replica.free_blocks,
            "free_blocks_end": replica.free_blocks,
        }
        replica.plans += 1
        replica.arrived = []
        replica.decisions.append(decision)
        step.decision = decision
