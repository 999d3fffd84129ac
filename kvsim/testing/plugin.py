"""A pytest plug-in: scenario files with ``expect:`` are tests, and ``kvsim_run`` runs a scenario in a test of yours.

Loaded by every pytest run where kvsim is installed, so nothing of kvsim is imported before it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvsim.report.result import Result


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--kvsim-update-baselines``, ``--no-kvsim``."""
    group = parser.getgroup("kvsim")
    group.addoption(
        "--kvsim-update-baselines", action="store_true", help="store new baselines of scenarios instead of judging them"
    )
    group.addoption("--no-kvsim", action="store_true", help="do not collect scenario files with expect:")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> ScenarioFile | None:
    """A YAML file that says ``workload:`` and ``expect:`` at the left margin is a scenario with expectations."""
    if file_path.suffix not in (".yaml", ".yml") or parent.config.getoption("--no-kvsim"):
        return None
    try:
        text = file_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if re.search(r"^workload\s*:", text, re.MULTILINE) and re.search(r"^expect\s*:", text, re.MULTILINE):
        return ScenarioFile.from_parent(parent, path=file_path)
    return None


class ScenarioFile(pytest.File):
    """A scenario file: one test, since its expectations are judged on the same runs."""

    def collect(self) -> Iterator[pytest.Item]:
        """Its one test."""
        yield ScenarioItem.from_parent(self, name="expect")


class ScenarioItem(pytest.Item):
    """Runs the scenario; passes if all that it expects holds."""

    def runtest(self) -> None:
        """Run and judge."""
        from kvsim.sweeps.expect import check

        report = check(self.path, update_baseline=self.config.getoption("--kvsim-update-baselines"))
        if report.verdict != "pass":
            raise Unexpected(str(report))
        self.add_report_section("call", "kvsim", str(report))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What does not hold, without a traceback; a mistake in the file in its one line."""
        from kvsim.core.errors import InputError

        if isinstance(excinfo.value, Unexpected | InputError):
            return f"{type(excinfo.value).__name__}: {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is."""
        return self.path, None, f"kvsim: {self.path.name}"


class Unexpected(AssertionError):
    """An expectation fails, has no verdict, or could not be looked at."""


@pytest.fixture
def kvsim_run(request: pytest.FixtureRequest) -> Callable[..., Result]:
    """``kvsim.run``, with relative paths from the test's own folder: ``kvsim_run("chat.yaml", seed=1)``."""
    import kvsim

    def run(scenario: Any, **keys: Any) -> Result:
        if isinstance(scenario, str | Path):
            scenario = request.path.parent / scenario
        return kvsim.run(scenario, **keys)

    return run
