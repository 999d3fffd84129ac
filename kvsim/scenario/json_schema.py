"""The JSON Schema of a scenario file, from which editors complete keys, names and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter

from kvsim.core import plugins
from kvsim.hardware import GPUS
from kvsim.models import MODELS
from kvsim.scenario import seats
from kvsim.scenario.keys import KVKeys, PoolKeys, ScenarioKeys, SeatKeys
from kvsim.scenario.listing import first_line
from kvsim.scenario.presets import PRESETS
from kvsim.workload.readers import READERS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
PLUGIN = {"type": "string", "pattern": r"^[\w.]+:\w+$", "description": "package.module:Class, a policy of your own"}

Schema = dict[str, Any]


def schema_text() -> str:
    """The schema as JSON text: keys with descriptions, and beside every name the list of all names."""
    return json.dumps(schema(), indent=2) + "\n"


def schema() -> Schema:
    """JSON Schema (2020-12) of a scenario file."""
    document = ScenarioKeys.model_json_schema()
    definitions = document["$defs"]
    for seat in seats.TABLES:
        definitions[seat] = _seat(seat)
    for owner, optional in ((document, False), (definitions[PoolKeys.__name__], True)):
        for seat in seats.TABLES:
            reference: Schema = {"$ref": f"#/$defs/{seat}"}
            about = owner["properties"][seat]["description"]
            owner["properties"][seat] = {
                "description": about,
                **({"anyOf": [reference, {"type": "null"}], "default": None} if optional else reference),
            }
    engine = document["properties"]["engine"]
    engine["anyOf"] = [{"enum": list(PRESETS)}, {"$ref": engine.pop("$ref")}]
    definitions["EngineKeys"]["properties"]["preset"]["enum"] = list(PRESETS)
    _offer(document["properties"]["model"], MODELS, {"type": "string"})
    for owner in (definitions["ClusterKeys"], definitions[PoolKeys.__name__]):
        _offer(owner["properties"]["gpu"], GPUS, {"type": "string"})
    _format(definitions["TraceKeys"]["properties"])
    definitions["generate"] = _functions(seats.generators(), seats.UNNAMED["generator"])
    definitions["transform"] = _functions(seats.transforms(), None)
    definitions["WorkloadKeys"]["properties"]["transforms"]["items"] = {"$ref": "#/$defs/transform"}
    for kind, table in seats.parts().values():
        definitions[kind] = _part(kind, table)
    _offer(definitions["WorkloadKeys"]["properties"]["generate"], (), {"$ref": "#/$defs/generate"})
    for unused in (SeatKeys.__name__, KVKeys.__name__):
        definitions.pop(unused, None)
    head: Schema = {"$schema": DRAFT, "title": "kvsim scenario", "description": document.pop("description")}
    del document["title"]
    body: Schema = _without_titles(document)
    definitions = body["$defs"]
    _let_vary({"properties": body["properties"]})
    for name, definition in definitions.items():
        if name not in ("ExpectKeys", "LockKeys", "OutputKeys"):
            _let_vary(definition)
    definitions["several"] = SEVERAL
    return head | body


SEVERAL: Schema = {
    "description": "Several values, for kvsim sweep.",
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        "choices": {"type": "array", "minItems": 1, "uniqueItems": True},
        "range": {
            "type": "object",
            "required": ["from", "to"],
            "additionalProperties": False,
            "properties": {
                "from": {"type": "number"},
                "to": {"type": "number"},
                "step": {"description": "Added to get the next value.", "type": "number", "exclusiveMinimum": 0},
                "log": {
                    "description": "Multiplied to get the next value; true: any value, evenly in the logarithm.",
                    "anyOf": [{"type": "number", "exclusiveMinimum": 1}, {"const": True}],
                },
            },
        },
    },
}


def _let_vary(node: Any) -> None:
    """Beside every scalar: several values of it."""
    if isinstance(node, list):
        for value in node:
            _let_vary(value)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "properties":
                for name, scalar in value.items():
                    if "const" not in scalar and name != "name" and _is_scalar(scalar):
                        about = {k: scalar.pop(k) for k in ("description", "default") if k in scalar}
                        value[name] = {**about, "anyOf": [scalar, {"$ref": "#/$defs/several"}]}
            _let_vary(value)


def _is_scalar(value: Schema) -> bool:
    if "anyOf" in value:
        return all(_is_scalar(option) or option.get("type") == "null" for option in value["anyOf"])
    return value.get("type") in ("string", "number", "integer", "boolean") or "enum" in value


def _offer(value: Schema, names: tuple[str, ...], otherwise: Schema) -> None:
    """Let ``value`` be one of the names or something else; editors then offer the names."""
    nullable = any(option.get("type") == "null" for option in value.pop("anyOf", []))
    value.pop("type", None)
    value["anyOf"] = [*([{"enum": list(names)}] if names else []), otherwise, *([{"type": "null"}] if nullable else [])]


def _seat(seat: str) -> Schema:
    """A seat as a bare name or a mapping; the preset's policy may leave its name out."""
    table = seats.table(seat)
    usual = {preset.seats[seat] for preset in PRESETS.values()}
    beside = _beside(seat)
    policies = [
        _named(name, plugins.load(seat, name, table), beside, name_required=name not in usual) for name in sorted(table)
    ]
    policies.append({"properties": {"name": PLUGIN, **beside}, "required": ["name"]})
    names = {"enum": sorted(table)}
    mapping = {"type": "object", "properties": {"name": {"anyOf": [names, PLUGIN]}}, "anyOf": policies}
    return {"anyOf": [names, PLUGIN, mapping]}


def _format(properties: Schema) -> None:
    """``workload.trace.format``: a reader's name, or a mapping with its parameters."""
    names = {"enum": ["auto", *READERS]}
    readers = [_named(n, plugins.load("trace format", n, READERS), {}, name_required=True) for n in READERS]
    readers.append({"properties": {"name": {"anyOf": [{"const": "auto"}, PLUGIN]}}})
    mapping = {"type": "object", "properties": {"name": {"anyOf": [names, PLUGIN]}}, "anyOf": readers}
    about = properties["format"]["description"]
    properties["format"] = {"description": about, "anyOf": [names, PLUGIN, mapping], "default": "auto"}


def _functions(table: Mapping[str, Callable[..., Any]], unnamed: str | None) -> Schema:
    """A function by its name and its arguments; the name ``unnamed`` may be left out."""
    return {
        "type": "object",
        "properties": {"name": {"enum": sorted(table)}},
        "anyOf": [_named(name, table[name], {}, name_required=name != unnamed) for name in sorted(table)],
    }


def _part(kind: str, table: Mapping[str, str]) -> Schema:
    """A part of a generator: a name, a mapping with it, for a distribution also a number."""
    unnamed = seats.UNNAMED.get(kind)
    named = [_named(n, plugins.load(kind, n, table), {}, name_required=n != unnamed) for n in sorted(table)]
    named.append({"properties": {"name": PLUGIN}, "required": ["name"]})
    names = {"enum": sorted(table)}
    mapping = {"type": "object", "properties": {"name": {"anyOf": [names, PLUGIN]}}, "anyOf": named}
    return {"anyOf": [*([{"type": "number"}] if kind == "distribution" else []), names, PLUGIN, mapping]}


def _named(name: str, target: Callable[..., Any], beside: Schema, *, name_required: bool) -> Schema:
    """The mapping of one policy: its name, its parameters, and other keys of the section."""
    parameters = seats.without(seats.parameters_of(target), "trace").values()
    required = ["name"] * name_required + [parameter.name for parameter in parameters if parameter.required]
    return {
        "description": first_line(target),
        "properties": {"name": {"const": name}, **{p.name: _parameter(p) for p in parameters}, **beside},
        "required": required,
        "additionalProperties": False,
    }


def _beside(seat: str) -> Schema:
    """Keys of a seat's section that are not parameters of the policy."""
    if seat != "kv":
        return {}
    found: Schema = KVKeys.model_json_schema()["properties"]
    return {name: field for name, field in found.items() if name != "name"}


def _parameter(parameter: seats.Parameter) -> Schema:
    part = seats.part_of(parameter.hint)
    if part is not None:
        found: Schema = {"$ref": f"#/$defs/{part[0]}"}
        if get_origin(parameter.hint) is tuple:
            found = {"type": "array", "items": found}
        elif type(None) in get_args(parameter.hint):
            found = {"anyOf": [found, {"type": "null"}]}
        return found if parameter.required else {**found, "default": seats.plain(parameter.default)}
    found = TypeAdapter(parameter.hint).json_schema()
    if parameter.name.endswith(("_bytes", "_bytes_per_s")):
        found = {"anyOf": [found, {"type": "string"}]}
    return found if parameter.required else {**found, "default": parameter.default}


def _without_titles(node: Any) -> Any:
    """pydantic titles every value with its own name; that is noise in a tooltip."""
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(value) for value in node] if isinstance(node, list) else node
