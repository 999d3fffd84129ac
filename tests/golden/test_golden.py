"""Do numbers move? Small scenarios against their exact recorded results."""

from pathlib import Path

import pytest

from tests import golden


@pytest.mark.parametrize("name", golden.CASES)
def test_no_number_has_moved(name: str) -> None:
    lines = golden.moved(golden.recorded(name), golden.measure(name))
    assert not lines, (
        f"{name}: numbers moved (old -> new). If they should, run `make golden` and put its print in the change note:"
        + "".join(f"\n  {line}" for line in lines)
    )


def test_every_recording_has_a_case() -> None:
    assert sorted(path.stem for path in golden.HERE.glob("*.json")) == sorted(golden.CASES)


def test_the_cases_reach_what_they_are_for() -> None:
    found = {name: golden.recorded(name)["summary"] for name in golden.CASES}
    assert found["burstgpt"]["kvsim"]["trace_rows"]["source_failed"] > 0
    assert found["sessions"]["completed"] == 316
    assert found["disaggregated"]["kvsim"]["replica_roles"] == ["prefill", "decode"]
    assert found["prefill_first"]["kvsim"]["num_preemptions"] > 20
    assert found["prefill_first"]["kvsim"]["excluded_requests"] > 0
    assert found["replicas_3"]["kvsim"]["replica_roles"] == ["mixed"] * 3
    assert found["closed_loop"]["max_concurrent_requests"] == 64
    assert 0 < found["closed_loop"]["kvsim"]["requests_by_status"]["abandoned"] < 100


def test_a_difference_reads_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "HERE", tmp_path)
    old = {"summary": {"completed": 3, "mean_ttft_ms": 10.0, "kvsim": {"seed": 0}}, "engine": {"steps": [4, 5]}}
    golden.record("case", old)
    assert golden.recorded("case") == old
    assert golden.recorded("other") == {}
    new = {"summary": {"completed": 3, "mean_ttft_ms": 10.5, "kvsim": {}}, "engine": {"steps": [4, 6]}, "extra": None}
    assert golden.moved(old, new) == [
        "summary.mean_ttft_ms: 10.0 -> 10.5 (+5.000%)",
        "summary.kvsim.seed: 0 -> 'nothing'",
        "engine.steps: [4, 5] -> [4, 6]",
        "extra: 'nothing' -> None",
    ]
    assert golden.moved({"x": 1.0, "n": 1}, {"x": 1.0 + 1e-15, "n": 1}) == []
    assert golden.moved({"n": 1}, {"n": 1.0}) == ["n: 1 -> 1.0"]
