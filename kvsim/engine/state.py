"""What a replica holds, and what policies may read of it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from kvsim.core.cluster import Pool
from kvsim.core.request import DECODING, Request
from kvsim.core.seats import CachingPool
from kvsim.core.shape import BatchShape
from kvsim.engine.clock import FOREVER
from kvsim.engine.pace import LARGEST_BATCH, DecodePace, PaceTable
from kvsim.engine.plan import Plan
from kvsim.engine.recorder import Recorder, TimelineSamples

if TYPE_CHECKING:
    from kvsim.engine.books import Books
    from kvsim.engine.cluster import Simulation
    from kvsim.engine.decisions import DecisionRecorder

FIRST_LEAP = 16


class Waiting(deque[Request]):
    """The waiting queue, head first: those with KV (delivered, or swapped), then preempted ones, then the others."""

    @property
    def first(self) -> Request:
        return self[0]


class WaitingByPriority(Waiting):
    """The same, by (priority, arrival, id): where a request is put makes no difference."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: list[tuple[int, int, int]] = []

    def append(self, request: Request) -> None:
        self._put(request)

    def insert(self, position: int, request: Request) -> None:
        self._put(request)

    def _put(self, request: Request) -> None:
        key = (request.priority, request.arrival_ns, request.id)
        position = bisect_left(self._keys, key)
        self._keys.insert(position, key)
        super().insert(position, request)

    def popleft(self) -> Request:
        del self._keys[0]
        return super().popleft()

    def remove(self, request: Request) -> None:
        position = self.index(request)
        del self._keys[position]
        super().remove(request)


class ReplicaState:
    """What one engine holds and does; also the view that policies read.

    Time: ``boundary_ns`` is where the last applied step ended (or the replica woke up). A stretch of one or more
    steps with the same batch may be in flight: ``stretch_steps`` > 0, ending at ``stretch_end_ns``. ``due_ns`` is the
    first moment at which ``settle`` has something to do.

    Decodes are totals: ``decoding_count``, ``_context`` and ``_squares`` (sums over them before the next step) and
    ``decode_step``, the number of decode steps taken. A request that joins at decode step d with r tokens to go is
    done when ``decode_step`` is d + r; its context then follows from the two numbers it keeps, and nothing is done
    per step.

    Gaps: ``_cohort_ns`` is when the decodes last got a token, all of them but those in ``_behind``, whose own last
    token is in ``gap_from_ns``. The largest gap of a request that stayed with the decodes since time t is the first
    entry at or after t of ``_gap_starts``/``_gap_sizes``, kept strictly decreasing in size.
    """

    __slots__ = (
        "_asking",
        "_behind",
        "_block_size",
        "_books_ahead",
        "_changed",
        "_check_laws",
        "_chunks",
        "_circles",
        "_cohort_ns",
        "_context",
        "_decode_shape",
        "_decodes",
        "_device_ns",
        "_duration",
        "_durations",
        "_emptied",
        "_ends",
        "_every_step",
        "_finish_column",
        "_finishing",
        "_flight",
        "_flight_place",
        "_gap_sizes",
        "_gap_starts",
        "_gaps",
        "_given_up",
        "_held",
        "_host_ns",
        "_idle",
        "_leap",
        "_leaps",
        "_leaving",
        "_longest_last",
        "_look_tokens",
        "_look_until_ns",
        "_max_gap_column",
        "_pace",
        "_plan",
        "_recorder",
        "_recount_in",
        "_review_ns",
        "_review_step",
        "_rounds",
        "_runs_fast",
        "_samples",
        "_scheduler",
        "_second_end_ns",
        "_second_tokens",
        "_seen_ns",
        "_shape",
        "_simulation",
        "_squares",
        "_step_s",
        "_steps_s",
        "_sure_blocks",
        "_to_copy",
        "_tools",
        "_unforeseen",
        "_was",
        "_with_victims",
        "admissions",
        "ahead",
        "bookings",
        "boundary_ns",
        "cache",
        "cached_column",
        "copied_blocks",
        "copy_ns",
        "decisions",
        "decode_step",
        "decoding_count",
        "due_ns",
        "eager",
        "first_scheduled_column",
        "given_up_coming",
        "host",
        "host_free_blocks",
        "id",
        "inbox",
        "kv",
        "memory",
        "offers",
        "other_context",
        "peak_used_blocks",
        "posted",
        "prefilling",
        "ready_count",
        "role",
        "running_now",
        "steps",
        "stretch_end_ns",
        "stretch_start_ns",
        "stretch_steps",
        "stretches",
        "total_blocks",
        "waiting",
        "waiting_tokens",
        "watchers",
    )

    def __init__(
        self,
        id: int,
        pool: Pool,
        simulation: Simulation,
        recorder: Recorder,
        samples: TimelineSamples,
        pace: DecodePace,
        leaps: bool,
        decisions: DecisionRecorder | None,
        check_laws: bool,
    ) -> None:
        self.id = id
        self.role = pool.role
        self.kv = pool.kv.start(pool.kv_blocks)
        self.cache = cast(CachingPool, self.kv) if getattr(self.kv, "caches", False) else None
        self.total_blocks = pool.kv_blocks
        self.peak_used_blocks = 0
        self._scheduler = pool.scheduler
        self._every_step = bool(getattr(pool.scheduler, "every_step", True))
        self._step_s = pool.cost.step_s
        self._steps_s = pool.cost.steps_s
        self._longest_last = bool(getattr(pool.cost, "longest_last", False))
        self._simulation = simulation
        self._recorder = recorder
        self._gaps = recorder.gaps
        columns = recorder.columns
        self.first_scheduled_column = columns.first_scheduled_ns
        self.cached_column = columns.cached_tokens
        self._finish_column = columns.finish_ns
        self._max_gap_column = columns.max_gap_ns
        self._samples = samples
        self._leaps = leaps
        begin = getattr(pool.scheduler, "start", None)
        self.memory = begin() if begin else None
        self._runs_fast = (
            leaps
            and not check_laws
            and not decisions
            and not samples.every_step
            and pool.role != "prefill"
            and self.memory is None
        )
        # preemption after preemption
        self._with_victims = 0  # plans with victims
        self._was: tuple[Any, ...] = ()  # what was left by one of them,
        self._rounds = 0  # and so many times since
        self._circles = False
        # planning ahead: ``AheadReplica``
        self.ahead = False
        self._host_ns = self._seen_ns = 0
        self._leaving: list[Request] = []
        self._unforeseen = False
        self._device_ns: Sequence[int] = ()
        self._idle = True
        self.decisions = decisions
        self._check_laws = check_laws
        # host memory
        self.host = pool.host
        self.host_free_blocks = pool.host.blocks if pool.host else 0
        self._block_size = pool.kv.block_size
        self._to_copy = 0  # blocks to be copied, either way, before the coming step
        self.copied_blocks = 0
        self.copy_ns = 0  # by which steps took longer
        # requests
        by_priority = getattr(pool.scheduler, "policy", "fcfs") == "priority"
        self.waiting = WaitingByPriority() if by_priority else Waiting()
        self.ready_count = 0  # how many at the head of the queue were delivered with their KV, or swapped
        self.waiting_tokens = 0
        self.inbox: deque[Request] = deque()  # arrived, not yet looked at
        self.eager = False
        self.offers: deque[Request] = deque()
        self.bookings: deque[tuple[int, int, Request]] = deque()  # (time, blocks, request) of sent KV, not yet booked
        self._books_ahead = self._runs_fast and not getattr(pool.scheduler, "preempts_by_choice", True)
        self._sure_blocks = 0  # at most so many blocks will ever be taken by those who are here or on their way
        self._recount_in = 0
        self.running_now: dict[Request, None] = {}  # in admission order
        self.prefilling: list[Request] = []
        self.admissions = 0
        self._held: list[Request] = []
        self._given_up: list[Request] = []
        self.given_up_coming = 0  # of those whose KV is on its way here
        self._emptied: tuple[int, list[tuple[int, int]]] | None = None  # free blocks and queue, when all were preempted
        self.other_context = 0  # tokens in KV of running requests that do not decode
        # decodes
        self.decoding_count = 0
        self._context = 0
        self._squares = 0
        self.decode_step = 0
        self._finishing: list[tuple[int, int, Request]] = []
        # gaps
        self._behind: list[Request] = []
        self._cohort_ns = 0
        self._gap_starts: list[int] = []
        self._gap_sizes: list[int] = []
        self._second_end_ns = 0
        self._second_tokens = 0
        # time
        self.boundary_ns = 0
        self.due_ns = FOREVER
        self.stretch_steps = 0
        self.stretch_start_ns = 0
        self.stretch_end_ns = 0
        self._flight: PaceTable | None = None  # has the pace of the stretch in flight, from this place on
        self._flight_place = 0
        self._ends: Sequence[int] | None = None
        self._look_tokens = self._look_until_ns = 0
        self._durations: list[int] | NDArray[np.int64] | None = []  # None: not asked for yet, see ``_flight``
        self._duration = 0  # of a recent decode step, to guess by
        self._decodes = 0
        self._chunks: Sequence[tuple[Request, int, int]] = ()
        self._decode_shape = self._shape = BatchShape()
        self._leap = FIRST_LEAP
        self._changed = True
        self._asking = self._every_step
        self._review_ns = FOREVER
        self._review_step = FOREVER
        self.steps = 0
        self.stretches = 0
        self.watchers = 0
        self.posted = -1
        budget_tokens = pool.scheduler.max_num_batched_tokens
        fewer = getattr(pool.scheduler, "max_num_scheduled_tokens", None)
        self._plan = Plan(cast("Books", self), min(fewer or budget_tokens, budget_tokens))
        self._pace = pace
        # Small batches have their pace in tables, if two numbers and no more say how long a decode step takes.
        paced = LARGEST_BATCH + 1 if self._longest_last and not getattr(pool.cost, "reads_squares", True) else 0
        # What the fast loop works with; none of these is ever replaced by another object.
        self._tools = (
            self.inbox, self.waiting, self.prefilling, self.running_now, self._finishing, self.kv,
            self.kv.growth_blocks, self.kv.release, self.kv.join, self._step_s, self._steps_s,
            getattr(pool.cost, "decode_line", None),
            self._gap_starts, self._gap_sizes, self._gaps.values, self._gaps.runs, self._decode_shape,
            samples, self._longest_last, self.total_blocks,
            self._behind, self.bookings, pace.tables, paced, columns.finish_ns,
            columns.max_gap_ns, columns.first_token_ns, columns.computed_tokens, self.cache,
        )  # fmt: skip
        if decisions:
            self._plan.refused = []

    # ---- what a policy reads

    @property
    def now_s(self) -> float:
        return self.boundary_ns / 1e9

    @property
    def free_blocks(self) -> int:
        return self.kv.free_blocks

    @property
    def running(self) -> Sequence[Request]:
        return list(self.running_now)

    @property
    def running_count(self) -> int:
        return len(self.running_now)

    @property
    def requests_count(self) -> int:
        return len(self.running_now) + len(self.waiting)

    @property
    def alive_count(self) -> int:
        """Requests that came here and have not ended, as those who sent them see it."""
        return len(self.running_now) + len(self.waiting) + len(self.inbox) - len(self._given_up)

    @property
    def decodes_in_flight(self) -> int:
        """Decodes that take part in the stretch in flight."""
        return self._decodes if self.stretch_steps else 0

    @property
    def youngest(self) -> Request:
        if not self.running_now:
            raise IndexError("nothing runs")
        return next(reversed(self.running_now))

    @property
    def blocks_short(self) -> int:
        short = self.kv.growth_blocks(self.decode_step, 1) - self._plan.growth - self.kv.free_blocks
        return short if short > 0 else 0

    @property
    def swapped_count(self) -> int:
        return self.ready_count if self.host else 0

    @property
    def resident_tokens(self) -> int:
        now_ns = self._simulation.now_ns
        ends: Sequence[int]
        if now_ns < self._look_until_ns:
            return self._look_tokens  # no step has ended since the last look
        context = self._context + self.other_context
        if self.stretch_steps > 1:
            steps, flight = self.stretch_steps, self._flight
            if flight:
                ends, first = flight.before, self._flight_place + 1
                begin_ns = self.stretch_start_ns - ends[first - 1]
            else:
                ends, first, begin_ns = self._ends or self.ends_ns, 0, 0
            done = bisect_right(ends, now_ns - begin_ns, first, first + steps) - first
            context += self._decodes * done
            if done < steps:
                self._look_until_ns = begin_ns + ends[first + done]
        elif self.stretch_steps:
            self._look_until_ns = self.stretch_end_ns
        self._look_tokens = context
        return context

    def ended_before(self, time_ns: int) -> int:
        """Steps of the stretch in flight that end before that time."""
        if self._flight:
            return self._flight.ended_before(time_ns, self._flight_place, self.stretch_steps, self.stretch_start_ns)
        return bisect_left(self.ends_ns, time_ns, 0, self.stretch_steps)

    def end_of(self, step: int) -> int:
        """When that step of the stretch in flight ends; the first is 1."""
        if self._flight:
            before, place = self._flight.before, self._flight_place
            return self.stretch_start_ns + before[place + step] - before[place]
        return self.ends_ns[step - 1]

    @property
    def ends_ns(self) -> Sequence[int]:
        """When each step of the stretch in flight ends; worked out when somebody asks."""
        ends = self._ends
        if ends is None:
            durations = self.durations_ns
            many = durations if isinstance(durations, list) else durations.tolist()
            self._ends = ends = list(accumulate(many, initial=self.stretch_start_ns))[1:]
        return ends

    @property
    def durations_ns(self) -> list[int] | NDArray[np.int64]:
        """How long each step of the stretch in flight takes; worked out when somebody asks."""
        durations = self._durations
        if durations is None:
            assert self._flight
            place = self._flight_place
            self._durations = durations = self._flight.duration[place : place + self.stretch_steps].tolist()
        return durations

    def scheduled_tokens(self) -> Iterator[tuple[Request, int]]:
        """Everybody who runs, and the tokens whose blocks can have a name by now."""
        return ((request, self.context_tokens_of(request)) for request in self.running_now)

    def context_tokens_of(self, request: Request) -> int:
        if request.state == DECODING:
            return request.computed_tokens + self.decode_step - request.joined_step
        return request.computed_tokens
