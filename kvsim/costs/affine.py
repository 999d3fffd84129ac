"""A step time that is a sum of coefficients: for tests, closed forms and comparisons."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvsim.core.hardware import Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.stretch import linear_stretch


@dataclass(frozen=True)
class Affine:
    """Seconds = base + prefill tokens + decode requests + sampled requests + context, each times a coefficient.

    Context counts the tokens in KV before the step, of prefills and decodes alike. Ignores model and GPU.
    The defaults are those of the step-by-step vLLM recordings that the tests replay. ``hidden_host_s`` is added too,
    where asynchronous scheduling does not hide it.
    """

    base_s: float = 4e-3
    prefill_token_s: float = 6e-5
    decode_request_s: float = 2e-5
    context_token_s: float = 2e-8
    sampled_request_s: float = 0.0
    hidden_host_s: float = 0.0

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> "AffineStep":
        """The coefficients, ready to price steps."""
        return AffineStep(self)


class AffineStep:
    """Prices steps by the coefficients of an ``Affine``."""

    __slots__ = (
        "_base_s",
        "_context_token_s",
        "_decode_request_s",
        "_prefill_token_s",
        "_sampled_request_s",
        "host_s",
        "longest_last",
    )
    reads_squares = False

    def __init__(self, cost: Affine) -> None:
        self._base_s = cost.base_s + cost.hidden_host_s
        self.host_s = cost.hidden_host_s
        self._prefill_token_s = cost.prefill_token_s
        self._decode_request_s = cost.decode_request_s
        self._context_token_s = cost.context_token_s
        self._sampled_request_s = cost.sampled_request_s
        self.longest_last = cost.context_token_s >= 0

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step."""
        context_tokens = shape.prefill_context_tokens + shape.decode_context_tokens
        return self._without_context_s(shape) + context_tokens * self._context_token_s

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` decode steps, (steps,): every decode gains a token of context per step."""
        return linear_stretch(self._without_context_s(shape), self._context_token_s, shape, steps)

    def decode_line(self, decodes: int) -> tuple[float, float]:
        """A step of so many decodes: seconds without context, and for each token of it."""
        return self._without_context_s(BatchShape(decode_requests=decodes, sampled_requests=decodes)), (
            self._context_token_s
        )

    def _without_context_s(self, shape: BatchShape) -> float:
        return (
            self._base_s
            + shape.prefill_tokens * self._prefill_token_s
            + shape.decode_requests * self._decode_request_s
            + shape.sampled_requests * self._sampled_request_s
        )
