"""From a name and parameters in a scenario to a plug-in: its fields are its parameters, their annotations the types."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from kvsim.core import plugins
from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.scenario.messages import unknown_key, wrong_value
from kvsim.scenario.source import Key, Source, shown
from kvsim.scenario.units import parse_bytes

TABLES = {
    "router": "kvsim.routers:ROUTERS",
    "scheduler": "kvsim.schedulers:SCHEDULERS",
    "kv": "kvsim.kv:MANAGERS",
    "cost": "kvsim.costs:COSTS",
}
"""Seat in a scenario -> where the table of its built-in policies is."""

VERBS = {
    "router": ("start", "route"),
    "scheduler": ("plan", "max_num_seqs", "max_num_batched_tokens"),
    "kv": ("start", "stored", "attended", "block_size"),
    "cost": ("start",),
}
"""What a policy must have to sit in a seat (``kvsim/core/seats.py``)."""

QUANTITIES = (
    "_s", "_bytes", "_tokens", "_blocks", "_reqs", "_frac", "_per_s", "_gib", "_threshold", "watermark",
)  # fmt: skip
COUNTS = (
    "max_num_seqs",
    "max_num_active_seqs",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "prefill_schedule_interval",
    "block_size",
)
"""Names of parameters that are at least 0 (their ends), and of those that are at least 1."""


def table(seat: str) -> Mapping[str, str]:
    """Built-in names of a seat -> ``package.module:Class``."""
    module, _, name = TABLES[seat].partition(":")
    found: Mapping[str, str] = getattr(importlib.import_module(module), name)
    return found


def generators() -> Mapping[str, Callable[..., Trace]]:
    """Names under ``workload.generate`` -> functions that make a trace; their arguments are the keys beside it."""
    from kvsim.workload.generate import GENERATORS

    return GENERATORS


def transforms() -> Mapping[str, Callable[..., Trace]]:
    """Names under ``workload.transforms`` -> functions from a trace, and the keys beside it, to a trace."""
    from kvsim.workload.transforms import TRANSFORMS

    return TRANSFORMS


UNNAMED = {"lengths": "independent", "generator": "composed"}
"""What is meant by a mapping without ``name``."""


def parts() -> Mapping[Any, tuple[str, Mapping[str, str]]]:
    """Types of parameters that are parts of a generator -> what such a part is called, and its built-ins."""
    from kvsim.workload.generate import PARTS

    return PARTS


def part_of(hint: Any) -> tuple[str, Mapping[str, str]] | None:
    """What kind of part a parameter of this type takes (also ``part | None``); None if it takes none."""
    known = parts()
    return next((known[option] for option in (hint, *get_args(hint)) if option in known), None)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One field of a plug-in (or argument of a function). ``hint`` is its type; ``required``: it has no default."""

    name: str
    hint: Any
    required: bool
    default: Any


def parameters_of(target: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a plug-in class or a function.

    Raises InputError if a class is not a dataclass, or if its types cannot be found.
    """
    if isinstance(target, type) and not dataclasses.is_dataclass(target):
        raise InputError(f"{target.__qualname__} is not a dataclass", hint="decorate it with @dataclass(frozen=True)")
    try:
        hints = get_type_hints(target)
    except NameError as error:
        raise InputError(f"the annotations of {target.__qualname__} cannot be read: {error}") from error
    found = inspect.signature(target).parameters.values()
    return {p.name: Parameter(p.name, hints.get(p.name, Any), p.default is p.empty, p.default) for p in found}


def without(parameters: Mapping[str, Parameter], *names: str) -> dict[str, Parameter]:
    """The parameters that a scenario gives: those that the program does not."""
    return {name: parameter for name, parameter in parameters.items() if name not in names}


def build(
    seat: str,
    name: str,
    given: Mapping[str, Any],
    source: Source,
    key: Key,
    *,
    defaults: Mapping[str, Any] | None = None,
    known: Sequence[str] = (),
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
    checked = arguments(parameters, given, source, key, ("name", *known), allow_plugins=allow_plugins)
    built = call(policy, {**values, **checked}, name, source, key)
    lacking = [verb for verb in VERBS[seat] if not hasattr(built, verb)]
    if lacking:
        raise source.error(f"{name} cannot be a {seat}: it has no {', '.join(lacking)}", (*key, "name"))
    return built


def arguments(
    parameters: Mapping[str, Parameter],
    given: Mapping[str, Any],
    source: Source,
    key: Key,
    known: Sequence[str] = ("name",),
    *,
    allow_plugins: bool = True,
) -> dict[str, Any]:
    """The given values, checked against their types. Raises InputError for an unknown name or a wrong type.

    ``known``: what may stand beside the parameters.
    """
    values = {}
    for name, value in given.items():
        if name not in parameters:
            raise unknown_key((*key, name), [*known, *parameters], source)
        part = part_of(parameters[name].hint)
        if part is None:
            values[name] = _checked(parameters[name], value, source, (*key, name))
        elif value is None and type(None) in get_args(parameters[name].hint):
            values[name] = None
        elif get_origin(parameters[name].hint) is tuple:
            if not isinstance(value, list):
                raise source.error(f"expected a list, found {shown(value)}", (*key, name))
            items = enumerate(value)
            values[name] = tuple(_part(*part, item, source, (*key, name, i), allow_plugins) for i, item in items)
        else:
            values[name] = _part(*part, value, source, (*key, name), allow_plugins)
    return values


def _part(kind: str, table: Mapping[str, str], value: Any, source: Source, key: Key, allow_plugins: bool) -> Any:
    """A part of a generator from its name, from a mapping with its name and parameters, or from a number."""
    if kind == "distribution" and isinstance(value, int | float) and not isinstance(value, bool):
        value = {"name": "constant", "value": value}
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping):
        number = ", a number" if kind == "distribution" else ""
        raise source.error(f"expected a name{number} or keys and values, found {shown(value)}", key)
    name = value.get("name", UNNAMED.get(kind))
    if not isinstance(name, str):
        raise source.error("name is missing", (*key, "name"), f"known: {', '.join(sorted(table))}")
    with source.locate((*key, "name")):
        part = plugins.load(kind, name, table, allow_plugins=allow_plugins)
        parameters = parameters_of(part)
    given = {field: inner for field, inner in value.items() if field != "name"}
    return call(part, arguments(parameters, given, source, key, allow_plugins=allow_plugins), name, source, key)


def call(target: Callable[..., Any], values: Mapping[str, Any], name: str, source: Source, key: Key) -> Any:
    """``target(**values)``; a missing argument, and what the target refuses, become an InputError at ``key``."""
    missing = [p.name for p in parameters_of(target).values() if p.required and p.name not in values]
    if missing:
        raise source.error(f"{name} needs {', '.join(missing)}", key)
    try:
        with source.locate(key):
            return target(**values)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise source.error(f"{name} refuses its parameters: {error}", key) from error


def values_of(policy: Any) -> dict[str, Any]:
    """The parameters that a policy was made with, as plain data for a file."""
    return {p.name: plain(getattr(policy, p.name), p.hint) for p in parameters_of(type(policy)).values()}


def files_of(policy: Any) -> Iterator[tuple[str, Path]]:
    """The parameters of a policy that are paths."""
    for name in parameters_of(type(policy)):
        value = getattr(policy, name)
        if isinstance(value, Path):
            yield name, value


def files_in(value: Any, key: Key) -> Iterator[tuple[Key, Path]]:
    """The paths in an argument of a generator, and in its parts, with the key of each."""
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, tuple):
        for idx, item in enumerate(value):
            yield from files_in(item, (*key, idx))
    elif dataclasses.is_dataclass(value):
        for name in parameters_of(type(value)):
            yield from files_in(getattr(value, name), (*key, name))


def _checked(parameter: Parameter, value: Any, source: Source, key: Key) -> Any:
    name = parameter.name
    if isinstance(value, str) and name.endswith(("_bytes", "_bytes_per_s")):
        try:
            value = parse_bytes(value, per_second=name.endswith("_per_s"))
        except ValueError as error:
            raise source.error(str(error), key) from None
    try:  # as JSON, so that a YAML list may become a tuple and text a path, while "3" is no number
        adapter = TypeAdapter(parameter.hint, config=ConfigDict(allow_inf_nan=False))
        checked = adapter.validate_json(json.dumps(value, default=str), strict=True)
    except ValidationError as error:
        raise source.error(wrong_value(error.errors(include_url=False)[0]), key) from None
    except PydanticUserError:
        raise source.error(f"a value of type {parameter.hint} cannot be given in a scenario", key) from None
    least = 1 if name in COUNTS else 0 if name.endswith(QUANTITIES) else -math.inf
    most = 1 if name.endswith("_frac") else math.inf
    if isinstance(checked, int | float) and not least <= checked <= most:
        bounds = f"at least {least}" if checked < least else f"at most {most}"
        raise source.error(f"{checked!r} is not allowed; it must be {bounds}", key)
    if name == "watermark" and isinstance(checked, int | float) and checked >= 1:  # no block would be left
        raise source.error(f"{checked!r} is not allowed; it must be less than 1", key)
    return source.folder(key) / checked.expanduser() if isinstance(checked, Path) else checked


def plain(value: Any, hint: Any = None) -> Any:
    """A value as a file can hold it: absolute paths as text, tuples as lists, a whole number as a float's default."""
    if isinstance(value, int) and (hint is float or set(get_args(hint)) == {float, type(None)}):
        return float(value)
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):  # a part of a generator
        target = f"{type(value).__module__}:{type(value).__qualname__}"
        names = (name for _, table in parts().values() for name, known in table.items() if known == target)
        return {"name": next(names, target), **values_of(value)}
    return value
