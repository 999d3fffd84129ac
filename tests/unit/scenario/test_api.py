"""``kvsim.run`` and the light face of the package."""

import subprocess
import sys
from pathlib import Path

import pytest

import kvsim

ROOT = str(Path(__file__).parents[3])
WORKLOAD = {"generate": {"name": "lognormal_poisson", "n": 50, "rate_per_s": 20}}


def test_importing_kvsim_imports_next_to_nothing() -> None:
    code = (
        f"import sys; sys.path.append({ROOT!r}); import kvsim; "
        "print({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'})"
    )
    command = [sys.executable, "-I", "-S", "-c", code]  # without site-packages: nothing else could be imported
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert shown.stdout == "{'kvsim'}\n"


def test_the_names_of_the_package_are_found_when_used() -> None:
    assert {"run", "Scenario", "Result", "InputError"} <= set(dir(kvsim))
    assert kvsim.Result.__name__ == "Result"
    with pytest.raises(AttributeError, match="no attribute 'simulate'"):
        kvsim.simulate  # noqa: B018  # looking is the test


def test_a_scenario_from_python_runs_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = kvsim.run(kvsim.Scenario(workload=WORKLOAD, slo={"ttft_ms": 500}))
    assert result.summary["completed"] == len(result.requests) == 50
    assert result.out_dir is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_values_gives_the_same_as_a_scenario_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "workload: {generate: {name: lognormal_poisson, n: 50, rate_per_s: 20}}\nseed: 1\n"
    )
    keys = {"cluster": {"replicas": 2}, "slo.ttft_ms": 500}
    one = kvsim.run(tmp_path / "s.yaml", out=tmp_path / "out", seed=2, **keys)
    two = kvsim.run(kvsim.Scenario(workload=WORKLOAD, seed=1), seed=2, **keys)
    assert one.out_dir == tmp_path / "out"
    assert {**one.summary, "label": None} == {**two.summary, "label": None}
    assert kvsim.Result.load(tmp_path / "out").summary == one.summary


def test_a_mistake_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(kvsim.InputError, match="no such scenario file"):
        kvsim.run(tmp_path / "no.yaml")
    with pytest.raises(kvsim.InputError, match=r"cluster.replica: unknown key; did you mean 'replicas'"):
        kvsim.run(kvsim.Scenario(workload=WORKLOAD), cluster={"replica": 2})
    (tmp_path / "x").touch()
    with pytest.raises(kvsim.InputError, match="is not empty"):
        kvsim.run(kvsim.Scenario(workload=WORKLOAD), out=tmp_path)
