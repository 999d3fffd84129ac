"""Notebooks run from top to bottom."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"

SAYS = {
    "first_look": "the same finish times in ns when stepping",
    "how_many_gpus": "the cheapest: ",
    "prefill_and_decode_apart": "longest gap, P99:",
    "your_own_scheduler": "keeps the contract of its seat",
}
"""Notebook -> what it has to find out."""


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error::DeprecationWarning", str(notebook)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert SAYS[notebook.stem] in done.stdout


def test_notebooks_are_py_percent_with_a_figure_each() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == set(SAYS)
    for path in NOTEBOOKS.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "format_name: percent" in text
        assert "plt.show()" in text
