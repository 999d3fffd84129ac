"""A step time from the operators of the model and the limits of the GPU."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.core.layers import Part
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.scale import HOST, Scale, spreads
from kvsim.costs.stretch import linear_stretch

GENERIC: Final[Mapping[str, Efficiency]] = MappingProxyType(
    {
        "gemm": Efficiency(compute=0.7, memory=0.8, fixed_s=3e-6),
        "prefill_attention": Efficiency(compute=0.5, memory=0.4, fixed_s=10e-6),
        "decode_attention": Efficiency(compute=1.0, memory=0.75, fixed_s=12e-6),
        "elementwise": Efficiency(compute=1.0, memory=0.65, fixed_s=2e-6),
        "all_reduce": Efficiency(compute=1.0, memory=0.6, fixed_s=6e-6),
    }
)
"""Operator kinds, with the constants of a GPU that brings none of its own: the middle of the three calibrated ones."""


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step = layers x operators + LM head + host time; an operator takes
    ``max(flops / (peak * compute), bytes / (bandwidth * memory)) + fixed_s``.

    Operators of a layer: QKV, O, gate/up and down GEMMs; prefill and decode attention; two RMSNorms with residual,
    rotary embedding, write of the new KV, gated activation; with tensor parallelism two all-reduces. ``fixed_s`` is
    what a kernel costs with next to nothing to do, as measured back to back: its ramp up and down and, for the eager
    attention kernels, part of a launch; a step under CUDA graphs pays no launches beyond it.
    Not modelled: tile and wave quantisation, CUDA-graph padding, uneven contexts in a batch, sampling.

    ``host_step_s`` and ``host_request_s`` are what the engine's host adds to a step and to each request in it, beyond
    what it hides behind the GPU. Default: the median by which the time per token of vLLM 0.15 (asynchronous
    scheduling, 7B and 8B models, H100, 5 to 50 requests) exceeds the operators; it does not grow with the requests.
    (https://github.com/inference-sim/sim-to-real-accuracy-validation; the synchronous engines of 2024 needed 1 to
    5 ms: vidur ``cpu_overheads``.) ``hidden_host_s`` is what it does hide, if scheduling is asynchronous; a step that
    is planned after the one before it takes so much longer.

    ``scale`` are factors on seconds: of ``gemm``, ``experts``, ``prefill_attention``, ``decode_attention``,
    ``all_reduce`` and ``elementwise``, of all ``operators`` together, and of the ``host``. ``{operators: 1.05}`` is a
    server of which each kernel takes 5 % longer.

    Source: Williams et al., Roofline, CACM 2009; efficiencies from ``gpu.efficiency``, else ``GENERIC``.
    """

    host_step_s: float = 1.5e-4
    host_request_s: float = 0.0
    hidden_host_s: float = 0.0
    scale: Mapping[str, float] | None = None

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> "RooflineStep":
        """Prices for this model on this GPU.

        Raises InputError if the model cannot be split over so many GPUs, or the GPU has an efficiency for an operator
        kind that does not exist.
        """
        return RooflineStep(self, model, gpu, tensor_parallel_size)


Counts = NDArray[np.int64]
Seconds = NDArray[np.float64]
_PRICED_TOGETHER = 256


class RooflineStep:
    """Prices steps of one model on one kind of GPU.

    ``generic_operators`` names the operator kinds for which the GPU has no measured efficiency; ``spread`` maps the
    kinds of ``Roofline.scale`` to the standard deviation of the logarithm of what they really take over what is said
    here. What depends on the tokens of the batch alone (GEMMs, elementwise, all-reduce) is computed once per count.
    """

    longest_last = True  # more context, more time
    reads_squares = False

    __slots__ = (
        "_decode_context_s",
        "_decode_fixed_s",
        "_decode_lines",
        "_decode_request_s",
        "_head_s",
        "_host_request_s",
        "_linear_s",
        "_operators",
        "_prefill_byte_s",
        "_prefill_fixed_s",
        "_prefill_flop_s",
        "_prefill_token_s",
        "generic_operators",
        "host_s",
        "spread",
    )

    def __init__(self, cost: Roofline, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> None:
        for kind in gpu.efficiency:
            if kind not in GENERIC:
                raise InputError(
                    f"{gpu.name}: unknown operator kind", key=f"efficiency.{kind}", hint=f"known: {', '.join(GENERIC)}"
                )
        self.generic_operators = tuple(kind for kind in GENERIC if kind not in gpu.efficiency)
        known: Mapping[str, float] = spreads()["roofline"]["kinds"]
        self.spread = {kind: sigma for kind, sigma in known.items() if tensor_parallel_size > 1 or kind != "all_reduce"}
        scale = Scale(cost.scale)
        gpu, host = scale.gpu(gpu, GENERIC), scale[HOST]
        operators = Operators((cost.host_step_s + cost.hidden_host_s) * host, model, gpu, tensor_parallel_size)
        model.check_16_bit()
        self._operators = operators
        self._linear_s: dict[int, float] = {}
        self._head_s: dict[int, float] = {0: 0.0}
        self._decode_lines: dict[int, tuple[float, float]] = {}
        self._host_request_s = cost.host_request_s * host
        self.host_s = cost.hidden_host_s * host

        # One query token against one key: 2 multiply-adds per head and dimension. KV is read once per chunk.
        pair_flops = 4 * operators.q_width * model.layers
        kv_bytes = 2 * operators.kv_width * model.dtype_bytes * model.layers
        query_bytes = 2 * operators.q_width * model.dtype_bytes * model.layers  # Q in, attention output out
        prefill = operators.efficiency["prefill_attention"]
        prefill_bytes_per_s = gpu.hbm_bytes_per_s * prefill.memory
        # Causal: a chunk c after a context x has c * x + c^2 / 2 pairs; the half is taken here.
        self._prefill_flop_s = pair_flops / 2 / (gpu.bf16_flops_per_s * prefill.compute)
        self._prefill_byte_s = kv_bytes / prefill_bytes_per_s
        self._prefill_token_s = (kv_bytes + query_bytes) / prefill_bytes_per_s
        self._prefill_fixed_s = prefill.fixed_s * model.layers
        # A decode attends its context and its own token; both reading and arithmetic are proportional to them.
        decode = operators.efficiency["decode_attention"]
        decode_bytes_per_s = gpu.hbm_bytes_per_s * decode.memory
        self._decode_context_s = max(
            kv_bytes / decode_bytes_per_s, pair_flops / (gpu.bf16_flops_per_s * decode.compute)
        )
        self._decode_request_s = self._decode_context_s + query_bytes / decode_bytes_per_s + self._host_request_s
        self._decode_fixed_s = decode.fixed_s * model.layers

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step."""
        tokens = shape.prefill_tokens
        decodes = shape.decode_requests
        try:
            step_s = self._linear_s[tokens + decodes] + self._head_s[shape.sampled_requests]
        except KeyError:
            step_s = self._linear_and_head_s(tokens + decodes, shape.sampled_requests)
        if tokens:
            flop_s = (2 * shape.prefill_chunk_contexts + shape.prefill_chunk_squares) * self._prefill_flop_s
            byte_s = shape.prefill_context_tokens * self._prefill_byte_s + tokens * self._prefill_token_s
            step_s += self._prefill_fixed_s + shape.prefill_requests * self._host_request_s
            step_s += flop_s if flop_s > byte_s else byte_s
        if decodes:
            step_s += self._decode_fixed_s + decodes * self._decode_request_s
            step_s += shape.decode_context_tokens * self._decode_context_s
        return step_s

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` decode steps, (steps,): every decode gains a token of context per step."""
        return linear_stretch(*self.decode_line(shape.decode_requests), shape, steps)

    def decode_line(self, decodes: int) -> tuple[float, float]:
        """A step of so many decodes: seconds without context, and for each token of it."""
        try:
            return self._decode_lines[decodes]
        except KeyError:
            fixed_s = self._linear_and_head_s(decodes, decodes)
            fixed_s += self._decode_fixed_s + decodes * self._decode_request_s
            line = self._decode_lines[decodes] = fixed_s, self._decode_context_s
            return line

    def _linear_and_head_s(self, tokens: int, sampled: int) -> float:
        """A pair of counts of which one is met for the first time."""
        price_neighbours(self._linear_s, self._operators.linear_s, tokens)
        price_neighbours(self._head_s, self._operators.head_s, sampled)
        self._head_s[0] = 0.0  # no sample, no head
        return self._linear_s[tokens] + self._head_s[sampled]


def price_neighbours(known: dict[int, float], price: Callable[[Counts], Seconds], count: int) -> None:
    """If this count has no price yet, give it one, and its neighbours too: in one go they hardly cost more."""
    if count not in known:
        first = count - count % _PRICED_TOGETHER
        counts = np.arange(first, first + _PRICED_TOGETHER)
        known.update(zip(counts.tolist(), price(counts).tolist(), strict=True))


class Operators:
    """The operators of one rank whose cost depends on a number of tokens alone: arrays of counts to arrays of s."""

    def __init__(self, host_step_s: float, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> None:
        tp = tensor_parallel_size
        attention, _ = model.uniform()
        self.mlp_columns = self._mlp_columns(model)
        for what, size in (("attention heads", attention.heads), ("MLP columns", self.mlp_columns)):
            if size % tp:
                raise InputError(
                    f"{tp} GPUs cannot share the {size} {what} of {model.name}",
                    key="tensor_parallel_size",
                    hint=f"it must divide {size}",
                )
        self.host_step_s, self.model, self.gpu, self.tp = host_step_s, model, gpu, tp
        self.efficiency = {**GENERIC, **gpu.efficiency}
        self.heads, self.kv_heads = attention.heads // tp, max(1, attention.kv_heads // tp)
        self.head_dim = attention.head_dim
        self.q_width = self.heads * self.head_dim
        self.kv_width = self.kv_heads * self.head_dim
        self.mlp_width = self.mlp_columns // tp

    def _mlp_columns(self, model: ModelSpec) -> int:
        """Columns of a layer's MLP over all ranks. Raises InputError for a mixture, which this class cannot price."""
        return model.intermediate_size

    def linear_s(self, tokens: Counts) -> Seconds:
        """Seconds of everything but attention and LM head in a step of so many tokens, host time included."""
        hidden = self.model.hidden_size
        layer_s = (
            self.gemm_s(tokens, self.q_width + 2 * self.kv_width, hidden, "attention")
            + self.gemm_s(tokens, hidden, self.q_width, "attention")
            + self.feed_forward_s(tokens)
            + 2 * self.elementwise_s(tokens, 4 * hidden)  # RMSNorm: read x and residual, write both
            + self.elementwise_s(tokens, 2 * (self.q_width + self.kv_width))  # rotary embedding of Q and K, in place
            + self.elementwise_s(tokens, 4 * self.kv_width)  # new K and V into the cache
            + 2 * self.all_reduce_s(tokens)
        )
        return self.model.layers * layer_s + self.host_step_s

    def feed_forward_s(self, tokens: Counts) -> Seconds:
        """Seconds of a layer's gated MLP."""
        hidden = self.model.hidden_size
        return (
            self.gemm_s(tokens, 2 * self.mlp_width, hidden, "mlp")
            + self.gemm_s(tokens, hidden, self.mlp_width, "mlp")
            + self.elementwise_s(tokens, 3 * self.mlp_width)  # gated activation: read two, write one
        )

    def head_s(self, sampled: Counts) -> Seconds:
        """Seconds of the LM head for so many sampled positions; the vocabulary is split over the ranks."""
        return self.gemm_s(sampled, -(-self.model.vocab_size // self.tp), self.model.hidden_size, "head")

    def gemm_s(self, m: Counts, n: int, k: int, part: Part) -> Seconds:
        """y[m, n] = x[m, k] W[n, k]^T: 2 m n k FLOPs; weights, input and output cross the memory once.

        ``part`` says whose weights these are, for cost models that know formats other than 16 bit.
        """
        fitted = self.efficiency["gemm"]
        flop_s = 2 * m * n * k / (self.gpu.bf16_flops_per_s * fitted.compute)
        bytes_moved = (n * k + m * k + m * n) * self.model.dtype_bytes
        return np.maximum(flop_s, bytes_moved / (self.gpu.hbm_bytes_per_s * fitted.memory)) + fitted.fixed_s

    def elementwise_s(self, tokens: Counts, values: int) -> Seconds:
        """``values`` numbers read or written per token."""
        fitted = self.efficiency["elementwise"]
        bytes_moved = tokens * values * self.model.dtype_bytes
        return bytes_moved / (self.gpu.hbm_bytes_per_s * fitted.memory) + fitted.fixed_s

    def all_reduce_s(self, tokens: Counts) -> Seconds | float:
        """Sum of the ranks' hidden states: a ring sends 2 (tp - 1) / tp of the message over each link."""
        if self.tp == 1:
            return 0.0
        fitted = self.efficiency["all_reduce"]
        message_bytes = tokens * self.model.hidden_size * self.model.dtype_bytes
        ring_bytes = message_bytes * 2 * (self.tp - 1) / self.tp
        return ring_bytes / (self.gpu.gpu_link_bytes_per_s * fitted.memory) + fitted.fixed_s
