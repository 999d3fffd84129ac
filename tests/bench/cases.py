"""The benchmark's cases: Llama-2-7B, A100-80GB, chunked prefill, 7,424 blocks, 2,048 tokens, 256 requests; roofline, if
not named otherwise."""

import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from kvsim.core.cluster import Cluster, Pool, Role
from kvsim.core.hardware import Link
from kvsim.core.trace import Ragged, Trace
from kvsim.costs.affine import Affine
from kvsim.costs.calibrated import Calibrated
from kvsim.costs.roofline import Roofline
from kvsim.engine import simulate
from kvsim.hardware import load_gpu
from kvsim.kv.paged import Paged
from kvsim.models import load_model
from kvsim.routers.least_tokens import LeastTokens
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from kvsim.workload import read_trace
from kvsim.workload.generate import lognormal_poisson

Row = dict[str, Any]

ROOFLINE = Roofline()
AFFINE = Affine(base_s=9e-3, prefill_token_s=7e-5, decode_request_s=1e-5, context_token_s=3e-7)
"""About as fast as ``ROOFLINE``, so that the same steps are simulated."""


def peer_trace(name: str, rows: int) -> Trace:
    """``../shared/peer_runs`` if it is there, else a trace generated to the same recipe."""
    data = Path(os.environ.get("KVSIM_DATA", Path(__file__).parents[2].parent / "shared"))
    path = data / "peer_runs" / f"{name}.csv"
    return read_trace(path) if path.exists() else lognormal_poisson(rows, seed=rows)


def w2_like(rows: int) -> Trace:
    """w2 over and over until there are so many rows: the same load for longer."""
    w2 = peer_trace("w2", 10_000)
    rounds = -(-rows // len(w2))
    span_ns = int(w2.arrival_ns[-1]) + int(np.diff(w2.arrival_ns).mean())
    arrival_ns = (np.arange(rounds)[:, None] * span_ns + w2.arrival_ns[None, :]).ravel()
    return Trace(arrival_ns[:rows], np.tile(w2.prompt_tokens, rounds)[:rows], np.tile(w2.output_tokens, rounds)[:rows])


def stretched(trace: Trace, times: float, outputs: int = 1) -> Trace:
    """Arrival times and output lengths multiplied."""
    arrival_ns = np.rint(trace.arrival_ns * times).astype(np.int64)
    return replace(trace, arrival_ns=arrival_ns, output_tokens=trace.output_tokens * outputs)


def half_shared(trace: Trace, texts: int = 10) -> Trace:
    """The first half of every prompt, in whole blocks of 16 tokens, is the beginning of one of so many texts."""
    blocks = trace.prompt_tokens // 32
    text = np.arange(len(trace)) % texts
    longest = int(blocks.max(initial=0))
    place = np.arange(int(blocks.sum())) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    _, ids = np.unique(np.repeat(text, blocks) * longest + place, return_inverse=True)
    hashes = Ragged(ids, np.concatenate(([0], np.cumsum(blocks))))
    return replace(trace, prefix_hashes=hashes, hash_block_tokens=16)


@dataclass(frozen=True)
class SeesEachStep(ChunkedPrefill):
    """The same decisions by a policy that has to be asked before every step."""

    every_step = True


def pool(
    role: Role = "mixed",
    replicas: int = 1,
    router: Any = None,
    policy: type[ChunkedPrefill] = ChunkedPrefill,
    caching: bool = False,
    cost: Affine | Calibrated | Roofline = ROOFLINE,
) -> Pool:
    model = load_model("llama-2-7b")
    return Pool(
        role=role,
        replicas=replicas,
        scheduler=policy(max_num_seqs=256, max_num_batched_tokens=2048),
        kv=Paged(block_size=16, enable_prefix_caching=caching),
        kv_blocks=7424,
        cost=cost.start(model, load_gpu("a100-80gb-sxm"), 1),
        router=router or RoundRobin(),
        kv_bytes_per_token=model.kv_bytes_per_token(),
    )


def cluster(*pools: Pool, link: Link | None = None) -> Cluster:
    return Cluster(pools=pools, max_model_len=load_model("llama-2-7b").max_model_len, link=link)


def bare_events_per_s(events: int = 200_000) -> float:
    """Timeouts per CPU second of one generator process with nothing else to do."""
    environment = simpy.Environment()

    def clock() -> Any:
        timeout = environment.timeout
        for _ in range(events):
            yield timeout(1)

    environment.process(clock())
    begin = time.process_time()
    environment.run()
    return events / (time.process_time() - begin)


def measure(case: str, trace: Trace, hardware: Cluster, after: Callable[..., None] | None = None) -> Row:
    """Simulate, and say how fast. ``after(trace, log)`` belongs to the process, not to the loop."""
    bare = [bare_events_per_s() for _ in range(3)]
    gc.collect()
    begin = time.process_time()
    log = simulate(trace, hardware)
    loop_s = time.process_time() - begin
    assert bool((log.status == 0).all()), "every request of the benchmark finishes"
    bare += [bare_events_per_s() for _ in range(3)]
    bare_s = sum(200_000 / rate for rate in bare)
    if after:
        after(trace, log)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "case": case,
        "requests_per_s": len(trace) / loop_s,
        "process_s": time.process_time() - bare_s,
        "peak_rss_bytes": peak if sys.platform == "darwin" else peak * 1024,
        "requests_per_bare_event": len(trace) / loop_s / float(np.median(bare)),
        "requests": len(trace),
        "loop_s": loop_s,
        "bare_events_per_s": float(np.median(bare)),
        "steps": sum(log.steps),
        "events": log.events,
    }


def replicas_32(case: str, router: Any) -> Row:
    """32 times the arrivals of w2 in the time of w2, so that each replica has as much to do as the one of w2."""
    return measure(case, stretched(w2_like(320_000), 1 / 32), cluster(pool(replicas=32, router=router)))


def pd_2_2(case: str, router: Any) -> Row:
    """Two prefill and two decode replicas; ``router`` chooses between the latter."""
    link = Link(25_000_000_000, 1e-3)
    return measure(case, peer_trace("w2", 10_000), cluster(pool("prefill", 2), pool("decode", 2, router), link=link))


def parquet_1e6(case: str) -> Row:
    """The whole way: a million rows from a Parquet file, simulated, to a result folder."""
    from kvsim import __version__
    from kvsim.metrics.summary import summarise
    from kvsim.report.files import run_info, write_run
    from kvsim.workload.writers import write_plain_parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        write_plain_parquet(w2_like(1_000_000), path)

        def write(trace: Trace, log: Any) -> None:
            summary = summarise(log, trace, version=__version__, gpus=1)
            write_run(Path(folder) / "run", log, trace, summary, "", run_info({}))

        return measure(case, read_trace(path), cluster(pool()), write)


CASES: dict[str, Callable[[str], Row]] = {
    "w1": lambda case: measure(case, peer_trace("w1", 1_000), cluster(pool())),
    "w2": lambda case: measure(case, peer_trace("w2", 10_000), cluster(pool())),
    "w2_affine": lambda case: measure(case, peer_trace("w2", 10_000), cluster(pool(cost=AFFINE))),
    "w2_calibrated": lambda case: measure(case, peer_trace("w2", 10_000), cluster(pool(cost=Calibrated()))),
    "w2_sparse": lambda case: measure(case, stretched(peer_trace("w2", 10_000), 100), cluster(pool())),
    "w2_1e5": lambda case: measure(case, w2_like(100_000), cluster(pool())),
    "w2_1e6": lambda case: measure(case, w2_like(1_000_000), cluster(pool())),
    "w2_caching": lambda case: measure(case, peer_trace("w2", 10_000), cluster(pool(caching=True))),
    "w2_half_shared": lambda case: measure(case, half_shared(peer_trace("w2", 10_000)), cluster(pool(caching=True))),
    "every_step": lambda case: measure(case, peer_trace("w2", 10_000), cluster(pool(policy=SeesEachStep))),
    "w2_long": lambda case: measure(case, stretched(peer_trace("w2", 10_000), 2, outputs=2), cluster(pool())),
    "replicas_32_round_robin": lambda case: replicas_32(case, RoundRobin()),
    "replicas_32_least_tokens": lambda case: replicas_32(case, LeastTokens()),
    "pd_2_2": lambda case: pd_2_2(case, RoundRobin()),
    "pd_2_2_least_tokens": lambda case: pd_2_2(case, LeastTokens()),
    "parquet_1e6": parquet_1e6,
}
