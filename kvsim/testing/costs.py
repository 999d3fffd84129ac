"""What a cost model promises: the same shape costs the same, alone or as part of a stretch."""

from collections.abc import Iterator
from math import isfinite

import numpy as np

from kvsim.core.seats import CostModel, StepCost
from kvsim.core.shape import BatchShape
from kvsim.testing.checks import Look
from kvsim.testing.worlds import GPU, MODEL, first_difference, other_worlds

STRETCHES = (1, 2, 3, 15, 39, 40, 41, 64, 65, 300, 4096)
"""Lengths on both sides of where models change from a loop to an array."""


def looks(cost: CostModel) -> Iterator[Look]:
    """The checks of a cost model."""

    def runs() -> str | None:
        for world in other_worlds():
            world.having(cost=_step_cost(cost)).run()
        return None

    def positive() -> str | None:
        for shape in _shapes():
            time_s = _step_cost(cost).step_s(shape)
            if not (isfinite(time_s) and time_s > 0):
                return f"{shape!r} takes {time_s!r} s"
        return None

    def leaps() -> str | None:
        for world in other_worlds():
            world = world.having(cost=_step_cost(cost))
            difference = first_difference(world.run(), world.run("step"))
            if difference:
                return f"{world.name}, leaping and stepping: {difference}"
        return None

    yield "a step takes seconds above 0", positive
    if hasattr(_step_cost(cost), "host_s"):
        yield "it says host_s, and no step takes less", lambda: _waits(_step_cost(cost))
    yield "steps_s is step_s, bit for bit", lambda: _stretches(_step_cost(cost))
    if getattr(_step_cost(cost), "longest_last", False):
        yield (
            "it says longest_last, and no step of a stretch is longer than the next",
            lambda: _rising(_step_cost(cost)),
        )
    if hasattr(_step_cost(cost), "decode_line"):
        yield "it has a decode_line, and step_s lies on it to the last bit", lambda: _straight(_step_cost(cost))
    if not getattr(_step_cost(cost), "reads_squares", True):
        yield "it says reads_squares = False, and does not", lambda: _blind(_step_cost(cost))
    yield "the same shape costs the same, whatever was asked before, and is left as it was", lambda: _pure(cost)
    yield "runs", runs
    yield "leaping and stepping agree in ns", leaps


def _step_cost(cost: CostModel) -> StepCost:
    return cost.start(MODEL, GPU, 1)


def _shapes() -> Iterator[BatchShape]:
    """Decodes alone, prompts alone, both; few and many."""
    for decodes in (1, 2, 7, 64, 256):
        for context in (1, 17, 1999):
            yield _decodes(decodes, decodes * context)
    for tokens, context in ((1, 0), (33, 0), (512, 1024), (2048, 0)):
        chunk = {
            "prefill_tokens": tokens,
            "prefill_chunk_squares": tokens * tokens,
            "prefill_chunk_contexts": tokens * context,
            "prefill_context_tokens": context,
            "prefill_requests": 1,
        }
        yield BatchShape(**chunk, sampled_requests=1)
        yield BatchShape(
            **chunk,
            decode_requests=5,
            decode_context_tokens=1003,
            decode_context_squares=201_203,
            sampled_requests=6,
        )


def _decodes(decodes: int, context: int) -> BatchShape:
    """So many decodes with this context together, shared as evenly as it goes."""
    least, more = divmod(context, decodes)
    squares = (decodes - more) * least**2 + more * (least + 1) ** 2
    return BatchShape(
        decode_requests=decodes,
        decode_context_tokens=context,
        decode_context_squares=squares,
        sampled_requests=decodes,
    )


def _stretches(cost: StepCost) -> str | None:
    for decodes, context in ((1, 1), (1, 1000), (3, 100), (17, 4321), (64, 64 * 500 + 7)):
        shape = _decodes(decodes, context)
        squares = shape.decode_context_squares
        alone = [
            cost.step_s(
                BatchShape(
                    decode_requests=decodes,
                    decode_context_tokens=context + i * decodes,
                    decode_context_squares=squares + 2 * i * context + i * i * decodes,  # sum of (c + i)^2
                    sampled_requests=decodes,
                )
            )
            for i in range(max(STRETCHES))
        ]
        for steps in STRETCHES:
            together = np.asarray(cost.steps_s(_decodes(decodes, context), steps), np.float64)
            if together.shape != (steps,):
                return f"steps_s of {steps} steps has shape {together.shape}"
            rows = np.flatnonzero(together != alone[:steps])
            if len(rows):
                i = int(rows[0])
                return (
                    f"{decodes} decodes with {context} tokens of context, step {i} of {steps}: "
                    f"steps_s {float(together[i])!r}, step_s {alone[i]!r}"
                )
    return None


def _rising(cost: StepCost) -> str | None:
    for decodes, context in ((1, 1), (3, 100), (64, 64 * 500 + 7)):
        seconds = np.asarray(cost.steps_s(_decodes(decodes, context), max(STRETCHES)), np.float64)
        falls = np.flatnonzero(seconds[1:] < seconds[:-1])
        if len(falls):
            i = int(falls[0])
            return f"{decodes} decodes with {context} tokens of context: step {i} takes {seconds[i]!r} s, the next less"
    return None


def _straight(cost: StepCost) -> str | None:
    for decodes, context in ((1, 1), (1, 1000), (3, 100), (17, 4321), (64, 64 * 500 + 7), (256, 256 * 1999)):
        fixed_s, token_s = cost.decode_line(decodes)  # type: ignore[attr-defined]  # it is optional
        time_s = cost.step_s(_decodes(decodes, context))
        if time_s != fixed_s + context * token_s:
            line = f"{fixed_s!r} + context * {token_s!r}"
            return f"{decodes} decodes with {context} tokens of context: {time_s!r} s, not {line}"
    return None


def _waits(cost: StepCost) -> str | None:
    host_s: float = cost.host_s  # type: ignore[attr-defined]  # it is optional
    if host_s < 0:
        return f"host_s is {host_s!r}"
    for shape in _shapes():
        if cost.step_s(shape) < host_s:
            return f"{shape!r} takes {cost.step_s(shape)!r} s, host_s is {host_s!r}"
    return None


def _blind(cost: StepCost) -> str | None:
    for decodes, context in ((2, 1000), (64, 64 * 500)):
        even, skewed = _decodes(decodes, context), _decodes(decodes, context)
        skewed.decode_context_squares = (context - decodes + 1) ** 2 + decodes - 1  # one has all but a token each
        if cost.step_s(even) != cost.step_s(skewed):
            return f"{decodes} decodes with {context} tokens of context cost more or less when unevenly shared"
    return None


def _pure(cost: CostModel) -> str | None:
    shapes = list(_shapes())
    fresh = [_step_cost(cost).step_s(shape) for shape in _shapes()]
    one = _step_cost(cost)
    shared = BatchShape()  # an engine fills the same object again and again
    for order in (range(len(shapes)), reversed(range(len(shapes)))):
        for i in order:
            for name in BatchShape.__slots__:
                setattr(shared, name, getattr(shapes[i], name))
            time_s = one.step_s(shared)
            if shared.prefill_tokens == 0:
                one.steps_s(shared, 50)
            if repr(shared) != repr(shapes[i]):
                return f"{shapes[i]!r} was changed to {shared!r}"
            if time_s != fresh[i]:
                return f"{shapes[i]!r} costs {fresh[i]!r} s when asked first, and {time_s!r} s later"
    return None
