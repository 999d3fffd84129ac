"""A step time from operators whose efficiency was measured over their shapes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import hypot
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.hardware import Gpu
from kvsim.core.layers import AUTO, KV_FORMATS, Attention, Experts, Part
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec
from kvsim.core.surface import Surface, SurfaceFile, read_surfaces
from kvsim.costs.hosts import host_of, hosts, read_server
from kvsim.costs.pieces import PiecedStep, Prefill
from kvsim.costs.rank import BF16, GENERIC, LAYOUTS, Counts, Rank, Seconds, Timed, check_constants
from kvsim.costs.scale import ALL, HOST, Scale, scaled, spreads


@dataclass(frozen=True)
class Calibrated:
    """Seconds of a step = layers x operators + LM head + host time; an operator takes its data-sheet bound over the
    utilisation that was measured for its shape, ``max(flops / peak, bytes / bandwidth)`` with a constant for the start.

    GEMMs, attention and all-reduces are priced from surfaces fitted to measured kernels (``engine``: whose kernels;
    ``surfaces``: a file written by ``kvsim calibrate`` instead of the shipped ones), the other operators, and GPUs
    without surfaces, by the constants of ``roofline``. Tokens choose the experts of a mixture at random. Quantised
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

    layouts: ClassVar = LAYOUTS

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int, layout: Layout | None = None) -> PiecedStep:
        """Prices for this model on this GPU; ``layout``: the whole of it, if it has more than tensor parallelism.

        Raises InputError if the model cannot be split over so many GPUs, a kind of its layers cannot be timed, it is
        stored in a format that was not measured, the engine was not measured on this GPU, the GPU has constants of an
        operator kind that does not exist, or the surface file or server cannot be read.
        """
        check_constants(gpu)
        cost = self._of_server()
        rank = _Measured(cost, model, gpu, layout or Layout(tensor_parallel_size))
        prefills = [rank.prefill(mixer, count) for mixer, count in rank.mixers]
        rank.linear_s(np.array([1]))  # meets every matrix
        rank.head_s(np.array([1]))
        host = rank.scale[HOST]
        return PiecedStep(
            rank, prefills, cost.hidden_host_s * host, cost.host_request_s * host,
            rank.generic_operators(), rank.notes(), rank.spread(),
        )  # fmt: skip

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


class _Measured(Rank):
    """The operators of one rank, by surface where there is one, else by the roofline's constants."""

    def __init__(self, cost: Calibrated, model: ModelSpec, gpu: Gpu, layout: Layout) -> None:
        file = _surface_file(cost, gpu)
        host = host_of(cost.engine if cost.host is None else cost.host)
        host_step_s = host.step_s if cost.host_step_s is None else cost.host_step_s
        self.scale, self.server = Scale(cost.scale), cost.server
        super().__init__((host_step_s + cost.hidden_host_s) * self.scale[HOST], model, gpu, layout)
        self.quantise_s = host.quantise_s
        self.graph_tokens = cost.cuda_graph_tokens
        self.file = file
        self.reached = _reached(gpu, self.file)  # what surfaces are a share of
        self.gemms: dict[str, Surface | None] = {BF16: self._surface("gemm", BF16)}
        self.weights: dict[tuple[int, int, str], Surface | None] = {}
        self.expert_surfaces: dict[str, Surface] = {}
        self.all_reduce = self._surface("all_reduce", "graph")
        self.kv_variant = self._kv_variant()
        self.attention = {mixer: self._attention_surfaces(mixer) for mixer, _ in self.mixers}

    def linear_s(self, tokens: Counts) -> Seconds:
        """As the roofline's, at the size of the CUDA graph that runs so many tokens."""
        return super().linear_s(_graph_sizes(tokens, self.graph_tokens))

    @scaled("experts")
    def experts_s(self, mlp: Experts, tokens: Counts) -> Seconds:
        """Seconds of the experts, each token choosing its own at random; weights in use are read from memory.

        With one fp8 scale per tensor they take no longer than with scales per block: those ran Triton's kernel, which
        serves either, where the others on Hopper had a CUTLASS kernel two to five times as slow.
        """
        form = self.format_of("experts")
        found = [
            self._expert_kernel_s(mlp, tokens, each) for each in ((form, "fp8_block") if form == "fp8" else (form,))
        ]
        measured = [each for each in found if each is not None]
        if not measured:
            if self.file is None and form == BF16:
                return super().experts_s(mlp, tokens)
            raise self.model.untimed(f"a mixture of experts, not measured on {self.gpu.name} in {form}")
        floor_s = self.expert_bytes(mlp, tokens, form) / self._stream_bytes_per_s()
        floored: Seconds = np.maximum(np.min(measured, axis=0), floor_s)
        return floored

    def _expert_kernel_s(self, mlp: Experts, tokens: Counts, form: str) -> Seconds | None:
        """As measured in a format: with this model's experts, else with those of all models; None: not measured."""
        model = f"{self.model.hidden_size}x{mlp.width}x{mlp.per_token}x{mlp.count}"
        known = self.file.surfaces if self.file is not None else {}
        surface = known.get(f"experts/{form}/{model}") or known.get(f"experts/{form}")
        if surface is not None:
            self.expert_surfaces[form] = surface
        return None if surface is None else surface.seconds(self.experts_call(self.reached, mlp, tokens, form))

    @scaled("gemm")
    def gemm_s(self, m: Counts, n: int, k: int, part: Part) -> Seconds:
        form = self.format_of(part)
        if form not in self.gemms:
            self.gemms[form] = self._surface("gemm", form)
        surface = self.gemms[form]
        if surface is None:
            if form != BF16:
                raise self.model.untimed(f"{form} weights, whose GEMMs were not measured on {self.gpu.name}")
            return super().gemm_s(m, n, k, part)
        self.weights[n, k, form] = surface
        seconds = self._launched_s(surface, m, n, k, form)
        weight_bytes = n * k * operators.FORMATS[form].weight_bytes
        floored: Seconds = np.maximum(seconds, weight_bytes / self._stream_bytes_per_s())
        return floored

    def _launched_s(self, surface: Surface, m: Counts, n: int, k: int, form: str) -> Seconds:
        """Seconds of a GEMM as measured, but for quantising that is fused, and launches that overlap in an engine.

        Those of ``fp8_block`` were measured from the host, 50 to 280 us each however small; a GEMM takes no longer than
        one with a scale per tensor times the ratio of the two at ``_MANY_ROWS`` rows, where launches do not show.
        """
        seconds = surface.seconds(operators.gemm(self.reached, m, n, k, form))
        if form == "fp8":
            return seconds - self.quantise_s
        whole = self._surface("gemm", "fp8")
        if form == "fp8_block" and whole is not None:
            many = np.array([_MANY_ROWS])
            blocks_s = surface.seconds(operators.gemm(self.reached, many, n, k, form))
            ratio = np.maximum(blocks_s / whole.seconds(operators.gemm(self.reached, many, n, k, "fp8")), 1.0)
            seconds = np.minimum(seconds, ratio * whole.seconds(operators.gemm(self.reached, m, n, k, "fp8")))
        return seconds

    @scaled("elementwise")
    def elementwise_s(self, tokens: Counts, values: int) -> Seconds:
        return super().elementwise_s(tokens, values)

    @scaled("all_reduce")
    def all_reduce_s(self, tokens: Counts, values: int) -> Seconds | float:
        return super().all_reduce_s(tokens, values)

    def node_all_reduce_s(self, message_bytes: Counts) -> Seconds:
        if self.all_reduce is None:
            return super().node_all_reduce_s(message_bytes)
        return self.all_reduce.seconds(operators.collective(self.reached, np.maximum(message_bytes, 1), self.near))

    @scaled("decode_attention")
    def decode_s(self, mixer: Timed, kv_tokens: Counts, decodes: Counts) -> Seconds:
        _, surface = self.attention[mixer]
        if surface is None:
            return super().decode_s(mixer, kv_tokens, decodes)
        tokens, heads = kv_tokens.astype(np.float64), mixer.heads // self.tp
        requests = np.broadcast_to(decodes, kv_tokens.shape).astype(np.float64)
        gpu, value_bytes = self.reached, self.kv_value_bytes
        if isinstance(mixer, Attention):
            kv_heads = mixer.rank_kv_heads(self.layout)
            call = operators.decode_attention(gpu, tokens, requests, heads, kv_heads, mixer.head_dim, value_bytes)
        else:
            call = operators.latent_decode_attention(
                gpu, tokens, requests, heads, mixer.kv_rank, mixer.rope_dim, value_bytes
            )
        _, kv_bytes, _ = self.attention_sizes(mixer)
        floored: Seconds = np.maximum(surface.seconds(call), kv_bytes * kv_tokens / self._stream_bytes_per_s())
        return floored

    def prefill(self, mixer: Timed, layers: int) -> Prefill:
        """Prefill attention of the layers with this mixer."""
        surface, _ = self.attention[mixer]
        return Prefill(self, mixer, layers, self.gpu if surface is None else self.reached, surface)

    def _attention_surfaces(self, mixer: Timed) -> tuple[Surface | None, Surface | None]:
        """Surfaces of prefill and decode attention. Raises InputError if KV is in a format that was not measured."""
        form = self.kv_variant
        if not isinstance(mixer, Attention):
            found = (
                self._surface("latent_prefill_attention", BF16)  # keys and values are restored in 16 bit
                or self._surface(
                    "prefill_attention", f"{(mixer.nope_dim + mixer.rope_dim + mixer.value_dim) // 2}/{BF16}"
                ),
                self._surface("latent_decode_attention", form),
            )
        else:
            variant, kinds = f"{mixer.head_dim}/{form}", ("prefill_attention", "decode_attention")
            prefill, decode = (self._surface(f"window_{kind}", variant) if mixer.window else None for kind in kinds)
            found = prefill or self._surface(kinds[0], variant), decode or self._surface(kinds[1], variant)
        if form != BF16 and None in found:
            raise self.model.untimed(f"KV of fewer bits, not measured on {self.gpu.name}")
        return found

    def _kv_variant(self) -> str:
        """The format in which attention reads KV, as surfaces name it. Raises InputError for one never measured."""
        if self.model.kv_format == AUTO:
            return BF16
        if self.model.kv_format == KV_FORMATS["fp8"]:
            return "fp8"
        raise self.model.untimed("KV in a format whose attention was not measured")

    def generic_operators(self) -> tuple[str, ...]:
        """Operator kinds priced by constants of no GPU in particular."""
        prefills, decodes = zip(*self.attention.values(), strict=True)
        measured = {
            "gemm": self.gemms[BF16] is not None,
            "all_reduce": self.all_reduce is not None,
            "prefill_attention": None not in prefills,
            "decode_attention": None not in decodes,
        }
        return tuple(kind for kind in GENERIC if not measured.get(kind) and kind not in self.gpu.efficiency)

    def spread(self) -> Mapping[str, float]:
        """As of ``PiecedStep``: what surfaces missed unseen shapes by, what a transfer adds, and a server's own."""
        table = spreads()["calibrated"]
        spread = dict(table["kinds"])
        moved = self.file is not None and self.file.gpu != self.gpu.name
        prefills, decodes = zip(*self.attention.values(), strict=True)
        used: dict[str, Collection[Surface | None]] = {
            "gemm": list(self.weights.values()) or [None],
            "prefill_attention": prefills,
            "decode_attention": decodes,
        }
        if self.tp > 1:
            used["all_reduce"] = [self.all_reduce]
        if self.expert_surfaces:
            used["experts"] = list(self.expert_surfaces.values())
        for kind, surfaces in used.items():
            own = max(
                spreads()["roofline"]["kinds"][kind] if surface is None else table["surface"] * surface.spread
                for surface in surfaces
            )
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
        for (n, k, form), surface in self.weights.items():
            call = operators.gemm(self.gpu, np.array([1.0]), n, k, form)
            if surface is not None and bool(surface.extrapolated(call).any()):
                notes.append(f"a GEMM with weights {n} x {k} lies beyond those measured: utilisation of the edge")
        return tuple(notes)

    def _stream_bytes_per_s(self) -> float:
        """What memory delivers, in proportion to the data sheet as on the GPU that was measured."""
        assert self.file is not None, "only called for calls that a surface has priced"
        return self.file.stream_share * self.reached.hbm_bytes_per_s

    def _surface(self, kind: str, variant: str) -> Surface | None:
        """The surface of a variant; for a head size that was not measured, that of the nearest."""
        if self.file is None:
            return None
        prefix = f"{kind}/"
        known = {name.removeprefix(prefix): s for name, s in self.file.surfaces.items() if name.startswith(prefix)}
        if variant in known or not known or "/" not in variant:
            return known.get(variant)
        size, _, form = variant.partition("/")
        sizes = sorted((abs(int(name.partition("/")[0]) - int(size)), name) for name in known if name.endswith(form))
        return known[sizes[0][1]] if sizes else None


_MANY_ROWS: Final = 16384
"""At which a GEMM of any layer outlasts its launches."""


def _graph_sizes(tokens: Counts, largest: int) -> Counts:
    """Tokens that a captured CUDA graph computes for so many; beyond ``largest`` there is none.

    Source: vLLM, ``cudagraph_capture_sizes`` of ``vllm/config``: 1, 2, 4, then every 8, from 256 on every 16.
    """
    size = np.where(tokens > 256, -(-tokens // 16) * 16, -(-tokens // 8) * 8)
    for small in (4, 2, 1):
        size = np.where(tokens <= small, small, size)
    return np.where(tokens <= largest, size, tokens)


def _reached(gpu: Gpu, file: SurfaceFile | None) -> Gpu:
    """The GPU with the bandwidth and arithmetic of which the measured one reached as large a share.

    What a GPU reaches more of is known against the one that it names, and no other.
    """
    if file is None or file.gpu != gpu.surfaces_of:
        return gpu
    memory, compute = gpu.transfer_memory, gpu.transfer_compute
    return replace(gpu, hbm_bytes_per_s=gpu.hbm_bytes_per_s * memory, bf16_flops_per_s=gpu.bf16_flops_per_s * compute)


def _surface_file(cost: Calibrated, gpu: Gpu) -> SurfaceFile | None:
    if cost.surfaces is not None:
        return read_surfaces(cost.surfaces)
    if not gpu.surfaces:
        if cost.engine not in hosts():
            raise InputError(f"{cost.engine!r} was not measured", key="engine", hint=f"known: {', '.join(hosts())}")
        return None
    if cost.engine not in gpu.surfaces:
        known = ", ".join(sorted(gpu.surfaces))
        raise InputError(f"{cost.engine!r} was not measured on {gpu.name}", key="engine", hint=f"known: {known}")
    return read_surfaces(gpu.surfaces[cost.engine])
