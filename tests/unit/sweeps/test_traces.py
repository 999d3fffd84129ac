"""Traces that many processes share, and replicates of them: every kind of column."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from kvsim.core.trace import FailedRows, Ragged, RejectedRow, Trace, TraceRows
from kvsim.sweeps.resampling import resample
from kvsim.sweeps.traces import SharedTraces, mapped, read_arrow, write_arrow
from kvsim.workload import read_trace


def ragged(*rows: list[int]) -> Ragged:
    return Ragged(np.array([value for row in rows for value in row], np.int64), np.cumsum([0, *map(len, rows)]))


FULL = Trace(
    np.arange(4) * 10**9,
    np.array([20, 20, 40, 5]),
    np.array([1, 2, 3, 4]),
    session=np.array([0, 0, 1, -1]),
    session_names=["a", "b"],
    tenant=np.array([0, 0, -1, 0]),
    tenant_names=["x"],
    wait_for=ragged([], [0], [0, 1], []),
    prefix_hashes=ragged([0], [0], [0, 1], []),
    hash_block_tokens=20,
    rows=TraceRows(6, 1, {"too long": 1}, rejected=(RejectedRow("line 3", "arrival_s", "x", "is no number"),)),
    source_failed=FailedRows(np.array([2]), np.array([10**9]), np.array([0]), session=np.array([1])),
)
PLAIN = Trace(np.array([0]), np.array([1]), np.array([1]), wait_for=ragged([]), elapsed_ns=np.zeros(1, np.int64))


def same(one: Trace, other: Trace) -> None:
    for field in fields(Trace):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, Ragged | FailedRows):
            assert all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)), field.name
        elif isinstance(a, np.ndarray):
            assert np.array_equal(a, b), field.name
        else:
            assert a == b, field.name


@pytest.mark.parametrize("trace", [FULL, PLAIN])
def test_a_shared_trace_is_the_trace(trace: Trace, tmp_path: Path) -> None:
    write_arrow(trace, tmp_path / "t.arrow")
    same(trace, read_arrow(tmp_path / "t.arrow"))


def test_the_same_file_read_in_another_way_is_another_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n1,0,1\n2,3,1\n")
    shared = SharedTraces(tmp_path)
    ways = [
        {"on_bad_row": "quarantine"},
        {"on_bad_row": "quarantine", "parameters": {"columns": {"arrival_ms": "arrival_s"}}},
    ]
    for how in ways:
        for read in (shared.read, lambda *a, **k: mapped(shared.files, *a, **k)):
            same(read_trace(path, "plain", **how), read(path, "plain", True, **how))  # type: ignore[arg-type]
    assert len(shared.files) == 2


def test_replicates_keep_what_prompts_share_and_who_waits_for_whom() -> None:
    """Windows of two requests each, the second waiting for the first; one prompt prefix throughout."""
    n = 40
    rows = np.arange(n)
    waits = Ragged(rows[::2], np.concatenate(([0], np.cumsum(rows % 2))))
    trace = Trace(
        rows * 10**9,
        np.full(n, 20),
        rows + 1,
        wait_for=waits,
        prefix_hashes=Ragged(np.zeros(n, np.int64), np.arange(n + 1)),
        hash_block_tokens=20,
    )
    replicate = resample(trace, np.random.default_rng(1), blocks=20)
    assert len(replicate) == n
    assert len(set(replicate.output_tokens.tolist())) < n  # a window was drawn twice
    assert replicate.wait_for is not None
    assert replicate.wait_for.values.tolist() == list(range(0, n, 2))
    assert replicate.wait_for.rows.tolist() == list(range(1, n, 2))
    assert replicate.prefix_hashes is not None
    assert not replicate.prefix_hashes.values.any()
