"""A step time from the operators of the model and the limits of the GPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from kvsim.core.hardware import Gpu
from kvsim.core.layers import Attention
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.costs.pieces import PiecedStep, Prefill, linear_and_head_s
from kvsim.costs.rank import GENERIC, LAYOUTS, Rank, check_constants
from kvsim.costs.scale import HOST, Scale, spreads
from kvsim.costs.stretch import linear_stretch


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step = layers x operators + LM head + host time; an operator takes
    ``max(flops / (peak * compute), bytes / (bandwidth * memory)) + fixed_s``.

    Operators of a layer: QKV, O, gate/up and down GEMMs; prefill and decode attention; two RMSNorms with residual,
    rotary embedding, write of the new KV, gated activation. With tensor parallelism a layer has two all-reduces, the
    embedding one, and the logits are gathered. ``fixed_s`` is what a kernel costs with next to nothing to do, as
    measured back to back: its ramp up and down and, for the eager attention kernels, part of a launch; a step under
    CUDA graphs pays no launches beyond it.
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

    layouts: ClassVar = LAYOUTS

    def start(
        self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int, layout: Layout | None = None
    ) -> "RooflineStep | PiecedStep":
        """Prices for this model on this GPU; ``layout``: the whole of it, if it has more than tensor parallelism.

        Raises InputError if the model cannot be split over so many GPUs, a kind of its layers cannot be timed, or the
        GPU has no peak for the format of the weights, or an efficiency for an operator kind that does not exist.
        """
        check_constants(gpu)
        scale = Scale(self.scale)
        host = scale[HOST]
        slower = scale.gpu(gpu, GENERIC)
        layout = layout or Layout(tensor_parallel_size)
        rank = Rank((self.host_step_s + self.hidden_host_s) * host, model, slower, layout)
        host_s, host_request_s = self.hidden_host_s * host, self.host_request_s * host
        known: Mapping[str, float] = spreads()["roofline"]["kinds"]
        spread = {kind: sigma for kind, sigma in known.items() if rank.tp > 1 or kind != "all_reduce"}
        generic = tuple(kind for kind in GENERIC if kind not in gpu.efficiency)
        (mixer, _), *others = rank.mixers
        if isinstance(mixer, Attention) and mixer.window is None and not others:
            return RooflineStep(rank, host_s, host_request_s, generic, spread)
        prefills = [Prefill(rank, mixer, count, slower) for mixer, count in rank.mixers]
        return PiecedStep(rank, prefills, host_s, host_request_s, generic, spread=spread)


class RooflineStep:
    """Prices steps of a model all of whose layers attend to everything in the same way: a straight line in the context.

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

    def __init__(
        self,
        rank: Rank,
        host_s: float,
        host_request_s: float,
        generic_operators: tuple[str, ...],
        spread: Mapping[str, float],
    ) -> None:
        self.generic_operators, self.spread = generic_operators, spread
        self._operators = rank
        self._linear_s: dict[int, float] = {}
        self._head_s: dict[int, float] = {0: 0.0}
        self._decode_lines: dict[int, tuple[float, float]] = {}
        self._host_request_s = host_request_s
        self.host_s = host_s
        gpu, ((mixer, layers),) = rank.gpu, rank.mixers

        # One query token against one key: 2 multiply-adds per head and dimension. KV is read once per chunk.
        pair_flops, kv_bytes, query_bytes = (layers * each for each in rank.attention_sizes(mixer))
        prefill = rank.efficiency["prefill_attention"]
        prefill_bytes_per_s = gpu.hbm_bytes_per_s * prefill.memory
        # Causal: a chunk c after a context x has c * x + c^2 / 2 pairs; the half is taken here.
        self._prefill_flop_s = pair_flops / 2 / (gpu.bf16_flops_per_s * prefill.compute)
        self._prefill_byte_s = kv_bytes / prefill_bytes_per_s
        self._prefill_token_s = (kv_bytes + query_bytes) / prefill_bytes_per_s
        self._prefill_fixed_s = prefill.fixed_s * layers
        # A decode attends its context and its own token; both reading and arithmetic are proportional to them.
        decode = rank.efficiency["decode_attention"]
        decode_bytes_per_s = gpu.hbm_bytes_per_s * decode.memory
        self._decode_context_s = max(
            kv_bytes / decode_bytes_per_s, pair_flops / (gpu.bf16_flops_per_s * decode.compute)
        )
        self._decode_request_s = self._decode_context_s + query_bytes / decode_bytes_per_s + host_request_s
        self._decode_fixed_s = decode.fixed_s * layers

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
        return linear_and_head_s(self._operators, self._linear_s, self._head_s, tokens, sampled)
