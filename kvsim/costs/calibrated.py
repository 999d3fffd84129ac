"""A step time from operators whose efficiency was measured over their shapes."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import frexp, hypot
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.layers import AUTO, KV_FORMATS, Experts, Part
from kvsim.core.model import ModelSpec
from kvsim.core.shape import BatchShape
from kvsim.core.surface import Factor, Surface, SurfaceFile, octave, read_surfaces
from kvsim.costs.hosts import host_of, read_server
from kvsim.costs.roofline import Counts, Operators, Seconds, price_neighbours
from kvsim.costs.scale import ALL, HOST, Scale, scaled, spreads
from kvsim.costs.stretch import ARRAY_FROM_STEPS


@dataclass(frozen=True)
class Calibrated:
    """Seconds of a step = layers x operators + LM head + host time; an operator takes its data-sheet bound over the
    utilisation that was measured for its shape, ``max(flops / peak, bytes / bandwidth)`` with a constant for the start.

    GEMMs, attention and all-reduces are priced from surfaces fitted to measured kernels (``engine``: whose kernels;
    ``surfaces``: a file written by ``kvsim calibrate`` instead of the shipped ones), the other operators, and GPUs
    without surfaces, by the constants of ``roofline``. Experts of a mixture get equal shares of the tokens. Quantised
    weights and 8-bit KV are priced where their kernels were measured; writing activations in fewer bits costs nothing
    here, as where it is fused. Weights and KV are never priced below what memory delivers them in, since between two
    calls the rest of the model has flushed the cache that a benchmark finds warm.

    Batches of up to ``cuda_graph_tokens`` tokens run as captured CUDA graphs, so linear layers compute the next
    captured size (vLLM: 1, 2, 4, multiples of 8, from 256 on of 16); 0: no graphs. ``host`` names the engine whose
    host time is added (null: ``engine``; ``vllm-sync`` plans a step after the one before it), from
    ``costs/data/hosts.toml``; ``host_step_s`` and ``host_request_s`` replace it by figures of your own, and
    ``hidden_host_s`` as in ``roofline``. ``server``: a file of ``kvsim calibrate --from-bench``, for host time and
    operators as one server was measured. ``scale`` as in ``roofline``: factors on the seconds of operators and host.
    """

    engine: str = "vllm"
    surfaces: Path | None = None
    cuda_graph_tokens: int = 512
    host: str | None = None
    host_step_s: float | None = None
    host_request_s: float = 0.0
    hidden_host_s: float = 0.0
    server: Path | None = None
    scale: Mapping[str, float] | None = None

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> "CalibratedStep":
        """Prices for this model on this GPU.

        Raises InputError if the model cannot be split over so many GPUs, it is stored in a format that was not
        measured, the engine was not measured on this GPU, or the surface file or server cannot be read.
        """
        return CalibratedStep(self._of_server(), model, gpu, tensor_parallel_size)

    def _of_server(self) -> "Calibrated":
        """With the server's figures where there are none of its own; factors on operators multiply."""
        if self.server is None:
            return self
        server = read_server(self.server)
        return replace(
            self,
            host_step_s=server.host_step_s if self.host_step_s is None else self.host_step_s,
            host_request_s=self.host_request_s or server.host_request_s,
            scale={**(self.scale or {}), ALL: server.operators * (self.scale or {}).get(ALL, 1.0)},
        )


Pieces = tuple[list[int], list[float], list[float]]
"""Decode attention for one number of requests, linear in the sum of their contexts piece by piece: where a piece
starts, seconds there, seconds per token. One start more, out of reach, ends the list."""

BF16: Final = "bfloat16"
GEMM_FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "fp8": "fp8",
        "fp8_block": "fp8_block",
        "nvfp4": "nvfp4",
        "int8": "int8",
        "int8_wo": "int8_weight",
        "int4_wo": "int4_weight",
        "mxfp4": "mxfp4_weight",
    }
)
"""``Quantization.method`` of a model -> format of a GEMM's operands in ``operators.FORMATS``."""

_PIECED_TOGETHER: Final = 32
_SPANS: Final = np.array(
    sorted({base * step // 4 for base in (2**i for i in range(22)) for step in (4, 5, 6, 7) if base * step >= 4})
)
"""Mean contexts between which decode attention is linear: four to an octave, as integers."""


class CalibratedStep:
    """Prices steps of one model on one kind of GPU.

    ``generic_operators`` names the operator kinds without any measurement of this GPU, ``notes`` what else a user of
    the result should know: transferred surfaces and shapes beyond the measured ones; ``spread`` how sure the time of
    each kind is, as in ``roofline``.
    """

    longest_last = True  # more context, more time: the pieces below are made so
    reads_squares = False  # only how many decodes there are and the sum of their contexts

    __slots__ = (
        "_decode_pieces",
        "_head_s",
        "_host_request_s",
        "_linear_s",
        "_operators",
        "_prefill",
        "generic_operators",
        "host_s",
        "notes",
        "spread",
    )

    def __init__(self, cost: Calibrated, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> None:
        self._operators = _Measured(cost, model, gpu, tensor_parallel_size)
        self._host_request_s = self._operators.host_request_s
        self.host_s = cost.hidden_host_s * self._operators.scale[HOST]
        self._linear_s: dict[int, float] = {}
        self._head_s: dict[int, float] = {0: 0.0}
        self._decode_pieces: dict[int, Pieces] = {}
        self._prefill = self._operators.prefill()
        self.generic_operators = self._operators.generic_operators()
        self.notes = self._operators.notes()
        self.spread = self._operators.spread()

    def step_s(self, shape: BatchShape) -> float:
        """Seconds of one step."""
        tokens = shape.prefill_tokens
        decodes = shape.decode_requests
        try:
            step_s = self._linear_s[tokens + decodes] + self._head_s[shape.sampled_requests]
        except KeyError:
            step_s = self._linear_and_head_s(tokens + decodes, shape.sampled_requests)
        if tokens:
            step_s += self._prefill.seconds(shape) + shape.prefill_requests * self._host_request_s
        if decodes:
            starts, seconds, slopes = self._decode_pieces.get(decodes) or self._pieces(decodes)
            context = shape.decode_context_tokens
            piece = bisect_right(starts, context) - 1
            step_s += seconds[piece] + (context - starts[piece]) * slopes[piece]
        return step_s

    def steps_s(self, shape: BatchShape, steps: int) -> Sequence[float] | NDArray[np.float64]:
        """Seconds of each of ``steps`` decode steps, (steps,): every decode gains a token of context per step."""
        decodes = shape.decode_requests
        try:
            fixed_s = self._linear_s[decodes] + self._head_s[shape.sampled_requests]
        except KeyError:
            fixed_s = self._linear_and_head_s(decodes, shape.sampled_requests)
        starts, seconds, slopes = self._decode_pieces.get(decodes) or self._pieces(decodes)
        first = shape.decode_context_tokens
        end = first + steps * decodes
        piece = bisect_right(starts, first) - 1
        start, start_s, slope = starts[piece], seconds[piece], slopes[piece]
        if end - decodes < starts[piece + 1]:  # all on one piece, as most are
            if steps < ARRAY_FROM_STEPS:
                return [fixed_s + (start_s + (context - start) * slope) for context in range(first, end, decodes)]
            together = np.arange(first - start, end - start, decodes, dtype=np.float64)
            together *= slope
            together += start_s
            together += fixed_s
            return together
        contexts = np.arange(first, end, decodes)
        pieces = np.searchsorted(starts, contexts, side="right") - 1
        found = (contexts - np.array(starts)[pieces]) * np.array(slopes)[pieces]
        return np.array(seconds)[pieces] + found + fixed_s  # type: ignore[no-any-return]

    def _pieces(self, decodes: int) -> "Pieces":
        """A number of decodes that is met for the first time: price its neighbours too, in one go."""
        first = max(1, decodes - decodes % _PIECED_TOGETHER)
        counts = np.arange(first, decodes - decodes % _PIECED_TOGETHER + _PIECED_TOGETHER)
        self._decode_pieces.update(zip(counts.tolist(), self._operators.decode_pieces(counts), strict=True))
        return self._decode_pieces[decodes]

    def _linear_and_head_s(self, tokens: int, sampled: int) -> float:
        """A pair of counts of which one is met for the first time."""
        measured = self._operators
        # Surfaces begin at one token.
        price_neighbours(self._linear_s, lambda counts: measured.linear_s(np.maximum(counts, 1)), tokens)
        price_neighbours(self._head_s, lambda counts: measured.head_s(np.maximum(counts, 1)), sampled)
        self._head_s[0] = 0.0  # no sample, no head
        return self._linear_s[tokens] + self._head_s[sampled]


class _Measured(Operators):
    """The operators of one rank, by surface where there is one, else by the roofline's constants."""

    def __init__(self, cost: Calibrated, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> None:
        file = _surface_file(cost, gpu)
        host = host_of(cost.engine if cost.host is None else cost.host)
        host_step_s = host.step_s if cost.host_step_s is None else cost.host_step_s
        self.scale, self.server = Scale(cost.scale), cost.server
        super().__init__((host_step_s + cost.hidden_host_s) * self.scale[HOST], model, gpu, tensor_parallel_size)
        self.quantise_s = host.quantise_s
        self.host_request_s = cost.host_request_s * self.scale[HOST]
        self.graph_tokens = cost.cuda_graph_tokens
        self.file = file
        self.reached = _reached(gpu, self.file)  # what surfaces are a share of
        self.gemm = self._surface("gemm", BF16)
        self.quantized = self._quantized()
        if self.mixture is not None:
            if self.mixture.width % self.tp:
                raise model.untimed(f"experts of {self.mixture.width} columns, not shared by {self.tp} GPUs")
            self.experts = self._expert_surface()
        self.all_reduce = self._surface("all_reduce", "graph")
        kv = self._kv_variant()
        self.kv_value_bytes = model.kv_format.value_bytes
        self.prefill_attention = self._surface("prefill_attention", f"{self.head_dim}/{kv}")
        self.decode_attention = self._surface("decode_attention", f"{self.head_dim}/{kv}")
        if kv != BF16 and (self.prefill_attention is None or self.decode_attention is None):
            raise model.untimed(f"KV of fewer bits, not measured on {gpu.name}")

    def linear_s(self, tokens: Counts) -> Seconds:
        """As the roofline's, at the size of the CUDA graph that runs so many tokens."""
        return super().linear_s(_graph_sizes(tokens, self.graph_tokens))

    def _mlp_columns(self, model: ModelSpec) -> int:
        """Of a mixture those of its shared experts."""
        _, mlp = model.uniform()
        self.mixture = mlp if isinstance(mlp, Experts) else None
        return mlp.shared_width if isinstance(mlp, Experts) else mlp.width

    def feed_forward_s(self, tokens: Counts) -> Seconds:
        """Of a mixture: the router, the experts in use (each rank has a slice of every one), and the shared ones."""
        if self.mixture is None:
            return super().feed_forward_s(tokens)
        seconds = self.gemm_s(tokens, self.mixture.count, self.model.hidden_size, "router") + self._experts_s(tokens)
        return seconds + super().feed_forward_s(tokens) if self.mlp_width else seconds

    @scaled("experts")
    def _experts_s(self, tokens: Counts) -> Seconds:
        """Seconds of the experts, tokens spread evenly over them; weights in use are read from memory."""
        assert self.mixture is not None
        surface, form = self.experts
        hidden, width = self.model.hidden_size, self.mixture.width // self.tp
        chosen, count = self.mixture.per_token, self.mixture.count
        seconds = surface.seconds(
            operators.experts(self.reached, tokens, hidden, width, chosen, count, number_format=form)
        )
        in_use = np.minimum(tokens * chosen, count)
        weight_bytes = in_use * 3 * hidden * width * operators.FORMATS[form].weight_bytes
        floored: Seconds = np.maximum(seconds, weight_bytes / self._stream_bytes_per_s())
        return floored

    def _expert_surface(self) -> tuple[Surface, str]:
        """The surface of the experts, and the format of their weights. Raises InputError if there is none."""
        stored = self.model.quantization
        form = BF16 if stored is None or "experts" not in stored.parts else GEMM_FORMATS.get(stored.method, "")
        surface = self._surface("experts", form)
        if surface is None:
            raise self.model.untimed(f"a mixture of experts, not measured on {self.gpu.name} in {form or 'its format'}")
        return surface, form

    @scaled("gemm")
    def gemm_s(self, m: Counts, n: int, k: int, part: Part) -> Seconds:
        surface, form = self._gemm_of(part)
        if surface is None:
            return super().gemm_s(m, n, k, part)
        seconds = surface.seconds(operators.gemm(self.reached, m, n, k, form))
        if form == "fp8":
            seconds = seconds - self.quantise_s
        weight_bytes = n * k * operators.FORMATS[form].weight_bytes
        floored: Seconds = np.maximum(seconds, weight_bytes / self._stream_bytes_per_s())
        return floored

    def _gemm_of(self, part: Part) -> tuple[Surface | None, str]:
        """The surface that prices a GEMM with weights of this part, and the format of its operands."""
        stored = self.model.quantization
        if self.quantized is None or stored is None or part not in stored.parts:
            return self.gemm, BF16
        return self.quantized, GEMM_FORMATS[stored.method]

    def _quantized(self) -> Surface | None:
        """The surface of GEMMs with the model's quantised weights. Raises InputError if there is none."""
        stored = self.model.quantization
        if stored is None or stored.parts == ("experts",):
            return None
        surface = self._surface("gemm", GEMM_FORMATS.get(stored.method, ""))
        if surface is None:
            raise self.model.untimed(f"{stored.method} weights, whose GEMMs were not measured on {self.gpu.name}")
        return surface

    def _kv_variant(self) -> str:
        """The format in which attention reads KV, as surfaces name it. Raises InputError for one never measured."""
        if self.model.kv_format == AUTO:
            return BF16
        if self.model.kv_format == KV_FORMATS["fp8"]:
            return "fp8"
        raise self.model.untimed("KV in a format whose attention was not measured")

    @scaled("elementwise")
    def elementwise_s(self, tokens: Counts, values: int) -> Seconds:
        return super().elementwise_s(tokens, values)

    @scaled("all_reduce")
    def all_reduce_s(self, tokens: Counts) -> Seconds | float:
        if self.all_reduce is None or self.tp == 1:
            return super().all_reduce_s(tokens)
        message_bytes = tokens * self.model.hidden_size * self.model.dtype_bytes
        return self.all_reduce.seconds(operators.collective(self.reached, np.maximum(message_bytes, 1), self.tp))

    def decode_pieces(self, decodes: Counts) -> Iterator["Pieces"]:
        """Decode attention of all layers for each number of requests (c,), with their host time."""
        # A decode attends its context and its own token.
        starts = np.outer(_SPANS - 1, decodes)
        totals_s = self.model.layers * self._decode_layer_s(np.outer(_SPANS, decodes), decodes)
        totals_s += decodes * self.host_request_s
        seconds, slopes = [totals_s[0]], []
        for j in range(1, len(starts)):
            width = starts[j] - starts[j - 1]
            slopes.append(np.maximum(totals_s[j] - seconds[-1], 0.0) / width)
            seconds.append(seconds[-1] + width * slopes[-1])  # so that the pieces meet to the last bit
        columns = (starts.T.tolist(), np.array(seconds).T.tolist(), np.array(slopes).T.tolist())
        return zip(*columns, strict=True)

    @scaled("decode_attention")
    def _decode_layer_s(self, kv_tokens: Counts, decodes: Counts) -> Seconds:
        """Seconds of one layer's decode attention, (s, c), for sums of attended tokens (s, c)."""
        model, gpu = self.model, self.gpu
        kv_bytes = 2 * self.kv_width * self.kv_value_bytes * kv_tokens
        if self.decode_attention is None:
            fitted = self.efficiency["decode_attention"]
            query_bytes = 2 * self.q_width * model.dtype_bytes * decodes
            byte_s = (kv_bytes + query_bytes) / (gpu.hbm_bytes_per_s * fitted.memory)
            flop_s = 4 * self.q_width * kv_tokens / (gpu.bf16_flops_per_s * fitted.compute)
            bound_s: Seconds = np.maximum(byte_s, flop_s)
            return bound_s + fitted.fixed_s
        requests = np.broadcast_to(decodes, kv_tokens.shape).astype(np.float64)
        call = operators.decode_attention(
            self.reached,
            kv_tokens.astype(np.float64),
            requests,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.kv_value_bytes,
        )
        floored: Seconds = np.maximum(self.decode_attention.seconds(call), kv_bytes / self._stream_bytes_per_s())
        return floored

    def prefill(self) -> "_Prefill":
        """Prefill attention of all layers."""
        return _Prefill(self, self.prefill_attention)

    def generic_operators(self) -> tuple[str, ...]:
        """Operator kinds priced by constants of no GPU in particular."""
        measured = {
            "gemm": self.gemm,
            "all_reduce": self.all_reduce,
            "prefill_attention": self.prefill_attention,
            "decode_attention": self.decode_attention,
        }
        return tuple(kind for kind in self.efficiency if measured.get(kind) is None and kind not in self.gpu.efficiency)

    def spread(self) -> Mapping[str, float]:
        """As of ``CalibratedStep``: what surfaces missed unseen shapes by, what a transfer adds, and a server's own."""
        table = spreads()["calibrated"]
        spread = dict(table["kinds"])
        moved = self.file is not None and self.file.gpu != self.gpu.name
        used = {"gemm": self.quantized or self.gemm, "prefill_attention": self.prefill_attention}
        used["decode_attention"] = self.decode_attention
        if self.tp > 1:
            used["all_reduce"] = self.all_reduce
        if self.mixture is not None:
            used["experts"] = self.experts[0]
        for kind, surface in used.items():
            own = spreads()["roofline"]["kinds"][kind] if surface is None else table["surface"] * surface.spread
            spread[kind] = hypot(own, table["transfer"]) if moved else own
        if self.server is not None:
            server = read_server(self.server)
            spread |= {ALL: server.operators_spread, HOST: server.host_spread}
        return spread

    def notes(self) -> tuple[str, ...]:
        """What was transferred or extrapolated."""
        if self.file is None:
            return (f"no measured surfaces of {self.gpu.name}: three constants per operator",)
        notes = []
        if self.file.gpu != self.gpu.name:
            notes.append(f"{self.gpu.name}: utilisation measured on {self.file.gpu}, bounds of its own data sheet")
        if self.gemm is not None:
            for n, k, part in self._weights():
                surface, form = self._gemm_of(part)
                call = operators.gemm(self.gpu, np.array([1.0]), n, k, form)
                if surface is not None and bool(surface.extrapolated(call).any()):
                    notes.append(f"a GEMM with weights {n} x {k} lies beyond those measured: utilisation of the edge")
        return tuple(notes)

    def _weights(self) -> tuple[tuple[int, int, Part], ...]:
        hidden = self.model.hidden_size
        head = -(-self.model.vocab_size // self.tp)
        q_width, kv_width, mlp_width = self.q_width, self.kv_width, self.mlp_width
        mlp: tuple[tuple[int, int, Part], ...] = ((2 * mlp_width, hidden, "mlp"), (hidden, mlp_width, "mlp"))
        attention: tuple[tuple[int, int, Part], ...] = (
            (q_width + 2 * kv_width, hidden, "attention"),
            (hidden, q_width, "attention"),
        )
        return (*attention, *(mlp if mlp_width else ()), (head, hidden, "head"))

    def _stream_bytes_per_s(self) -> float:
        """What memory delivers, in proportion to the data sheet as on the GPU that was measured."""
        assert self.file is not None, "only called for calls that a surface has priced"
        return self.file.stream_share * self.reached.hbm_bytes_per_s

    def _surface(self, kind: str, variant: str) -> Surface | None:
        """The surface of a variant; for a head size that was not measured, that of the nearest."""
        if self.file is None:
            return None
        known = {name.removeprefix(f"{kind}/"): s for name, s in self.file.surfaces.items() if name.startswith(kind)}
        if variant in known or not known or "/" not in variant:
            return known.get(variant)
        size, _, form = variant.partition("/")
        sizes = sorted((abs(int(name.partition("/")[0]) - int(size)), name) for name in known if name.endswith(form))
        return known[sizes[0][1]] if sizes else None


class _Prefill:
    """Prefill attention of all layers for one step at a time: the surface, sliced at this model's heads."""

    def __init__(self, measured: _Measured, surface: Surface | None) -> None:
        model, gpu = measured.model, measured.gpu if surface is None else measured.reached
        layers = model.layers
        self._heads = measured.heads
        compute, memory, self._fixed_s = 1.0, 1.0, operators.ATTENTION_START_S * layers
        self._walk_blocks = float(gpu.sm_count or 0)  # SMs that wait for one block, in units of a block's work
        if surface is None:
            fitted = measured.efficiency["prefill_attention"]
            compute, memory, self._fixed_s = fitted.compute, fitted.memory, fitted.fixed_s * layers
        scale = measured.scale["prefill_attention"]
        self._fixed_s *= scale
        self._measured = surface is not None
        self._pair_s = scale * 4 * measured.head_dim * layers / (gpu.bf16_flops_per_s * compute)  # per query head
        bytes_per_s = gpu.hbm_bytes_per_s * memory / scale
        self._kv_token_s = 2 * measured.kv_width * measured.kv_value_bytes * layers / bytes_per_s
        self._query_token_s = 2 * measured.q_width * model.dtype_bytes * layers / bytes_per_s
        group = measured.heads / measured.kv_heads
        self._spans, self._blocks, self._utilisation = _slice(surface.utilisation if surface else None, group)

    def seconds(self, shape: BatchShape) -> float:
        """Seconds of the chunks of a step, layers together: ``operators.prefill_attention`` on single numbers."""
        tokens, requests = shape.prefill_tokens, shape.prefill_requests
        kv_tokens = shape.prefill_context_tokens + tokens
        pairs = shape.prefill_chunk_contexts + shape.prefill_chunk_squares / 2
        memory_s = kv_tokens * self._kv_token_s + tokens * self._query_token_s
        if not self._measured:
            return max(pairs * self._heads * self._pair_s, memory_s) + self._fixed_s
        blocks = -(-tokens // (operators.QUERY_ROWS * requests))
        work = self._heads * pairs * (blocks * operators.QUERY_ROWS * requests / tokens)
        walk = operators.QUERY_ROWS * kv_tokens / requests * self._walk_blocks
        arithmetic_s = (work if work > walk else walk) * self._pair_s
        bound_s = (arithmetic_s if arithmetic_s > memory_s else memory_s) + self._fixed_s
        i, right = _place(self._spans, pairs / tokens)
        j, up = _place(self._blocks, requests * self._heads * blocks)
        low, high = self._utilisation[i], self._utilisation[i + 1]
        below = low[j] + (high[j] - low[j]) * right
        above = low[j + 1] + (high[j + 1] - low[j + 1]) * right
        return bound_s / (below + (above - below) * up)


def _slice(utilisation: Factor | None, group: float) -> tuple[list[float], list[float], list[list[float]]]:
    """Knots of span and of blocks as octaves, and the utilisation over both for one group of heads."""
    if utilisation is None:
        return [], [], []
    spans, blocks = (np.array(utilisation.axes[name]) for name in ("span", "blocks"))
    span, block = (each.ravel() for each in np.meshgrid(spans, blocks, indexing="ij"))
    values = utilisation.at({"span": span, "blocks": block, "group": np.full(len(span), group)})
    return octave(spans).tolist(), octave(blocks).tolist(), values.reshape(len(spans), -1).tolist()


def _place(places: Sequence[float], x: float) -> tuple[int, float]:
    """The piece between knots in which ``octave(x)`` lies, and how far right in it, 0 to 1; the edge beyond them."""
    mantissa, exponent = frexp(x)
    place = exponent + (2.0 * mantissa - 2.0)
    if place <= places[0]:
        return 0, 0.0
    if place >= places[-1]:
        return len(places) - 2, 1.0
    piece = bisect_right(places, place) - 1
    return piece, (place - places[piece]) / (places[piece + 1] - places[piece])


def _graph_sizes(tokens: Counts, largest: int) -> Counts:
    """Tokens that a captured CUDA graph computes for so many; beyond ``largest`` there is none.

    Source: vLLM, ``cudagraph_capture_sizes`` of ``vllm/config``: 1, 2, 4, then every 8, from 256 on every 16.
    """
    size = np.where(tokens > 256, -(-tokens // 16) * 16, -(-tokens // 8) * 8)
    for small in (4, 2, 1):
        size = np.where(tokens <= small, small, size)
    return np.where(tokens <= largest, size, tokens)


def _reached(gpu: Gpu, file: SurfaceFile | None) -> Gpu:
    """The GPU with the bandwidth and arithmetic of which the measured one reached as large a share."""
    if file is None or file.gpu == gpu.name:
        return gpu
    memory, compute = gpu.transfer_memory, gpu.transfer_compute
    return replace(gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * memory, bf16_flops_per_s=gpu.bf16_flops_per_s * compute)


def _surface_file(cost: Calibrated, gpu: Gpu) -> SurfaceFile | None:
    if cost.surfaces is not None:
        return read_surfaces(cost.surfaces)
    if not gpu.surfaces:
        return None
    if cost.engine not in gpu.surfaces:
        known = ", ".join(sorted(gpu.surfaces))
        raise InputError(f"{cost.engine!r} was not measured on {gpu.name}", key="engine", hint=f"known: {known}")
    return read_surfaces(gpu.surfaces[cost.engine])
