"""What a layer of a decoder is made of, and what each part holds on one rank: weights, KV per token, state."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from kvsim.core.layout import Layout

Part = Literal["embedding", "head", "attention", "mlp", "experts", "router", "vectors", "encoder"]
"""Kinds of weights that engines store in a format of their own. ``vectors``: norms, biases and the like."""


@dataclass(frozen=True)
class KVFormat:
    """How one value of KV is stored: bytes per value, scales included; and the whole of a latent vector, if fixed.

    ``latent_bytes`` is for one token and layer of multi-head latent attention; None: its values times ``value_bytes``.
    """

    value_bytes: float
    latent_bytes: int | None = None


KV_FORMATS: Final[Mapping[str, KVFormat]] = MappingProxyType(
    {
        "bfloat16": KVFormat(2),
        "float16": KVFormat(2),
        "fp8": KVFormat(1),
        "fp8_e4m3": KVFormat(1),
        "fp8_e5m2": KVFormat(1),
        "fp8_ds_mla": KVFormat(1, latent_bytes=656),
        "nvfp4": KVFormat(0.5625),
        "nvfp4_ds_mla": KVFormat(0.5625, latent_bytes=352),
    }
)
"""``kv_cache_dtype`` -> format. ``auto`` is the model's own 16 bit. Source: vLLM cache options; fp8_ds_mla: 512 values
of 8 bit, four float32 scales, 64 rotary values of 16 bit; nvfp4: 4 bit and an 8 bit scale per 16 values."""

AUTO: Final = KVFormat(2)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention of one layer.

    ``window``: how many of the latest tokens a query sees, its own included (None: all). With ``chunked`` it sees
    those of its own chunk of ``window`` tokens. ``gated``: a gate as wide as the queries. ``norm_weights``: on
    queries and keys, or sinks. ``value_dim``: width of a value head (None: ``head_dim``).
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    window: int | None = None
    chunked: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    gated: bool = False
    norm_weights: int = 0

    @property
    def kind(self) -> str:
        """``full``, ``sliding`` or ``chunked``."""
        return "full" if self.window is None else "chunked" if self.chunked else "sliding"

    def rank_kv_heads(self, layout: Layout) -> int:
        """KV heads on one rank: shared by the ranks, and each has at least one (so they are replicated)."""
        return max(1, self.kv_heads // layout.tensor_parallel_size)

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on one rank."""
        query = self.heads // layout.tensor_parallel_size * self.head_dim
        value_dim = self.value_dim or self.head_dim
        output = self.heads // layout.tensor_parallel_size * value_dim
        kv = self.rank_kv_heads(layout) * (self.head_dim + value_dim)
        queries = query * 2 if self.gated else query
        biases = (queries + kv) * self.qkv_bias + hidden_size * self.output_bias
        return Counter[Part](
            {"attention": hidden_size * (queries + kv + output), "vectors": biases + self.norm_weights}
        )

    def kv_bytes(self, layout: Layout, kv: KVFormat = AUTO) -> float:
        """Bytes of KV for one token on one rank. Source: kv_heads · (head_dim of K + of V) · bytes per value."""
        return self.rank_kv_heads(layout) * (self.head_dim + (self.value_dim or self.head_dim)) * kv.value_bytes

    def attended(self, context_tokens: int) -> int:
        """Tokens that a query at the end of a context reads, its own included."""
        if self.window is None:
            return context_tokens
        if self.chunked:
            return (context_tokens - 1) % self.window + 1
        return min(context_tokens, self.window)

    def pairs(self, tokens: float) -> float:
        """Query-key pairs of the first so many tokens of a request, each with those that it sees.

        A prompt's half square of them, ``tokens``^2 / 2, as FLOPs are counted; linear behind a window.

        >>> Attention(32, 8, 128, window=1024).pairs(4096) == 4096 * 1024 - 1024**2 / 2
        True
        """
        if self.window is None or tokens <= self.window:
            return tokens * tokens / 2
        if not self.chunked:
            return self.window * tokens - self.window**2 / 2
        whole, rest = divmod(tokens, self.window)
        return whole * self.window**2 / 2 + rest * rest / 2

    def stored(self, context_tokens: int) -> int:
        """Tokens whose KV is still needed."""
        return self.attended(context_tokens)

    def state_bytes(self, layout: Layout, dtype_bytes: int) -> int:
        """No state beside KV."""
        return 0

    def misfit(self, layout: Layout) -> str:
        """Why the ranks cannot share it, or ""."""
        tp, sharing = layout.tensor_parallel_size, layout.tensor_context_ranks
        if self.heads % tp:
            return f"tensor_parallel_size: {tp} ranks cannot share {self.heads} attention heads; it must divide them"
        if self.kv_heads % tp and tp % self.kv_heads:
            return (
                f"tensor_parallel_size: {tp} ranks can neither share {self.kv_heads} KV heads nor hold equal copies; "
                "one must divide the other"
            )
        copies = max(1, tp // self.kv_heads)
        if sharing > copies:
            return (
                f"decode_context_parallel_size: {sharing} tensor-parallel ranks cannot share the tokens of a KV head, "
                f"as {tp} hold {copies} {'copy' if copies == 1 else 'copies'} of each"
            )
        queries = self.heads // self.kv_heads
        if queries % sharing:
            return f"decode_context_parallel_size: {sharing} must divide the {queries} queries per KV head"
        return ""


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention: one compressed vector per token stands for the K and V of all heads.

    ``query_rank`` 0: queries are not compressed. With ``index_top_k`` a light indexer picks the tokens that are read.
    Source: DeepSeek-V2, arXiv 2405.04434; V3.2 (indexer), arXiv 2512.02556.
    """

    heads: int
    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    index_top_k: int | None = None
    index_heads: int = 0
    index_dim: int = 0

    @property
    def kind(self) -> str:
        """``latent``, or ``sparse`` with an indexer."""
        return "latent" if self.index_top_k is None else "sparse"

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on one rank: the compressing matrices and the indexer are whole, the heads are shared."""
        heads = self.heads // layout.tensor_parallel_size
        query_dim = self.nope_dim + self.rope_dim
        matrices = hidden_size * (self.kv_rank + self.rope_dim)
        matrices += heads * (self.kv_rank * (self.nope_dim + self.value_dim) + self.value_dim * hidden_size)
        matrices += hidden_size * self.query_rank + (self.query_rank or hidden_size) * heads * query_dim
        norms = self.kv_rank + self.query_rank
        if self.index_top_k is not None:
            matrices += self.query_rank * self.index_heads * self.index_dim
            matrices += hidden_size * (self.index_dim + self.index_heads)
            norms += 2 * self.index_dim
        return Counter[Part]({"attention": matrices, "vectors": norms})

    def kv_bytes(self, layout: Layout, kv: KVFormat = AUTO) -> float:
        """Bytes for one token on one rank: every rank holds the whole vector, whatever the tensor parallelism.

        Source: (kv_lora_rank + qk_rope_head_dim) · bytes per value, or the fixed size of a ``_ds_mla`` format. The
        indexer keeps one key in 8 bit with a float32 scale per 128 values.
        """
        latent = kv.latent_bytes or (self.kv_rank + self.rope_dim) * kv.value_bytes
        return latent + self.index_dim + 4 * -(-self.index_dim // 128)  # no indexer: 0

    def attended(self, context_tokens: int) -> int:
        """Tokens that a query at the end of a context reads, its own included."""
        return context_tokens if self.index_top_k is None else min(context_tokens, self.index_top_k)

    def stored(self, context_tokens: int) -> int:
        """Every token is kept: any may be picked later."""
        return context_tokens

    def state_bytes(self, layout: Layout, dtype_bytes: int) -> int:
        """No state beside KV."""
        return 0

    def misfit(self, layout: Layout) -> str:
        """Why the ranks cannot share it, or ""."""
        if self.heads % layout.tensor_parallel_size:
            return (
                f"tensor_parallel_size: {layout.tensor_parallel_size} ranks cannot share {self.heads} attention heads; "
                "it must divide them"
            )
        return ""


@dataclass(frozen=True)
class LinearAttention:
    """A layer with a state of constant size instead of KV: gated delta net (``delta``) or Mamba-2 (``ssm``).

    Per head the state has ``key_dim`` x ``value_dim`` values of ``state_value_bytes``; a short convolution keeps its
    last ``kernel`` − 1 inputs in 16 bit. For Mamba-2 a key head is a group and ``key_dim`` the state size.
    Source: Yang et al., arXiv 2412.06464; Dao and Gu, arXiv 2405.21060.
    """

    flavour: Literal["delta", "ssm"]
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    state_value_bytes: int = 4
    conv_bias: bool = False

    @property
    def kind(self) -> str:
        """``linear``."""
        return "linear"

    def _conv_width(self, layout: Layout) -> int:
        tp = layout.tensor_parallel_size
        return 2 * max(1, self.key_heads // tp) * self.key_dim + self.value_heads // tp * self.value_dim

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on one rank: input projections (with gates), convolution, per-head vectors, output projection."""
        value_heads = self.value_heads // layout.tensor_parallel_size
        values = value_heads * self.value_dim
        conv = self._conv_width(layout)
        if self.flavour == "delta":  # q k v, output gate; two gates per head
            inputs, vectors = conv + values + 2 * value_heads, 2 * value_heads + self.value_dim
        else:  # z, x B C, dt; A, D and dt bias per head, a norm over the values
            inputs, vectors = conv + values + value_heads, 3 * value_heads + values
        vectors += conv * (self.kernel + self.conv_bias)
        return Counter[Part]({"attention": hidden_size * (inputs + values), "vectors": vectors})

    def kv_bytes(self, layout: Layout, kv: KVFormat = AUTO) -> float:
        """Nothing per token."""
        return 0

    def attended(self, context_tokens: int) -> int:
        """No earlier token is read: the state stands for them."""
        return 0

    def stored(self, context_tokens: int) -> int:
        """No token is kept."""
        return 0

    def state_bytes(self, layout: Layout, dtype_bytes: int) -> int:
        """Bytes of one request on one rank, whatever its context."""
        state = self.value_heads // layout.tensor_parallel_size * self.value_dim * self.key_dim
        return state * self.state_value_bytes + self._conv_width(layout) * (self.kernel - 1) * dtype_bytes

    def misfit(self, layout: Layout) -> str:
        """Why the ranks cannot share it, or ""."""
        tp = layout.tensor_parallel_size
        if self.value_heads % tp or (self.key_heads % tp and tp % self.key_heads):
            heads = f"{self.key_heads} key and {self.value_heads} value heads"
            return f"tensor_parallel_size: {tp} ranks cannot share {heads} of linear attention; it must divide them"
        return ""


@dataclass(frozen=True)
class Mlp:
    """A feed-forward block: two matrices up and one down if ``gated``, one and one otherwise."""

    width: int
    gated: bool = True
    bias: bool = False

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on one rank: columns are shared by the tensor-parallel ranks."""
        width = self.width // layout.tensor_parallel_size
        ups = 2 if self.gated else 1
        vectors = (ups * width + hidden_size) * self.bias
        return Counter[Part]({"mlp": (ups + 1) * hidden_size * width, "vectors": vectors})

    def misfit(self, layout: Layout) -> str:
        """Why the ranks cannot share it, or ""."""
        tp = layout.tensor_parallel_size
        return f"tensor_parallel_size: {tp} ranks cannot share {self.width} MLP columns" if self.width % tp else ""


@dataclass(frozen=True)
class Experts:
    """A mixture of gated experts: each token goes to ``per_token`` of ``count``, and through the shared block, if any.

    ``shared_width``: columns of the experts that every token uses, together (0: none); ``shared_gate``: a gate on
    them. ``router_bias``: one value per expert.
    """

    count: int
    per_token: int
    width: int
    shared_width: int = 0
    shared_gate: bool = False
    bias: bool = False
    router_bias: bool = False

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on the rank that holds most.

        With expert parallelism whole experts are dealt to all ranks of a stage; without it each rank has a slice of
        every expert. The shared block is split over the tensor-parallel ranks, but whole on each when expert, data
        and tensor parallelism meet (tokens are then split instead). Source: vLLM ``FusedMoEParallelConfig.make``,
        ``ParallelConfig.use_sequence_parallel_moe``.
        """
        if layout.enable_expert_parallel:
            here, width = -(-self.count // layout.stage_ranks), self.width
        else:
            here, width = self.count, self.width // layout.stage_ranks
        found = Counter[Part](
            {
                "experts": here * 3 * hidden_size * width,
                "router": hidden_size * self.count,
                "vectors": here * (2 * width + hidden_size) * self.bias + self.count * self.router_bias,
            }
        )
        if self.shared_width:
            tp = layout.tensor_parallel_size
            whole = layout.enable_expert_parallel and tp > 1 and layout.data_parallel_size > 1
            found["mlp"] = 3 * hidden_size * (self.shared_width if whole else self.shared_width // tp)
            found["router"] += hidden_size * self.shared_gate
        return found

    def misfit(self, layout: Layout) -> str:
        """Why the ranks cannot share it, or ""."""
        ranks = layout.stage_ranks
        if layout.enable_expert_parallel:
            if ranks > self.count:
                return f"enable_expert_parallel: {ranks} ranks share {self.count} experts, so some would have none"
        elif self.width % ranks:
            key = "tensor_parallel_size" if ranks == layout.tensor_parallel_size else "data_parallel_size"
            return (
                f"{key}: {ranks} ranks cannot share the {self.width} columns of an expert; "
                "enable_expert_parallel deals out whole experts"
            )
        if self.shared_width % layout.tensor_parallel_size:
            return f"tensor_parallel_size: {layout.tensor_parallel_size} ranks cannot share {self.shared_width} columns"
        return ""


Mixer = Attention | LatentAttention | LinearAttention


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer of tokens, a feed-forward block (either may be missing), and weights of its norms.

    ``norms``: how many norms of the hidden size there are.
    """

    mixer: Mixer | None
    mlp: Mlp | Experts | None
    norm_weights: int
    norms: int = 2

    def weights(self, hidden_size: int, layout: Layout) -> Counter[Part]:
        """Weights on one rank (the one that holds most)."""
        found = Counter[Part]({"vectors": self.norm_weights})
        for part in (self.mixer, self.mlp):
            if part is not None:
                found.update(part.weights(hidden_size, layout))
        return found


@dataclass(frozen=True)
class Encoder:
    """What turns images or sound into tokens before the decoder: a transformer tower and a projector.

    ``matrices`` and ``vectors`` count all its weights, projector included; ``layers``, ``hidden_size``, ``heads`` and
    ``intermediate_size`` describe the tower. ``tokens_per_image``: what the decoder receives for one image or tile
    (None: it depends on the size).
    """

    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    gated: bool
    matrices: int
    vectors: int
    tokens_per_image: int | None = None
