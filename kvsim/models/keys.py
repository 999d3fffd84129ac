"""The keys of one model file, read with errors that name file, key and value."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.core.errors import InputError


class Keys:
    """Raw keys; ``source`` collects what had to be assumed. ``within``: the objects that they stand in (``a.b.``)."""

    def __init__(self, path: Path, keys: Mapping[str, Any], source: dict[str, str], within: str = "") -> None:
        self.path = path
        self.source = source
        self._keys = keys
        self._within = within
        self._asked: set[str] = set()

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value as it stands."""
        self._asked.add(key)
        return self._keys.get(key, otherwise)

    def refuse_typos(self) -> None:
        """Raise InputError for a key that nobody asked for and that nearly is one that was asked for and missing."""
        missing = [key for key in self._asked if key not in self._keys]
        for key in self._keys:
            near = [] if key in self._asked else difflib.get_close_matches(key, missing, n=1, cutoff=0.85)
            if near:
                raise InputError("unknown key", file=self.path, key=key, hint=f"did you mean {near[0]!r}?")

    def count(self, key: str, most: int | None = None) -> int:
        """An integer above 0, of ``most`` at most. Raises InputError if it is anything else, or missing."""
        needed = "an integer above 0" if most is None else f"an integer from 1 to {most}"
        value = self.get(key)
        if value is None:
            raise InputError("missing key", file=self.path, key=self._within + key, hint=f"needed: {needed}")
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0 or (most is not None and value > most):
            raise self._wrong(key, needed)
        return value

    def integer(self, key: str) -> int | None:
        """An integer of any sign; None if the key is missing. Raises InputError for anything else."""
        value = self.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self._wrong(key, "an integer")
        return value

    def number(self, key: str, otherwise: float) -> float:
        """A number above 0, of a million at most. Raises InputError if it is anything else."""
        value = self.get(key)
        if value is None:
            return otherwise
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1e6:
            raise self._wrong(key, "a number above 0")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts, empty if the key is missing. Raises InputError for anything else."""
        value = self.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._wrong(key, "a list of texts")
        return value

    def within(self, key: str) -> "Keys | None":
        """The keys of an object; None if it is missing or empty. Raises InputError for anything else."""
        value = self.get(key)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Keys(self.path, value, self.source, f"{self._within}{key}.")

    def names(self) -> list[str]:
        """The keys that are there."""
        return list(self._keys)

    def counts(self, word: str) -> list[tuple[str, int]]:
        """The keys with this word in them whose values are integers."""
        found = self._keys.items()
        return [(key, n) for key, n in found if word in key and isinstance(n, int) and not isinstance(n, bool)]

    def first(self, keys: Sequence[str], otherwise: int | None = None, most: int | None = None) -> int:
        """The count under the first of several keys that is set. Raises InputError if none is and nothing stands in."""
        key = self.named(keys)
        if key is None and otherwise is not None:
            return otherwise
        return self.count(key or keys[0], most)

    def named(self, keys: Sequence[str]) -> str | None:
        """The first of several keys that is set."""
        return next((key for key in keys if self.get(key)), None)

    def integers(self, key: str) -> list[int] | None:
        """A list of integers, not negative; None if the key is missing. Raises InputError for anything else."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or any(not isinstance(n, int) or n < 0 for n in value):
            raise self._wrong(key, "a list of integers from 0")
        return value

    def flag(self, key: str, otherwise: bool, *, assume: str = "") -> bool:
        """True or false; ``assume`` is the figure to name in ``source`` if the key is missing."""
        value = self.get(key)
        if value is None:
            if assume:
                self.source[assume] = f"assumed {str(otherwise).lower()}: {key} is not in the file"
            return otherwise
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def refusal(self, key: str, why: str) -> InputError:
        """An InputError for a key whose value cannot be modelled."""
        value = self._keys.get(key)
        shown = "" if isinstance(value, dict | list) or value is None else f"{value!r}: "
        return InputError(shown + why, file=self.path, key=self._within + key)

    def _wrong(self, key: str, needed: str) -> InputError:
        value = self._keys[key]
        shown = "" if isinstance(value, dict | list) else f"{value!r} is "
        return InputError(f"{shown}not allowed", file=self.path, key=self._within + key, hint=f"needed: {needed}")
