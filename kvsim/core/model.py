"""The shape of a decoder-only transformer, and what follows from it: parameters, weight bytes, KV bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelSpec:
    """A dense decoder with grouped-query attention, as its Hugging Face ``config.json`` describes it.

    ``max_model_len`` is the largest prompt + output in tokens. ``dtype_bytes`` is bytes per weight, activation
    and KV value. ``source`` maps figures to where they were read.
    """

    name: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    dtype_bytes: int = 2
    source: Mapping[str, str] = field(default_factory=dict)

    def kv_bytes_per_token(self, tensor_parallel_size: int = 1) -> int:
        """Bytes of KV cache for one token on one GPU: K and V, for every layer and KV head there.

        Source: 2 · layers · kv_heads · head_dim · dtype_bytes (grouped-query attention). With more ranks than
        KV heads each rank keeps one head, so heads are replicated.

        >>> ModelSpec("8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072).kv_bytes_per_token()
        131072
        """
        kv_heads = max(1, self.kv_heads // tensor_parallel_size)
        return 2 * self.layers * kv_heads * self.head_dim * self.dtype_bytes

    def parameters(self, tensor_parallel_size: int = 1) -> int:
        """Number of weights on one GPU: embeddings, attention, gated MLP, RMSNorms and the LM head (once if tied).

        Matrices are split over the ranks (embeddings and LM head by vocabulary, KV heads as in
        ``kv_bytes_per_token``); norms are whole on each.

        >>> ModelSpec("7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096).parameters()   # Llama-2-7B
        6738415616
        """
        tp = tensor_parallel_size
        q_width = self.heads // tp * self.head_dim
        kv_width = max(1, self.kv_heads // tp) * self.head_dim
        attention = self.hidden_size * 2 * (q_width + kv_width)
        if self.qkv_bias:
            attention += q_width + 2 * kv_width
        mlp = 3 * self.hidden_size * (self.intermediate_size // tp)
        norms = 2 * self.hidden_size
        embeddings = -(-self.vocab_size // tp) * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.layers * (attention + mlp + norms) + self.hidden_size + embeddings
