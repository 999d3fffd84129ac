"""From a name and parameters in a scenario to a plug-in: its fields are its parameters, their annotations the types."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from kvsim.core import plugins
from kvsim.core.errors import InputError
from kvsim.scenario.messages import unknown_key, wrong_value
from kvsim.scenario.source import Key, Source
from kvsim.scenario.units import parse_bytes

TABLES = {
    "router": "kvsim.routers:ROUTERS",
    "scheduler": "kvsim.schedulers:SCHEDULERS",
    "kv": "kvsim.kv:MANAGERS",
    "cost": "kvsim.costs:COSTS",
}
"""Seat in a scenario -> where the table of its built-in policies is."""

QUANTITIES = ("_s", "_bytes", "_tokens", "_blocks", "_frac", "_per_s")
COUNTS = ("max_num_seqs", "max_num_batched_tokens", "block_size")


def table(seat: str) -> Mapping[str, str]:
    """Built-in names of a seat -> ``package.module:Class``."""
    module, _, name = TABLES[seat].partition(":")
    found: Mapping[str, str] = getattr(importlib.import_module(module), name)
    return found


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field of a plug-in. ``hint`` is its type; ``required``: it has no default."""

    name: str
    hint: Any
    required: bool
    default: Any


def parameters_of(policy: type) -> dict[str, Parameter]:
    """The parameters of a plug-in class. Raises InputError if it is not a dataclass or its types cannot be found."""
    if not dataclasses.is_dataclass(policy):
        raise InputError(f"{policy.__qualname__} is not a dataclass", hint="decorate it with @dataclass(frozen=True)")
    try:
        hints = get_type_hints(policy)
    except NameError as error:
        raise InputError(f"the annotations of {policy.__qualname__} cannot be read: {error}") from error
    found = {}
    for field in dataclasses.fields(policy):
        if field.init:
            factory = field.default_factory
            default = factory() if factory is not dataclasses.MISSING else field.default
            found[field.name] = Parameter(field.name, hints[field.name], default is dataclasses.MISSING, default)
    return found


def build(
    seat: str,
    name: str,
    given: Mapping[str, Any],
    source: Source,
    key: Key,
    *,
    defaults: Mapping[str, Any] | None = None,
    known: tuple[str, ...] = (),
    allow_plugins: bool = True,
) -> Any:
    """The policy ``name`` of a seat with the parameters of the mapping at ``key``.

    ``defaults`` replace the plug-in's own where it has such a field; ``known`` are keys of the section that are not
    the plug-in's. Raises InputError for an unknown name or parameter, a value of the wrong type, a missing one.
    """
    with source.locate((*key, "name")):
        policy = plugins.load(seat, name, table(seat), allow_plugins=allow_plugins)
        parameters = parameters_of(policy)
    values = {field: value for field, value in (defaults or {}).items() if field in parameters}
    for field, value in given.items():
        if field not in parameters:
            raise unknown_key((*key, field), ["name", *known, *parameters], source)
        values[field] = _checked(parameters[field], value, source, (*key, field))
    for parameter in parameters.values():
        if parameter.required and parameter.name not in values:
            raise source.error(f"{name} needs {parameter.name}", key)
    try:
        return policy(**values)
    except InputError as error:
        raise source.error(error.problem, (*key, error.key) if error.key else key, error.hint) from error
    except (TypeError, ValueError) as error:
        raise source.error(f"{name} refuses its parameters: {error}", key) from error


def values_of(policy: Any) -> dict[str, Any]:
    """The parameters that a policy was made with, as plain data for a file."""
    return {name: _plain(getattr(policy, name)) for name in parameters_of(type(policy))}


def files_of(policy: Any) -> Iterator[tuple[str, Path]]:
    """The parameters of a policy that are paths."""
    for name in parameters_of(type(policy)):
        value = getattr(policy, name)
        if isinstance(value, Path):
            yield name, value


def _checked(parameter: Parameter, value: Any, source: Source, key: Key) -> Any:
    name = parameter.name
    if isinstance(value, str) and name.endswith(("_bytes", "_bytes_per_s")):
        try:
            value = parse_bytes(value, per_second=name.endswith("_per_s"))
        except ValueError as error:
            raise source.error(str(error), key) from None
    try:  # as JSON, so that a YAML list may become a tuple and text a path, while "3" is no number
        checked = TypeAdapter(parameter.hint).validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise source.error(wrong_value(error.errors(include_url=False)[0]), key) from None
    except PydanticUserError:
        raise source.error(f"a value of type {parameter.hint} cannot be given in a scenario", key) from None
    if isinstance(checked, float) and math.isnan(checked):
        raise source.error("expected a number, found nan", key)
    least = 1 if name in COUNTS else 0 if name.endswith(QUANTITIES) else -math.inf
    most = 1 if name.endswith("_frac") else math.inf
    if isinstance(checked, int | float) and not least <= checked <= most:
        bounds = f"at least {least}" if checked < least else f"at most {most}"
        raise source.error(f"{checked!r} is not allowed; it must be {bounds}", key)
    return source.folder(key) / checked.expanduser() if isinstance(checked, Path) else checked


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value
