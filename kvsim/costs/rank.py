"""What one rank of a layout computes in a step: the operators of its layers, by the roofline's constants."""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core import operators
from kvsim.core.errors import InputError
from kvsim.core.hardware import Efficiency, Gpu
from kvsim.core.layers import Attention, Experts, LatentAttention, Layer, LinearAttention, Mlp, Part
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec
from kvsim.core.surface import Call
from kvsim.costs.scale import Scale

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

BF16: Final = "bfloat16"
FORMATS: Final[Mapping[str, str]] = MappingProxyType(
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

LAYOUTS: Final = ("enable_expert_parallel",)
"""Keys of a layout that a rank can be priced in, beside ``tensor_parallel_size``."""

NETWORK_SHARE: Final = 0.9
"""Of a network's data sheet that arrives: thresholds of Azure/azurehpc-health-checks at 0e0a1ac2 are 180 of 200 and
380 of 400 Gbit/s."""

HOP_S: Final = 2e-5
"""A message from node to node: small all-reduces over 2 x 8 A100 take 45 us, two hops, longer than over 8 (Vidur's
profiles at 7d475133, a100_dgx; an Ethernet of about 100 Gbit/s a node)."""

Counts = NDArray[np.int64]
Seconds = NDArray[np.float64]
Timed = Attention | LatentAttention


class Rank:
    """The operators of one rank of a pipeline stage: arrays of counts to arrays of s.

    ``mixers``: the different kinds of attention of its layers and how many layers have each. A GEMM in fewer bits has
    the efficiency of those in 16, at the peak of its format; writing activations in fewer bits costs nothing.
    """

    scale = Scale(None)

    def __init__(self, host_step_s: float, model: ModelSpec, gpu: Gpu, layout: Layout, stage: int = 0) -> None:
        model.check(layout)
        self.host_step_s, self.model, self.gpu, self.layout = host_step_s, model, gpu, layout
        self.tp = layout.tensor_parallel_size
        self.near = min(self.tp, gpu.gpus_per_node)  # ranks of one node
        if self.tp % self.near:
            raise InputError(
                f"{self.tp} ranks do not fill nodes of {self.near} {gpu.name}",
                key="tensor_parallel_size",
                hint=f"a multiple of {self.near}, or the GPU's gpus_per_node",
            )
        if self.tp > self.near and gpu.network_bytes_per_s is None:
            raise InputError(
                f"{self.tp} ranks span nodes of {self.near} {gpu.name}, whose network_bytes_per_s is not known",
                key="tensor_parallel_size",
                hint=f"at most {self.near}, or add it to the GPU's data file",
            )
        self.first = stage == 0
        self.efficiency = {**GENERIC, **gpu.efficiency}
        self.efficiency.setdefault("experts", self.efficiency["gemm"])
        self.layers = model.groups(model.stage(layout, stage))
        counts: Counter[Timed] = Counter()
        for layer, count in self.layers:
            if isinstance(layer.mixer, LinearAttention) or (layer.mixer and layer.mixer.kind == "sparse"):
                raise model.untimed(f"{layer.mixer.kind} attention")
            if layer.mixer is not None:
                counts[layer.mixer] += count
        self.mixers: tuple[tuple[Timed, int], ...] = tuple(counts.items())
        self.kv_value_bytes = model.kv_format.value_bytes

    # ---- what depends on the number of tokens

    def linear_s(self, tokens: Counts) -> Seconds:
        """Seconds of everything but attention and LM head in a step of so many tokens, host time included."""
        total: Seconds = np.full(np.shape(tokens), self.host_step_s)
        if self.first:  # each rank looks up its part of the vocabulary
            total = total + self.all_reduce_s(tokens, self.model.hidden_size)
        for layer, count in self.layers:
            total = total + count * self.layer_s(layer, tokens)
        return total

    def layer_s(self, layer: Layer, tokens: Counts) -> Seconds:
        """Seconds of a layer without its attention; each half ends with the sum over the tensor-parallel ranks."""
        hidden = self.model.hidden_size
        total: Seconds = layer.norms * self.elementwise_s(tokens, 4 * hidden)  # x and residual, in, out
        if isinstance(layer.mixer, Attention):
            total = total + self.projections_s(layer.mixer, tokens) + self.all_reduce_s(tokens, hidden)
        elif isinstance(layer.mixer, LatentAttention):
            total = total + self.latent_projections_s(layer.mixer, tokens) + self.all_reduce_s(tokens, hidden)
        if layer.mlp is not None:
            total = total + self.feed_forward_s(layer.mlp, tokens) + self.all_reduce_s(tokens, hidden)
        return total

    def projections_s(self, attention: Attention, tokens: Counts) -> Seconds:
        """Seconds of the Q, K, V and output matrices, the rotary embedding, and the new K and V on their way to KV."""
        hidden, heads = self.model.hidden_size, attention.heads // self.tp
        queries, value_dim = heads * attention.head_dim, attention.value_dim or attention.head_dim
        kv_heads = attention.rank_kv_heads(self.layout)
        keys, values = kv_heads * attention.head_dim, kv_heads * value_dim
        gates = queries if attention.gated else 0
        return (
            self.gemm_s(tokens, queries + gates + keys + values, hidden, "attention")
            + self.gemm_s(tokens, hidden, heads * value_dim, "attention")
            + self.elementwise_s(tokens, 2 * (queries + keys))  # rotary embedding of Q and K, in place
            + self.elementwise_s(tokens, 2 * (keys + values))  # new K and V into the cache
        )

    def latent_projections_s(self, attention: LatentAttention, tokens: Counts) -> Seconds:
        """Seconds of the matrices around latent attention. A prompt restores keys and values from its latent vectors
        and a decode takes its queries and outputs to their space, with the same matrix and as many FLOPs a token."""
        hidden, heads = self.model.hidden_size, attention.heads // self.tp
        latent, query_rank = attention.kv_rank + attention.rope_dim, attention.query_rank
        queries = heads * (attention.nope_dim + attention.rope_dim)
        down = query_rank or queries
        seconds = self.gemm_s(tokens, down + latent, hidden, "attention")
        if query_rank:
            seconds = seconds + self.gemm_s(tokens, queries, query_rank, "attention")
        return (
            seconds
            + self.restored_s(attention, tokens)
            + self.gemm_s(tokens, hidden, heads * attention.value_dim, "attention")
            + self.elementwise_s(tokens, 2 * latent + 2 * query_rank)  # norms of both compressed vectors
            + self.elementwise_s(tokens, 2 * (heads + 1) * attention.rope_dim)
            + self.elementwise_s(tokens, 2 * latent)  # new latent vectors into the cache
        )

    def restored_s(self, attention: LatentAttention, tokens: Counts) -> Seconds:
        """Seconds to make the keys and values of all heads of a rank from so many latent vectors."""
        width = attention.heads // self.tp * (attention.nope_dim + attention.value_dim)
        return self.gemm_s(tokens, width, attention.kv_rank, "attention")

    def feed_forward_s(self, mlp: Mlp | Experts, tokens: Counts) -> Seconds:
        """Seconds of a layer's MLP, or of its router, the experts in use, and the shared ones."""
        if isinstance(mlp, Mlp):
            return self.mlp_s(mlp.width // self.tp, mlp.gated, tokens)
        seconds = self.gemm_s(tokens, mlp.count, self.model.hidden_size, "router") + self.experts_s(mlp, tokens)
        if mlp.shared_width:
            seconds = seconds + self.mlp_s(mlp.shared_width // self.tp, True, tokens)
        return seconds

    def mlp_s(self, width: int, gated: bool, tokens: Counts) -> Seconds:
        """Seconds of an MLP with so many columns on this rank."""
        hidden, ups = self.model.hidden_size, 2 if gated else 1
        return (
            self.gemm_s(tokens, ups * width, hidden, "mlp")
            + self.gemm_s(tokens, hidden, width, "mlp")
            + self.elementwise_s(tokens, (ups + 1) * width)  # activation: read one or two, write one
        )

    def experts_s(self, mlp: Experts, tokens: Counts) -> Seconds:
        """Seconds of the experts in use on this rank, chosen at random by each token: two GEMMs and an activation."""
        form, hidden = self.format_of("experts"), self.model.hidden_size
        at = self.experts_call(self.gpu, mlp, tokens, form).coordinates
        rows, matrices = at["per_expert"] * at["active"], 3  # gate, up, down
        fitted, peak = self.efficiency["experts"], operators.figure(self.gpu, operators.FORMATS[form].peak)
        flop_s = 2 * rows * matrices * hidden * at["width"] / (peak * fitted.compute)
        moved = self.expert_bytes(mlp, tokens, form) + rows * hidden * (operators.FORMATS[form].input_bytes + 2)
        bound_s: Seconds = np.maximum(flop_s, moved / (self.gpu.hbm_bytes_per_s * fitted.memory))
        return bound_s + 2 * fitted.fixed_s + self.elementwise_s(tokens, 0)

    def experts_call(self, gpu: Gpu, mlp: Experts, tokens: Counts, form: str) -> Call:
        """The fused experts of this rank: a slice of each, or with expert parallelism whole ones of its own."""
        (ranks, width), hidden = self._dealt(mlp), self.model.hidden_size
        routed = np.maximum(tokens, 1)
        awake = operators.awake_experts(routed, mlp.per_token, mlp.count)
        return operators.experts(
            gpu, routed, hidden, width, mlp.per_token, mlp.count, ranks, number_format=form, awake=awake
        )

    def expert_bytes(self, mlp: Experts, tokens: Counts, form: str) -> Seconds:
        """Bytes of the experts on this rank that so many tokens wake."""
        ranks, width = self._dealt(mlp)
        in_use = np.maximum(operators.awake_experts(np.maximum(tokens, 1), mlp.per_token, mlp.count) / ranks, 1.0)
        weights = 3 * self.model.hidden_size * width
        return in_use * (weights * operators.FORMATS[form].weight_bytes)

    def _dealt(self, mlp: Experts) -> tuple[int, int]:
        """Over how many ranks experts are dealt out (1: none), and columns of an expert on each."""
        ranks = self.layout.stage_ranks
        return (ranks, mlp.width) if self.layout.enable_expert_parallel else (1, mlp.width // ranks)

    def head_s(self, sampled: Counts) -> Seconds:
        """Seconds of the LM head for so many sampled positions; the vocabulary is split over the ranks.

        All logits are gathered then, which sends half of what their all-reduce would.
        Source: vLLM ``LogitsProcessor._gather_logits``.
        """
        vocabulary = self.model.vocab_size
        seconds = self.gemm_s(sampled, -(-vocabulary // self.tp), self.model.hidden_size, "head")
        return seconds + self.all_reduce_s(sampled, vocabulary // 2)

    def format_of(self, part: Part) -> str:
        """The format of a GEMM with weights of this part, as ``operators.FORMATS`` names it."""
        stored = self.model.quantization
        if stored is None or part not in stored.parts:
            return BF16
        if stored.method not in FORMATS:
            raise self.model.untimed(f"{stored.method} weights")
        return FORMATS[stored.method]

    def gemm_s(self, m: Counts, n: int, k: int, part: Part) -> Seconds:
        """y[m, n] = x[m, k] W[n, k]^T: 2 m n k FLOPs; weights, input and output cross the memory once.

        ``part`` says whose weights these are, and so their format.
        """
        fitted, form = self.efficiency["gemm"], operators.FORMATS[self.format_of(part)]
        flop_s = 2 * m * n * k / (operators.figure(self.gpu, form.peak) * fitted.compute)
        bytes_moved = n * k * form.weight_bytes + m * k * form.input_bytes + m * n * self.model.dtype_bytes
        bound_s: Seconds = np.maximum(flop_s, bytes_moved / (self.gpu.hbm_bytes_per_s * fitted.memory))
        return bound_s + fitted.fixed_s

    def elementwise_s(self, tokens: Counts, values: int) -> Seconds:
        """``values`` numbers read or written per token."""
        fitted = self.efficiency["elementwise"]
        bytes_moved = tokens * values * self.model.dtype_bytes
        return bytes_moved / (self.gpu.hbm_bytes_per_s * fitted.memory) + fitted.fixed_s

    def all_reduce_s(self, tokens: Counts, values: int) -> Seconds | float:
        """Sum over the tensor-parallel ranks of ``values`` numbers per token: within each node, and of each GPU's share
        across nodes.

        Source: hierarchical all-reduce (reduce-scatter, ring over the nodes, all-gather), as NCCL does it.
        """
        if self.tp == 1:
            return 0.0
        message_bytes = tokens * values * self.model.dtype_bytes
        seconds = self.node_all_reduce_s(message_bytes)
        nodes = self.tp // self.near
        if nodes == 1:
            return seconds
        sent = 2 * (nodes - 1) / nodes * message_bytes / self.near
        bytes_per_s = NETWORK_SHARE * operators.figure(self.gpu, "network_bytes_per_s")
        return seconds + sent / bytes_per_s + 2 * (nodes - 1) * HOP_S

    def node_all_reduce_s(self, message_bytes: Counts) -> Seconds:
        """Seconds of an all-reduce over the ranks of a node: a ring sends 2 (n - 1) / n of it over each link."""
        fitted = self.efficiency["all_reduce"]
        ring_bytes = message_bytes * 2 * (self.near - 1) / self.near
        seconds: Seconds = ring_bytes / (self.gpu.gpu_link_bytes_per_s * fitted.memory) + fitted.fixed_s
        return seconds

    # ---- attention

    def decode_s(self, mixer: Timed, kv_tokens: Counts, decodes: Counts) -> Seconds:
        """Seconds of one layer's decode attention for sums of attended tokens and numbers of requests, broadcast."""
        fitted = self.efficiency["decode_attention"]
        pair_flops, kv_bytes, query_bytes = self.attention_sizes(mixer)
        byte_s = (kv_bytes * kv_tokens + query_bytes * decodes) / (self.gpu.hbm_bytes_per_s * fitted.memory)
        flop_s = pair_flops * kv_tokens / (self.gpu.bf16_flops_per_s * fitted.compute)
        bound_s: Seconds = np.maximum(byte_s, flop_s)
        return bound_s + fitted.fixed_s

    def attention_sizes(self, mixer: Timed, prompt: bool = False) -> tuple[float, float, float]:
        """FLOPs of a query-key pair, bytes of a token of KV, and bytes of a query and its output, of one layer.

        Latent attention of a prompt reads restored keys and values of every head; of a decode, latent vectors.
        """
        heads, dtype_bytes = mixer.heads // self.tp, self.model.dtype_bytes
        if isinstance(mixer, Attention):
            width = mixer.head_dim + (mixer.value_dim or mixer.head_dim)
            kv_bytes = mixer.rank_kv_heads(self.layout) * width * self.kv_value_bytes
        elif prompt:
            width = mixer.nope_dim + mixer.rope_dim + mixer.value_dim
            kv_bytes = heads * width * dtype_bytes
        else:
            width = 2 * mixer.kv_rank + mixer.rope_dim
            kv_bytes = mixer.kv_bytes(self.layout, self.model.kv_format)
        return 2 * heads * width, kv_bytes, heads * width * dtype_bytes


def check_constants(gpu: Gpu) -> None:
    """Raise InputError if the GPU has constants of an operator kind that does not exist."""
    for kind in gpu.efficiency:
        if kind not in GENERIC:
            raise InputError(
                f"{gpu.name}: unknown operator kind", key=f"efficiency.{kind}", hint=f"known: {', '.join(GENERIC)}"
            )
