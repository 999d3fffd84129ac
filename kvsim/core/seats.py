"""The five seats: the shapes that a reader, a router, a scheduler, a KV manager and a cost model must match.

They are Protocols: match the shape, inherit nothing. A plug-in is a frozen dataclass whose fields are its
parameters, so the scenario file, the checks and ``repr`` come for free. What it must remember during a run it
makes in ``start(...)``; the engine keeps it.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.request import Request
from kvsim.core.shape import BatchShape
from kvsim.core.trace import Trace


class TraceReader(Protocol):
    """Reads one trace format. ``recognises`` looks at the first bytes only and has no side effect."""

    def recognises(self, head: str) -> bool:
        """True if the first lines of a file (text: 64 KiB, or one longer line) are in this format."""
        ...

    def read(self, path: Path) -> Trace:
        """The whole file: sorted, from 0, lengths >= 1; what was left out is counted in ``Trace.rows``.

        Raises InputError (file, line, key, value) for a row that cannot be understood. A reader that takes a second
        argument ``quarantine`` (``kvsim.workload.readers.table``) can set such rows aside instead.
        """
        ...


class WaitingQueue(Protocol):
    """Requests that wait for admission; iterates in the order in which they are served."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]: ...

    @property
    def first(self) -> Request:
        """The head of the queue. Raises IndexError if it is empty."""
        ...


class ReplicaView(Protocol):
    """What a policy may read of a replica. Counters are free; walking ``running`` costs what a walk costs."""

    id: int
    decoding_count: int
    memory: Any
    """What the scheduler's ``start()`` has made for this replica, None if it has no such method."""
    steps: int
    """Steps that have been run. Up to date in a plan only if there is a ``memory``."""

    @property
    def free_blocks(self) -> int: ...

    @property
    def total_blocks(self) -> int: ...

    @property
    def now_s(self) -> float:
        """Simulated seconds at which the step being planned starts."""
        ...

    @property
    def waiting(self) -> WaitingQueue: ...

    @property
    def prefilling(self) -> Sequence[Request]:
        """Running requests whose prompt (or recomputation) is not finished, in admission order."""
        ...

    @property
    def running(self) -> Sequence[Request]:
        """Every running request in admission order (a fresh list: a walk)."""
        ...

    @property
    def running_count(self) -> int: ...

    @property
    def youngest(self) -> Request:
        """The running request that was admitted last. Raises IndexError if none runs."""
        ...

    @property
    def blocks_short(self) -> int:
        """Blocks that are missing for every decode to grow by one token in this step; 0 if they suffice."""
        ...

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens (and tokens to recompute) of the requests in the waiting queue."""
        ...

    @property
    def swapped_count(self) -> int:
        """Waiting requests whose KV is in host memory; they are the head of the queue, in the order of swapping."""
        ...

    @property
    def resident_tokens(self) -> int:
        """Tokens of context that the running requests have in KV now."""
        ...

    @property
    def requests_count(self) -> int:
        """Requests waiting or running."""
        ...

    def context_tokens_of(self, request: Request) -> int:
        """Tokens that this request has in KV before the step being planned."""
        ...


class Plan(Protocol):
    """What the next step will do, as a difference: decoding is what happens when nobody says otherwise.

    The verbs check, book and, when a victim was already planned, undo. A policy can be unfair, never inconsistent.
    ``budget_tokens`` is what is left of ``max_num_batched_tokens`` after the decodes; ``preempted`` counts victims.
    """

    budget_tokens: int
    preempted: int

    def prefill(self, request: Request, max_tokens: int | None = None) -> int:
        """Schedule the next chunk of a prefilling request: as much as budget, ``max_tokens`` and free blocks
        allow. Returns the tokens scheduled (0: nothing)."""
        ...

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
        """Move the waiting head into the running list and schedule its first chunk, or change nothing.

        ``whole``: only if everything that is to be computed fits in the budget. ``reserve_full``: only if blocks
        for the whole prompt are free now (a test, not a reservation). ``keep_free_blocks`` must stay free after it.
        ``most_left``: only if no more tokens than that are left to compute, after hits in the prefix cache.
        """
        ...

    def preempt(self, request: Request, *, swap: bool = False) -> bool:
        """Take a running request's blocks and put it at the front of the waiting queue, to be recomputed.

        ``swap``: if there is room for its KV in host memory, copy it there first. It then waits behind those that
        were swapped before and ahead of all others; ``admit`` brings it back with nothing to recompute. Returns
        whether it was swapped.
        """
        ...

    def hold_decodes(self, hold: bool = True) -> None:
        """No decode takes part in this step, and the budget they had is free for prompts (False: takes it back)."""
        ...

    def in_order(self) -> Iterator[Request]:
        """Start from nothing scheduled and walk the running list in admission order, the whole budget free.

        For steps in which blocks or the budget bind, so that order matters: only requests given to ``run`` take
        part, the others are held for this step; preempted ones are skipped. It costs a walk over the batch, so use it
        only where ``tight`` says so, and before any other verb.
        """
        ...

    def tight(self, max_tokens: int | None = None) -> bool:
        """True if the running list cannot get all it wants (chunks of at most ``max_tokens``), so order decides."""
        ...

    def run(self, request: Request, max_tokens: int | None = None) -> int:
        """After ``in_order``: schedule a decode's token or a prefill's chunk. Returns tokens, or 0 if the blocks
        for them are not free (nothing is booked then)."""
        ...

    def make_room(self) -> int:
        """Preempt the youngest running request until every decode can grow. Returns the number of victims."""
        ...

    def review_at(self, time_s: float) -> None:
        """Call ``plan`` again at the first step that starts at or after this time, even if nothing changed."""
        ...

    def review_after(self, steps: int) -> None:
        """Call ``plan`` again after this many steps, even if nothing changed; the soonest of several counts."""
        ...


class Scheduler(Protocol):
    """Decides what runs in the next step.

    ``plan`` is called when there is something to decide: a request waits or is being prefilled, blocks are short,
    a review is due, or requests joined or left while something was held back. With ``every_step`` True (also the
    meaning of leaving it out) it is called before each step, and the replica cannot leap. A policy that preempts only
    when blocks are short may say so with ``preempts_by_choice = False``: a decode replica is then quicker to simulate.
    One that must remember something of a replica makes it in ``start()``, called once per replica, and finds it in
    ``replica.memory``. ``max_num_scheduled_tokens``, if there and not None, is a smaller budget of a step;
    ``max_num_queued_reqs`` and ``max_num_queued_tokens`` are limits of the front end (``kvsim/engine/frontend.py``).
    """

    @property
    def max_num_seqs(self) -> int:
        """Most requests that run at a time."""
        ...

    @property
    def max_num_batched_tokens(self) -> int:
        """Most tokens in one step."""
        ...

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        """Say what runs in the step that starts now, in the verbs of ``plan``."""
        ...


class Router(Protocol):
    """Chooses the replica for a request. Reads counters, never changes a replica."""

    def start(self, rng: np.random.Generator) -> object:
        """Memory for one run (None if there is none)."""
        ...

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: Any) -> int:
        """Position in ``replicas`` (in id order) of the chosen one; ties go to the lowest id."""
        ...


class KVPool(Protocol):
    """The block ledger of one replica: ``free_blocks`` plus what requests hold is ``total_blocks`` at any moment.

    Decodes grow by one token per step; the pool counts them by phase, so growth over many steps is arithmetic.
    """

    total_blocks: int
    free_blocks: int

    def lookup(self, request: Request) -> int:
        """Tokens of this request that are already in KV (prefix reuse). No side effect."""
        ...

    def can_admit(self, request: Request, tokens: int, keep_free_blocks: int) -> bool:
        """True if growing what the request holds to ``tokens`` leaves at least ``keep_free_blocks`` free."""
        ...

    def allocate(self, request: Request, tokens: int) -> bool:
        """Grow what the request holds to ``tokens`` of context. Says yes or no, never half."""
        ...

    def release(self, request: Request, context_tokens: int) -> None:
        """Give back everything that the request holds; if it decodes, it no longer does."""
        ...

    def join(self, request: Request, context_tokens: int, step: int) -> None:
        """The request decodes from decode step number ``step`` on, with this context."""
        ...

    def leave(self, request: Request, context_tokens: int) -> None:
        """The request no longer decodes; it keeps the blocks of its context."""
        ...

    def missing_blocks(self, request: Request, tokens: int) -> int:
        """Blocks that the request would have to take to hold ``tokens`` of context."""
        ...

    def growth_blocks_of(self, request: Request, step: int) -> int:
        """Blocks that this decode needs in decode step ``step``."""
        ...

    def growth_blocks(self, step: int, steps: int) -> int:
        """Blocks that the decodes need in ``steps`` steps from decode step ``step`` on."""
        ...

    def steps_until_short(self, step: int, limit: int) -> int:
        """The most steps (at most ``limit``) from ``step`` on whose growth fits in the free blocks."""
        ...


class CachingPool(KVPool, Protocol):
    """A block ledger with prefix caching: blocks keep their content when they are free, and ``lookup`` finds them.

    Such a pool says ``caches = True``. Requests that may share blocks have a ``Content``; a look-up comes right before
    the questions and the allocation that it is for.
    """

    step: int  # decode steps taken, the one being planned included if the decodes take part in it
    free_cached: int  # free blocks with content; those without are taken first
    evicted: int  # blocks that lost their content so far
    doubled: int  # blocks that requests hold beyond the first holder of each

    def steps_until_more(self, request: Request) -> int | None:
        """After a look-up: in how many steps a decode fills the next block that this request could use, if any."""
        ...

    def release(self, request: Request, context_tokens: int, *, resumes: bool = False) -> None:
        """``context_tokens`` includes those of the step being planned. ``resumes``: it will look for its blocks."""
        ...

    def release_all(self, leaving: Iterable[tuple[Request, int]]) -> None:
        """Release these requests in this order; what ``release`` says of them afterwards is nothing new."""
        ...

    def settle(self) -> None:
        """Bring ``free_cached`` and ``evicted`` up to date."""
        ...

    def cached_blocks(self, held: Iterable[tuple[Request, int]]) -> int:
        """Blocks with content, free or held, given every request that holds blocks and its tokens so far."""
        ...

    def check(self, requests: Iterable[Request]) -> None:
        """Recount the books from what these requests, all that there are, hold. Raises AssertionError."""
        ...


class KVManager(Protocol):
    """How KV is laid out; makes one ledger per replica."""

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        ...

    def start(self, total_blocks: int) -> KVPool:
        """A fresh ledger of ``total_blocks`` blocks."""
        ...

    def stored(self, context_tokens: int) -> int:
        """Tokens kept in KV for a context of this length (piecewise linear)."""
        ...

    def attended(self, context_tokens: int) -> int:
        """Tokens read by one decode step at this context (piecewise linear)."""
        ...


class StepCost(Protocol):
    """How long a step takes, for one model on one kind of GPU. Pure: same shape, same seconds.

    Scalar and vector forms must agree in the last bit: use + - * / sqrt, min, max and tables only. A cost that never
    prices a later step of a stretch below an earlier one may say so with ``longest_last = True``; one for which the
    number of decodes and ``decode_context_tokens`` say all about a step of decodes, with ``reads_squares = False`` (it
    is then asked for any context from 0 on); and one for which it is a straight line may have
    ``decode_line(decodes) -> (fixed_s, context_token_s)``, where ``fixed_s + context * context_token_s`` is ``step_s``
    to the last bit. Each makes it quicker to simulate, and is checked.

    ``host_s``, if it has it: seconds of every step in which the GPU waits for the engine's host, and which asynchronous
    scheduling hides behind the step before. It is part of what ``step_s`` says.

    ``spread``, if it has it: kind of operator -> standard deviation of log(real / said). ``kvsim run --uncertainty``
    then gives the cost model's field ``scale``, kind -> factor on seconds, other values in each draw.
    """

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step of this shape."""
        ...

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` steps, shape (steps,): the first has this shape (decodes only), and in each
        following one every decode has one more token of context. An array is the caller's to overwrite."""
        ...


class CostModel(Protocol):
    """Parameters of a cost model; ``start`` binds them to what is being priced.

    One that can time more of a layout than tensor parallelism names those sizes in ``layouts``, and gets the whole
    ``Layout`` as ``start(..., layout=...)``.
    """

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> StepCost:
        """The price list for this model on this GPU. Raises InputError if it cannot price it."""
        ...
