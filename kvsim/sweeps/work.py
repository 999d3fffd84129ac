"""One run of a sweep, as a worker does it: from a scenario to its summary, or to what went wrong."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import kvsim
from kvsim import __version__
from kvsim.api import execute
from kvsim.core.errors import InputError
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.sweeps.traces import mapped

OWN_FILES: Final = (".py", ".toml", ".json")


@dataclass(frozen=True)
class Task:
    """What is sent to a worker. ``folder`` is where relative paths of the command line start; ``address`` is what the
    caller calls the run. ``traces``: trace files that have been parsed."""

    address: str
    scenario: Scenario
    folder: str
    traces: Mapping[str, Path]
    allow_plugins: bool = True
    resample: int | None = None


Outcome = dict[str, Any]
"""``{"summary": {...}}`` of a run, or ``{"error": "one line"}``."""


def evaluate(task: Task) -> Outcome:
    """Simulate one scenario. Whatever goes wrong is the outcome, not an exception: others have work to do."""
    if os.getcwd() != task.folder and Path(task.folder).is_dir():
        os.chdir(task.folder)
    try:
        resolved = resolve(task.scenario, allow_plugins=task.allow_plugins, read=partial(mapped, task.traces))
        if task.resample is not None:
            from kvsim.sweeps.resampling import resampled

            resolved = resampled(resolved, task.resample)
        summary = execute(resolved).result.summary
    except InputError as error:
        return {"error": str(error)}
    except Exception as error:  # of a policy, or of the engine: the row says what and where
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return {"error": " ".join(f"{type(error).__name__}: {error} ({place})".split())}
    del summary["label"]  # what the run is called is no part of what it found
    return {"summary": summary}


def address_of(resolved: Resolved) -> str:
    """What the result of a run depends on, as 32 hex digits: the resolved scenario with checksums in place of paths,
    the version, kvsim's own code and data (somebody may be working on them), and the code of policies from outside."""
    parts = [__version__, own_code(), resolved.scenario_hash]
    for pool in (built.pool for built in resolved.pools):
        for policy in (pool.scheduler, pool.kv, pool.router, pool.cost):
            module = type(policy).__module__
            if module.partition(".")[0] != "kvsim":
                parts.append(f"{module} {_code(module)}")
    return sha256("\n".join(parts).encode()).hexdigest()[:32]


@cache
def own_code() -> str:
    """Checksum over the files of this package: two copies of one version that differ are told apart."""
    package = Path(kvsim.__file__).parent
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.suffix in OWN_FILES}
    digest = sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def _code(module: str) -> str:
    try:
        file = inspect.getsourcefile(sys.modules[module])
        return sha256(Path(file or "").read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""
