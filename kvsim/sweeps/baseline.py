"""Figures of a run that was good, as small JSON beside the scenario: what ``expect.vs_baseline`` compares with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.core.files import write_whole
from kvsim.scenario import Scenario
from kvsim.scenario.lock import scenario_hash
from kvsim.scenario.resolve import Resolved

RENEW: Final = "kvsim check --update-baseline records a new one"
SCHEMA_VERSION: Final = 1


def baseline_path(scenario: Scenario) -> Path:
    """``expect.baseline``, else ``NAME.baseline.json`` beside the scenario file."""
    keys = scenario.expect
    if keys is not None and keys.baseline is not None:
        return scenario.source.folder(("expect", "baseline")) / Path(keys.baseline).expanduser()
    file = scenario.source.file
    return file.with_name(f"{file.stem}.baseline.json") if file else Path(f"{scenario.label}.baseline.json")


def question_hash(resolved: Resolved) -> str:
    """What two runs must share to be compared: the requests, the SLO and what is measured. The system may differ: its
    difference is what one wants to see."""
    keys = {name: resolved.keys[name] for name in ("workload", "slo", "measure")}
    checksums = {key: checksum for key, checksum in resolved.checksums.items() if key[0] == "workload"}
    return scenario_hash(keys, checksums)


@dataclass(frozen=True)
class Baseline:
    """Figures by name, one value per seed."""

    path: Path
    version: str
    question: str
    scenario_hash: str
    seeds: tuple[int, ...]
    figures: Mapping[str, Sequence[Any]]

    @classmethod
    def of(cls, resolved: Resolved, rows: Sequence[Mapping[str, Any]]) -> Baseline:
        """From rows of figures, one per seed."""
        numbers = [
            name
            for name, value in rows[0].items()
            if name not in ("point", "seed", "schema_version") and isinstance(value, int | float)
        ]
        return cls(
            path=Path(),
            version=__version__,
            question=question_hash(resolved),
            scenario_hash=resolved.scenario_hash,
            seeds=tuple(row["seed"] for row in rows),
            figures={name: [row.get(name) for row in rows] for name in numbers},
        )

    def write(self, path: Path) -> Path:
        """Write it; equal figures give equal bytes. Raises InputError if that is impossible."""
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(list(v))}" for name, v in self.figures.items())
        head = {
            "schema_version": SCHEMA_VERSION,
            "kvsim": self.version,
            "question": self.question,
            "scenario_hash": self.scenario_hash,
            "seeds": list(self.seeds),
        }
        text = json.dumps(head, indent=1).removesuffix("\n}") + f',\n "figures": {{\n{lines}\n }}\n}}\n'
        try:
            write_whole(path, text.encode())
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", file=path) from error
        return path

    @classmethod
    def read(cls, path: Path, scenario: Scenario) -> Baseline:
        """Raises InputError if it is missing or was not written by ``write``."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["schema_version"] != SCHEMA_VERSION:
                raise InputError(
                    f"has schema_version {found['schema_version']}, not {SCHEMA_VERSION}", file=path, hint=RENEW
                )
            return cls(
                path, found["kvsim"], found["question"], found["scenario_hash"], tuple(found["seeds"]), found["figures"]
            )
        except FileNotFoundError:
            raise scenario.source.error(f"there is no baseline {path}", ("expect", "vs_baseline"), RENEW) from None
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", file=path) from None
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("is not a baseline", file=path, hint=RENEW) from None

    def must_fit(self, question: str, scenario: Scenario, names: Sequence[str]) -> None:
        """Raises InputError if it answers another question, or does not have these figures: it is stale."""
        if self.question != question:
            raise InputError(
                f"is stale: it was recorded for other requests, SLO or measure than {scenario.label} has "
                f"(then {self.question[:12]}, now {question[:12]})",
                file=self.path,
                hint=RENEW,
            )
        for name in names:
            if name not in self.figures:
                raise InputError(f"is stale: it has no {name}", file=self.path, hint=RENEW)
