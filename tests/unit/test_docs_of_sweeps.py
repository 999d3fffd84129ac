"""docs/sweeps.md and docs/slo-tests.md are run: files written, commands and Python executed, output compared."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["sweeps.md", "slo-tests.md"])
def test_every_block_runs_and_prints_what_it_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (DOCS / name).read_text(encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed, kinds = "", []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        kinds.append(language)
        if language == "yaml":
            Path(block.split("\n", 1)[0].removeprefix("# ")).write_text(block, encoding="utf-8")
        elif language == "sh":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
            printed = done.stdout
        elif language == "text":
            missing = [line for line in block.splitlines() if line not in printed.splitlines()]
            assert not missing, f"{name} shows what is not printed: {missing}\n{printed}"
        elif "def test_" in block:
            Path("test_doc.py").write_text(block, encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_doc.py"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        else:
            exec(compile(block, name, "exec"), {"__name__": "doc"})
    assert {"yaml", "sh", "python"} <= set(kinds)
