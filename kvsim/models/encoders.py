"""Vision encoders: from ``vision_config`` to the tower and projector in front of a decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kvsim.core.layers import Encoder
from kvsim.models.keys import Keys

_FEATURES: Final = 4  # neighbouring patches that are merged into one token: 2 x 2


@dataclass(frozen=True)
class _Tower:
    """Sizes of a vision transformer; ``decoder_width`` is the hidden size that it feeds, from ``taps`` layers more."""

    layers: int
    width: int
    heads: int
    mlp: int
    patch: int
    patches: int
    frames: int
    decoder_width: int
    taps: int

    def layer(self, *, gated: bool = False, biases: bool = True, norm_vectors: int = 2) -> tuple[int, int]:
        """Matrices and vectors of one layer."""
        ups = 2 if gated else 1
        vectors = 2 * norm_vectors * self.width + (5 * self.width + ups * self.mlp) * biases
        return 4 * self.width**2 + (ups + 1) * self.width * self.mlp, vectors


_Count = tuple[int, int, int | None]
"""Matrices, vectors, and tokens per image (or tile) of a whole encoder."""


def _clip_llava(t: _Tower) -> _Count:
    matrices, vectors = t.layer()
    projector = t.width * t.decoder_width + t.decoder_width**2
    ends = (t.patches + 1) * t.width + t.width + 4 * t.width + 2 * t.decoder_width
    patch = 3 * t.patch**2 * t.width
    return t.layers * matrices + projector + patch, t.layers * vectors + ends, t.patches


def _siglip_gemma(t: _Tower) -> _Count:
    matrices, vectors = t.layer()
    patch = 3 * t.patch**2 * t.width
    ends = t.patches * t.width + 4 * t.width
    return t.layers * matrices + patch + t.width * t.decoder_width, t.layers * vectors + ends, 256


def _siglip_minicpm(t: _Tower) -> _Count:
    matrices, vectors = t.layer()
    patch, h = 3 * t.patch**2 * t.width, t.decoder_width
    resampler = t.width * h + 5 * h * h  # keys and values; Q, K, V and output of one attention; a projection
    ends = t.patches * t.width + 3 * t.width + (64 + 10) * h
    return t.layers * matrices + patch + resampler, t.layers * vectors + ends, 64


def _qwen2(t: _Tower) -> _Count:
    return _qwen(t, gated=False, norm_vectors=2)


def _qwen2_5(t: _Tower) -> _Count:
    return _qwen(t, gated=True, norm_vectors=1)


def _qwen3(t: _Tower) -> _Count:
    matrices, vectors, tokens = _qwen(t, gated=False, norm_vectors=2)
    merged = _FEATURES * t.width  # each tap has a merger of its own, with a norm of the merged width
    matrices += t.taps * (merged**2 + merged * t.decoder_width)
    vectors += t.patches * t.width + t.width + t.taps * (3 * merged + t.decoder_width)
    return matrices, vectors, tokens


def _qwen(t: _Tower, *, gated: bool, norm_vectors: int) -> _Count:
    matrices, vectors = t.layer(gated=gated, norm_vectors=norm_vectors)
    patch = 3 * t.frames * t.patch**2 * t.width
    merged = _FEATURES * t.width
    merger = merged**2 + merged * t.decoder_width
    return (
        t.layers * matrices + patch + merger,
        t.layers * vectors + merged + t.decoder_width + norm_vectors * t.width,
        None,
    )


def _intern(t: _Tower) -> _Count:
    large = t.width == 3200  # InternViT-6B: RMSNorms, no biases on Q, K, V, and norms on queries and keys
    matrices, vectors = t.layer(norm_vectors=1 if large else 2)
    vectors += 2 * t.width - (t.width if large else 0)  # two layer scales
    merged, h = _FEATURES * t.width, t.decoder_width
    patch = 3 * t.patch**2 * t.width
    ends = (t.patches + 3) * t.width + 2 * merged + 2 * h
    return t.layers * matrices + patch + merged * h + h * h, t.layers * vectors + ends, t.patches // _FEATURES


def _pixtral(t: _Tower) -> _Count:
    matrices, vectors = t.layer(gated=True, biases=False, norm_vectors=1)
    projector = _FEATURES * t.width**2 + t.width * t.decoder_width + t.decoder_width**2
    return t.layers * matrices + 3 * t.patch**2 * t.width + projector, t.layers * vectors + 2 * t.width, None


def _llama4(t: _Tower) -> _Count:
    matrices, vectors = t.layer()
    patch = 3 * t.patch**2 * t.width
    projector = _FEATURES * t.width * 4096 + 4096**2 + 4096 * t.decoder_width
    ends = (t.patches + 2) * t.width + 4 * t.width
    return t.layers * matrices + patch + projector, t.layers * vectors + ends, t.patches // _FEATURES


ENCODERS: Final[Mapping[str, Callable[[_Tower], _Count]]] = {
    "gemma3": _siglip_gemma,
    "internvl_chat": _intern,
    "llama4": _llama4,
    "llava": _clip_llava,
    "minicpmv": _siglip_minicpm,
    "mistral3": _pixtral,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen2_5,
    "qwen3_vl": _qwen3,
    "qwen3_vl_moe": _qwen3,
    "qwen3_5_moe": _qwen3,
}
"""``model_type`` of the whole -> what its encoder holds. Source: the modelling code of each."""

_GATED: Final = ("qwen2_5_vl", "mistral3")


def read_encoder(keys: Keys, whole: Mapping[str, Any], decoder_width: int) -> Encoder | None:
    """The vision encoder of a model; None if it has none. Raises InputError naming the key for one of another kind."""
    config = whole.get("vision_config")
    if not config:
        return None
    kind = str(whole.get("model_type"))
    if kind not in ENCODERS or not isinstance(config, dict):
        raise keys.refusal("vision_config", f"encoders of {kind!r} are not modelled; {', '.join(ENCODERS)} are")
    own = Keys(keys.path, config, keys.source, "vision_config.")
    # Qwen2-VL calls its width embed_dim, and hidden_size the width of the decoder.
    width = own.first(("embed_dim", "hidden_size"))
    patch = own.first(("patch_size", "spatial_patch_size"))
    if config.get("num_position_embeddings"):
        patches = own.count("num_position_embeddings")
    else:
        patches = (own.count("image_size") // patch) ** 2 if config.get("image_size") else 0
    tower = _Tower(
        layers=own.first(("num_hidden_layers", "depth")),
        width=width,
        heads=own.first(("num_attention_heads", "num_heads")),
        mlp=own.first(("intermediate_size",), own.first(("mlp_ratio",), 4) * width),
        patch=patch,
        patches=patches,
        frames=own.first(("temporal_patch_size",), 2),
        decoder_width=decoder_width,
        taps=len(own.integers("deepstack_visual_indexes") or ()),
    )
    matrices, vectors, tokens = ENCODERS[kind](tower)
    return Encoder(
        layers=tower.layers,
        hidden_size=width,
        heads=tower.heads,
        intermediate_size=tower.mlp,
        gated=kind in _GATED,
        matrices=matrices,
        vectors=vectors,
        tokens_per_image=tokens,
    )
