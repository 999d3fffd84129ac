"""Running a question: points made, what is known looked up, the rest computed, one table written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.scenario import Override, Scenario
from kvsim.scenario.axes import Question
from kvsim.scenario.resolve import resolve
from kvsim.scenario.source import dotted
from kvsim.sweeps.design import METHODS, MOST_RUNS, Method, Point, Shard, points
from kvsim.sweeps.executors import Crew
from kvsim.sweeps.store import Store, results_rows, results_table
from kvsim.sweeps.traces import CannotShare, SharedTraces
from kvsim.sweeps.work import Outcome, Task, address_of, own_code

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "Progress", "Sweep", "run_sweep", "sweep"]

Progress = Callable[[int, int, int], None]
"""Called with the runs that are done, all runs, and those that failed."""


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its manifest (``sweep.json``) and its rows (``results.parquet``)."""

    manifest: dict[str, Any]
    rows: list[dict[str, Any]]

    @cached_property
    def table(self) -> Any:
        """The rows as a pyarrow Table (which imports pandas)."""
        return results_table(self.manifest, self.rows)

    @property
    def failed(self) -> int:
        """Runs that are rows with an error."""
        return sum(run["error"] is not None for run in self.manifest["runs"])


def sweep(
    scenario: str | os.PathLike[str] | Scenario,
    axes: Mapping[str, Any] | None = None,
    *,
    method: Method = "grid",
    samples: int | None = None,
    repetitions: int = 1,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    executor: str | Executor | None = None,
    allow_plugins: bool = True,
    progress: Progress | None = None,
    **keys: Any,
) -> pd.DataFrame:
    """Run a scenario at many points; a DataFrame with a row per run: the axes, the seed, and every figure.

    >>> frame = sweep("scenario.yaml", {"cluster.replicas": [1, 2, 4]}, repetitions=3)      # doctest: +SKIP

    ``axes`` maps dotted keys to lists of values or ``{"range": {"from": 1, "to": 8, "log": 2}}``, beside those that
    the scenario itself has (``choices:``, ``range:``). ``method``: ``grid`` (all combinations), ``random`` or ``lhs``
    (``samples`` points of a Latin hypercube). ``repetitions``: every point with that many seeds, the same for each
    point, from the scenario's own on. ``keys`` replace what the scenario says, as in ``kvsim.run``. A run that fails
    is a row with its ``error``.

    With ``out``, finished runs are kept there as they come: an interrupted sweep goes on where it was, and a repeated
    one is free. ``workers`` processes compute (None: one per CPU); ``executor`` is another
    ``concurrent.futures.Executor``, or the name of one. Raises InputError for a mistake in the scenario or an axis.
    """
    found = run_sweep(
        Question.load(scenario, axes, keys),
        method=method,
        samples=samples,
        repetitions=repetitions,
        out=out,
        workers=workers,
        executor=executor,
        allow_plugins=allow_plugins,
        progress=progress,
    )
    frame: pd.DataFrame = found.table.to_pandas()
    return frame


@dataclass(frozen=True)
class _Run:
    """One row: a point with a seed."""

    point: int
    values: Point
    scenario: Scenario


def run_sweep(
    question: Question,
    *,
    method: Method = "grid",
    samples: int | None = None,
    repetitions: int = 1,
    out: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    executor: str | Executor | None = None,
    shard: Shard | None = None,
    allow_plugins: bool = True,
    progress: Progress | None = None,
) -> Sweep:
    """What ``sweep`` does, for the command line: ``shard`` computes a part only, to be joined by ``merge``."""
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot work", key="workers", hint="a whole number from 1")
    if repetitions < 1:
        raise InputError(f"{repetitions} is not allowed", key="repetitions", hint="a whole number from 1")
    crew = Crew(executor, workers or os.cpu_count() or 1)
    planned = list(_runs(question, points(question.axes, method, samples), repetitions))
    about = {
        "kvsim": __version__,
        "code": own_code(),
        "question": _hash_of(question, [run.values for run in planned]),
        "method": method,
        "samples": samples,
        "repetitions": repetitions,
        "axes": {axis.name: axis.described() for axis in question.axes},
        "of": len(planned),
        "shard": None if shard is None else str(shard),
    }
    mine = [run for idx, run in enumerate(planned) if shard is None or shard.takes(idx)]
    folder = None if out is None else Path(out).expanduser().resolve()
    scratch = tempfile.TemporaryDirectory(prefix="kvsim-sweep-") if folder is None else nullcontext(str(folder))
    with closing(Store(folder)) as store, scratch as place, closing(crew):
        traces = SharedTraces(Path(place))
        rows = _compute(mine, store, traces, crew, allow_plugins, progress)
        manifest = about | {"runs": rows}
        known = {run["address"]: store.get(run["address"]) for run in rows if run["address"] and not run["error"]}
        found = Sweep(manifest, results_rows(manifest, {a: outcome for a, outcome in known.items() if outcome}))
        if folder is not None:
            store.finish(manifest, found.table)
        traces.remove()
    return found


def _runs(question: Question, chosen: Sequence[Point], repetitions: int) -> Iterator[_Run]:
    """Every row in order: point by point, seeds within. Raises InputError for a value that its key never takes."""
    if len(chosen) * repetitions > MOST_RUNS:
        raise InputError(f"{len(chosen) * repetitions} runs are too many", hint=f"at most {MOST_RUNS}")
    if repetitions > 1 and any(axis.key == ("seed",) for axis in question.axes):
        raise InputError("seed is an axis already", key="repetitions", hint="leave one of them out")
    for idx, values in enumerate(chosen):
        scenario = question.scenario(values)
        for repetition in range(repetitions):
            same = repetitions == 1
            yield _Run(idx, values, scenario if same else scenario.replace(seed=scenario.seed + repetition))


def _hash_of(question: Question, values: Sequence[Point]) -> str:
    """What distinguishes this sweep from another: the scenario as written, and its points."""
    points = [{dotted(key): value for key, value in point.items()} for point in values]
    return sha256(repr((question.data, question.overrides, points)).encode()).hexdigest()[:32]


def _compute(
    runs: Sequence[_Run],
    store: Store,
    traces: SharedTraces,
    crew: Crew,
    allow_plugins: bool,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """The rows of the manifest, after every run has been done, or found."""
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    asked: set[str] = set()
    folder = os.getcwd()
    done = lost = 0

    def report(count: int = 1, failures: int = 0) -> None:
        nonlocal done, lost
        done, lost = done + count, lost + failures
        if progress is not None:
            progress(done, len(runs), lost)

    def tasks() -> Iterator[Task]:
        """What has to be computed; known runs pass by. Resolving here, while workers compute, costs no time."""
        for run in runs:
            row: dict[str, Any] = {
                "point": run.point,
                "seed": run.scenario.seed,
                "values": {dotted(key): value for key, value in run.values.items()},
                "address": None,
                "trace_sha256": None,
                "error": None,
            }
            rows.append(row)
            try:
                resolved = resolve(run.scenario, allow_plugins=allow_plugins, read=traces.read)
            except CannotShare:
                raise
            except InputError as error:
                row["error"] = str(error)
                report(failures=1)
                continue
            address = address_of(resolved)
            row["address"], row["trace_sha256"] = address, resolved.trace.sha256
            if address in asked or store.get(address) is not None:
                report()
                continue
            asked.add(address)
            yield Task(address, run.scenario, folder, dict(traces.files), allow_plugins)

    for task, outcome in crew.outcomes(tasks()):
        _keep(task, outcome, store, failed)
        report(failures="error" in outcome)
    for row in rows:
        row["error"] = row["error"] or failed.get(row["address"])
    return rows


def _keep(task: Task, outcome: Outcome, store: Store, failed: dict[str, str]) -> None:
    if "error" in outcome:
        failed[task.address] = outcome["error"]
    else:
        store.put(task.address, outcome)


def override_axis(text: str) -> tuple[str, Any]:
    """``cluster.replicas=[1, 2, 4]``: a dotted path, and values in YAML. Raises InputError."""
    from kvsim.scenario import parse_set

    override: Override = parse_set(text)
    value = override.value
    if not isinstance(value, list | Mapping):
        raise InputError(f"{text!r} has one value", key="--vary", hint="for example --vary cluster.replicas=[1,2,4]")
    return dotted(override.key), value
