"""What planning ahead cannot be combined with yet."""

import pytest

from kvsim.core.cluster import Cluster, Pool, RunOptions
from kvsim.core.hardware import Link
from kvsim.engine import simulate
from kvsim.kv.paged import Paged
from kvsim.routers.round_robin import RoundRobin
from kvsim.schedulers.chunked_prefill import ChunkedPrefill
from tests.worlds import ROUND, requests

TRACE = requests((0.0, 10, 3))


def pool(role: str = "mixed") -> Pool:
    scheduler = ChunkedPrefill(async_scheduling=True)
    return Pool(role, 1, scheduler, Paged(), 100, ROUND, RoundRobin(), kv_bytes_per_token=1)  # type: ignore[arg-type]


def test_pools_of_one_role_are_refused() -> None:
    with pytest.raises(ValueError, match="mixed pools"):
        simulate(TRACE, Cluster((pool("prefill"), pool("decode")), 100, Link(1000, 0.0)))


def test_clients_that_give_up_are_refused() -> None:
    with pytest.raises(ValueError, match="client timeouts"):
        simulate(TRACE, Cluster((pool(),), 100), RunOptions(client_timeout_ns=1))
