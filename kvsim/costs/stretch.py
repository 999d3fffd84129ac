"""The times of successive decode steps when each is linear in the context: one formula, two speeds."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.shape import BatchShape

ARRAY_FROM_STEPS: Final = 40
"""Shorter stretches are cheaper as a list (measured: about 40 ns a step, against 1.6 us an array)."""


def linear_stretch(
    fixed_s: float, context_token_s: float, shape: BatchShape, steps: int
) -> Sequence[float] | NDArray[np.float64]:
    """``fixed_s + context * context_token_s`` for each of ``steps`` decode steps, shape (steps,), s.

    The context starts at the shape's and grows by one token per decode and step. List and array agree in the last
    bit, and with the same expression on single numbers.

    >>> linear_stretch(1.0, 0.5, BatchShape(decode_requests=2, decode_context_tokens=10), 3)
    [6.0, 7.0, 8.0]
    """
    growth = shape.decode_requests
    first = shape.decode_context_tokens
    end = first + steps * growth
    if steps < ARRAY_FROM_STEPS:
        return [fixed_s + context * context_token_s for context in range(first, end, growth)]
    seconds = np.arange(first, end, growth, dtype=np.float64)
    seconds *= context_token_s
    seconds += fixed_s
    return seconds
