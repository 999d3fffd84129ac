"""From a Hugging Face ``config.json`` to a ``ModelSpec``: raw keys, by the rules of the family they belong to."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from kvsim.core.errors import InputError
from kvsim.core.layers import Attention, Experts, LatentAttention, Layer, LinearAttention, Mixer, Mlp
from kvsim.core.model import ModelSpec
from kvsim.models.encoders import read_encoder
from kvsim.models.families import DECODERS, DEFAULTS, FAMILIES, READ, REFUSED, Family
from kvsim.models.keys import Keys
from kvsim.models.quantization import read_quantization

_LAYERS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH: Final = ("hidden_size", "n_embd", "n_embed", "d_model")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS: Final = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
_HEAD_DIM: Final = ("head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels")
_MLP: Final = ("intermediate_size_mlp", "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
_VOCABULARY: Final = ("vocab_size", "padded_vocab_size")
_EXPERTS: Final = (
    "num_experts",
    "moe_num_experts",
    "n_routed_experts",
    "num_local_experts",
    "moe_num_primary_experts",
)
_PER_TOKEN: Final = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "top_k",
    "moe_num_active_primary_experts",
)
_EXPERT_WIDTH: Final = ("moe_intermediate_size", "moe_ffn_hidden_size", "intermediate_size")
_SHARED: Final = ("n_shared_experts", "moe_num_shared_experts")
_ABOUT_EXPERTS: Final = tuple(
    key for key in (*_EXPERTS, *_PER_TOKEN, *_SHARED, "shared_expert_intermediate_size") if "expert" in key
)
_SCALED_ALREADY: Final = ("su", "longrope", "llama3")
_MOST_LAYERS: Final = 10_000
_DRAFT: Final = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
_LENGTHS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 2}
_KINDS: Final = ("full_attention", "sliding_attention", "chunked_attention", "linear_attention")


def read_config(path: Path) -> ModelSpec:
    """The model of a ``config.json``, named after its folder (or the file, if it has another name).

    Raises InputError for a file that is not such a config and, naming the key, for what is not modelled.
    """
    try:
        keys = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot be read as JSON: {error}", file=path) from None
    if not isinstance(keys, dict):
        raise InputError("not a config.json: the top level must be an object", file=path)
    beside = path.with_name("hf_quant_config.json")
    if "quantization_config" not in keys and beside.is_file():
        raise InputError(
            f"missing key: {beside} says how the weights are stored",
            file=path,
            key="quantization_config",
            hint='copy it in: {"quant_method": "modelopt", "quant_algo": ..., "exclude_modules": [...]}',
        )
    name = path.parent.resolve().name if path.name == "config.json" else path.stem
    return spec_of(keys, path, name, {"architecture": str(path)})


def spec_of(
    whole: Mapping[str, Any], path: Path, name: str, source: Mapping[str, str], *, typed: bool = False
) -> ModelSpec:
    """The model that the keys of a ``config.json`` describe; ``path`` is the file they came from, for errors.

    ``text_config`` (or ``llm_config``) is used if present. Rules that vLLM and transformers share: the first KV-head
    key present, ``head_dim`` before hidden size / heads, ``model_max_length`` before the smallest of the other length
    keys; float32 weights are served as 16 bit. What had to be assumed is added to ``source``. ``typed``: written by
    hand, so that a misspelt key is refused. Raises InputError as ``read_config``.
    """
    text = whole.get("text_config") or whole.get("llm_config")
    nested = isinstance(text, dict)
    merged = {**whole, **(text if nested and text else {})}
    family = str(merged.get("model_type"))
    family = DECODERS.get(family, family)
    if nested and family in DEFAULTS:
        merged = {**DEFAULTS[family], **merged}
    keys = Keys(path, merged, dict(source))
    model = _Reader(keys, family).spec(name, whole)
    if typed:
        keys.refuse_typos()
    return model


class _Reader:
    """The keys of one model, read by the rules of its family."""

    def __init__(self, keys: Keys, family: str) -> None:
        if family not in FAMILIES:
            raise keys.refusal("model_type", f"not one of the families that are modelled: {', '.join(FAMILIES)}")
        for key, what in REFUSED.items():
            if keys.get(key) and key not in READ.get(family, ()):
                raise keys.refusal(key, f"{what} (not modelled yet)")
        for key, value in keys.counts("expert"):
            if key not in _ABOUT_EXPERTS and value > 1:
                raise keys.refusal(key, f"not a key of experts that is known: {', '.join(_ABOUT_EXPERTS)}")
        self.keys = keys
        self.model_type = family
        self.family: Family = FAMILIES[family]
        self.width = keys.first(_WIDTH)
        self.layers = keys.first(_LAYERS, most=_MOST_LAYERS)
        self.heads = keys.first(_HEADS)
        self.max_model_len = self._max_model_len()

    def spec(self, name: str, whole: Mapping[str, Any]) -> ModelSpec:
        keys, family = self.keys, self.family
        vocab_size = keys.first(_VOCABULARY)
        if keys.get("word_embed_proj_dim") not in (None, self.width):
            raise keys.refusal("word_embed_proj_dim", f"only as wide as the layers ({self.width})")
        tied = keys.flag("tie_word_embeddings", family.tied, assume="tied_embeddings")
        ends = self.width * family.norm_vectors
        if family.positions is not None:
            ends += (self.max_model_len + family.positions) * self.width
        if family.embedding_norm:
            ends += self.width * family.norm_vectors
        if keys.flag("lm_head_bias", family.head_bias):
            ends += vocab_size
        return ModelSpec(
            name=name,
            hidden_size=self.width,
            vocab_size=vocab_size,
            max_model_len=self.max_model_len,
            stack=tuple(self._stack()),
            tied_embeddings=tied,
            end_vectors=ends,
            dtype_bytes=self._dtype_bytes(),
            quantization=read_quantization(keys, self.layers),
            encoder=read_encoder(keys, whole, self.width),
            draft_layers=next((keys.count(key) for key in _DRAFT if keys.get(key)), 0),
            source=keys.source,
        )

    def _stack(self) -> Iterator[Layer]:
        norms = self.family.norms * self.width * self.family.norm_vectors
        if self.model_type == "nemotron_h":
            yield from self._one_part_each(norms)
            return
        kinds, sparse = self._kinds(), self._sparse_layers()
        mixers = {kind: self._mixer(kind) for kind in set(kinds)}
        dense = self._mlp() if len(sparse) < self.layers else None
        experts = self._experts() if sparse else None
        for idx, kind in enumerate(kinds):
            yield Layer(mixers[kind], experts if idx in sparse else dense, norms, self.family.norms)

    def _one_part_each(self, norms: int) -> Iterator[Layer]:
        """Nemotron-H: a layer is Mamba-2 (M), attention (*) or an MLP (-), as the pattern says."""
        key = "hybrid_override_pattern"
        pattern = self.keys.get(key)
        if not isinstance(pattern, str) or set(pattern) - set("M*-"):
            raise self.keys.refusal(key, "needed: M (Mamba-2), * (attention) and - (MLP) only")
        parts = {"M": self._mamba(), "*": self._mixer("full_attention"), "-": self._mlp()}
        for kind in self._per_layer(key, list(pattern)):
            part = parts[kind]
            yield Layer(None, part, norms, 1) if isinstance(part, Mlp) else Layer(part, None, norms, 1)

    # Token mixing

    def _kinds(self) -> list[str]:
        """The kind of each layer's attention."""
        keys = self.keys
        kinds = keys.get("layer_types")
        if kinds is not None:
            if not isinstance(kinds, list) or any(kind not in _KINDS for kind in kinds):
                raise keys.refusal("layer_types", f"each must be one of {', '.join(_KINDS)} (others not modelled yet)")
            return list(self._per_layer("layer_types", kinds))
        if keys.get("full_attention_interval"):
            every = keys.count("full_attention_interval")
            return ["linear_attention" if (idx + 1) % every else "full_attention" for idx in range(self.layers)]
        if keys.get("attention_chunk_size"):
            return ["full_attention" if full else "chunked_attention" for full in self._without_rope()]
        if self._window() is None:
            return ["full_attention"] * self.layers
        slides = self._sliding()
        first = keys.count("max_window_layers") if keys.get("max_window_layers") else 0
        sliding = [here and idx >= first for idx, here in enumerate(slides)]
        return ["sliding_attention" if here else "full_attention" for here in sliding]

    def _sliding(self) -> list[bool]:
        """Layers to which the window applies: as listed (SmallThinker), else by the pattern of key or family."""
        keys = self.keys
        listed = keys.integers("sliding_window_layout")
        if listed is not None:
            return [bool(here) for here in self._per_layer("sliding_window_layout", listed)]
        given = keys.get("sliding_window_pattern")
        every = keys.count("sliding_window_pattern") if given else self.family.window_pattern
        return [every == 1 or (idx + 1) % every > 0 for idx in range(self.layers)]

    def _per_layer(self, key: str, listed: list[Any]) -> list[Any]:
        if len(listed) != self.layers:
            raise self.keys.refusal(key, f"{len(listed)} values for {self.layers} layers")
        return listed

    def _without_rope(self) -> list[bool]:
        """Llama 4: layers without rotary embedding attend fully; a 0 in ``no_rope_layers`` marks them."""
        listed = self.keys.integers("no_rope_layers")
        if listed:
            return [not rope for rope in self._per_layer("no_rope_layers", listed)]
        every = self.family.window_pattern
        return [every > 1 and (idx + 1) % every == 0 for idx in range(self.layers)]

    def _window(self) -> int | None:
        """The sliding window, if it is shorter than the longest context."""
        key = "sliding_window_size" if self.keys.get("sliding_window") is None else "sliding_window"
        if not self.keys.get(key) or self.keys.get("use_sliding_window") is False:
            return None
        window = self.keys.count(key)
        return window if window < self.max_model_len else None

    def _mixer(self, kind: str) -> Mixer:
        if kind == "linear_attention":
            return self._linear()
        if self.keys.get("kv_lora_rank"):
            return self._latent()
        keys, family = self.keys, self.family
        kv_heads = keys.first(_KV_HEADS, self.heads)
        if self.heads % kv_heads:
            raise keys.refusal(keys.named(_KV_HEADS) or _KV_HEADS[0], f"does not divide {self.heads} attention heads")
        if keys.named(_HEAD_DIM) is None and self.width % self.heads:
            raise keys.refusal(keys.named(_HEADS) or _HEADS[0], f"does not divide a width of {self.width}")
        head_dim = keys.first(_HEAD_DIM, self.width // self.heads)
        window, chunked = (None, False) if kind == "full_attention" else (self._window(), False)
        if kind == "chunked_attention":
            window, chunked = keys.count("attention_chunk_size"), True
        biased = keys.flag(family.bias_key, False) if family.qkv_bias is None else family.qkv_bias
        norms = self.heads if family.sinks else 0
        query_key_norm = "head" if not family.query_key_norm and keys.get("qk_layernorm") else family.query_key_norm
        if self.model_type == "glm4_moe" and keys.get("use_qk_norm"):
            query_key_norm = "head"
        if query_key_norm:
            norms += 2 * head_dim if query_key_norm == "head" else (self.heads + kv_heads) * head_dim
        return Attention(
            heads=self.heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=keys.count("v_head_dim") if keys.get("v_head_dim") else None,
            window=window,
            chunked=chunked,
            qkv_bias=biased,
            output_bias=biased and family.output_bias,
            gated=family.gated_attention,
            norm_weights=norms,
        )

    def _latent(self) -> LatentAttention:
        keys = self.keys
        top_k = keys.count("index_topk") if keys.get("index_topk") else None
        return LatentAttention(
            heads=self.heads,
            query_rank=keys.count("q_lora_rank") if keys.get("q_lora_rank") else 0,
            kv_rank=keys.count("kv_lora_rank"),
            nope_dim=keys.count("qk_nope_head_dim"),
            rope_dim=keys.count("qk_rope_head_dim"),
            value_dim=keys.count("v_head_dim"),
            index_top_k=top_k,
            index_heads=keys.count("index_n_heads") if top_k else 0,
            index_dim=keys.count("index_head_dim") if top_k else 0,
        )

    def _linear(self) -> LinearAttention:
        keys = self.keys
        return LinearAttention(
            flavour="delta",
            key_heads=keys.count("linear_num_key_heads"),
            value_heads=keys.count("linear_num_value_heads"),
            key_dim=keys.count("linear_key_head_dim"),
            value_dim=keys.count("linear_value_head_dim"),
            kernel=keys.count("linear_conv_kernel_dim"),
            state_value_bytes=4 if keys.get("mamba_ssm_dtype") == "float32" else 2,
        )

    def _mamba(self) -> LinearAttention:
        keys = self.keys
        return LinearAttention(
            flavour="ssm",
            key_heads=keys.count("n_groups"),
            value_heads=keys.count("mamba_num_heads"),
            key_dim=keys.count("ssm_state_size"),
            value_dim=keys.count("mamba_head_dim"),
            kernel=keys.count("conv_kernel"),
            state_value_bytes=4 if keys.get("mamba_ssm_cache_dtype") == "float32" else 2,
            conv_bias=keys.flag("use_conv_bias", True),
        )

    # Feed-forward blocks

    def _sparse_layers(self) -> frozenset[int]:
        """The layers whose feed-forward block is a mixture of experts."""
        keys = self.keys
        if self.family.mixture and all(keys.get(key) is None for key in _EXPERTS):
            keys.first(_EXPERTS)  # refuses: missing key
        counted = next((keys.count(key) for key in _EXPERTS if keys.get(key)), 1)
        if counted == 1:  # a dense model may count its MLP as one expert
            return frozenset()
        listed = keys.integers("moe_layers")
        if listed is not None:
            return frozenset(listed)
        if isinstance(keys.get("moe_layer_freq"), list):
            return frozenset(idx for idx, flag in enumerate(keys.integers("moe_layer_freq") or ()) if flag)
        every = 1
        for key in ("moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step"):
            if keys.get(key):
                every = keys.count(key)
        first = keys.count("first_k_dense_replace") if keys.get("first_k_dense_replace") else 0
        dense = keys.integers("mlp_only_layers") or ()
        # DeepSeek counts from 0 (idx % freq), the others from 1 ((idx + 1) % step).
        offset = 0 if keys.get("moe_layer_freq") else 1
        return frozenset(idx for idx in range(first, self.layers) if (idx + offset) % every == 0 and idx not in dense)

    def _mlp(self) -> Mlp:
        family = self.family
        bias = family.mlp_bias or self.keys.flag(family.mlp_bias_key, False)
        width = self.keys.first(_MLP, 4 * self.width if self.model_type in ("bloom", "gptj") else None)
        return Mlp(width, gated=family.gated, bias=bias)

    def _experts(self) -> Experts:
        keys, family = self.keys, self.family
        width = keys.first(_EXPERT_WIDTH)
        shared = next((keys.count(key) * width for key in _SHARED if keys.get(key)), 0)
        if keys.get("shared_expert_intermediate_size"):
            shared = keys.count("shared_expert_intermediate_size")
        if self.model_type == "llama4_text":
            shared = width
        count = keys.first(_EXPERTS)
        return Experts(
            count=count,
            per_token=keys.first(_PER_TOKEN, most=count),
            width=width,
            shared_width=shared,
            shared_gate=bool(shared) and family.shared_gate,
            bias=family.experts_bias,
            router_bias=family.experts_bias or keys.get("topk_method") == "noaux_tc" or self.model_type == "glm4_moe",
        )

    # Sizes

    def _max_model_len(self) -> int:
        keys = self.keys
        if keys.get("model_max_length") is not None:
            return self._scaled(keys.count("model_max_length"))
        lengths = [keys.count(key) for key in _LENGTHS if keys.get(key) is not None]
        if not lengths:
            raise InputError("missing key", file=keys.path, key=_LENGTHS[0], hint=f"or {', '.join(_LENGTHS[1:])}")
        return self._scaled(min(lengths))

    def _scaled(self, length: int) -> int:
        """With what scaling the rotary embedding adds: ``factor`` times the length, with YaRN times the original one;
        nothing where the length counts it already. ``rope_parameters`` may hold an object per kind of layer.

        Source: vLLM 0.11, ``_get_and_verify_max_len`` of ``vllm.config``.
        """
        keys = self.keys
        found = keys.within("rope_parameters" if keys.get("rope_parameters") else "rope_scaling")
        if found is None or self.model_type == "gemma3_text":
            return length
        kinds = [name for name in found.names() if name in _KINDS]
        factor = 1.0
        for rope in [found.within(name) for name in kinds] or [found]:
            form = rope and (rope.get("rope_type") or rope.get("type"))
            if rope is None or form in _SCALED_ALREADY:
                continue
            factor = rope.number("factor", factor)
            if form == "yarn" and rope.get("original_max_position_embeddings") is not None:
                length = rope.count("original_max_position_embeddings")
        return int(length * factor)

    def _dtype_bytes(self) -> int:
        keys = self.keys
        key = "dtype" if keys.get("dtype") is not None else "torch_dtype"
        name = keys.get(key)
        if name is None:
            keys.source["dtype_bytes"] = "assumed 16 bit: neither dtype nor torch_dtype is in the file"
            return 2
        if not isinstance(name, str) or name not in _BYTES:
            raise keys.refusal(key, f"allowed: {', '.join(_BYTES)}")
        return _BYTES[name]
