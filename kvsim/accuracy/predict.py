"""Simulating measured runs, each with every cost model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Final

from kvsim.accuracy.served import METRICS, Served
from kvsim.api import execute
from kvsim.core.errors import InputError
from kvsim.core.trace import Trace
from kvsim.costs.hosts import host_of
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.sweeps.executors import Processes

COSTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "calibrated": {"name": "calibrated"},
    "roofline": {"name": "roofline"},
    "data sheet": {"name": "kvsim.accuracy.baselines:DataSheet"},
}
"""Column of the table -> cost model of the scenario."""

_KEYS: Final = {"ttft": "mean_ttft_ms", "tpot": "mean_tpot_ms", "e2e": "mean_e2el_ms"}


@dataclass(frozen=True)
class Predicted:
    """A measured run and what was simulated: column -> metric -> value, or why a cost model refuses it."""

    served: Served
    values: Mapping[str, Mapping[str, float]]
    refused: Mapping[str, str]

    def errors(self, column: str) -> dict[str, float]:
        """Metric -> (simulated / measured - 1), for the metrics that were measured; empty if refused."""
        values = self.values.get(column, {})
        return {name: values[name] / real - 1 for name, real in self.served.measured.items() if name in values}


def predict(
    runs: Iterable[Served], costs: Mapping[str, Mapping[str, Any]] = COSTS, workers: int = 1
) -> Iterator[Predicted]:
    """Simulate runs in worker processes, in order."""
    tasks = [(served, costs) for served in runs]
    if workers == 1:
        yield from map(_predict, tasks)
        return
    pool = Processes(workers)
    try:
        yield from pool.map(_predict, tasks)
    finally:
        pool.stop()


def _predict(task: tuple[Served, Mapping[str, Mapping[str, Any]]]) -> Predicted:
    served, costs = task
    trace = trace_of(served)
    values, refused = {}, {}
    for column, cost in costs.items():
        try:
            values[column] = simulate(served, cost, trace)
        except InputError as error:
            refused[column] = str(error)
    return Predicted(served, values, refused)


def simulate(served: Served, cost: Mapping[str, Any], trace: Trace) -> dict[str, float]:
    """Metric of ``METRICS`` -> simulated value. Raises InputError if kvsim cannot model the run with this cost."""
    return figures(served, resolved(scenario_of(served, cost), trace))


def scenario_of(served: Served, cost: Mapping[str, Any]) -> Scenario:
    """The measured server, priced by this cost model, and what its client did."""
    own = {"engine": served.engine, "host": served.host} if cost["name"] == "calibrated" else {}
    keys: dict[str, Any] = {**served.scenario, "cost": {**own, **cost}}
    if served.at_client and cost["name"] in ("calibrated", "roofline"):
        keys["engine"] = {"frontend_s": host_of(served.host).frontend_s}
    if served.host == "vllm-sync":  # all others plan a step while another runs, which is the scheduler's default
        keys["scheduler"] = {**keys["scheduler"], "async_scheduling": False}
    keys["workload"] = {
        "trace": {"path": str(served.file), "format": "canonical"},
        "max_concurrency": served.max_concurrency,
        "client_timeout_s": served.client_timeout_s,
    }
    return Scenario(**keys)


def trace_of(served: Served) -> Trace:
    """The requests. They are made, not read: they go in where a file would be read, under the name of the file that
    they were made from."""
    return replace(served.trace(), path=str(served.file), sha256=sha256(served.name.encode()).hexdigest())


def resolved(scenario: Scenario, trace: Trace) -> Resolved:
    """The scenario with these requests. Raises InputError if kvsim cannot model it."""
    return resolve(scenario, read=lambda *_, **__: trace)


def figures(served: Served, run: Resolved) -> dict[str, float]:
    """Metric of ``METRICS`` -> simulated value."""
    summary = execute(run).result.summary
    found = {metric: summary[key] for metric, key in _KEYS.items()}
    found["throughput"] = summary["output_throughput" if served.counts_tokens else "request_throughput"]
    return {metric: found[metric] for metric in METRICS if found[metric] is not None}
