"""A scenario: checked keys, and where each was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr, ValidationError

from kvsim.core import html
from kvsim.scenario.keys import ScenarioKeys
from kvsim.scenario.messages import explain
from kvsim.scenario.source import Override, Source, apply, expand, overrides_of, read_yaml, varied


class Scenario(ScenarioKeys):
    """One question to the simulator, with checked keys; immutable.

    Made from keywords (relative paths start at the working directory) or by ``load`` from a file (relative paths
    start at the file). Raises InputError for anything that is not allowed.

    >>> scenario = Scenario(workload={"trace": {"path": "traces/chat.csv"}}, scheduler="prefill_first")
    >>> scenario.scheduler.name, scenario.cluster.replicas
    ('prefill_first', 1)
    """

    _source: Source = PrivateAttr(default_factory=Source)

    def __init__(self, source: Source | None = None, /, **keys: Any) -> None:
        try:
            super().__init__(**expand(keys))
        except ValidationError as error:
            raise explain(error, source or Source()) from None
        self._source = source or Source()

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | Sequence[Override] = ()) -> Scenario:
        """The scenario in a YAML file, with overrides on top of it.

        As a mapping, overrides are names or dotted paths: ``{"cluster.replicas": 2, "slo": {"ttft_ms": 500}}``.
        """
        file = Path(path)
        data, lines = read_yaml(file)
        return cls.of(data, Source(file, lines), overrides)

    def replace(self, **keys: Any) -> Scenario:
        """A copy with other values: ``scenario.replace(seed=1, cluster={"replicas": 2})``."""
        return self.of(self.model_dump(exclude_unset=True), self._source, keys)

    @classmethod
    def of(cls, data: dict[str, Any], source: Source, overrides: Mapping[str, Any] | Sequence[Override]) -> Scenario:
        """The scenario in plain data that was written at ``source``, with overrides on top of it."""
        new = overrides_of(overrides) if isinstance(overrides, Mapping) else overrides
        written = Source(source.file, source.lines, (*source.overrides, *new))
        keys = apply(data, new)
        for key, _ in varied(keys):
            raise written.error("has several values, and a run takes one", key, "kvsim sweep runs them all")
        return cls(written, **keys)

    def _repr_html_(self) -> str:
        """For notebooks: the keys that were given, by section."""

        def text(value: Any) -> str:
            if isinstance(value, dict):
                return "{" + ", ".join(f"{name}: {text(inner)}" for name, inner in value.items()) + "}"
            return f"[{', '.join(map(text, value))}]" if isinstance(value, list) else str(value)

        given = self.model_dump(exclude_unset=True)
        return html.card(f"Scenario {self.label}", {section: text(value) for section, value in given.items()})

    @property
    def source(self) -> Source:
        """Where each key was written."""
        return self._source

    @property
    def label(self) -> str:
        """What a run of it is called: the file's name without its ending; ``scenario`` if it came from Python."""
        if self.lock is not None:
            return self.lock.label
        return self._source.file.stem if self._source.file else "scenario"

    @property
    def output_dir(self) -> Path:
        """The result folder: ``output.dir``, else ``runs/`` and the label, in the working directory."""
        if self.output.dir is None:
            return Path("runs", self.label)
        return self._source.folder(("output", "dir")) / Path(self.output.dir).expanduser()
