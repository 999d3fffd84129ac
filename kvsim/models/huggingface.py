"""Reading a dense decoder with a gated MLP from a Hugging Face ``config.json``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kvsim.core.errors import InputError
from kvsim.core.model import ModelSpec

# Families whose layer is what ModelSpec describes: grouped-query attention, gated MLP, two norms.
FAMILIES: Final = (
    "gemma",
    "glm",
    "granite",
    "internlm2",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "seed_oss",
    "smollm3",
    "stablelm",
)
_NOT_MODELLED: Final[Mapping[str, str]] = {
    "kv_lora_rank": "multi-head latent attention",
    "index_topk": "sparse attention",
    "num_experts": "mixture of experts",
    "moe_num_experts": "mixture of experts",
    "n_routed_experts": "mixture of experts",
    "num_local_experts": "mixture of experts",
    "attention_chunk_size": "chunked attention",
    "hybrid_override_pattern": "layers of different kinds",
    "layers_block_type": "layers of different kinds",
    "full_attention_interval": "layers of different kinds",
    "cross_attention_layers": "cross-attention",
    "is_encoder_decoder": "encoder-decoder models",
    "linear_num_value_heads": "linear attention",
    "mamba_num_heads": "state-space layers",
    "ssm_state_size": "state-space layers",
    "num_nextn_predict_layers": "multi-token prediction",
    "quantization_config": "quantised weights",
}
_KV_HEADS: Final = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
_HEAD_DIM: Final = ("head_dim", "hidden_size_per_head")
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


def read_config(path: Path) -> ModelSpec:
    """The model of a ``config.json``, named after its folder (or the file, if it has another name).

    ``text_config`` is used if present. Raw keys are read, by the rules that vLLM and transformers share: the first
    KV-head key present, ``head_dim`` before hidden size / heads, ``model_max_length`` before the smallest of the
    other length keys; float32 weights are served as 16 bit. What had to be assumed is in ``source``.
    Raises InputError for a file that is not such a config and, naming the key, for what is not modelled.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot be read as JSON: {error}", file=path) from None
    if not isinstance(whole, dict):
        raise InputError("not a config.json: the top level must be an object", file=path)
    text = whole.get("text_config")
    return _Config(path, {**whole, **text} if isinstance(text, dict) else whole).spec()


class _Config:
    """The keys of one file, and the rules to read them by."""

    def __init__(self, path: Path, keys: Mapping[str, Any]) -> None:
        self.path = path
        self.keys = keys
        self.source = {"architecture": str(path)}

    def spec(self) -> ModelSpec:
        self._refuse_what_is_not_modelled()
        heads = self._count("num_attention_heads")
        hidden_size = self._count("hidden_size")
        layers = self._count("num_hidden_layers")
        max_model_len = self._max_model_len()
        self._refuse_other_attention(layers, max_model_len)
        return ModelSpec(
            name=self.path.parent.resolve().name if self.path.name == "config.json" else self.path.stem,
            layers=layers,
            hidden_size=hidden_size,
            heads=heads,
            kv_heads=self._first(_KV_HEADS, heads),
            head_dim=self._first(_HEAD_DIM, hidden_size // heads),
            intermediate_size=self._count("intermediate_size"),
            vocab_size=self._count("vocab_size"),
            max_model_len=max_model_len,
            tied_embeddings=self._flag("tie_word_embeddings", "tied_embeddings"),
            qkv_bias=self.keys.get("model_type") == "qwen2" or self._flag("attention_bias", "qkv_bias"),
            dtype_bytes=self._dtype_bytes(),
            source=self.source,
        )

    def _refuse_what_is_not_modelled(self) -> None:
        for key, what in _NOT_MODELLED.items():
            value = self.keys.get(key)
            alone = what == "mixture of experts" and value == 1  # a dense model may count its MLP as one expert
            if value and not alone:
                raise self._refusal(key, f"{what} (not modelled yet)")
        family = self.keys.get("model_type")
        if family not in FAMILIES:
            raise self._refusal("model_type", f"not one of the dense gated-MLP families: {', '.join(FAMILIES)}")

    def _refuse_other_attention(self, layers: int, max_model_len: int) -> None:
        kinds = self.keys.get("layer_types")
        if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
            raise self._refusal("layer_types", "only full_attention layers are modelled yet")
        window = self.keys.get("sliding_window")
        if kinds or not window or self.keys.get("use_sliding_window") is False:
            return
        if self._count("sliding_window") < max_model_len and self.keys.get("max_window_layers", 0) < layers:
            raise self._refusal("sliding_window", f"a window shorter than {max_model_len} tokens is not modelled yet")

    def _refusal(self, key: str, why: str) -> InputError:
        value = self.keys.get(key)
        shown = "" if isinstance(value, dict | list) else f"{value!r}: "
        return InputError(shown + why, file=self.path, key=key, hint="describe the model in a .toml file instead")

    def _count(self, key: str) -> int:
        value = self.keys.get(key)
        if value is None:
            raise InputError("missing key", file=self.path, key=key, hint="needed: an integer above 0")
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise InputError(f"{value!r} is not allowed", file=self.path, key=key, hint="needed: an integer above 0")
        return value

    def _first(self, keys: tuple[str, ...], otherwise: int) -> int:
        return next((self._count(key) for key in keys if self.keys.get(key)), otherwise)

    def _flag(self, key: str, field: str) -> bool:
        value = self.keys.get(key)
        if value is None:
            self.source[field] = f"assumed false: {key} is not in the file"
            return False
        if not isinstance(value, bool):
            raise InputError(f"{value!r} is not allowed", file=self.path, key=key, hint="needed: true or false")
        return value

    def _max_model_len(self) -> int:
        if self.keys.get("model_max_length") is not None:
            return self._count("model_max_length")
        lengths = [self._count(key) for key in _LENGTHS if self.keys.get(key) is not None]
        if not lengths:
            raise InputError("missing key", file=self.path, key=_LENGTHS[0], hint=f"or {', '.join(_LENGTHS[1:])}")
        return min(lengths)

    def _dtype_bytes(self) -> int:
        key = "dtype" if self.keys.get("dtype") is not None else "torch_dtype"
        name = self.keys.get(key)
        if name is None:
            self.source["dtype_bytes"] = "assumed 16 bit: neither dtype nor torch_dtype is in the file"
            return 2
        if not isinstance(name, str) or name not in _BYTES:
            raise self._refusal(key, f"allowed: {', '.join(_BYTES)}")
        return _BYTES[name]
