"""Running a scenario from Python: ``kvsim.run``. The command line calls the same two steps, resolve and execute."""

from __future__ import annotations

import gzip
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kvsim import __version__
from kvsim.core.cluster import RunOptions
from kvsim.core.errors import InputError
from kvsim.core.runlog import NEVER, RunLog
from kvsim.core.trace import Trace
from kvsim.engine import simulate
from kvsim.metrics.laws import broken_laws
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from kvsim.report.files import prepare_output, run_info, write_run
from kvsim.report.result import Result
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, resolve


def run(
    scenario: str | os.PathLike[str] | Scenario,
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    allow_plugins: bool = True,
    uncertainty: int = 0,
    **keys: Any,
) -> Result:
    """Simulate a scenario (a YAML file, or a ``Scenario``) and return its ``Result``.

    ``keys`` replace what the scenario says, by name or dotted path; mappings are merged key by key:
    ``kvsim.run("s.yaml", seed=1, cluster={"replicas": 2}, **{"workload.trace.limit": 100})``. Relative paths in
    them start at the working directory. Files are written only if ``out`` names a folder, which must be new or
    empty unless ``overwrite``. ``uncertainty``: so many draws (19 at least) of coefficients and seeds on top, on all
    CPUs; the summary then has ``kvsim.uncertainty`` (see ``kvsim/sweeps/uncertainty.py``). Raises InputError for a
    mistake in the scenario, the trace or the folder.
    """
    if isinstance(scenario, Scenario):
        scenario = scenario.replace(**keys) if keys else scenario
    else:
        scenario = Scenario.load(Path(scenario), keys)
    resolved = resolve(scenario, allow_plugins=allow_plugins)
    if not uncertainty:
        return execute(resolved, out=out, overwrite=overwrite).result
    from kvsim.sweeps.uncertainty import uncertainty as redraw

    if out is not None:
        prepare_output(out, overwrite)
    drawn = redraw(scenario, uncertainty, allow_plugins=allow_plugins)
    return execute(resolved, out=out, overwrite=overwrite, uncertainty=drawn).result


@dataclass(frozen=True)
class Outcome:
    """A result, and the laws that the run broke (one line each; looked for only when asked)."""

    result: Result
    broken_laws: tuple[str, ...] = ()


def execute(
    resolved: Resolved,
    *,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    check_laws: bool = False,
    decisions: Path | None = None,
    progress: Callable[[int], None] | None = None,
    resolve_s: float = 0.0,
    uncertainty: Mapping[str, Any] | None = None,
) -> Outcome:
    """Simulate, summarise, and write the result folder if ``out`` names one.

    ``decisions``: file for each step's decisions (JSON lines, gzip if it ends in ``.gz``; visits every step).
    ``progress`` is called now and then with the number of requests that have ended. ``resolve_s``: wall seconds that
    the caller has spent before, for ``run.json``. ``uncertainty`` goes into the summary.
    Raises InputError for a folder or file that cannot be written.
    """
    out_dir = None if out is None else prepare_output(out, overwrite)
    frontend_ns = round(resolved.scenario.engine.frontend_s * 1e9)
    options = replace(resolved.options, check_laws=check_laws, progress=progress)
    trace, options = _behind(resolved.trace, options, frontend_ns)
    started_s = time.perf_counter()
    if decisions is None:
        log = simulate(trace, resolved.cluster, options)
    else:
        with _decisions_file(decisions, replicas=sum(p.pool.replicas for p in resolved.pools)) as write:
            log = simulate(trace, resolved.cluster, replace(options, mode="step", decisions=write))
    laws = tuple(broken_laws(log)) if check_laws else ()
    log = _before(log, frontend_ns)
    simulated_s = time.perf_counter()
    scenario = resolved.scenario
    summary = summarise(
        log,
        resolved.trace,
        version=__version__,
        slo=Slo(**scenario.slo.model_dump()),
        warmup_s=scenario.measure.warmup_s,
        gpus=resolved.gpus,
        label=scenario.label,
        model_id=resolved.model.name,
        max_concurrency=scenario.workload.max_concurrency,
        seed=scenario.seed,
        scenario_hash=resolved.scenario_hash,
        engine_preset=scenario.engine.preset,
        approximation=resolved.notes,
    )
    if uncertainty is not None:
        summary["kvsim"]["uncertainty"] = dict(uncertainty)
    if out_dir is not None:
        wall_s = {
            "resolve": resolve_s,
            "simulate": simulated_s - started_s,
            "summarise": time.perf_counter() - simulated_s,
        }
        write_run(out_dir, log, resolved.trace, summary, resolved.lock, run_info(wall_s), overwrite=overwrite)
    result = Result(summary=summary, log=log, trace=resolved.trace, out_dir=out_dir)
    return Outcome(result, laws)


def _behind(trace: Trace, options: RunOptions, frontend_ns: int) -> tuple[Trace, RunOptions]:
    """The requests as they come out of a frontend that takes so long: later, and with less of their time left.

    A turn that follows another one, too.
    """
    if not frontend_ns:
        return trace, options
    think_ns = (np.zeros_like(trace.arrival_ns) if trace.think_ns is None else trace.think_ns) + frontend_ns
    deadline_ns, timeout_ns = trace.deadline_ns, options.client_timeout_ns
    if deadline_ns is not None:
        deadline_ns = np.where(deadline_ns < 0, -1, np.maximum(deadline_ns - frontend_ns, 0))
    if timeout_ns is not None:
        timeout_ns = max(timeout_ns - frontend_ns, 0)
    trace = replace(trace, arrival_ns=trace.arrival_ns + frontend_ns, think_ns=think_ns, deadline_ns=deadline_ns)
    return trace, replace(options, client_timeout_ns=timeout_ns)


def _before(log: RunLog, frontend_ns: int) -> RunLog:
    """The log with arrivals as the client sent them."""
    if not frontend_ns:
        return log
    return replace(log, arrival_ns=np.where(log.arrival_ns == NEVER, NEVER, log.arrival_ns - frontend_ns))


@contextmanager
def _decisions_file(path: Path, replicas: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """A writer of one JSON object per step, which names its replica if there are several.

    The file appears when the block completes; equal runs give equal bytes. Raises InputError if it cannot be written.
    """

    def refusal(problem: str | None) -> InputError:
        return InputError(f"{path} cannot be written: {problem}", key="--decisions", hint="name another file")

    if path.is_dir():
        raise refusal("Is a directory")
    temporary = path.with_name(f"{path.name}.kvsim-tmp-{secrets.token_hex(4)}")
    try:
        raw = temporary.open("wb")
    except OSError as error:
        raise refusal(error.strerror) from None
    try:
        with raw:
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:

                def write(replica: int, step: dict[str, Any]) -> None:
                    named = {"replica": replica, **step} if replicas > 1 else step
                    file.write(json.dumps(named, separators=(",", ":")) + "\n")

                yield write
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # somebody else's file: a policy that reads one
        raise refusal(error.strerror) from error
    finally:
        temporary.unlink(missing_ok=True)
