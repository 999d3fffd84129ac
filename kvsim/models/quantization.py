"""How a checkpoint stores its weights: from ``quantization_config`` to bytes per weight and the parts they hold for."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from kvsim.core.errors import InputError
from kvsim.core.layers import Part
from kvsim.core.model import Quantization
from kvsim.models.keys import Keys

_ALL: Final[tuple[Part, ...]] = ("attention", "mlp", "experts")
_NEVER: Final = re.compile(
    r"vision|visual|multi_modal|mm_projector|audio|lm_head|embed|router|gate$|conv1d|in_proj_[ab]|norm"
)
_PARTS: Final[tuple[tuple[re.Pattern[str], Part], ...]] = (
    (re.compile(r"attn|attention"), "attention"),
    (re.compile(r"shared_expert"), "mlp"),
    (re.compile(r"experts"), "experts"),
    (re.compile(r"mlp|feed_forward"), "mlp"),
)
_KEPT: Final = ("modules_to_not_convert", "ignore", "exclude_modules")
_WEIGHT_ONLY_BITS: Final = (2, 3, 4, 8)
MXFP4: Final = 0.5 + 1 / 32  # an 8 bit scale for 32 weights
NVFP4: Final = 0.5 + 1 / 16  # an 8 bit scale for 16 weights


def read_quantization(keys: Keys, layers: int) -> Quantization | None:
    """The format of a quantised checkpoint; None for one of 16 bit.

    Scales count: float32 per block of ``weight_block_size``, 16 bit (and zero points) per ``group_size``, 8 bit per 16
    or 32 weights of nvfp4 and mxfp4. Modules listed as not converted stay 16 bit if the list covers that kind of
    module in most layers. Raises InputError naming the key for a method that is not modelled.
    Source: https://huggingface.co/docs/transformers/quantization; OCP Microscaling v1.0.
    """
    config = keys.within("quantization_config")
    if config is None:
        return None
    method = config.get("quant_method")
    name, weight_bytes = _format(config, str(method))
    kept = next(filter(None, map(config.texts, _KEPT)), [])
    parts = _ALL if method != "mxfp4" else ("experts",)
    excluded = _excluded(kept, layers)
    return Quantization(name, weight_bytes, tuple(part for part in parts if part not in excluded))


def _format(config: Keys, method: str) -> tuple[str, float]:
    algorithm = str(config.get("quant_algo", "")).upper()
    if method in ("fp8", "fbgemm_fp8", "modelopt") and algorithm in ("", "FP8"):
        block = config.integers("weight_block_size")
        if not block:
            return "fp8", 1.0
        if len(block) != 2 or 0 in block:
            raise config.refusal("weight_block_size", "needed: two integers above 0")
        return "fp8_block", 1 + 4 / (block[0] * block[1])
    if method == "mxfp4":
        return "mxfp4", MXFP4
    if method in ("modelopt", "modelopt_fp4") and algorithm in ("", "NVFP4"):
        return "nvfp4", NVFP4
    if method in ("awq", "gptq"):
        bits_key = "bits" if config.get("bits") else "w_bit"
        bits = config.integer(bits_key) or 4
        if bits not in _WEIGHT_ONLY_BITS:
            raise config.refusal(bits_key, f"allowed: {', '.join(map(str, _WEIGHT_ONLY_BITS))}")
        return f"int{bits}_wo", _grouped(bits, config.integer("group_size") or config.integer("q_group_size") or 128)
    if method == "compressed-tensors":
        return _compressed(config)
    asked = f"{method} {algorithm}".strip()
    raise InputError(
        f"{asked!r} is not modelled: fp8, mxfp4, nvfp4 (modelopt), awq, gptq and compressed-tensors are",
        file=config.path,
        key="quantization_config.quant_method",
    )


def _compressed(config: Keys) -> tuple[str, float]:
    groups = config.within("config_groups")
    forms = {_form(groups, name) for name in groups.names()} if groups else set()
    if len(forms) != 1:
        raise config.refusal("config_groups", f"{len(forms)} formats of weights; only one is modelled")
    kind, bits, group_size, inputs = forms.pop()
    if kind == "float" and bits == 8:
        return "fp8", 1.0
    if kind == "float" and bits == 4 and group_size == 16:
        return "nvfp4", NVFP4
    if kind == "int" and bits == 8 and inputs:
        return "int8", 1.0
    if kind == "int" and bits in (4, 8):
        return f"int{bits}_wo", _grouped(bits, group_size or 0)
    raise config.refusal("config_groups", f"{bits} bit {kind} weights are not modelled")


def _form(groups: Keys, name: str) -> tuple[str, int | None, int | None, bool]:
    """Type, bits and group size of a group's weights, and whether its inputs are quantised too."""
    group = groups.within(name)
    weights = group and group.within("weights")
    if not group or not weights:
        raise groups.refusal(name, "needed: an object with weights")
    inputs = group.within("input_activations") is not None
    return str(weights.get("type")), weights.integer("num_bits"), weights.integer("group_size"), inputs


def _grouped(bits: int, group_size: int) -> float:
    """Bytes per weight with a 16 bit scale and a zero point per group (none for a negative or missing group size)."""
    return bits / 8 + ((2 + bits / 8) / group_size if group_size > 0 else 0)


def _excluded(modules: Iterable[str], layers: int) -> set[Part]:
    """The parts that a list of modules keeps at 16 bit in more than half of the layers, or by a pattern."""
    seen: defaultdict[Part, set[str]] = defaultdict(set)
    for module in modules:
        if _NEVER.search(module):
            continue
        part = next((part for pattern, part in _PARTS if pattern.search(module)), None)
        if part is not None:
            number = re.search(r"layers?\.(\d+)\.", module)
            seen[part].add(number.group(1) if number else "*")
    return {part for part, found in seen.items() if "*" in found or len(found) > layers / 2}
