"""The JSON Schema of a scenario file, from which editors complete keys, names and values."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

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
    definitions["generate"] = _generate()
    _offer(definitions["WorkloadKeys"]["properties"]["generate"], (), {"$ref": "#/$defs/generate"})
    for unused in (SeatKeys.__name__, KVKeys.__name__):
        definitions.pop(unused, None)
    head: Schema = {"$schema": DRAFT, "title": "kvsim scenario", "description": document.pop("description")}
    del document["title"]
    body: Schema = _without_titles(document)
    return head | body


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


def _generate() -> Schema:
    table = seats.generators()
    return {
        "type": "object",
        "properties": {"name": {"enum": sorted(table)}},
        "anyOf": [_named(name, table[name], {}, name_required=True) for name in sorted(table)],
    }


def _named(name: str, target: Callable[..., Any], beside: Schema, *, name_required: bool) -> Schema:
    """The mapping of one policy: its name, its parameters, and other keys of the section."""
    parameters = seats.parameters_of(target).values()
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
    found = TypeAdapter(parameter.hint).json_schema()
    if parameter.name.endswith(("_bytes", "_bytes_per_s")):
        found = {"anyOf": [found, {"type": "string"}]}
    return found if parameter.required else {**found, "default": parameter.default}


def _without_titles(node: Any) -> Any:
    """pydantic titles every value with its own name; that is noise in a tooltip."""
    if isinstance(node, dict):
        return {k: _without_titles(v) for k, v in node.items() if not (k == "title" and isinstance(v, str))}
    return [_without_titles(value) for value in node] if isinstance(node, list) else node
