"""The seam: Dask and Ray compute the same table as processes do."""

from pathlib import Path

import pytest

import kvsim

SCENARIO = {
    "workload": {"generate": {"name": "lognormal_poisson", "n": 100, "rate_per_s": 5}},
    "slo": {"ttft_ms": 500},
}
AXES = {"cluster.replicas": [1, 2], "scheduler.max_num_seqs": [8, 64]}


def bytes_of(out: Path) -> tuple[bytes, bytes]:
    return (out / "results.parquet").read_bytes(), (out / "sweep.json").read_bytes()


def test_dask_gives_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    kvsim.sweep(kvsim.Scenario(**SCENARIO), AXES, out=tmp_path / "here", workers=2)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        kvsim.sweep(kvsim.Scenario(**SCENARIO), AXES, out=tmp_path / "there", executor=client.get_executor())
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")


@pytest.mark.ray
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    kvsim.sweep(kvsim.Scenario(**SCENARIO), AXES, out=tmp_path / "here", workers=2)
    kvsim.sweep(kvsim.Scenario(**SCENARIO), AXES, out=tmp_path / "there", executor="ray", workers=2)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "there")
