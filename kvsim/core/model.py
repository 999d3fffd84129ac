"""The shape of a decoder, layer by layer, and what follows from it: parameters, weight bytes, KV bytes, state bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from kvsim.core.errors import InputError
from kvsim.core.layers import AUTO, KV_FORMATS, Attention, Encoder, Experts, KVFormat, LatentAttention, Layer, Mlp, Part
from kvsim.core.layout import ONE_GPU, Layout


@dataclass(frozen=True)
class Quantization:
    """How the matrices of ``parts`` are stored: ``weight_bytes`` per weight, scales included; the others stay 16 bit.

    ``method`` names the format for whoever prices the arithmetic: fp8, fp8_block, int8, int8_wo, int4_wo, mxfp4, nvfp4.
    """

    method: str
    weight_bytes: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ModelSpec:
    """A decoder as it is served: its layers in order, the vocabulary at both ends, and how it is stored.

    ``max_model_len`` is the largest prompt + output in tokens. ``dtype_bytes`` is bytes per activation, and per weight
    and KV value where ``quantization`` and ``kv_format`` do not say otherwise. ``end_vectors`` counts the weights of
    the last norm, of learned positions and the like. ``draft_layers`` are what the checkpoint brings for multi-token
    prediction; they are loaded for speculative decoding only and counted nowhere. ``source`` maps figures to where
    they were read, and to what had to be assumed.
    """

    name: str
    hidden_size: int
    vocab_size: int
    max_model_len: int
    stack: tuple[Layer, ...]
    tied_embeddings: bool = False
    end_vectors: int = 0
    dtype_bytes: int = 2
    quantization: Quantization | None = None
    kv_format: KVFormat = AUTO
    encoder: Encoder | None = None
    draft_layers: int = 0
    source: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def dense(
        cls,
        name: str,
        layers: int,
        hidden_size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        vocab_size: int,
        max_model_len: int,
        **options: Any,
    ) -> ModelSpec:
        """The usual dense decoder: full grouped-query attention, a gated MLP and two RMSNorms in every layer.

        >>> ModelSpec.dense("7b", 32, 4096, 32, 32, 128, 11008, 32000, 4096).parameters()   # Llama-2-7B
        6738415616
        """
        layer = Layer(Attention(heads, kv_heads, head_dim), Mlp(intermediate_size), 2 * hidden_size)
        return cls(name, hidden_size, vocab_size, max_model_len, (layer,) * layers, end_vectors=hidden_size, **options)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.stack)

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of attention that occur: full, sliding, chunked, latent, sparse, linear."""
        return frozenset(mixer.kind for mixer in self._mixers())

    def groups(self, layers: Iterable[Layer] | None = None) -> tuple[tuple[Layer, int], ...]:
        """The different layers and how many of each there are (of the whole model, or of the given layers)."""
        return tuple(Counter(self.stack if layers is None else layers).items())

    def stage(self, layout: Layout, stage: int) -> tuple[Layer, ...]:
        """The layers of a pipeline stage: equal counts; what is left over goes to stages before the last, from its end.

        Source: vLLM ``distributed.utils.get_pp_indices``.

        >>> model = ModelSpec.dense("tiny", 22, 64, 4, 2, 16, 128, 256, 4096)
        >>> [len(model.stage(Layout(pipeline_parallel_size=4), stage)) for stage in range(4)]
        [5, 6, 6, 5]
        """
        stages = layout.pipeline_parallel_size
        each, left_over = divmod(self.layers, stages)
        counts = [each + (stages - 1 - left_over <= idx < stages - 1) for idx in range(stages)]
        first = sum(counts[:stage])
        return self.stack[first : first + counts[stage]]

    def weights(self, layout: Layout = ONE_GPU, stage: int = 0) -> Counter[Part]:
        """Weights by kind on one rank of a pipeline stage (the one that holds most).

        The vocabulary is split over the tensor-parallel ranks; the first stage has the embeddings and the encoder,
        the last one the LM head (tied: the embeddings again, where the first stage is another).
        """
        last = layout.pipeline_parallel_size - 1
        vocabulary = -(-self.vocab_size // layout.tensor_parallel_size) * self.hidden_size
        found = Counter[Part]()
        for layer, count in self.groups(self.stage(layout, stage)):
            found.update({part: n * count for part, n in layer.weights(self.hidden_size, layout).items()})
        if stage == 0:
            found["embedding"] = vocabulary
            if self.encoder is not None:
                found["encoder"] = self.encoder.matrices // layout.tensor_parallel_size
                found["vectors"] += self.encoder.vectors
        if stage == last:
            found["vectors"] += self.end_vectors
            if not self.tied_embeddings or last > 0:
                found["head"] = vocabulary
        return found

    def parameters(self, layout: Layout = ONE_GPU, stage: int = 0) -> int:
        """Number of weights on one rank of a pipeline stage; of the whole model for one GPU."""
        return self.weights(layout, stage).total()

    def active_parameters(self) -> int:
        """Weights that one token passes through: all but the embeddings and the experts it is not sent to.

        Twice this is the FLOPs per token outside attention.
        """
        found = self.weights()
        idle = sum(
            count
            * layer.mlp.weights(self.hidden_size, ONE_GPU)["experts"]
            * (1 - layer.mlp.per_token / layer.mlp.count)
            for layer, count in self.groups()
            if isinstance(layer.mlp, Experts)
        )
        head = self.vocab_size * self.hidden_size if self.tied_embeddings else 0  # then one matrix does both
        return found.total() - found["embedding"] - found["encoder"] - round(idle) + head

    def weight_bytes(self, layout: Layout = ONE_GPU, stage: int = 0) -> int:
        """Bytes of the weights on one rank of a pipeline stage, each kind in its format."""
        quantized = self.quantization
        return ceil(
            sum(
                n * (quantized.weight_bytes if quantized and part in quantized.parts else self.dtype_bytes)
                for part, n in self.weights(layout, stage).items()
            )
        )

    def kv_bytes_per_token(self, layout: Layout = ONE_GPU, stage: int = 0) -> int:
        """Bytes of KV that one more token of context takes on one rank while no window is full.

        Sum over the layers of the stage of ``kv_bytes``. Context parallelism spreads tokens over ranks, so this is
        what a token takes on the rank that holds it.

        >>> ModelSpec.dense("8b", 32, 4096, 32, 8, 128, 14336, 128256, 131072).kv_bytes_per_token()
        131072
        """
        layers = self.groups(self.stage(layout, stage))
        return ceil(sum(n * one.mixer.kv_bytes(layout, self.kv_format) for one, n in layers if one.mixer))

    def kv_bytes(self, context_tokens: int, layout: Layout = ONE_GPU, stage: int = 0) -> int:
        """Bytes of KV that one request at this context needs on one rank, each layer keeping what it may still read."""
        layers = self.groups(self.stage(layout, stage))
        kept = ((n * one.mixer.kv_bytes(layout, self.kv_format), one.mixer) for one, n in layers if one.mixer)
        share = layout.decode_context_parallel_size
        return ceil(sum(per_token * -(-mixer.stored(context_tokens) // share) for per_token, mixer in kept))

    def state_bytes(self, layout: Layout = ONE_GPU, stage: int = 0) -> int:
        """Bytes that one request takes on one rank whatever its context: states of linear-attention layers."""
        layers = self.groups(self.stage(layout, stage))
        return sum(n * one.mixer.state_bytes(layout, self.dtype_bytes) for one, n in layers if one.mixer)

    @property
    def rotary_dim(self) -> int:
        """Values of a query or key head that are rotated: all of them, or the rotary part of latent attention."""
        return max(m.rope_dim if isinstance(m, LatentAttention) else getattr(m, "head_dim", 0) for m in self._mixers())

    def with_kv_cache_dtype(self, dtype: str) -> ModelSpec:
        """This model with KV stored in another format (``auto``: 16 bit).

        Raises InputError for an unknown format, and for one made for another kind of attention.
        """
        if dtype == "auto":
            return replace(self, kv_format=AUTO)
        if dtype not in KV_FORMATS:
            known = ", ".join(KV_FORMATS)
            raise InputError(f"{dtype!r} is not modelled", key="kv_cache_dtype", hint=f"allowed: auto, {known}")
        kv_format = KV_FORMATS[dtype]
        if kv_format.latent_bytes is not None:
            widths = {m.kv_rank + m.rope_dim if isinstance(m, LatentAttention) else 0 for m in self._mixers()}
            if widths != {576}:  # 512 + 64: what these formats are laid out for
                raise InputError(
                    f"{dtype} stores latent vectors of 512 + 64 values, and {self.name} has others",
                    key="kv_cache_dtype",
                )
        return replace(self, kv_format=kv_format)

    def with_quantization(self, method: str) -> ModelSpec:
        """This 16 bit model quantised when it is loaded; ``fp8``: the matrices of its layers in 8 bit.

        Source: vLLM, online ``quantization: fp8`` (LM head, embeddings and routers stay as they are). Raises
        InputError for another method, and if the checkpoint is quantised already.
        """
        if method != "fp8":
            raise InputError(f"{method!r} is not modelled", key="quantization", hint="allowed: fp8")
        if self.quantization is not None:
            raise InputError(
                f"{self.name} is stored as {self.quantization.method} already", key="quantization", hint="leave it out"
            )
        return replace(self, quantization=Quantization("fp8", 1.0, ("attention", "mlp", "experts")))

    def check(self, layout: Layout) -> None:
        """Raise InputError, naming the key of the layout, if the ranks cannot share this model.

        Source: vLLM ``ModelConfig.verify_with_parallel_config``, ``ParallelConfig`` and the sharded layers' asserts.
        """
        tp, pcp = layout.tensor_parallel_size, layout.prefill_context_parallel_size
        dcp, stages = layout.decode_context_parallel_size, layout.pipeline_parallel_size
        if stages > self.layers:
            raise InputError(
                f"{stages} stages cannot share the {self.layers} layers of {self.name}",
                key="pipeline_parallel_size",
                hint=f"at most {self.layers}",
            )
        if pcp == 1 and tp % dcp:
            raise InputError(f"{dcp} does not divide tensor_parallel_size {tp}", key="decode_context_parallel_size")
        if pcp > 1 and dcp not in (1, pcp, tp * pcp):
            raise InputError(
                f"{dcp} is not allowed with prefill_context_parallel_size {pcp}",
                key="decode_context_parallel_size",
                hint=f"1, {pcp} or {tp * pcp}",
            )
        experts = any(isinstance(layer.mlp, Experts) for layer in self.stack)
        if not experts and (layout.enable_expert_parallel or layout.data_parallel_size > 1):
            key = "enable_expert_parallel" if layout.enable_expert_parallel else "data_parallel_size"
            raise InputError(f"{self.name} has no experts to share", key=key, hint="copies of a model are replicas")
        for layer, _ in self.groups():
            for part in (layer.mixer, layer.mlp):
                key, _, why = (part.misfit(layout) if part else "").partition(": ")
                if why:
                    raise InputError(f"{self.name}: {why}", key=key)

    def _mixers(self) -> list[Any]:
        return [layer.mixer for layer, _ in self.groups() if layer.mixer is not None]

    def untimed(self, what: str) -> InputError:
        """What a cost model raises that has no prices for something of this model."""
        return InputError(
            f"{self.name} has {what}, which the cost model cannot time yet",
            key="model",
            hint="cost table and cost affine take any model",
        )
