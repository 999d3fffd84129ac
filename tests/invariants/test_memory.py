"""Memory follows the number of requests at a known rate, the whole way from a file to a result folder."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvsim.core.trace import Trace
from kvsim.workload.writers import write_burstgpt_csv

FEW, MANY = 100_000, 300_000
"""Enough that what does not grow (tables, buffers, a row group) is there in both."""

WHOLE_WAY = """
import json, resource, sys
from pathlib import Path
from kvsim.metrics.summary import summarise
from kvsim.report.files import run_info, write_run
from kvsim.workload import read_trace
from tests.worlds import replica, world

peaks = {}
def note(stage):
    peaks[stage] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

file = Path(sys.argv[1])
trace = read_trace(file)
note("read")
log = world(trace, replica(replicas=8, router="round_robin", max_num_seqs=256), max_model_len=4096).simulate()
note("simulated")
summary = summarise(log, trace, version="")
note("summarised")
write_run(file.with_suffix(""), log, trace, summary, "", run_info({}))
note("written")
peaks["file"] = (file.with_suffix("") / "requests.parquet").stat().st_size
print(json.dumps(peaks))
"""


def peak_bytes(requests: int, folder: Path) -> dict[str, int]:
    """Largest resident memory of a process up to the end of each stage, and the size of ``requests.parquet``."""
    rng = np.random.default_rng(1)
    second = np.arange(requests) // 200
    trace = Trace(second * 10**9, rng.integers(1, 20, requests), rng.integers(1, 4, requests))
    write_burstgpt_csv(trace, folder / f"{requests}.csv")
    command = [sys.executable, "-c", WHOLE_WAY, str(folder / f"{requests}.csv")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    peaks: dict[str, int] = json.loads(done.stdout)
    return peaks


@pytest.mark.skipif(importlib.util.find_spec("resource") is None, reason="this system does not say how much was used")
def test_one_more_request_takes_so_many_bytes(tmp_path: Path) -> None:
    """A column of the trace or of the log takes 8 bytes: five of the trace and some room to grow, about six of the log,
    a few more at a time in the summary. An object per request would take 50 to 500."""
    few, many = (peak_bytes(requests, tmp_path) for requests in (FEW, MANY))
    per_request = {stage: (many[stage] - few[stage]) / (MANY - FEW) for stage in few}
    allowed = {"read": 110, "simulated": 165, "summarised": 205, "written": 240, "file": 60}
    assert {stage for stage, most in allowed.items() if per_request[stage] > most} == set(), per_request
