"""A check that cannot fail is worth nothing: for each there is a policy that is wrong in just that way."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.request import Request
from kvsim.core.seats import Plan, ReplicaView
from kvsim.core.shape import BatchShape
from kvsim.core.trace import Trace, TraceRows
from kvsim.costs.affine import Affine, AffineStep
from kvsim.kv.paged import Paged, PagedPool
from kvsim.routers.least_requests import LeastRequests
from kvsim.routers.random import Random
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.testing import check_policy
from kvsim.workload.readers.plain import Plain

SAMPLE = Path(__file__).parents[3] / "traces" / "chat_sessions.csv"


def assert_finds(policy: Any, check: str, problem: str) -> None:
    """The check of this name (its beginning) finds something that reads like this (a part of it)."""
    found = {c.name: c.problem for c in check_policy(policy, SAMPLE) if c.problem}
    match = [text for name, text in found.items() if name.startswith(check)]
    assert match, f"{check!r} found nothing; others: {found}"
    assert problem in match[0], match[0]


# ---- any seat


@dataclass
class Thawed:
    """Not frozen, and changes its own parameters."""

    max_num_seqs: int = 4
    max_num_batched_tokens: int = 100

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        ChunkedPrefill(self.max_num_seqs, self.max_num_batched_tokens).plan(replica, plan)
        self.max_num_seqs = replica.running_count + 1


def test_a_policy_is_frozen() -> None:
    assert_finds(Thawed(), "Thawed is a scheduler", "frozen=True")


def test_parameters_stay() -> None:
    assert_finds(Thawed(), "its parameters stay", "max_num_seqs=4")


def test_a_class_without_verbs_fits_no_seat() -> None:
    with pytest.raises(InputError, match=r"str fits no seat.*plan \(scheduler\)"):
        list(check_policy("chunked_prefill"))


# ---- schedulers


@dataclass(frozen=True)
class Overtaking(ChunkedPrefill):
    """Admits the last in the queue."""

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        for request in reversed(list(replica.waiting)):
            plan.admit(request)


@dataclass(frozen=True)
class Forgetful(ChunkedPrefill):
    """Never admits request 7, nor anyone behind it."""

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if not replica.waiting or replica.waiting.first.id != 7:
            super().plan(replica, plan)


@dataclass(frozen=True)
class Counterfeiting(ChunkedPrefill):
    """Puts blocks into the books that are not there."""

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        super().plan(replica, plan)
        if replica.running_count == 3:
            replica.kv.free_blocks += 1  # type: ignore[attr-defined]  # a policy has no business here


_CALLS = itertools.count()


@dataclass(frozen=True)
class Remembering(ChunkedPrefill):
    """Counts its calls outside the run."""

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        narrow = replace(self, long_prefill_token_threshold=1 + next(_CALLS) % 50)
        ChunkedPrefill.plan(narrow, replica, plan)


@dataclass(frozen=True)
class ClockWatching(ChunkedPrefill):
    """Admits nobody in every other 50 ms, and says that it need not see each step."""

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if int(replica.now_s * 20) % 2 and replica.running_count and not replica.prefilling:
            plan.make_room()
        else:
            super().plan(replica, plan)


@dataclass(frozen=True)
class LateCutting(ChunkedPrefill):
    """Preempts when contexts have grown to 300 tokens: it has to see each step, and says that it need not."""

    every_step = False

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        if replica.running_count > 1 and replica.resident_tokens > 300:
            plan.preempt(replica.youngest)
        super().plan(replica, plan)


@pytest.mark.parametrize(
    ("policy", "check", "problem"),
    [
        (Overtaking(), "runs", "only the head of the waiting queue can be admitted"),
        (Forgetful(), "every request ends", "requests had not ended after 3600 s, first request 7"),
        (Counterfeiting(), "laws hold", "AssertionError: replica 0"),
        (Remembering(), "the same run twice", "_ns of request"),
        (ClockWatching(), "leaping, stepping", "review_at"),
        (LateCutting(), "leaping, stepping", "being asked before every step"),
    ],
)
def test_wrong_schedulers_are_found(policy: Any, check: str, problem: str) -> None:
    assert_finds(policy, check, problem)


def test_a_scheduler_that_sees_every_step_may_change_its_mind() -> None:
    @dataclass(frozen=True)
    class Honest(LateCutting):
        every_step = True

    assert not [str(check) for check in check_policy(Honest()) if check.problem and check.name.startswith("leaping")]


def test_an_error_names_the_line_of_the_policy() -> None:
    assert_finds(Overtaking(), "runs", "(test_wrong_policies.py:")


# ---- routers


@dataclass(frozen=True)
class LastReplica(LeastRequests):
    """Counts from the end."""

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: None) -> int:
        return -1


@dataclass(frozen=True)
class Meddling(LeastRequests):
    """Notes the request down in the replica's own counter."""

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: None) -> int:
        chosen = super().route(request, replicas, memory)
        replicas[chosen].waiting_tokens += request.prompt_tokens  # type: ignore[misc]
        return chosen


@dataclass(frozen=True)
class OwnDice(Random):
    """Has a generator of its own for all runs."""

    dice: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0), repr=False)

    def start(self, rng: np.random.Generator) -> np.random.Generator:
        return self.dice


@dataclass(frozen=True)
class Denying(LeastRequests):
    """Reads counters and says it does not."""

    reads_counters = False


@dataclass(frozen=True)
class StretchCounting(LeastRequests):
    """Prefers the replica whose engine has leapt least often."""

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: None) -> int:
        stretches = [replica.stretches for replica in replicas]  # type: ignore[attr-defined]
        return stretches.index(min(stretches))


@pytest.mark.parametrize(
    ("policy", "check", "problem"),
    [
        (LastReplica(), "runs", "was sent to replica -1; needed: 0 to 2"),
        (Meddling(), "reads counters and changes none", "changed waiting_tokens of replica"),
        (Meddling(), "laws hold", "counted"),
        (OwnDice(), "the same run twice", "three replicas, run twice: "),
        (StretchCounting(), "leaping and stepping", "three replicas, leaping and stepping: "),
        (Denying(), "reads_counters = False only", "with counters up to date"),
    ],
)
def test_wrong_routers_are_found(policy: Any, check: str, problem: str) -> None:
    assert_finds(policy, check, problem)


# ---- KV managers


@dataclass(frozen=True)
class LeakyPool(Paged):
    """Makes ledgers of another kind."""

    def start(self, total_blocks: int) -> PagedPool:
        return self.Pool(total_blocks, self.block_size)

    class Pool(PagedPool):
        def release(self, request: Request, context_tokens: int) -> None:
            held = request.held_blocks
            super().release(request, context_tokens)
            self.free_blocks -= held > 2  # one block of a longer request stays behind


@dataclass(frozen=True)
class CuriousPool(LeakyPool):
    class Pool(PagedPool):  # type: ignore[assignment]
        def lookup(self, request: Request) -> int:
            self.free_blocks -= 1
            return 0


@dataclass(frozen=True)
class HalfPool(LeakyPool):
    class Pool(PagedPool):  # type: ignore[assignment]
        def allocate(self, request: Request, tokens: int) -> bool:
            missing = self.missing_blocks(request, tokens)
            taken = min(missing, self.free_blocks)
            self.free_blocks -= taken
            request.held_blocks += taken
            return taken == missing


@dataclass(frozen=True)
class ShortsightedPool(LeakyPool):
    class Pool(PagedPool):  # type: ignore[assignment]
        def steps_until_short(self, step: int, limit: int) -> int:
            return max(0, super().steps_until_short(step, limit) - 1)


@dataclass(frozen=True)
class RoundingPool(LeakyPool):
    class Pool(PagedPool):  # type: ignore[assignment]
        def growth_blocks(self, step: int, steps: int) -> int:
            return super().growth_blocks(step, steps) if steps == 1 else steps * sum(self._phases) // self._block_size


@dataclass(frozen=True)
class HauntedPool(LeakyPool):
    """A request that is released goes on growing."""

    class Pool(PagedPool):  # type: ignore[assignment]
        def release(self, request: Request, context_tokens: int) -> None:
            request.phase = -1
            super().release(request, context_tokens)


@dataclass(frozen=True)
class Hoarding(Paged):
    def stored(self, context_tokens: int) -> int:
        return context_tokens + 1


@dataclass(frozen=True)
class RefusingPool(LeakyPool):
    class Pool(PagedPool):  # type: ignore[assignment]
        def join(self, request: Request, context_tokens: int, step: int) -> None:
            raise KeyError(request.id)


@pytest.mark.parametrize(
    ("policy", "check", "problem"),
    [
        (RefusingPool(), "runs", "KeyError"),
        (CuriousPool(), "lookup and every other question", "lookup moved free blocks"),
        (HalfPool(), "allocate says yes or no", "allocate said False"),
        (LeakyPool(), "free + held = total", "free + "),
        (HauntedPool(), "free + held = total", "free + "),
        (RoundingPool(), "growth over many steps", "one step after the other"),
        (ShortsightedPool(), "growth over many steps", "steps_until_short says"),
        (Hoarding(), "stored and attended", "stored(0) is 1"),
        (LeakyPool(), "laws hold", "AssertionError"),
        (RoundingPool(), "leaping and stepping", "of request"),
    ],
)
def test_wrong_kv_managers_are_found(policy: Any, check: str, problem: str) -> None:
    assert_finds(policy, check, problem)


# ---- cost models


class FreeStep(AffineStep):
    def step_s(self, shape: BatchShape) -> float:
        return 0.0 if shape.decode_requests == 7 else super().step_s(shape)


class OtherStretch(AffineStep):
    def steps_s(self, shape: BatchShape, steps: int) -> Any:
        return np.asarray(super().steps_s(shape, steps)) * (1 + 1e-15)


class LongStretch(AffineStep):
    def steps_s(self, shape: BatchShape, steps: int) -> Any:
        return super().steps_s(shape, steps + 1)


class SlowStretch(AffineStep):
    def steps_s(self, shape: BatchShape, steps: int) -> Any:
        return [2 * seconds for seconds in super().steps_s(shape, steps)]


class Warming(AffineStep):
    """Gets faster as it is used."""

    calls = 0

    def step_s(self, shape: BatchShape) -> float:
        self.calls += 1
        return super().step_s(shape) * (1 + 1 / self.calls)


class Caching(AffineStep):
    """Believes that an object it has seen has not changed."""

    def __init__(self, cost: Affine) -> None:
        super().__init__(cost)
        self._seen: dict[int, float] = {}
        self._kept: list[BatchShape] = []

    def step_s(self, shape: BatchShape) -> float:
        self._kept.append(shape)
        return self._seen.setdefault(id(shape), super().step_s(shape))


class Scribbling(AffineStep):
    def step_s(self, shape: BatchShape) -> float:
        time_s = super().step_s(shape)
        shape.decode_context_tokens += shape.decode_requests
        return time_s


class Refusing(AffineStep):
    def step_s(self, shape: BatchShape) -> float:
        raise ZeroDivisionError("no GPU")


@dataclass(frozen=True)
class Priced(Affine):
    """An affine cost whose price list is of another class."""

    step: type[AffineStep] = AffineStep

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> AffineStep:
        return self.step(self)


@pytest.mark.parametrize(
    ("step", "check", "problem"),
    [
        (Refusing, "runs", "ZeroDivisionError: no GPU"),
        (FreeStep, "a step takes seconds above 0", "takes 0.0 s"),
        (OtherStretch, "steps_s is step_s", "decodes with"),
        (LongStretch, "steps_s is step_s", "steps_s of 1 steps has shape (2,)"),
        (Warming, "the same shape costs the same", "when asked first"),
        (Caching, "the same shape costs the same", "when asked first"),
        (Scribbling, "the same shape costs the same", "was changed to"),
        (SlowStretch, "leaping and stepping", "of request"),
    ],
)
def test_wrong_costs_are_found(step: type[AffineStep], check: str, problem: str) -> None:
    assert_finds(Priced(step=step), check, problem)


# ---- readers


@dataclass(frozen=True)
class Empty(Plain):
    def read(self, path: Path) -> Trace:
        nothing = np.empty(0, np.int64)
        return Trace(nothing, nothing, nothing, rows=TraceRows(0))


@dataclass(frozen=True)
class Greedy(Plain):
    def recognises(self, head: str) -> bool:
        return True


@dataclass(frozen=True)
class Blind(Plain):
    def recognises(self, head: str) -> bool:
        return False


@dataclass(frozen=True)
class Altering(Plain):
    """Reads the table, then does something to it."""

    def read(self, path: Path) -> Trace:
        return replace(super().read(path), **self.altered(super().read(path)))

    def altered(self, trace: Trace) -> dict[str, Any]:
        return {}


class Silent(Altering):
    def altered(self, trace: Trace) -> dict[str, Any]:
        return {"rows": None}


class Dropping(Altering):
    def altered(self, trace: Trace) -> dict[str, Any]:
        keep = trace.prompt_tokens < 1000
        names = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "think_ns")
        return {name: getattr(trace, name)[keep] for name in names}


class Late(Altering):
    def altered(self, trace: Trace) -> dict[str, Any]:
        return {"arrival_ns": trace.arrival_ns + 5}


class Floating(Altering):
    def altered(self, trace: Trace) -> dict[str, Any]:
        return {"prompt_tokens": trace.prompt_tokens.astype(np.float64)}


_READS = itertools.count()


class Moody(Altering):
    def altered(self, trace: Trace) -> dict[str, Any]:
        return {"output_tokens": trace.output_tokens + next(_READS)}


@dataclass(frozen=True)
class Naive:
    """Splits lines at commas and hopes."""

    def recognises(self, head: str) -> bool:
        return head.startswith("arrival_s,prompt_tokens,output_tokens")

    def read(self, path: Path) -> Trace:
        rows = list(self.rows(path))
        return Trace(*(np.array(column, np.int64) for column in zip(*rows, strict=True)), rows=TraceRows(len(rows)))

    def rows(self, path: Path) -> Iterator[tuple[int, int, int]]:
        for line in path.read_text().splitlines()[1:]:
            arrival, prompt, output = line.split(",")[:3]
            yield round(float(arrival) * 1e9), int(prompt), int(output)


@pytest.mark.parametrize(
    ("reader", "check", "problem"),
    [
        (Empty(), "runs", "has no rows"),
        (Greedy(), "recognises", "it takes '' for its own"),
        (Blind(), "recognises", "does not recognise chat_sessions.csv"),
        (Silent(), "the trace is sound", "rows is None"),
        (Dropping(), "the trace is sound", "rows to replay"),
        (Late(), "the trace is sound", "arrives at 5 ns"),
        (Floating(), "the trace is sound", "prompt_tokens is float64"),
        (Moody(), "reading twice", "output_tokens differs"),
        (Naive(), "a damaged file", "instead of an InputError"),
    ],
)
def test_wrong_readers_are_found(reader: Any, check: str, problem: str) -> None:
    assert_finds(reader, check, problem)


def test_a_naive_reader_passes_what_it_can() -> None:
    wrong = [check.name for check in check_policy(Naive(), SAMPLE) if check.problem]
    assert wrong == ["a damaged file gives a sound trace or an InputError"]


def test_a_reader_needs_a_sample() -> None:
    with pytest.raises(InputError, match="--sample: a reader is checked on a file"):
        list(check_policy(Plain()))
