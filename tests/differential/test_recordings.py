"""The engine against vLLM's own scheduler: every step in one mode, every request in both."""

from pathlib import Path

import pytest

from kvsim.testing.conformance import Mode, Recording, compare, load, replay
from tests.differential.recordings import CASES, OWN, OWN_CASES, shared


def check(recording: Recording, mode: Mode) -> None:
    difference = compare(recording, mode).difference
    assert difference is None, "\n".join(difference.lines())


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("case", CASES)
def test_the_engine_decides_as_vllm(shared_data: Path, case: str, mode: Mode) -> None:
    check(shared(shared_data, case), mode)


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("case", CASES)
def test_laws_hold_and_what_is_stuck_is_diagnosed(shared_data: Path, case: str, mode: Mode) -> None:
    recording = shared(shared_data, case)
    log, _ = replay(recording, mode, check_laws=True)
    assert (log.diagnosis is not None) == any(row["status"].startswith("stuck") for row in recording.requests)


@pytest.mark.parametrize("mode", ["leap", "step"])
@pytest.mark.parametrize("case", OWN_CASES)
def test_the_engine_decides_as_vllm_in_our_own_recordings(case: str, mode: Mode) -> None:
    recording = load(OWN / case)
    if recording.not_modelled:
        pytest.skip(f"not modelled: {', '.join(recording.not_modelled)}")
    check(recording, mode)
