"""Requests on their way through the cluster: sent by clients, routed, handed from prefill to decode, ended."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray
from simpy.events import Event

from kvsim.core.cluster import QUEUE_LIMITS, Cluster, Pool, RunOptions, not_with_swapping
from kvsim.core.content import Contents, view
from kvsim.core.request import ENDED, OFFERED, SENDING, Request
from kvsim.core.runlog import ABANDONED, FINISHED, NEVER, REJECTED, UNFINISHED, RunLog, Transfers
from kvsim.core.trace import Trace
from kvsim.engine.ahead import AheadReplica
from kvsim.engine.clock import ARRIVALS, ENDS, FOREVER, PLANS, Clock
from kvsim.engine.decisions import AheadRecorder, DecisionRecorder
from kvsim.engine.frontend import FrontEnd
from kvsim.engine.link import Flow, SharedLink
from kvsim.engine.pace import DecodePace
from kvsim.engine.recorder import Recorder, RequestColumns, TimelineSamples, join_timelines
from kvsim.engine.replica import Replica
from kvsim.engine.sending import Followers
from kvsim.engine.state import ReplicaState
from kvsim.engine.steps import Steps

SEND, OFFER, TIMEOUT = range(3)

REASONS = (
    *("", "prompt_exceeds_max_model_len", "exceeds_kv_pool", "client_timeout", "horizon", "not_sent", "stuck"),
    "deadline",
)
_PROMPT_TOO_LONG, _POOL_TOO_SMALL, _CLIENT_TIMEOUT, _HORIZON, _NOT_SENT, _STUCK, _DEADLINE = range(1, 8)

_READ_AHEAD = 4096
_REPORTS_EVERY = 512
"""Requests between two reports of progress in a closed loop, where reading ahead says nothing about sending."""
_TIMELINE_ROWS, _FEWEST_INSTANTS = 8_000, 250


def simulate(trace: Trace, cluster: Cluster, options: RunOptions | None = None) -> RunLog:
    """Replay a trace through a cluster.

    The trace's requests are sent at their arrival times (or as sessions and ``max_concurrency`` allow), and
    everything that happens to them is in the log: times in integer ns, the same for ``mode="leap"`` and
    ``mode="step"``. Raises ValueError for options that contradict each other.
    """
    return Simulation(trace, cluster, options or RunOptions()).run()


class _PoolState:
    """A pool while it runs: its replicas and its router's memory."""

    __slots__ = ("memory", "pool", "reads_counters", "replicas")

    def __init__(self, pool: Pool, replicas: list[Replica], rng: np.random.Generator) -> None:
        self.pool = pool
        self.replicas = replicas
        self.memory = pool.router.start(rng)
        self.reads_counters = bool(getattr(pool.router, "reads_counters", True))

    def route(self, request: Request, now_ns: int) -> Replica:
        replicas = self.replicas
        if len(replicas) == 1:
            return replicas[0]
        if self.reads_counters:
            for replica in replicas:
                if replica.due_ns <= now_ns:
                    replica.settle(now_ns)
            if self.pool.role == "decode":  # deliveries may be due
                for replica in replicas:
                    if replica.inbox:
                        replica.settle(now_ns)
        return replicas[self.pool.router.route(request, replicas, self.memory)]


class _Handoff:
    """A request until it has left its first replica. ``left`` stands for it in the books there."""

    __slots__ = ("left", "source", "target")

    def __init__(self, request: Request, source: Replica, target: Replica) -> None:
        self.source = source
        self.target = target
        self.left = Request(request.id, request.arrival_ns, request.prompt_tokens, request.output_tokens)
        self.left.held_blocks = request.held_blocks
        request.held_blocks = 0


class Simulation:
    """One run: the agenda of everything that arrives, and the replicas it arrives at."""

    def __init__(self, trace: Trace, cluster: Cluster, options: RunOptions) -> None:
        if options.decisions and options.mode != "step" and options.clients_give_up:
            raise ValueError("decisions of stretches that a client cuts short are not recorded: use mode='step'")
        if cluster.link and not cluster.pools[0].kv_bytes_per_token:
            raise ValueError("a handoff sends at least one byte per token: kv_bytes_per_token of the first pool is 0")
        self._trace = trace
        self._cluster = cluster
        self._options = options
        self._horizon_ns = FOREVER - 1 if options.horizon_ns is None else options.horizon_ns
        self._clock = Clock(self._horizon_ns)
        n = len(trace)
        self._dynamic = options.closed_sessions or options.max_concurrency is not None
        columns = RequestColumns(trace, sent_later=self._dynamic, handed_on=len(cluster.pools) > 1)
        self._recorder = Recorder(columns)
        self.now_ns = 0
        self._build_pools()
        if any(replica.cache and replica.role != "mixed" for replica in self.replicas):
            raise ValueError("prefix caching is modelled in mixed pools only")
        first = self._pools[0]
        self._front_end: FrontEnd | None = None
        if any(limit is not None for limit in first.pool.queue_limits):
            self._front_end = FrontEnd(first.pool, first.replicas, self._recorder.columns)
        contents = Contents(trace) if any(replica.cache for replica in self.replicas) else None
        self._contents = contents or None
        # Rows have more to them than times and lengths:
        self._has_more = trace.priority is not None or bool(contents) or trace.ends_by_eos is not None
        self._quiet = not any(replica.eager for replica in self.replicas)
        self._replica_column = self._recorder.columns.replica_prefill
        self._max_model_len = cluster.max_model_len
        self._only_replica = self.replicas[0] if len(self.replicas) == 1 else None
        self._sure_to_fit = self._tokens_sure_to_fit()
        self._link = SharedLink(cluster.link, self._clock, self._flows_ended) if cluster.link else None
        self._latency_ns = round(cluster.link.latency_s * 1e9) if cluster.link else 0
        self._handoffs: dict[Request, _Handoff] = {}
        self._transfers = array("q")  # start, request, end, bytes; start, ...
        # the agenda
        self._heap: list[tuple[int, int, int, Request | None]] = []
        self._agenda_ns = FOREVER
        self._handling = False
        self._agenda_posted: set[int] = set()  # times for which an event is under way
        self._agenda_event: Event | None = None
        self._to_plan: list[Replica] = []  # at the time that is being handled
        self._on_agenda_calls = [self._on_agenda]
        self._on_replica_calls = [self._on_replica]
        # sending
        self._followers = Followers(trace) if options.closed_sessions else None
        self._clients_give_up = options.clients_give_up
        self._deadline_ns = trace.deadline_ns if options.give_up_at_deadline else None
        self._first_rows: Sequence[int] | NDArray[np.int64] = range(n)
        if self._followers:
            self._first_rows = self._followers.first_rows
        self._row_columns = view(trace.arrival_ns), view(trace.prompt_tokens), view(trace.output_tokens)
        self._read_rows = 0
        self._rows: list[tuple[int, int, int, int]] = []
        self._rows_at = 0
        self._rows_fit = False
        self._static_ns = FOREVER
        self._in_flight = 0
        self._sent = 0
        self._clipped = 0
        self._client_queue: list[tuple[int, int]] = []
        self._read_ahead()

    def _tokens_sure_to_fit(self) -> int:
        """Prompt + output tokens up to which every request fits in every pool: nothing to look at."""
        if not self._cluster.reject_oversized:
            return FOREVER
        tokens = self._cluster.max_model_len
        while tokens > 1 and not self._fits(tokens - 1, 2):
            tokens //= 2
        return tokens

    def _build_pools(self) -> None:
        options = self._options
        span_ns = int(self._trace.arrival_ns[-1]) if len(self._trace) else 0
        instants = options.timeline_instants
        if instants is not None:
            # Rows are what costs: a fleet gets fewer instants, not more rows.
            instants = min(
                instants, max(_FEWEST_INSTANTS, _TIMELINE_ROWS // sum(p.replicas for p in self._cluster.pools))
            )
        interval_ns = max(1_000_000, 2 * min(span_ns, self._horizon_ns) // (instants or 1))
        self.replicas: list[Replica] = []
        self._samples: list[TimelineSamples] = []
        self._pools: list[_PoolState] = []
        self._paces: list[DecodePace] = []
        seeds = np.random.SeedSequence(options.seed).spawn(len(self._cluster.pools))
        for pool, seed in zip(self._cluster.pools, seeds, strict=True):
            members = []
            ahead = bool(getattr(pool.scheduler, "async_scheduling", False))
            if ahead and (pool.role != "mixed" or options.clients_give_up):
                raise ValueError("asynchronous scheduling is modelled in mixed pools and without client timeouts only")
            if pool.host and (what := not_with_swapping(pool.role, pool.scheduler, pool.kv)):
                raise ValueError(f"swapping to host memory is not modelled with {what}")
            limited = any(limit is not None for limit in pool.queue_limits)
            if limited and pool.role != "mixed":
                raise ValueError(f"{' and '.join(QUEUE_LIMITS)} are modelled in mixed pools only")
            record = AheadRecorder if ahead else DecisionRecorder
            hidden_ns = round(getattr(pool.cost, "host_s", 0.0) * 1e9) if ahead else 0
            make = partial(AheadReplica, host_ns=hidden_ns) if ahead else Replica
            pace = DecodePace(pool.cost.steps_s, hidden_ns)
            self._paces.append(pace)
            for _ in range(pool.replicas):
                samples = TimelineSamples(interval_ns, instants)
                replica = make(
                    len(self.replicas), pool, self, self._recorder, samples, pace,
                    leaps=options.mode == "leap",
                    decisions=record(len(self.replicas), options.decisions) if options.decisions else None,
                    check_laws=options.check_laws,
                )  # fmt: skip
                # Whoever reads counters or waits for an end wants the replica as it is now.
                replica.eager = (
                    bool(getattr(pool.router, "reads_counters", True) and pool.replicas > 1)
                    or pool.role == "prefill"
                    or limited
                    or options.closed_sessions
                    or options.max_concurrency is not None
                    or options.clients_give_up
                )
                self.replicas.append(replica)
                self._samples.append(samples)
                members.append(replica)
            self._pools.append(_PoolState(pool, members, np.random.default_rng(seed)))

    def run(self) -> RunLog:
        self._post_agenda()
        self._clock.run()
        for replica in self.replicas:
            replica.stop(self._horizon_ns)
        return self._log()

    # ---- the agenda: everything of phase ARRIVALS, by (time, request id)

    def _push(self, time_ns: int, request_id: int, kind: int, request: Request | None) -> None:
        heappush(self._heap, (time_ns, request_id, kind, request))
        if not self._handling and time_ns < self._agenda_ns:
            self._post_agenda()

    def _post_agenda(self) -> None:
        heap = self._heap
        time_ns = self._static_ns
        if heap and heap[0][0] < time_ns:
            time_ns = heap[0][0]
        self._agenda_ns = time_ns
        if time_ns < FOREVER and time_ns not in self._agenda_posted:
            self._agenda_posted.add(time_ns)
            self._agenda_event = self._clock.post(time_ns, ARRIVALS, 0, self._on_agenda_calls, reuse=self._agenda_event)

    def _on_agenda(self, event: Event) -> None:
        clock = self._clock
        now = clock.now_ns
        self._agenda_posted.discard(now)
        if self._quiet:
            self._send_ahead()
        else:
            heap = self._heap
            while True:
                self.now_ns = now
                self._handling = True
                self._handle_agenda(now)
                self._end_moment(now)
                following = heap[0][0] if heap and heap[0][0] < self._static_ns else self._static_ns
                if following >= clock.next_ns or following > self._horizon_ns:
                    break
                now = following  # nothing else is due before: no event for it
        self._post_agenda()

    def _end_moment(self, now: int) -> None:
        """What follows from an event at the same time: at once if no other event is due now, else by events."""
        clock, heap = self._clock, self._heap
        if heap and heap[0][0] == now and clock.next_ns > now:
            self._handle_agenda(now)
        self._handling = False
        to_plan = self._to_plan
        if to_plan:
            if len(to_plan) > 1:
                to_plan.sort(key=lambda replica: replica.id, reverse=True)
            while to_plan:
                replica = to_plan.pop()
                replica.posted = -1
                if clock.next_ns > now:
                    replica.plan_now(now)
                    self._watch(replica, now)
                else:
                    self._post_replica(replica, now, PLANS)

    def _handle_agenda(self, now: int) -> None:
        """All that is on the agenda for now, in rounds."""
        heap = self._heap
        while True:
            if heap and heap[0][0] == now:
                self._handle_round(now)
            elif self._static_ns == now:
                while self._static_ns == now:  # in order of id as they stand; what they create comes in a later round
                    if self._dynamic:
                        self._ready_to_send(self._next_row(), now)
                    else:
                        self._send(self._next_row(), now)
            else:
                break

    def _handle_round(self, now: int) -> None:
        """Everything due now, by request id; what it creates for now comes in a later round."""
        heap = self._heap
        _, request_id, kind, request = heappop(heap)
        if self._static_ns != now and not (heap and heap[0][0] == now):  # alone, as most are
            self._handle(request_id, kind, request, None, now)
            return
        due: list[tuple[int, int, Request | None, tuple[int, int, int, int] | None]] = [
            (request_id, kind, request, None)
        ]
        while heap and heap[0][0] == now:
            _, request_id, kind, request = heappop(heap)
            due.append((request_id, kind, request, None))
        while self._static_ns == now:
            row = self._next_row()
            due.append((row[0], SEND, None, row))
        due.sort(key=lambda entry: entry[:2])
        for request_id, kind, request, static_row in due:
            self._handle(request_id, kind, request, static_row, now)

    def _handle(
        self, request_id: int, kind: int, request: Request | None, row: tuple[int, int, int, int] | None, now: int
    ) -> None:
        if kind == SEND:
            self._ready_to_send(row or self._row(request_id), now)
        elif request is None or request.state == ENDED:
            return
        elif kind == OFFER:
            self._offered(request, now)
        else:
            self._abandon(request, now)

    def _row(self, i: int) -> tuple[int, int, int, int]:
        arrival_ns, prompt_tokens, output_tokens = self._row_columns
        return i, arrival_ns[i], prompt_tokens[i], output_tokens[i]

    def _read_ahead(self) -> None:
        """Take the next rows out of their columns in one go: elements one by one cost ten times as much."""
        first, last = self._read_rows, self._read_rows + _READ_AHEAD
        rows = self._first_rows[first:last]
        self._read_rows += len(rows)
        trace = self._trace
        if self._followers is None:
            columns = trace.arrival_ns[first:last], trace.prompt_tokens[first:last], trace.output_tokens[first:last]
        else:
            columns = trace.arrival_ns[rows], trace.prompt_tokens[rows], trace.output_tokens[rows]
        ids = rows.tolist() if isinstance(rows, np.ndarray) else rows
        self._rows = list(zip(ids, *(column.tolist() for column in columns), strict=True))
        self._rows_at = 0
        self._rows_fit = bool((columns[1] + columns[2] <= min(self._max_model_len, self._sure_to_fit)).all())
        self._static_ns = self._rows[0][1] if self._rows else FOREVER
        if self._options.progress:
            self._options.progress(self._sent)

    def _next_row(self) -> tuple[int, int, int, int]:
        """The next row of the trace that is due; ``_static_ns`` moves on."""
        rows = self._rows
        at = self._rows_at
        row = rows[at]
        self._rows_at = at = at + 1
        if at == len(rows):
            self._read_ahead()
        else:
            self._static_ns = rows[at][1]
        return row

    # ---- sending

    def _ready_to_send(self, row: tuple[int, int, int, int], now: int) -> None:
        if self._dynamic:
            columns = self._recorder.columns
            i = row[0]
            limit = self._options.max_concurrency
            if limit is not None:
                if columns.client_queue_ns[i] == 0 and columns.arrival_ns[i] == NEVER:
                    columns.arrival_ns[i] = now  # ready; overwritten when it is sent
                    if self._in_flight >= limit:
                        heappush(self._client_queue, (now, i))
                        return
                    self._in_flight += 1
                columns.client_queue_ns[i] = now - columns.arrival_ns[i]
            columns.arrival_ns[i] = now
        self._send(row, now)

    def _send(self, row: tuple[int, int, int, int], now: int) -> None:
        i, _, prompt_tokens, output_tokens = row
        self._sent += 1
        if self._dynamic and not self._sent % _REPORTS_EVERY and self._options.progress:
            self._options.progress(self._sent)
        longest = self._max_model_len - prompt_tokens
        if longest < output_tokens:
            if longest <= 0:
                self._reject(i, _PROMPT_TOO_LONG, now)
                return
            output_tokens = longest
            self._recorder.columns.cut_output(i, longest)
            self._clipped += 1
        if prompt_tokens + output_tokens > self._sure_to_fit and not self._fits(prompt_tokens, output_tokens):
            self._reject(i, _POOL_TOO_SMALL, now)
            return
        if self._front_end and (limit := self._front_end.refuses(i, prompt_tokens, now)):
            self._reject(i, len(REASONS) + QUEUE_LIMITS.index(limit), now)
            return
        request = Request(i, now, prompt_tokens, output_tokens)
        if self._has_more:
            self._complete(request)
        if self._dynamic:
            request.watched = self._options.max_concurrency is not None or bool(
                self._followers and self._followers.has(i)
            )
        replica = self._only_replica or self._pools[0].route(request, now)
        self._replica_column[i] = replica.id
        request.replica = replica
        replica.enqueue(request, now)
        if replica.eager:
            if replica.role == "prefill":
                replica.watchers += output_tokens > 1 or request.watched
            else:
                replica.watchers += request.watched
            if replica.watchers:
                self._watch(replica, now)
            if self._clients_give_up and (patience_ns := self._patience_ns(i)) is not None:
                self._push(now + patience_ns, i, TIMEOUT, request)

    def _send_ahead(self) -> None:
        """Nobody looks at a replica between arrivals: put a batch of them into the inboxes, each with its time."""
        rows = self._rows
        horizon_ns = self._horizon_ns
        if self._rows_fit and rows[-1][1] <= horizon_ns:
            complete = self._complete if self._has_more else None
            first, last = rows[0][0], rows[-1][0] + 1
            to: int | list[int]
            if self._only_replica:
                to = self._only_replica.id
                self._only_replica.enqueue_rows(rows, complete)
            else:
                to = self._spread(rows, complete)
            self._recorder.columns.arrays["replica_prefill"][first:last] = to
            self._sent += len(rows)
        else:
            for row in rows:
                if row[1] > horizon_ns:
                    self._static_ns = FOREVER
                    return
                self._send(row, row[1])
                self._rows_at += 1
        self._read_ahead()

    def _spread(
        self, rows: Sequence[tuple[int, int, int, int]], complete: Callable[[Request], None] | None
    ) -> list[int]:
        """Put each row into the inbox of a replica, whatever is going on there. Returns the replicas' ids."""
        replicas, memory = self._pools[0].replicas, self._pools[0].memory
        route = self._pools[0].pool.router.route
        ids = []
        for row in rows:
            request = Request(*row)
            if complete:
                complete(request)
            replica = replicas[route(request, replicas, memory)]
            ids.append(replica.id)
            replica.enqueue(request, row[1])
        return ids

    def _complete(self, request: Request) -> None:
        """What the trace says of it besides time and lengths."""
        if self._trace.priority is not None:
            request.priority = int(self._trace.priority[request.id])
        if self._trace.ends_by_eos is not None:  # an end at the model's length can be foreseen
            is_shorter = request.prompt_tokens + request.output_tokens < self._max_model_len
            request.ends_by_eos = is_shorter and bool(self._trace.ends_by_eos[request.id])
        if self._contents:
            request.content = self._contents.of(request.id, request.prompt_tokens, request.output_tokens)

    def _fits(self, prompt_tokens: int, output_tokens: int) -> bool:
        """Could this request's KV ever fit in the pools it passes through?"""
        probe = Request(0, 0, prompt_tokens, output_tokens)
        for state in self._pools:
            kv = state.replicas[0].kv
            if state.pool.role == "prefill":
                peak = prompt_tokens
            elif state.pool.role == "decode":
                if output_tokens == 1:
                    continue
                peak = max(prompt_tokens + 1, prompt_tokens + output_tokens - 1)
            else:
                peak = prompt_tokens + output_tokens - 1
            if kv.missing_blocks(probe, peak) > kv.total_blocks:
                return False
        return True

    def _patience_ns(self, i: int) -> int | None:
        """So long after it was sent the client of a row gives up; None: never."""
        timeout_ns = self._options.client_timeout_ns
        if self._deadline_ns is None or (deadline_ns := int(self._deadline_ns[i])) < 0:
            return timeout_ns
        return deadline_ns if timeout_ns is None or deadline_ns < timeout_ns else timeout_ns

    def _reject(self, i: int, reason: int, now: int) -> None:
        columns = self._recorder.columns
        columns.status[i] = REJECTED
        columns.reason[i] = reason
        columns.finish_ns[i] = now
        self._free_client(i, now)

    def ended(self, request: Request, now: int) -> None:
        """A watched request got its last token."""
        replica: Replica = request.replica  # type: ignore[assignment]
        replica.watchers -= 1
        self._free_client(request.id, now)

    def _free_client(self, i: int, now: int) -> None:
        """Whoever waited for this request to end may go on."""
        if not self._dynamic:
            return
        if self._options.max_concurrency is not None:
            self._in_flight -= 1
            if self._client_queue:
                _, following = heappop(self._client_queue)
                self._in_flight += 1
                self._push(now, following, SEND, None)
        if self._followers:
            for row in self._followers.released(i):
                self._push(now + self._followers.think_ns[row], row, SEND, None)

    def _abandon(self, request: Request, now: int) -> None:
        replica: Replica = request.replica  # type: ignore[assignment]
        replica.settle(now)
        if request.state == ENDED:
            return
        columns = self._recorder.columns
        columns.status[request.id] = ABANDONED
        at_deadline = self._deadline_ns is not None and now - request.arrival_ns == self._deadline_ns[request.id]
        columns.reason[request.id] = _DEADLINE if at_deadline else _CLIENT_TIMEOUT
        columns.finish_ns[request.id] = now
        if request.state in (OFFERED, SENDING):
            columns.generated_tokens[request.id] = 1
            if request.state == OFFERED:
                replica.interrupt(now)
                replica.offers.remove(request)
                replica.waiting_tokens -= request.prompt_tokens + 1
                self._leave_source(request, now)
            else:
                replica.given_up_coming += 1
            request.state = ENDED
        else:
            replica.give_up(request, now)
        if request.watched or (replica.role == "prefill" and request.output_tokens > 1):
            replica.watchers -= 1
        self._watch(replica, now)
        self._free_client(request.id, now)

    # ---- replicas somebody waits for

    def _watch(self, replica: Replica, now: int) -> None:
        """Have an event at the replica's next end (or plan) if somebody waits for what happens there."""
        if not replica.watchers and not replica.offers:
            return
        if replica.stretch_steps:
            time_ns, phase = replica.stretch_end_ns, ENDS
        else:
            time_ns, phase = replica.due_ns - 1, PLANS
        if replica.inbox and not replica.ahead and replica.inbox[0].enters_ns < time_ns:
            time_ns = replica.inbox[0].enters_ns
        if time_ns < FOREVER - 1:
            self._post_replica(replica, time_ns, phase)

    def _post_replica(self, replica: Replica, time_ns: int, phase: int) -> None:
        key = time_ns * 4 + phase
        if replica.posted != key:
            replica.posted = key
            if phase == PLANS and time_ns == self.now_ns and self._handling:
                self._to_plan.append(replica)
            else:
                self._clock.post(time_ns, phase, replica.id, self._on_replica_calls, (replica, key))

    def _on_replica(self, event: Event) -> None:
        replica, key = event._value
        if replica.posted != key:
            return  # an arrival has moved it
        replica.posted = -1
        self.now_ns = now = self._clock.now_ns
        if key & 3 == PLANS:
            replica.plan_at(now)
            self._watch(replica, now)
        else:
            self._handling = True
            replica.settle(now)
            self._watch(replica, now)
            self._end_moment(now)
            if self._heap:
                self._post_agenda()

    # ---- handoff

    def offer(self, request: Request, now: int) -> None:
        """Its first token was sampled in the prefill pool; a decode replica is to take over."""
        replica: Replica = request.replica  # type: ignore[assignment]
        replica.watchers -= 1
        request.state = OFFERED
        self._push(now, request.id, OFFER, request)

    def _offered(self, request: Request, now: int) -> None:
        source: Replica = request.replica  # type: ignore[assignment]
        target = self._pools[1].route(request, now)
        self._recorder.columns.replica_decode[request.id] = target.id
        handoff = _Handoff(request, source, target)
        request.replica = target
        if not request.watched and target.book_ahead(request, now):
            self._handoffs[request] = handoff
            self._send_kv(request, now)
            return
        target.settle(now)
        self._handoffs[request] = handoff
        target.watchers += request.watched
        target.waiting_tokens += request.prompt_tokens + 1
        target.offers.append(request)
        if len(target.offers) == 1:
            self.take_offers(target, now)
        self._watch(target, now)

    def take_offers(self, target: Steps, now: int) -> None:
        """Book blocks for offered requests, in order, and start their transfers."""
        offers = target.offers
        while offers and target.takes_offers:
            request = offers[0]
            if not target.reserve(request, request.prompt_tokens + 1, now):
                return
            offers.popleft()
            self._send_kv(request, now)

    def _send_kv(self, request: Request, now: int) -> None:
        request.state = SENDING
        assert self._link is not None
        self._link.start(request, request.prompt_tokens * self._pools[0].pool.kv_bytes_per_token, now)

    def _leave_source(self, request: Request, now: int) -> Replica:
        """Nothing of the request is left in its first replica. Returns the other one."""
        handoff = self._handoffs[request]
        if handoff.source.give_back(handoff.left, now):
            self._watch(handoff.source, now)
        del self._handoffs[request]
        return handoff.target

    def _flows_ended(self, flows: list[Flow], now: int) -> None:
        self.now_ns = now
        self._handling = True
        arrives_ns = now + self._latency_ns
        for flow in flows:
            request = flow.request
            target = self._leave_source(request, now)
            request.enters_ns = arrives_ns
            target.inbox.append(request)
            if arrives_ns <= self._horizon_ns:
                self._transfers.extend((flow.start_ns, request.id, arrives_ns, flow.bytes))
            self._watch(target, now)
        self._end_moment(now)
        if self._heap:
            self._post_agenda()

    def blocks_between_pools(self, replica: ReplicaState) -> int:
        """Blocks of this replica that requests on their way hold (for the recount of laws)."""
        blocks = sum(request.held_blocks for request in replica.inbox)
        for request, handoff in self._handoffs.items():
            if handoff.source is replica:
                blocks += handoff.left.held_blocks
            if handoff.target is replica:
                blocks += request.held_blocks
        return blocks + sum(
            r.held_blocks for _, _, kind, r in self._heap if kind == OFFER and r and r.replica is replica
        )

    def tokens_between_pools(self, replica: ReplicaState) -> int:
        """Tokens that ``waiting_tokens`` of this replica counts for requests on their way to it."""
        return sum(request.prompt_tokens + 1 for request in self.on_their_way_to(replica))

    def on_their_way_to(self, replica: ReplicaState) -> list[Request]:
        """Requests whose KV is offered to this replica, or under way."""
        coming = [request for request, handoff in self._handoffs.items() if handoff.target is replica]
        return coming + [request for request in replica.inbox if request.state]

    # ---- the log

    def _log(self) -> RunLog:
        replicas = self.replicas
        recorder = self._recorder
        columns = recorder.columns.arrays
        trace = self._trace
        sent = self._read_rows - len(self._rows) + self._rows_at
        if not self._dynamic and sent < len(trace):
            columns["arrival_ns"] = np.where(np.arange(len(trace)) < sent, trace.arrival_ns, NEVER)
        elif self._client_queue:
            columns["arrival_ns"][[i for _, i in self._client_queue]] = NEVER
        end_ns = self._options.horizon_ns
        if end_ns is None:  # the last thing that happened; a client's timer for a request long done is nothing
            ends = max(self._transfers[2::4], default=0), int(columns["finish_ns"].max(initial=0))
            end_ns = max(*ends, *(replica.boundary_ns for replica in replicas))
        for replica in replicas:
            replica.close(end_ns)
        for request in self._handoffs:
            columns["generated_tokens"][request.id] = 1
        for replica in replicas:
            for request in replica.inbox:
                if request.state == SENDING:
                    columns["generated_tokens"][request.id] = 1
        finished = (columns["status"] == UNFINISHED) & (columns["finish_ns"] != NEVER)
        columns["status"][finished] = FINISHED
        generated = columns["output_tokens"]
        if not finished.all():
            generated = np.where(finished, generated, columns["generated_tokens"])
        for pace in self._paces:
            for table in pace.all_tables:
                recorder.gaps.add_counted(*table.counted())
        unfinished = columns["status"] == UNFINISHED
        never_sent = unfinished & (columns["arrival_ns"] == NEVER)
        stuck = self._options.horizon_ns is None and bool((unfinished & ~never_sent).any())
        columns["reason"][unfinished] = _STUCK if stuck else _HORIZON
        columns["reason"][never_sent] = _NOT_SENT
        queued = columns["replica_prefill"] >= 0
        transfers = np.array(self._transfers, np.int64).reshape(-1, 4)
        transfers = transfers[np.lexsort((transfers[:, 1], transfers[:, 0]))]
        return RunLog(
            arrival_ns=columns["arrival_ns"],
            client_queue_ns=columns["client_queue_ns"],
            queued_ns=columns["arrival_ns"] if queued.all() else np.where(queued, columns["arrival_ns"], NEVER),
            first_scheduled_ns=columns["first_scheduled_ns"],
            first_token_ns=columns["first_token_ns"],
            finish_ns=columns["finish_ns"],
            prompt_tokens=trace.prompt_tokens,
            output_tokens=columns["output_tokens"],
            generated_tokens=generated,
            computed_tokens=columns["computed_tokens"],
            cached_tokens=columns["cached_tokens"],
            preemptions=columns["preemptions"],
            swaps=columns["swaps"],
            swapped_tokens=columns["swapped_tokens"],
            max_gap_ns=columns["max_gap_ns"],
            replica_prefill=columns["replica_prefill"],
            replica_decode=columns["replica_decode"],
            status=columns["status"],
            reason=columns["reason"],
            reasons=(*REASONS, *QUEUE_LIMITS) if self._front_end else REASONS,
            gaps=recorder.gaps.result(),
            timeline=join_timelines(self._samples),
            transfers=Transfers(
                request=transfers[:, 1], start_ns=transfers[:, 0], end_ns=transfers[:, 2], bytes=transfers[:, 3]
            ),
            tokens_by_second=recorder.seconds(),
            steps=tuple(replica.steps for replica in replicas),
            stretches=tuple(replica.stretches for replica in replicas),
            total_blocks=tuple(replica.total_blocks for replica in replicas),
            peak_used_blocks=tuple(replica.peak_used_blocks for replica in replicas),
            copied_blocks=tuple(replica.copied_blocks for replica in replicas),
            copy_ns=tuple(replica.copy_ns for replica in replicas),
            roles=tuple(replica.role for replica in replicas),
            events=self._clock.events,
            clipped=self._clipped,
            end_ns=end_ns,
            diagnosis=self._diagnosis() if stuck else None,
        )

    def _diagnosis(self) -> str:
        """Why nothing can move: for each replica with live requests, what its head needs and what there is."""
        lines = []
        for replica in self.replicas:
            if not replica.waiting and not replica.running_now and not replica.offers:
                continue
            kv = replica.kv
            line = (
                f"replica {replica.id} ({replica.role}) has {len(replica.waiting)} waiting and "
                f"{replica.running_count} running, {kv.free_blocks} of {kv.total_blocks} KV blocks free"
            )
            if replica.waiting:
                head = replica.waiting.first
                blocks = kv.missing_blocks(head, head.target_tokens)
                line += f"; its head is request {head.id}, whose {head.target_tokens} tokens need {blocks} blocks"
                if blocks <= kv.free_blocks:
                    line += " (they are free: it is the scheduler that refuses)"
            elif replica.offers:
                offer = replica.offers[0]
                blocks = kv.missing_blocks(offer, offer.prompt_tokens + 1)
                line += f"; request {offer.id} is offered to it and needs {blocks} blocks"
            lines.append(line)
        return "nothing can move any more: " + "; ".join(lines)
