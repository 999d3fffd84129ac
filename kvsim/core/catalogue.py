"""Reading data files: from a catalogue name or a path to a dataclass, with errors for the person who wrote the file."""

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from kvsim.core.errors import InputError

T = TypeVar("T")


def names(folder: Path) -> tuple[str, ...]:
    """Names of the entries of a catalogue folder, sorted."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def locate(what: str, name_or_path: str, folder: Path, base_dir: Path, suffixes: tuple[str, ...]) -> Path:
    """The file that a scenario means: an entry of the catalogue, else a path (relative to ``base_dir``).

    A path has a slash or one of the suffixes. Raises InputError for an unknown name and for a missing file.
    """
    known = names(folder)
    if name_or_path in known:
        return folder / f"{name_or_path}.toml"
    path = base_dir / Path(name_or_path).expanduser()
    if "/" not in name_or_path and path.suffix not in suffixes:
        listed = f"known: {', '.join(known)}" if len(known) <= 20 else f"kvsim list {what.lower()}s lists the known"
        hint = f"{_nearest(name_or_path, known)}{listed}, or a path to a {' or '.join(suffixes)} file"
        raise InputError(f"unknown {what} {name_or_path!r}", hint=hint)
    if path.suffix not in suffixes:
        raise InputError(f"not a {what} file", file=path, hint=f"allowed: {', '.join(suffixes)}")
    if not path.is_file():
        raise InputError(f"no such {what} file", file=path)
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file. Raises InputError (file and place) if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"cannot be read as TOML: {error}", file=path) from None


def build(cls: type[T], table: Mapping[str, Any], path: Path, *, within: str = "") -> T:
    """The dataclass whose fields are the keys of a table; ``within`` names the table inside the file.

    Integers must be above 0, floats finite and not negative. Raises InputError naming file, key, value and what is
    allowed.
    """
    prefix = f"{within}." if within else ""
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            hint = f"{_nearest(key, known)}known: {', '.join(known)}"
            raise InputError("unknown key", file=path, key=prefix + key, hint=hint)
    for name, field in known.items():
        needed, fits = _KINDS.get(field.type, ("a table of texts", _is_text_table))
        if name not in table:
            if field.default is MISSING and field.default_factory is MISSING:
                raise InputError("missing key", file=path, key=prefix + name, hint=f"needed: {needed}")
        elif not fits(table[name]):
            raise InputError(f"{table[name]!r} is not allowed", file=path, key=prefix + name, hint=f"needed: {needed}")
    of_floats = (float, float | None)
    floats = {name: float(table[name]) for name, field in known.items() if field.type in of_floats and name in table}
    return cls(**{**table, **floats})


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and value >= 0


_KINDS: dict[Any, tuple[str, Callable[[object], bool]]] = {
    int: ("an integer above 0", lambda value: isinstance(value, int) and not isinstance(value, bool) and value > 0),
    float: ("a number, not negative", _is_number),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("text", lambda value: isinstance(value, str)),
}
_KINDS |= {int | None: _KINDS[int], float | None: _KINDS[float]}  # may be left out


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    begun = sorted((each for each in names if name and each.startswith(name)), key=len)
    near = begun or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""
