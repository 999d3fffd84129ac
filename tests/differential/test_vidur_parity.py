"""Parity with a peer: Vidur's rules and Vidur's step times give Vidur's latencies, request by request."""

from pathlib import Path

import numpy as np
import pytest

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.trace import Trace
from kvsim.costs.table import Table
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from tests.plugins.vidur import Vidur
from tests.worlds import GPU, MODEL, Mode


@pytest.mark.parametrize("mode", ["leap", "step"])
def test_latencies_of_vidur_within_a_microsecond(shared_data: Path, mode: Mode) -> None:
    peer = shared_data / "peer_runs"
    w1 = np.genfromtxt(peer / "w1.csv", delimiter=",", names=True)
    theirs = np.genfromtxt(peer / "vidur_w1_requests.csv", delimiter=",", names=True)
    trace = Trace(
        np.round(w1["arrival_s"] * 1e9).astype(np.int64),
        w1["prompt_tokens"].astype(np.int64),
        w1["output_tokens"].astype(np.int64),
    )
    table = Table(
        linear_csv=peer / "vidur_cost_linear_ops.csv",
        decode_csv=peer / "vidur_cost_attn_decode.csv",
        prefill_csv=peer / "vidur_cost_attn_prefill.csv",
    )
    pool = Pool("mixed", 1, Vidur(), Paged(block_size=16), 7424, table.start(MODEL, GPU, 1), RoundRobin())
    log = simulate(trace, Cluster((pool,), max_model_len=4096), RunOptions(mode=mode))

    assert log.steps == (8415,)
    ttft_s = (log.first_token_ns - log.arrival_ns) / 1e9
    e2e_s = (log.finish_ns - log.arrival_ns) / 1e9
    np.testing.assert_allclose(ttft_s, theirs["ttft_s"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(e2e_s, theirs["e2e_s"], rtol=0, atol=1e-6)
