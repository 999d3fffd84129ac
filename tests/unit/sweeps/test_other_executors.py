"""The seam: Dask and Ray compute the same table as processes do."""

import subprocess
import sys
from pathlib import Path

import pytest

import kvsim

SCENARIO = """\
workload: {generate: {name: lognormal_poisson, n: 100, rate_per_s: 5}}
cluster: {replicas: {choices: [1, 2]}}
scheduler: {max_num_seqs: {choices: [8, 64]}}
slo: {ttft_ms: 500}
"""
DASK = """\
from distributed import Client, LocalCluster


def dask():
    return Client(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)).get_executor()

"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    kvsim.sweep("s.yaml", out="own", executor="here")
    return tmp_path


def bytes_of(out: Path) -> tuple[bytes, bytes]:
    return (out / "results.parquet").read_bytes(), (out / "sweep.json").read_bytes()


def test_dask_gives_the_same_bytes(here: Path) -> None:
    """In a process of its own: a cluster has event loops and child processes that a test run has no use for."""
    pytest.importorskip("distributed")
    (here / "clusters.py").write_text(DASK)
    command = [sys.executable, "-m", "kvsim.cli", "sweep", "s.yaml", "--executor", "clusters:dask", "--out", "there"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert bytes_of(here / "there") == bytes_of(here / "own")


@pytest.mark.ray
def test_ray_gives_the_same_bytes(here: Path) -> None:
    kvsim.sweep("s.yaml", out="there", executor="ray", workers=2)
    assert bytes_of(here / "there") == bytes_of(here / "own")
