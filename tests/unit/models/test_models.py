"""The model catalogue, and reading Hugging Face configurations."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.core.errors import InputError
from kvsim.core.model import ModelSpec
from kvsim.models import MODELS, load_model

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


PUBLISHED = {
    "llama-2-7b": 6.738e9,
    "llama-2-13b": 13.016e9,
    "llama-2-70b": 68.98e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.55e9,
    "qwen2.5-7b": 7.62e9,
    "mistral-7b": 7.25e9,
}


def test_the_catalogue_has_the_published_numbers_of_parameters() -> None:
    assert {name: load_model(name).parameters() for name in MODELS} == {
        name: pytest.approx(count, rel=1e-3) for name, count in PUBLISHED.items()
    }


@pytest.mark.parametrize(("ranks", "share"), [(2, 0.5), (4, 0.25), (8, 0.125)])
def test_ranks_share_the_weights(ranks: int, share: float) -> None:
    model = load_model("llama-2-70b")
    assert model.parameters(ranks) == pytest.approx(share * model.parameters(), rel=1e-3)


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    model = load_model("qwen2.5-7b")  # 4 KV heads
    assert [model.kv_bytes_per_token(ranks) for ranks in (1, 2, 4, 7)] == [57344, 28672, 14336, 14336]


def test_a_config_is_the_same_model_as_the_catalogue_entry(tmp_path: Path) -> None:
    model = load_model(config(tmp_path / "Llama-3.1-8B"))
    assert model.name == "Llama-3.1-8B"
    assert shape_of(model) == shape_of(load_model("llama-3.1-8b"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_key_value_heads": None}, {"kv_heads": 32}),
        ({"num_kv_heads": 2}, {"kv_heads": 2}),
        ({"head_dim": 64}, {"head_dim": 64}),
        ({"head_dim": 0, "hidden_size_per_head": 96}, {"head_dim": 96}),
        ({"seq_length": 2048}, {"max_model_len": 2048}),
        ({"seq_length": 2048, "model_max_length": 4096}, {"max_model_len": 4096}),
        ({"tie_word_embeddings": True}, {"tied_embeddings": True}),
        ({"model_type": "qwen2", "attention_bias": None}, {"qkv_bias": True}),
        ({"torch_dtype": "float32"}, {"dtype_bytes": 2}),
        ({"text_config": {"model_type": "mistral", "num_hidden_layers": 40}}, {"layers": 40}),
        ({"sliding_window": 4096, "use_sliding_window": False}, {}),
        ({"sliding_window": 131072}, {}),
        ({"sliding_window": 4096, "max_window_layers": 32}, {}),
        ({"sliding_window": 4096, "layer_types": ["full_attention"] * 32}, {}),
        ({"num_experts": 1, "n_routed_experts": 0}, {}),
    ],
)
def test_the_rules_of_reading(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    model = load_model(config(tmp_path, **changes))
    assert shape_of(model) == {**shape_of(load_model("llama-3.1-8b")), **expected}


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
        ({"num_local_experts": 8}, "num_local_experts: 8: mixture of experts (not modelled yet)"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: 512: multi-head latent attention (not modelled yet)"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers: 1: multi-token prediction (not modelled yet)"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: quantised weights (not modelled yet)"),
        ({"sliding_window": 4096}, "sliding_window: 4096: a window shorter than 131072 tokens is not modelled yet"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types: only full_attention layers are modelled yet",
        ),
        ({"layer_types": [{}]}, "layer_types: only full_attention layers are modelled yet"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype: 'float8_e4m3fn': allowed: float16, bfloat16, float32"),
    ],
)
def test_what_is_not_modelled_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(config(tmp_path, **changes))
    assert str(refused.value) == f"{tmp_path}/config.json: {message}; describe the model in a .toml file instead"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: missing key; needed: an integer above 0"),
        ({"hidden_size": "big"}, "hidden_size: 'big' is not allowed; needed: an integer above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: -1 is not allowed; needed: an integer above 0"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings: 'no' is not allowed; needed: true or false"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        load_model(config(tmp_path, **changes))
    assert str(refused.value) == f"{tmp_path}/config.json: {message}"


def test_other_families_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_type: 'opt': not one of the dense gated-MLP families: gemma, glm"):
        load_model(config(tmp_path, model_type="opt"))


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read as JSON"), ("[1]", "the top level must be")])
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model("config.json", tmp_path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        "layers=2\nhidden_size=64\nheads=4\nkv_heads=2\nhead_dim=16\nintermediate_size=128\nvocab_size=100\n"
        "max_model_len=512\n"
    )
    assert load_model("mine.toml", tmp_path) == ModelSpec("mine", 2, 64, 4, 2, 16, 128, 100, 512)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("layer = 3", "layer: unknown key; did you mean 'layers'? known: name, layers, hidden_size"),
        ("layers = '3'", "layers: '3' is not allowed; needed: an integer above 0"),
        ("layers = true", "layers: True is not allowed; needed: an integer above 0"),
        ("layers = 3", "hidden_size: missing key; needed: an integer above 0"),
        ("layers = ", "cannot be read as TOML: Invalid value"),
    ],
)
def test_a_wrong_file_of_ones_own_is_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(line + "\n")
    with pytest.raises(InputError) as refused:
        load_model("./mine.toml", tmp_path)
    assert str(refused.value).startswith(f"{tmp_path}/mine.toml: {message}")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError) as refused:
        load_model("lama-3.1-8b")
    assert str(refused.value) == (
        "unknown model 'lama-3.1-8b'; did you mean 'llama-3.1-8b'? known: llama-2-13b, llama-2-70b, llama-2-7b, "
        "llama-3.1-70b, llama-3.1-8b, mistral-7b, qwen2.5-7b, or a path to a .toml or .json file"
    )


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        load_model("no/config.json", tmp_path)
    assert str(refused.value) == f"{tmp_path}/no/config.json: no such model file"
