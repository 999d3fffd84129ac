"""Finding what a name in a scenario means: a built-in of a seat, or ``package.module:Class``."""

import difflib
import importlib
from collections.abc import Mapping

from kvsim.core.errors import InputError


def load(seat: str, name: str, table: Mapping[str, str], *, allow_plugins: bool = True) -> type:
    """The class behind ``name``. ``table`` maps built-in names to ``package.module:Class``, imported on demand.

    Raises InputError for an unknown name (with the nearest known one), for a plug-in when they are refused, and
    for a plug-in that cannot be imported.
    """
    target = table.get(name)
    if target is None:
        if ":" not in name:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"unknown {seat} {name!r}", hint=f"{meant}known: {', '.join(sorted(table))}, or package.module:Class"
            )
        if not allow_plugins:
            raise InputError(
                f"{seat} {name!r} is a plug-in, and plug-ins are refused", hint="drop --no-plugins to allow it"
            )
        target = name
    module_name, _, class_name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise InputError(
            f"{seat} {name!r} cannot be imported: {error}", hint="is its package on PYTHONPATH?"
        ) from error
    except AttributeError as error:
        raise InputError(f"{seat} {name!r}: module {module_name} has no {class_name!r}") from error
    if not isinstance(found, type):
        raise InputError(f"{seat} {name!r} is not a class", hint="name a frozen dataclass")
    return found
