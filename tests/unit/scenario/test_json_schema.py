"""The JSON Schema that editors complete from."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvsim.scenario.json_schema import schema, schema_text
from kvsim.scenario.source import read_yaml

ROOT = Path(__file__).parents[3]


def test_the_schema_in_the_repository_is_current() -> None:
    current = (ROOT / "kvsim.schema.json").read_text(encoding="utf-8") == schema_text()
    assert current, "run: kvsim schema > kvsim.schema.json"


def test_every_key_is_described_and_every_reference_leads_somewhere() -> None:
    document = schema()
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/$defs/") in document["$defs"]
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    for owner in (document, *(d for name, d in document["$defs"].items() if name.endswith("Keys"))):
        for value in owner["properties"].values():
            target = document["$defs"][value["$ref"].removeprefix("#/$defs/")] if "$ref" in value else {}
            assert "description" in value or "description" in target


@pytest.mark.parametrize(
    ("seat", "names"),
    [
        ("scheduler", ["chunked_prefill", "prefill_first"]),
        ("router", ["least_requests", "least_tokens", "random", "round_robin"]),
        ("kv", ["paged"]),
        ("cost", ["affine", "calibrated", "roofline", "table"]),
    ],
)
def test_every_name_of_a_seat_is_offered_bare_and_in_a_mapping(seat: str, names: list[str]) -> None:
    bare, _, mapping = schema()["$defs"][seat]["anyOf"]
    assert bare["enum"] == names
    assert mapping["properties"]["name"]["anyOf"][0]["enum"] == names
    assert [policy["properties"]["name"].get("const") for policy in mapping["anyOf"]] == [*names, None]


def test_parameters_of_a_policy_have_types_and_defaults() -> None:
    mapping = schema()["$defs"]["scheduler"]["anyOf"][2]
    assert mapping["anyOf"][0]["properties"]["watermark"] == {
        "default": 0.0,
        "anyOf": [{"type": "number"}, {"$ref": "#/$defs/several"}],
    }
    table = next(p for p in schema()["$defs"]["cost"]["anyOf"][2]["anyOf"] if p["properties"]["name"].get("const") == "table")  # fmt: skip  # noqa: E501
    assert table["required"] == ["name", "linear_csv", "decode_csv", "prefill_csv"]


def test_the_bundled_scenarios_use_known_keys_and_name_the_schema() -> None:
    properties = schema()["properties"]
    for path in sorted((ROOT / "scenarios").glob("*.yaml")):
        assert path.read_text().startswith("# yaml-language-server: $schema=../kvsim.schema.json\n")
        assert set(read_yaml(path)[0]) <= set(properties)
    json.loads(schema_text())
