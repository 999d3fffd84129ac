"""What each family of models does that its ``config.json`` does not say: biases, norms, gates, patterns of layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal


@dataclass(frozen=True)
class Family:
    """The unwritten rules of one ``model_type``; the default is Llama's.

    - ``norms``: norms of the hidden size in a layer; ``norm_vectors``: 2 if they have a bias
    - ``query_key_norm``: norms on queries and keys, one per head size or over all heads
    - ``qkv_bias``: None: by the key ``bias_key``; ``output_bias``: the output projection has one where Q, K, V have
    - ``gated``, ``mlp_bias``, ``mlp_bias_key``: of the MLP
    - ``window_pattern``: every so-maniest layer attends fully, the others to the window (1: all to the window)
    - ``tied``: what a missing ``tie_word_embeddings`` means
    - ``embedding_norm``, ``head_bias``: a norm behind the embeddings, a bias of the LM head
    - ``mixture``: a file without any key of experts is incomplete, not dense
    - ``positions``: offset of learned position embeddings (None: there are none)
    - ``experts_bias``, ``shared_gate`` (on the shared experts), ``sinks`` (one per head), ``gated_attention``

    Source of all: the modelling code of transformers for that ``model_type``.
    """

    norms: int = 2
    norm_vectors: int = 1
    query_key_norm: Literal["", "head", "all"] = ""
    qkv_bias: bool | None = None
    bias_key: str = "attention_bias"
    output_bias: bool = True
    gated: bool = True
    mlp_bias_key: str = "mlp_bias"
    mlp_bias: bool = False
    window_pattern: int = 1
    tied: bool = False
    experts_bias: bool = False
    shared_gate: bool = False
    sinks: bool = False
    gated_attention: bool = False
    mixture: bool = False
    positions: int | None = None
    embedding_norm: bool = False
    head_bias: bool = False


_PLAIN = Family()
_QWEN3 = Family(query_key_norm="head")
_GEMMA3 = Family(norms=4, query_key_norm="head", window_pattern=6, tied=True)
_MIXTURE = Family(mixture=True)
_GLM_MOE = Family(output_bias=False, mixture=True)

FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "baichuan": _PLAIN,
        "bloom": Family(norm_vectors=2, qkv_bias=True, gated=False, mlp_bias=True, tied=True, embedding_norm=True),
        "chatglm": Family(qkv_bias=True, output_bias=False),
        "cohere": Family(norms=1, tied=True),
        "deepseek": _MIXTURE,
        "deepseek_v2": _PLAIN,
        "deepseek_v3": _MIXTURE,
        "deepseek_v32": _MIXTURE,
        "gemma": Family(tied=True),
        "gemma2": Family(norms=4, window_pattern=2, tied=True),
        "gemma3_text": _GEMMA3,
        "glm": Family(output_bias=False),
        "glm4": Family(norms=4, output_bias=False),
        "glm4_moe": _GLM_MOE,
        "glm4_moe_lite": _GLM_MOE,
        "glm_moe_dsa": _GLM_MOE,
        "gpt_oss": Family(window_pattern=2, experts_bias=True, sinks=True, mixture=True),
        "gptj": Family(norms=1, norm_vectors=2, qkv_bias=False, gated=False, mlp_bias=True, head_bias=True),
        "granite": _PLAIN,
        "internlm2": Family(bias_key="bias"),
        "kimi_k2": _MIXTURE,
        "llama": _PLAIN,
        "llama4_text": Family(window_pattern=4),
        "minicpm": Family(tied=True),
        "ministral3": _PLAIN,
        "mistral": _PLAIN,
        "mixtral": _MIXTURE,
        "nemotron_h": Family(norms=1, gated=False),
        "olmo2": Family(query_key_norm="all"),
        "olmo3": Family(query_key_norm="all", window_pattern=4),
        "opt": Family(norm_vectors=2, qkv_bias=True, gated=False, mlp_bias=True, tied=True, positions=2),
        "phi3": _PLAIN,
        "phimoe": Family(norm_vectors=2, mixture=True),
        "qwen2": Family(qkv_bias=True, output_bias=False),
        "qwen2_moe": Family(qkv_bias=True, output_bias=False, shared_gate=True, mixture=True),
        "qwen3": _QWEN3,
        "qwen3_moe": Family(query_key_norm="head", mixture=True),
        "qwen3_5_moe_text": Family(query_key_norm="head", gated_attention=True, shared_gate=True, mixture=True),
        "qwen3_next": Family(query_key_norm="head", gated_attention=True, shared_gate=True, mixture=True),
        "seed_oss": Family(output_bias=False),
        "smallthinker": _MIXTURE,
        "smollm3": _PLAIN,
        "stablelm": Family(norm_vectors=2, bias_key="use_qkv_bias", output_bias=False),
        "starcoder2": Family(norm_vectors=2, bias_key="use_bias", gated=False, mlp_bias_key="use_bias", tied=True),
    }
)
"""``model_type`` of a decoder -> its family. One that is not here is refused, not guessed."""

DECODERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "gemma3": "gemma3_text",
        "llama4": "llama4_text",
        "minicpmv": "qwen2",
        "qwen2_vl": "qwen2",
        "qwen2_vl_text": "qwen2",
        "qwen2_5_vl": "qwen2",
        "qwen2_5_vl_text": "qwen2",
        "qwen3_vl": "qwen3",
        "qwen3_vl_text": "qwen3",
        "qwen3_vl_moe": "qwen3_moe",
        "qwen3_vl_moe_text": "qwen3_moe",
        "qwen3_5_moe": "qwen3_5_moe_text",
    }
)
"""``model_type`` of a model with an encoder -> the family of its decoder. (MiniCPM-V: 2.6, which is built on Qwen2.)"""

DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
            "max_position_embeddings": 2048,
        },
        "gemma3_text": {
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
    }
)
"""What transformers leaves out of a ``text_config`` because it equals the defaults of the decoder's class."""

REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "is_encoder_decoder": "encoder-decoder models",
        "cross_attention_layers": "cross-attention",
        "hybrid_override_pattern": "state-space layers",
        "mamba_num_heads": "state-space layers",
        "layers_block_type": "layers of other kinds",
        "num_kv_shared_layers": "layers that share KV",
        "attention_k_eq_v": "keys that serve as values",
        "hidden_size_per_layer_input": "embeddings per layer",
        "global_head_dim": "heads of different sizes",
        "compress_ratios": "compressed attention",
        "zero_expert_num": "experts that do nothing",
        "parallel_attn": "attention parallel to the MLP",
        "audio_config": "audio encoders",
    }
)
"""Keys that announce what is not modelled, if they are set; a family that reads one is in ``READ``."""

READ: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"nemotron_h": ("hybrid_override_pattern", "mamba_num_heads")}
)
"""Family -> keys of ``REFUSED`` that it reads."""
