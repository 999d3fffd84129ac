"""Errors in a scenario's keys, worded for the person who wrote them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kvsim.core.errors import InputError
from kvsim.scenario.keys import ScenarioKeys
from kvsim.scenario.presets import PRESETS
from kvsim.scenario.source import Key, Source, dotted, shown

EXPECTED = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "list": "a list",
    "model": "keys and values",
    "dict": "keys and values",
    "finite": "a finite number",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known word that is most like ``name``, if one is."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def explain(error: ValidationError, source: Source) -> InputError:
    """The first mistake that a check found (unknown keys before what they leave missing), at its place."""
    details = min(error.errors(include_url=False), key=lambda d: d["type"] != "extra_forbidden")
    key: Key = tuple(details["loc"])
    if details["type"] == "extra_forbidden":
        section = _section(ScenarioKeys, key[:-1])
        return unknown_key(key, section.model_fields if section else (), source)
    if details["type"] == "missing":
        return source.error("is missing", key, hint=f"needed: {_description(key)}")
    return source.error(wrong_value(details), key)


def wrong_value(details: ErrorDetails) -> str:
    """One pydantic error as text: what was found, and what is allowed."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    found = shown(value)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        allowed = ", ".join(part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(","))
        near = nearest(str(value), allowed.split(", "))
        return f"{found} is not allowed; {f'did you mean {near!r}? ' if near else ''}allowed: {allowed}"
    for limit, words in (
        ("gt", "greater than"),
        ("ge", "at least"),
        ("lt", "less than"),
        ("le", "at most"),
    ):
        if limit in context:
            bound = context[limit]
            return f"{found} is not allowed; it must be {words} {int(bound) if bound == int(bound) else bound}"
    expected = EXPECTED.get(kind.split("_")[0])
    return f"expected {expected}, found {found}" if expected else f"{details['msg']}, found {found}"


def unknown_key(key: Key, siblings: Iterable[str], source: Source) -> InputError:
    """The refusal of a key that nobody reads: the nearest known one, or where this one belongs."""
    name, siblings = str(key[-1]), sorted(siblings)
    reason = PRESETS["vllm@0.33"].ignored.get(name)
    if reason is not None and reason != f"is written {'.'.join(map(str, key))} here":  # this policy has no such key
        return source.error(f"vLLM's {name} {reason}", key, hint="remove it")
    near = nearest(name, siblings)
    if near is None:
        elsewhere = [path for path in _paths(ScenarioKeys) if path.split(".")[-1] == name]
        near = elsewhere[0] if elsewhere else None
    hint = f"did you mean {near!r}? " if near else ""
    return source.error("unknown key", key, hint=f"{hint}known: {', '.join(siblings)}" if siblings else hint or None)


def _section(model: type[BaseModel] | None, key: Key) -> type[BaseModel] | None:
    for part in key:
        if isinstance(part, int) or model is None:
            continue
        field = model.model_fields.get(part)
        model = next(_models(field.annotation), None) if field else None
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _description(key: Key) -> str | None:
    section = _section(ScenarioKeys, key[:-1])
    field = section.model_fields.get(str(key[-1])) if section else None
    return field.description if field else None


def _paths(model: type[BaseModel], at: Key = ()) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield dotted((*at, name))
        for inner in _models(field.annotation):
            yield from _paths(inner, (*at, name))
    if not at:
        for seat, parameters in SEAT_PARAMETERS.items():
            yield from (f"{seat}.{name}" for name in parameters)


SEAT_PARAMETERS = {
    "scheduler": (
        "max_num_seqs",
        "max_num_batched_tokens",
        "enable_chunked_prefill",
        "long_prefill_token_threshold",
        "scheduler_reserve_full_isl",
        "watermark",
    ),
    "kv": ("block_size",),
}
"""Parameters of policies that people look for in the wrong section."""
