"""Where the values of a scenario come from: a YAML file read with line numbers, and overrides on top of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from kvsim.core.errors import InputError

Key = tuple[str | int, ...]
"""Path of a value inside a scenario: ``("cluster", "pools", 0, "role")``."""

SHORT_FORMS = {
    "router": "name",
    "scheduler": "name",
    "kv": "name",
    "cost": "name",
    "generate": "name",
    "engine": "preset",
}
"""Sections that may be written as a bare string, and the key that the string stands for."""

SECTIONS = ("workload", "cluster", "router", "engine", "scheduler", "kv", "cost", "slo", "measure", "expect", "output")
"""Top-level keys that hold keys: one with nothing behind it counts as left out."""


def dotted(key: Key) -> str:
    """How a key is written in a message and after ``--set``.

    >>> dotted(("cluster", "pools", 0, "role"))
    'cluster.pools.0.role'
    """
    return ".".join(map(str, key))


@dataclass(frozen=True)
class Override:
    """One value that replaces what the file says. ``origin`` precedes the key in messages: ``--set `` or nothing."""

    key: Key
    value: Any
    origin: str = ""


@dataclass(frozen=True)
class Source:
    """Where each key was written: on a line of ``file``, or in an override (relative paths start where it did)."""

    file: Path | None = None
    lines: Mapping[Key, int] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()

    def _override_of(self, key: Key) -> Override | None:
        return next((o for o in reversed(self.overrides) if key[: len(o.key)] == o.key), None)

    def folder(self, key: Key) -> Path:
        """The folder that a relative path under this key starts from: the file's, or the working directory."""
        if self.file is None or self._override_of(key):
            return Path.cwd()
        return self.file.resolve().parent

    def overridden(self, key: Key) -> bool:
        """True if an override set this key, something above it, or something inside it."""
        return self._override_of(key) is not None or any(o.key[: len(key)] == key for o in self.overrides)

    def error(self, problem: str, key: Key = (), hint: str | None = None) -> InputError:
        """An InputError that names the file and line of ``key`` (or of what encloses it), or the override."""
        override = self._override_of(key)
        if override is None and key not in self.lines:  # made by an override of something inside it
            override = next((o for o in self.overrides if key and o.key[: len(key)] == key), None)
        if override is not None:
            return InputError(problem, key=f"{override.origin}{dotted(key)}", hint=hint)
        line = next((self.lines[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.lines), None)
        return InputError(problem, file=self.file, line=line, key=dotted(key) or None, hint=hint)

    @contextmanager
    def locate(self, key: Key) -> Iterator[None]:
        """Add the place of ``key`` to an InputError from inside that does not name a file of its own."""
        try:
            yield
        except InputError as error:
            if error.file is not None:
                raise
            inner = key if error.key is None else (*key, error.key)
            raise self.error(error.problem, inner, error.hint) from error


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """A scenario file as plain dicts, lists and scalars, and the line (from 1) of every key.

    YAML 1.2: ``on`` is text, ``010`` is ten, ``1e-3`` a number. Keys written with hyphens read as underscores.
    Raises InputError for a file that cannot be read or parsed, for duplicate keys, tags and keys that are not text.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such scenario file", file=path, hint=f"the working directory is {Path.cwd()}") from None
    except UnicodeDecodeError:
        raise InputError("not a text file in UTF-8", file=path, hint="a scenario is a YAML file") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path, hint="a scenario is a YAML file") from None
    lines: dict[Key, int] = {}
    data = parse_yaml(text, file=path, lines=lines)
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {shown(data)}"
        raise InputError(f"{found}, not keys and values", file=path, hint="a scenario begins with 'workload:'")
    return data, lines


def parse_yaml(text: str, *, file: object = None, key: str | None = None, lines: dict[Key, int] | None = None) -> Any:
    """YAML text as plain data; fills ``lines``. ``file`` and ``key`` are for messages. Raises InputError."""
    try:
        node = YAML(typ="rt", pure=True).load(StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or error.context or "cannot be parsed").strip().split(" with value ")[0]
        line = mark.line + 1 if mark and file else None
        hint = "keep one of them" if problem.startswith("found duplicate key") else None
        raise InputError(f"not valid YAML: {problem}", file=file, key=key, line=line, hint=hint) from None
    except YAMLError as error:
        raise InputError(f"not valid YAML: {str(error).splitlines()[0]}", file=file, key=key) from None
    except Exception as error:  # tags on the wrong kind of value, bottomless nesting: whatever ruamel.yaml trips over
        problem = f"not valid YAML: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise InputError(problem, file=file, key=key) from None
    return _plain(node, (), {} if lines is None else lines, file, key)


def _plain(node: Any, at: Key, lines: dict[Key, int], file: object, name: str | None) -> Any:
    here = name or dotted(at) or None
    tag = getattr(getattr(node, "tag", None), "value", None)
    if tag is not None and not isinstance(node, str | int | float):
        raise InputError(f"tag {str(tag)!r} is not supported", file=file, line=lines.get(at), key=here)
    if isinstance(node, CommentedMap):
        data: dict[str, Any] = {}
        for written, value in node.items():
            line = node.lc.key(written)[0] + 1 if written in (node.lc.data or {}) else lines.get(at)
            if not isinstance(written, str):
                raise InputError(f"key {written!r} is not text", file=file, line=line, key=here)
            key = str(written).replace("-", "_")
            if key in data:
                problem = f"duplicate key {str(written)!r}"
                raise InputError(problem, file=file, line=line, key=here, hint="keep one of them")
            if line is not None:
                lines[(*at, key)] = line
            data[key] = _plain(value, (*at, key), lines, file, name)
        return data
    if isinstance(node, CommentedSeq):
        items = []
        for idx, value in enumerate(node):
            lines[(*at, idx)] = node.lc.item(idx)[0] + 1
            items.append(_plain(value, (*at, idx), lines, file, name))
        return items
    if isinstance(node, ScalarBoolean):
        return bool(node)
    for kind in (bool, int, float, str):  # ruamel's scalars remember how they were written: back to the plain ones
        if isinstance(node, kind):
            return kind(node)
    if node is None:
        return None
    raise InputError(
        f"{str(node)!r} is not a value here", file=file, line=lines.get(at), key=here, hint="put it in quotes"
    )


def parse_set(text: str, option: str = "--set", example: str = "cluster.replicas=2") -> Override:
    """``workload.trace.limit=100``: a dotted path, and a value in YAML.

    >>> parse_set("cluster.pools.0.replicas=2")
    Override(key=('cluster', 'pools', 0, 'replicas'), value=2, origin='--set ')
    """
    path, equals, value = text.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"{text!r} is not PATH=VALUE", key=option, hint=f"for example {option} {example}")
    return Override(_key(parts), parse_yaml(value, key=f"{option} {path.strip()}"), f"{option} ")


def overrides_of(keys: Mapping[str, Any]) -> list[Override]:
    """Keyword arguments as overrides: names or dotted paths; mappings are merged key by key.

    A mapping with ``name`` replaces what was there, since the keys of one policy mean nothing to another.

    >>> [(dotted(o.key), o.value) for o in overrides_of({"seed": 1, "cluster": {"gpu": "l40s", "replicas": 2}})]
    [('seed', 1), ('cluster.gpu', 'l40s'), ('cluster.replicas', 2)]
    """
    found: list[Override] = []

    def walk(key: Key, value: Any) -> None:
        if isinstance(value, Mapping) and "name" not in value and not _several(value):
            for part, inner in value.items():
                walk((*key, *_key(str(part).split("."))), inner)
        else:
            found.append(Override(key, value))

    walk((), keys)
    return found


def _key(parts: Sequence[str]) -> Key:
    return tuple(int(part) if part.isdigit() else part.replace("-", "_") for part in parts)


def expand(data: Mapping[str, Any], *, top: bool = True) -> dict[str, Any]:
    """Write short forms out: a seat given by its name becomes a mapping, and an empty section is left out."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        if top and value is None and key in SECTIONS:
            continue
        if isinstance(value, str) and key in SHORT_FORMS:
            out[key] = {SHORT_FORMS[key]: value}
        elif isinstance(value, dict) and top and key in ("workload", "cluster"):
            out[key] = expand(value, top=False)
        elif isinstance(value, list) and key == "pools":
            out[key] = [expand(pool, top=False) if isinstance(pool, dict) else pool for pool in value]
        elif isinstance(value, list) and key == "transforms":
            out[key] = [{"name": item} if isinstance(item, str) else item for item in value]
        else:
            out[key] = value
    return out


def apply(data: dict[str, Any], overrides: Sequence[Override]) -> dict[str, Any]:
    """``data`` (expanded) with each override put in its place, in order; the last one wins.

    Raises InputError for a path that leads through something that has no keys. Unknown keys are left to the check
    of the whole scenario.
    """
    data = expand(data)
    for override in overrides:
        node: Any = data
        for depth, part in enumerate(override.key):
            last = depth == len(override.key) - 1
            if isinstance(node, dict):
                if last:
                    node[part] = override.value
                elif not isinstance(node.get(part), dict | list):
                    if node.get(part) is not None:
                        raise _no_keys(override, depth + 1, node[part])
                    node[part] = {}
                node = node[part]
            elif isinstance(node, list) and isinstance(part, int) and part < len(node):
                if last:
                    node[part] = override.value
                node = node[part]
            else:
                raise _no_keys(override, depth, node)
        data = expand(data)
    return data


def varied(node: Any, at: Key = ()) -> Iterator[tuple[Key, Mapping[str, Any]]]:
    """The keys that have several values, ``{choices: [...]}`` or ``{range: {...}}``, in the order of the data."""
    if isinstance(node, Mapping):
        if _several(node) and at:
            yield at, node
        else:
            for key, value in node.items():
                yield from varied(value, (*at, key))
    elif isinstance(node, list):
        for idx, value in enumerate(node):
            yield from varied(value, (*at, idx))


def _several(node: Mapping[str, Any]) -> bool:
    return len(node) == 1 and next(iter(node)) in ("choices", "range")


def _no_keys(override: Override, depth: int, node: Any) -> InputError:
    inside = dotted(override.key[:depth])
    if isinstance(node, list):
        problem = f"{inside} is a list of {len(node)}: it has no item {override.key[depth]!r}"
        return InputError(problem, key=f"{override.origin}{dotted(override.key)}", hint="items count from 0")
    return InputError(f"{inside} is {shown(node)} and has no keys", key=f"{override.origin}{dotted(override.key)}")


def shown(value: Any) -> str:
    """A value as a message shows it."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)
