"""A run of a real server: what it was asked, how it was set up, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.trace import Ragged, Trace

METRICS: Final = ("ttft", "tpot", "e2e", "throughput")
"""Means over the requests of a run, in ms: ``tpot`` is time per output token after the first. ``throughput``: requests
per second (output tokens per second if ``counts_tokens``)."""

Regime = Literal["below", "closed", "saturated"]
"""Load of a run: an open loop that the server kept up with; a fixed number of requests in flight; more than it could
serve (an overload, or a batch that all came at once)."""


@dataclass(frozen=True)
class Served:
    """One measured run.

    ``scenario``: keys without workload and cost. ``trace`` makes the
    requests that it was sent. ``measured``: metric of ``METRICS`` -> value. ``others``: tool -> metric -> |error| of
    that tool on this very run, as published. ``engine``: whose kernels ran, as surface files name it; ``host``: whose
    host, as ``kvsim/costs/data/hosts.toml`` does. ``at_client``: times were taken at the client, frontend included.
    """

    data_set: str
    name: str
    model: str
    gpu: str
    ranks: int
    regime: Regime
    scenario: Mapping[str, Any]
    trace: Callable[[], Trace]
    measured: Mapping[str, float]
    max_concurrency: int | None = None
    client_timeout_s: float | None = None
    counts_tokens: bool = False
    engine: str = "vllm"
    host: str = "vllm"
    at_client: bool = True
    file: Path = Path()
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def configuration(self) -> str:
        """Model, GPU and number of ranks: what is fitted to, or left out of fits, as a whole."""
        return f"{self.model} {self.gpu}" + (f" x{self.ranks}" if self.ranks > 1 else "")

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for runs that were asked the same of the same configuration: repeats."""
        how = getattr(self.trace, "args", ()), tuple(getattr(self.trace, "keywords", {}).items())
        limits = tuple(sorted(self.scenario["scheduler"].items()))
        return self.data_set, self.configuration, self.engine, how, limits, self.max_concurrency

    @property
    def fitted(self) -> bool:
        """True if fits may use this run, or a rule was chosen by it: the others are never looked at by a fit."""
        return is_fitted(self.configuration) or self.model in CHOSEN_BY


CHOSEN_BY: Final = ("llama-4-scout",)
"""Models whose unseen runs have been looked at: that fp8 experts take no longer than those in blocks was decided so."""


def is_fitted(configuration: str) -> bool:
    """The split: md5 of the configuration is even.

    >>> is_fitted("llama-3.1-8b h100-sxm"), is_fitted("qwen3-14b h100-sxm")
    (True, False)
    """
    return int(md5(configuration.encode()).hexdigest(), 16) % 2 == 0


@dataclass(frozen=True)
class Skipped:
    """So many measured runs of a set that cannot be simulated, and why."""

    data_set: str
    reason: str
    runs: int = 1


def scenario(
    model: str,
    gpu: str,
    ranks: int,
    *,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    max_model_len: int | None = None,
    quantization: str | None = None,
    enable_expert_parallel: bool | None = None,
    kv: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keys of a scenario that serves a model on so many GPUs; what is None is left to the preset."""
    cluster = {"gpu": gpu, "tensor_parallel_size": ranks, "max_model_len": max_model_len, "quantization": quantization}
    cluster["enable_expert_parallel"] = enable_expert_parallel
    limits = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": max_num_batched_tokens}
    return {
        "model": model,
        "cluster": {name: value for name, value in cluster.items() if value is not None},
        "scheduler": {"name": "chunked_prefill", **{name: n for name, n in limits.items() if n is not None}},
        "kv": {"name": "paged", **(kv or {})},
        "measure": {"timeline_instants": 1},
    }


def constant(rate_per_s: float, duration_s: float) -> NDArray[np.int64]:
    """Arrivals in ns, evenly spaced."""
    seconds: NDArray[np.float64] = np.arange(round(rate_per_s * duration_s)) / rate_per_s
    return _ns(seconds)


def poisson(rate_per_s: float, requests: int, seed: int = 0) -> NDArray[np.int64]:
    """Arrivals in ns of a Poisson process, from 0, given that so many came at just this rate."""
    arrivals_s = np.sort(np.random.default_rng(seed).random(requests)) * requests / rate_per_s
    return _ns(arrivals_s - arrivals_s[0])


def _ns(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.round(seconds * 1e9).astype(np.int64)
    return found


def uniform_trace(
    arrival_ns: NDArray[np.int64], prompt_tokens: int, output_tokens: int, prompts: tuple[int, int, int] | None = None
) -> Trace:
    """Requests of one length. ``prompts`` (groups, prompts per group, tokens that a group shares): so many different
    prompts are sent in turn, over and over; None: no two prompts have anything in common."""
    n = len(arrival_ns)
    segments = None
    if prompts is not None:
        groups, each, shared = prompts
        which = np.arange(n) % (groups * each)
        own = prompt_tokens - shared
        values = [which // each, np.zeros(n), np.full(n, shared), groups + which, np.zeros(n), np.full(n, own)]
        offsets = np.arange(n + 1, dtype=np.int64) * 6
        segments = Ragged(np.stack(values, axis=1).astype(np.int64).ravel(), offsets)
    lengths = np.full(n, prompt_tokens, np.int64), np.full(n, output_tokens, np.int64)
    return Trace(arrival_ns, *lengths, segments=segments)


def varied_trace(arrival_ns: NDArray[np.int64], prompt_tokens: Any, output_tokens: Any) -> Trace:
    """Requests of given lengths that share nothing."""
    return Trace(arrival_ns, np.asarray(prompt_tokens, np.int64), np.asarray(output_tokens, np.int64))
