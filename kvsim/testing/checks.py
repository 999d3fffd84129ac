"""What a check is, and which checks a policy has to pass: those of the seat that its verbs fit."""

import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvsim.core import plugins
from kvsim.core.errors import InputError
from kvsim.scenario import seats
from kvsim.scenario.source import Source

MAIN_VERB: Final = {"scheduler": "plan", "router": "route", "kv": "attended", "reader": "read", "cost": "start"}
"""Seat -> the method by which a class is recognised; the first match wins, since others have ``start``, too."""


@dataclass(frozen=True)
class Check:
    """One line of the answer: what was looked at, and what is wrong (None: nothing)."""

    name: str
    problem: str | None = None

    def __str__(self) -> str:
        return f"ok    {self.name}" if self.problem is None else f"WRONG {self.name}: {self.problem}"


Look = tuple[str, Callable[[], str | None]]
"""The name of a check, and the function that says what is wrong."""


def seat_of(policy: type) -> str:
    """The seat that a class fits. Raises InputError if it fits none."""
    for seat, verb in MAIN_VERB.items():
        if callable(getattr(policy, verb, None)):
            return seat
    verbs = ", ".join(f"{verb} ({seat})" for seat, verb in MAIN_VERB.items())
    raise InputError(f"{policy.__qualname__} fits no seat", hint=f"it needs one of: {verbs}; see kvsim/core/seats.py")


def check_target(
    target: str, parameters: Mapping[str, Any] | None = None, sample: Path | None = None
) -> Iterator[Check]:
    """The checks of ``package.module:Class``, made with these parameters as a scenario would make it.

    Raises InputError if it cannot be imported, fits no seat, or refuses its parameters, and for a reader without
    ``sample``.
    """
    if ":" not in target:
        raise InputError(f"{target!r} is not package.module:Class", key="P")
    policy = plugins.load("policy", target, {})
    seat = seat_of(policy)
    if seat == "reader":
        built = seats.call(policy, dict(parameters or {}), target, Source(), ())
    else:
        built = seats.build(seat, target, dict(parameters or {}), Source(), (seat,))
    yield from check_policy(built, sample)


def check_policy(policy: Any, sample: Path | None = None) -> Iterator[Check]:
    """The checks of one policy object, as they are done. ``sample`` is a trace file for a reader.

    Raises InputError if it fits no seat, and for a reader without a sample.
    """
    seat = seat_of(type(policy))
    if seat == "reader" and sample is None:
        raise InputError("a reader is checked on a file", key="--sample", hint="name a small trace in its format")
    from kvsim.testing import costs, kv, readers, routers, schedulers

    looks: dict[str, Callable[[], Iterator[Look]]] = {
        "scheduler": lambda: schedulers.looks(policy),
        "router": lambda: routers.looks(policy),
        "kv": lambda: kv.looks(policy),
        "cost": lambda: costs.looks(policy),
        "reader": lambda: readers.looks(policy, sample or Path()),
    }
    yield Check(
        f"{type(policy).__qualname__} is a {'KV manager' if seat == 'kv' else seat}: a frozen dataclass", _form(policy)
    )
    before = repr(policy)
    for name, look in looks[seat]():
        try:
            problem = look()
        except Exception as error:  # whatever the policy raises is what the check has found
            problem = _told(error, policy)
        yield Check(name, problem)
        if problem is not None and name == "runs":
            return  # the other checks would all say the same
    changed = (
        None
        if repr(policy) == before
        else f"it was {before}, now it is {policy!r}: what it remembers belongs in start()"
    )
    yield Check("its parameters stay as they are", changed)


def _form(policy: Any) -> str | None:
    if not dataclasses.is_dataclass(type(policy)):
        return "decorate it with @dataclass(frozen=True); its fields are its parameters"
    return (
        None
        if policy.__dataclass_params__.frozen
        else "decorate it with @dataclass(frozen=True): the engine shares it between replicas"
    )


def _told(error: Exception, policy: Any) -> str:
    """An exception in one line, with the line of the policy that led to it."""
    file = inspect.getfile(type(policy))
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    place = f" ({Path(file).name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"
