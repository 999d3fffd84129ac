"""The model catalogue, and reading Hugging Face configurations."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import kvsim.models
from kvsim.core.errors import InputError
from kvsim.core.layers import Attention, Experts, LatentAttention, LinearAttention, Mlp
from kvsim.core.layout import Layout
from kvsim.core.model import ModelSpec, Quantization
from kvsim.models import MODELS, load_model
from kvsim.models.encoders import ENCODERS
from kvsim.models.families import DECODERS, FAMILIES

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}


def config(folder: Path, **changes: Any) -> str:
    """A config.json of Llama-3.1-8B with some keys changed; None takes a key away."""
    keys = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(keys))
    return str(path)


def shape_of(model: ModelSpec) -> dict[str, Any]:
    return {key: value for key, value in vars(model).items() if key not in ("name", "source")}


DATA = Path(kvsim.models.__file__).with_name("data")


def published(name: str) -> tuple[float, float]:
    """The published number of parameters of a catalogue entry, and half a unit of its last digit."""
    text = tomllib.loads((DATA / f"{name}.toml").read_text())["published"]["parameters"]
    unit = {"B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    digits = text.rstrip("BT").replace(",", "")
    return float(digits) * unit, unit / 2 / 10 ** len(digits.partition(".")[2])


@pytest.mark.parametrize("name", MODELS)
def test_the_catalogue_has_the_published_numbers_of_parameters(name: str) -> None:
    """Within 1 %, or within the rounding of the one entry that was published as 13B and has 12.85."""
    count, rounding = published(name)
    tolerance = rounding if name == "opt-13b" else 0.01 * count
    assert load_model(name).parameters() == pytest.approx(count, abs=tolerance)


def test_every_family_and_encoder_has_an_entry_that_was_counted() -> None:
    """A rule that no published number of parameters has confirmed is not in the tables."""
    entries = [tomllib.loads((DATA / f"{name}.toml").read_text()) for name in MODELS]
    texts = [entry.get("text_config") or entry.get("llm_config") or entry for entry in entries]
    assert {DECODERS.get(text["model_type"], text["model_type"]) for text in texts} == set(FAMILIES)
    assert {entry["model_type"] for entry in entries if "vision_config" in entry} == set(ENCODERS)


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_says_where_its_figures_are_from(name: str) -> None:
    assert load_model(name).source.keys() >= {"architecture", "parameters"}


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("mixtral-8x7b", 12.9e9),  # https://mistral.ai/news/mixtral-of-experts
        ("qwen3-30b-a3b", 3.3e9),
        ("qwen3-235b-a22b", 22e9),
        ("deepseek-v2", 21e9),
        ("deepseek-v3", 37e9),
        ("gpt-oss-120b", 5.13e9),
        ("gpt-oss-20b", 3.61e9),
        ("glm-4.5", 32e9),
    ],
)
def test_a_token_passes_through_the_published_share_of_a_mixture(name: str, active: float) -> None:
    """Model cards differ in whether embeddings count, so within that."""
    model = load_model(name)
    embeddings = model.weights()["embedding"]
    assert 0.97 * active - embeddings <= model.active_parameters() <= 1.03 * active


@pytest.mark.parametrize(("ranks", "share"), [(2, 0.5), (4, 0.25), (8, 0.125)])
def test_ranks_share_the_weights(ranks: int, share: float) -> None:
    model = load_model("llama-2-70b")
    assert model.parameters(Layout(ranks)) == pytest.approx(share * model.parameters(), rel=1e-3)


ATTENTION, MLP = Attention(32, 8, 128), Mlp(14336)


def layer_of(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """Mixer and MLP of the first layer."""
    layer = load_model(config(folder, **changes)).stack[0]
    return layer.mixer, layer.mlp


def test_a_config_is_the_same_model_as_the_catalogue_entry(tmp_path: Path) -> None:
    model = load_model(config(tmp_path / "Llama-3.1-8B"))
    assert model.name == "Llama-3.1-8B"
    assert shape_of(model) == shape_of(load_model("llama-3.1-8b"))
    assert shape_of(model) == shape_of(ModelSpec.dense("", 32, 4096, 32, 8, 128, 14336, 128256, 131072))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, Attention(32, 32, 128)),
        ({"num_kv_heads": 2}, Attention(32, 2, 128)),
        ({"head_dim": 64}, Attention(32, 8, 64)),
        ({"head_dim": 0, "hidden_size_per_head": 96}, Attention(32, 8, 96)),
        ({"v_head_dim": 64}, Attention(32, 8, 128, value_dim=64)),
        ({"model_type": "qwen2", "attention_bias": None}, Attention(32, 8, 128, qkv_bias=True)),
        ({"attention_bias": True}, Attention(32, 8, 128, qkv_bias=True, output_bias=True)),
        ({"model_type": "qwen3"}, Attention(32, 8, 128, norm_weights=256)),
        ({"attention_chunk_size": 64}, Attention(32, 8, 128, window=64, chunked=True)),
        ({"model_type": "olmo2"}, Attention(32, 8, 128, norm_weights=40 * 128)),
        ({"sliding_window": 4096}, Attention(32, 8, 128, window=4096)),
        ({"sliding_window": 4096, "use_sliding_window": False}, ATTENTION),
        ({"sliding_window": 131072}, ATTENTION),
        (
            {"model_type": "qwen3", "sliding_window": 64, "max_window_layers": 1},
            Attention(32, 8, 128, norm_weights=256),
        ),
        ({"sliding_window": 4096, "layer_types": ["full_attention"] * 32}, ATTENTION),
        (
            {
                "model_type": "deepseek_v32",
                "n_routed_experts": 1,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
                "index_topk": 2048,
                "index_n_heads": 64,
                "index_head_dim": 128,
            },
            LatentAttention(32, 0, 512, 128, 64, 128, index_top_k=2048, index_heads=64, index_dim=128),
        ),
        (
            {
                "model_type": "qwen3_next",
                "num_experts": 1,
                "full_attention_interval": 4,
                "linear_num_key_heads": 16,
                "linear_num_value_heads": 32,
                "linear_key_head_dim": 128,
                "linear_value_head_dim": 128,
                "linear_conv_kernel_dim": 4,
            },
            LinearAttention("delta", 16, 32, 128, 128, 4, state_value_bytes=2),
        ),
    ],
)
def test_the_attention_that_keys_describe(tmp_path: Path, changes: dict[str, Any], expected: object) -> None:
    assert layer_of(tmp_path, **changes)[0] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_experts": 1, "n_routed_experts": 0}, MLP),
        ({"mlp_bias": True}, Mlp(14336, bias=True)),
        ({"model_type": "opt", "intermediate_size": None, "ffn_dim": 512}, Mlp(512, gated=False, bias=True)),
        ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, Experts(8, 2, 14336)),
        (
            {"model_type": "qwen3_moe", "num_experts": 8, "top_k": 2, "moe_intermediate_size": 64},
            Experts(8, 2, 64),
        ),
        (
            {"num_experts": 8, "top_k": 2, "moe_intermediate_size": 64, "n_shared_experts": 2},
            Experts(8, 2, 64, shared_width=128),
        ),
        (
            {
                "model_type": "qwen2_moe",
                "num_experts": 8,
                "top_k": 2,
                "moe_intermediate_size": 64,
                "shared_expert_intermediate_size": 256,
            },
            Experts(8, 2, 64, shared_width=256, shared_gate=True),
        ),
    ],
)
def test_the_feed_forward_block_that_keys_describe(tmp_path: Path, changes: dict[str, Any], expected: object) -> None:
    assert layer_of(tmp_path, **changes)[1] == expected


MOE = {"num_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"first_k_dense_replace": 2}, [2, 3, 4, 5]),
        ({"moe_layer_freq": 2}, [0, 2, 4]),
        ({"moe_layer_freq": [0, 1, 1, 0, 1, 1]}, [1, 2, 4, 5]),
        ({"decoder_sparse_step": 2}, [1, 3, 5]),
        ({"mlp_only_layers": [0, 3]}, [1, 2, 4, 5]),
        ({"interleave_moe_layer_step": 3}, [2, 5]),
        ({"moe_layers": [1, 4]}, [1, 4]),
    ],
)
def test_which_layers_are_mixtures(tmp_path: Path, changes: dict[str, Any], sparse: list[int]) -> None:
    stack = load_model(config(tmp_path, **MOE, **changes)).stack
    assert [idx for idx, layer in enumerate(stack) if isinstance(layer.mlp, Experts)] == sparse


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"model_type": "gemma2", "sliding_window": 64}, "sfsfsf"),
        ({"model_type": "gemma3_text", "sliding_window": 64}, "sssssf"),
        ({"model_type": "gemma3_text", "sliding_window": 64, "sliding_window_pattern": 3}, "ssfssf"),
        ({"model_type": "qwen2", "sliding_window": 64, "max_window_layers": 4}, "ffffss"),
        ({"model_type": "mistral", "sliding_window": 64}, "ssssss"),
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, "cccfcc"),
        ({"model_type": "llama4_text", "attention_chunk_size": 64, "no_rope_layers": [1, 0, 1, 0, 1, 0]}, "cfcfcf"),
        ({"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"] * 3}, "fsfsfs"),
    ],
)
def test_which_layers_have_a_window(tmp_path: Path, changes: dict[str, Any], kinds: str) -> None:
    stack = load_model(config(tmp_path, num_hidden_layers=6, **changes)).stack
    assert "".join(layer.mixer.kind[0] for layer in stack if layer.mixer) == kinds


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seq_length": 2048}, {"max_model_len": 2048}),
        ({"seq_length": 2048, "model_max_length": 4096}, {"max_model_len": 4096}),
        ({"tie_word_embeddings": True}, {"tied_embeddings": True}),
        ({"torch_dtype": "float32"}, {"dtype_bytes": 2}),
        ({"num_nextn_predict_layers": 1}, {"draft_layers": 1}),
    ],
)
def test_the_sizes_that_keys_describe(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = load_model(config(tmp_path, **changes))
    assert shape_of(model) == {**shape_of(load_model("llama-3.1-8b")), **expected}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        # 131,072 tokens: https://qwen.readthedocs.io/en/latest/deployment/vllm.html
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),  # DeepSeek, gpt-oss: counted already
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 131072),
        ({"rope_scaling": {"type": "su", "factor": 8.0}}, 131072),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, 131072),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 32768, "rope_parameters": YARN}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}},
            },
            131072,
        ),
    ],
)
def test_the_longest_context_is_the_one_that_vllm_serves(tmp_path: Path, changes: dict[str, Any], length: int) -> None:
    assert load_model(config(tmp_path, **changes)).max_model_len == length


def test_the_decoder_of_a_model_with_an_encoder_is_read(tmp_path: Path) -> None:
    text = {"model_type": "mistral", "num_hidden_layers": 40}
    assert load_model(config(tmp_path, text_config=text)).layers == 40


def test_a_layer_of_one_part(tmp_path: Path) -> None:
    """Nemotron-H writes its layers as a word; Mamba-2 keeps heads x head size x state, and 3 inputs of 10,240."""
    model = load_model("nemotron-h-8b")
    assert [layer.mixer is None for layer in model.stack[:5]] == [False, True, False, True, False]
    assert model.groups()[0][0].mixer == LinearAttention("ssm", 8, 128, 128, 64, 4, 2, conv_bias=True)
    assert model.state_bytes() == 24 * (128 * 64 * 128 + 3 * 10_240) * 2
    assert model.kv_bytes_per_token() == 4 * 2 * 8 * 128 * 2
    keys = {"n_groups": 8, "mamba_num_heads": 128, "mamba_head_dim": 64, "ssm_state_size": 128, "conv_kernel": 4}
    unknown = config(tmp_path, model_type="nemotron_h", hybrid_override_pattern="M*E", **keys)
    with pytest.raises(
        InputError, match=r"hybrid_override_pattern: 'M\*E': needed: M \(Mamba-2\), \* \(attention\) and"
    ):
        load_model(unknown)


def test_what_transformers_leaves_out_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}')
    assert shape_of(load_model(str(path)))["stack"] == load_model("llama-2-7b").stack


ALL = ("attention", "mlp", "experts")
INT4 = {"type": "int", "num_bits": 4, "group_size": 32}


@pytest.mark.parametrize(
    ("quantised", "expected"),
    [
        ({"quant_method": "fp8"}, Quantization("fp8", 1, ALL)),
        (
            {"quant_method": "fp8", "weight_block_size": [128, 128]},
            Quantization("fp8_block", 1 + 4 / 128**2, ALL),
        ),
        ({"quant_method": "mxfp4"}, Quantization("mxfp4", 0.53125, ("experts",))),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Quantization("nvfp4", 0.5625, ALL)),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 128},
            Quantization("int4_wo", 0.5 + 2.5 / 128, ALL),
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, Quantization("int8_wo", 1, ALL)),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": INT4}}},
            Quantization("int4_wo", 0.5 + 2.5 / 32, ALL),
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8}, "input_activations": {}}},
                "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "vision_model.layers.0.mlp.fc1"],
            },
            Quantization("fp8", 1, ("experts",)),
        ),
        (
            {"quant_method": "fp8", "modules_to_not_convert": ["lm_head", "model.layers.3.mlp.down_proj"]},
            Quantization("fp8", 1, ALL),
        ),
    ],
)
def test_how_weights_are_stored(tmp_path: Path, quantised: dict[str, Any], expected: Quantization) -> None:
    assert load_model(config(tmp_path, quantization_config=quantised)).quantization == expected


@pytest.mark.parametrize(
    ("quantised", "message"),
    [
        ({"quant_method": "gptq", "bits": "four"}, "bits: 'four' is not allowed; needed: an integer"),
        ({"quant_method": "gptq", "bits": 99}, "bits: 99: allowed: 2, 3, 4, 8"),
        ({"quant_method": "awq", "w_bit": [4]}, "w_bit: not allowed; needed: an integer"),
        ({"quant_method": "gptq", "group_size": "128"}, "group_size: '128' is not allowed; needed: an integer"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size: needed: two integers above 0"),
        ({"quant_method": "fp8", "ignore": 5}, "ignore: 5 is not allowed; needed: a list of texts"),
        ({"quant_method": "fp8", "modules_to_not_convert": [5]}, "modules_to_not_convert: not allowed; needed: a list"),
        ({"quant_method": "compressed-tensors"}, "config_groups: 0 formats of weights"),
        ({"quant_method": "compressed-tensors", "config_groups": [1]}, "config_groups: not allowed; needed: an object"),
        *(
            ({"quant_method": "compressed-tensors", "config_groups": {"g": group}}, f"config_groups.g{message}")
            for group, message in (
                (None, ": needed: an object with weights"),
                ({"weights": "x"}, ".weights: 'x' is not allowed; needed: an object"),
                ({"weights": INT4, "input_activations": [1]}, ".input_activations: not allowed; needed: an object"),
                ({"weights": {**INT4, "group_size": [1]}}, ".weights.group_size: not allowed; needed: an integer"),
            )
        ),
    ],
)
def test_a_wrong_key_of_a_format_is_named(tmp_path: Path, quantised: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(config(tmp_path, quantization_config=quantised))
    assert str(refused.value).startswith(f"{tmp_path}/config.json: quantization_config.{message}")


def test_weights_that_another_file_describes_are_not_taken_for_16_bit(tmp_path: Path) -> None:
    path = config(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"quantization_config: missing key: .*hf_quant_config.json says how"):
        load_model(path)
    quantised = {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    model = load_model(config(tmp_path, quantization_config=quantised))
    assert model.quantization == Quantization("fp8", 1, ALL)


def test_what_was_assumed_is_said(tmp_path: Path) -> None:
    model = load_model(config(tmp_path, tie_word_embeddings=None, torch_dtype=None))
    assert model.source == {
        "architecture": f"{tmp_path}/config.json",
        "tied_embeddings": "assumed false: tie_word_embeddings is not in the file",
        "dtype_bytes": "assumed 16 bit: neither dtype nor torch_dtype is in the file",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_routed_experts": 8}, "num_routed_experts: 8: not a key of experts that is known: num_experts, moe_n"),
        ({"hybrid_override_pattern": "M*"}, "hybrid_override_pattern: 'M*': state-space layers (not modelled yet)"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: True: encoder-decoder models (not modelled yet)"),
        ({"audio_config": {"layers": 3}}, "audio_config: audio encoders (not modelled yet)"),
        ({"vision_config": {"layers": 3}}, "vision_config: encoders of 'llama' are not modelled; gemma3, internvl"),
        (
            {"quantization_config": {"quant_method": "quip"}},
            "quantization_config.quant_method: 'quip' is not modelled: fp8, mxfp4, nvfp4 (modelopt), awq, gptq and",
        ),
        ({"layer_types": ["full_attention", "conv"]}, "layer_types: each must be one of full_attention, sliding_atte"),
        ({"layer_types": ["full_attention"]}, "layer_types: 1 values for 32 layers"),
        ({"model_type": "mamba2"}, "model_type: 'mamba2': not one of the families that are modelled: baichuan, "),
        ({"word_embed_proj_dim": 512}, "word_embed_proj_dim: 512: only as wide as the layers (4096)"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype: 'float8_e4m3fn': allowed: float16, bfloat16, float32"),
    ],
)
def test_what_is_not_modelled_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(config(tmp_path, **changes))
    assert str(refused.value).startswith(f"{tmp_path}/config.json: {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: missing key; needed: an integer above 0"),
        ({"model_type": "mixtral"}, "num_experts: missing key; needed: an integer above 0"),
        ({"hidden_size": "big"}, "hidden_size: 'big' is not allowed; needed: an integer above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: -1 is not allowed; needed: an integer from 1 to 10000"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no' is not allowed; needed: true or false"),
        (
            {"num_hidden_layers": 10**9},
            "num_hidden_layers: 1000000000 is not allowed; needed: an integer from 1 to 10000",
        ),
        ({"num_key_value_heads": 7}, "num_key_value_heads: 7: does not divide 32 attention heads"),
        ({"num_kv_heads": 64}, "num_kv_heads: 64: does not divide 32 attention heads"),
        (
            {"num_attention_heads": 48, "num_key_value_heads": 8},
            "num_attention_heads: 48: does not divide a width of 4096",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 8},
            "num_experts_per_tok: 8 is not allowed; needed: an integer from 1 to 4",
        ),
        (
            {"model_type": "gemma3", "vision_config": {"hidden_size": "x"}},
            "vision_config.hidden_size: 'x' is not allowed; needed: an integer above 0",
        ),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(config(tmp_path, **changes))
    assert str(refused.value) == f"{tmp_path}/config.json: {message}"


@pytest.mark.parametrize("name", ["deepseek-v3.2", "gpt-oss-20b", "llama-4-scout", "qwen3-next-80b-a3b", "gemma-3-4b"])
def test_any_value_of_any_key_is_read_or_refused(tmp_path: Path, name: str) -> None:
    """Never a traceback: every key of a real model gets every kind of wrong value."""
    whole = tomllib.loads((DATA / f"{name}.toml").read_text())
    path = tmp_path / "config.json"
    tables = [whole, *(value for key, value in whole.items() if isinstance(value, dict) and key != "source")]
    refused = 0
    for table in tables:
        for key, value in list(table.items()):
            for wrong in ("x", -1, 0, 1.5, True, [], [1], {}, {"x": 1}, None):
                table[key] = wrong
                path.write_text(json.dumps(whole))
                try:
                    load_model(str(path)).weight_bytes()
                except InputError:
                    refused += 1
            table[key] = value
    assert refused > 100


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[1]", "the top level must be")])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model("config.json", tmp_path)


MINE = """
model_type = "llama"
num_hidden_layers = 2
hidden_size = 64
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 128
vocab_size = 100
max_position_embeddings = 512
tie_word_embeddings = false
torch_dtype = "bfloat16"
"""


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    assert load_model("mine.toml", tmp_path) == ModelSpec.dense("mine", 2, 64, 4, 2, 16, 128, 100, 512)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_key_value_heads", "num_key_value_head", "num_key_value_head: unknown key; did you mean 'num_key_value"),
        ("= 64", "= '64'", "hidden_size: '64' is not allowed; needed: an integer above 0"),
        ("= 64", "= true", "hidden_size: True is not allowed; needed: an integer above 0"),
        ("= 64", "= ", "cannot be read as TOML: Invalid value"),
        ("vocab_size = 100", "", "vocab_size: missing key; needed: an integer above 0"),
    ],
)
def test_a_wrong_file_of_ones_own_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(MINE.replace(old, new))
    with pytest.raises(InputError) as refused:
        load_model("./mine.toml", tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/mine.toml: {message}")


def test_the_model_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    (tmp_path / "mine.toml").write_text(text.partition("```toml\n")[2].partition("```")[0])
    assert load_model("mine.toml", tmp_path).parameters() == (
        24 * (2 * 2048 * (2048 + 4 * 128) + 3 * 2048 * 5632 + 2 * 2048) + 2048 + 2 * 32000 * 2048
    )


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError) as refused:
        load_model("lama-3.1-8b")
    assert str(refused.value) == (
        "unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'? kvsim list models lists the known, "
        "or a path to a .toml or .json file"
    )


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load_model("no/config.json", tmp_path)
    assert str(refused.value) == f"{tmp_path}/no/config.json: no such model file"
