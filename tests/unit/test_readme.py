"""README.md is run, not read: its files are written, its commands and Python executed, its output compared."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvsim.report.tables import REQUESTS, TIMELINE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``name`` is the file it stands for, from its first line (``# mine.yaml``)."""

    language: str
    name: str | None
    text: str


def blocks() -> Iterator[Block]:
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        first, _, rest = text.partition("\n")
        name = re.fullmatch(r"# ([\w.]+\.(?:py|yaml))", first)
        yield Block(language, name[1], rest) if name else Block(language, None, text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader works: a clone without its tests."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "scenarios", path / "scenarios")
    shutil.copytree(ROOT / "traces", path / "traces")
    return path


def shell(command: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_every_block_runs_and_prints_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    printed, ran = "", []
    for block in blocks():
        if block.name:
            (folder / block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            commands = "\n".join(line for line in block.text.splitlines() if not line.startswith("make "))
            printed = shell(commands or "kvsim run scenarios/burstgpt.yaml --out runs/burstgpt", folder)
        elif block.language == "python":
            exec(compile(block.text, "README.md", "exec"), {"__name__": "readme"})
        elif block.language == "text":
            lines = printed.splitlines()
            missing = [line for line in block.text.splitlines() if line not in lines]
            assert not missing, "README shows what is not printed:\n" + "\n".join(missing)
        else:
            pytest.fail(f"a block of {block.language} that nobody runs:\n{block.text}")
        ran.append(block.name or block.language)
    assert (folder / "mine.csv").exists()
    assert {"mine.yaml", "everything.yaml", "gentle.py", "sh", "python", "text"} <= set(ran)
    written = sorted(path.name for path in (folder / "runs" / "mine").iterdir())
    for name in written:
        assert Path(name).stem in README, f"a run writes {name}, and the README does not say so"


def test_everything_yaml_writes_the_defaults_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "mine.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,812,96\n0.4,64,210\n")
    (folder / "everything.yaml").write_text(next(block.text for block in blocks() if block.name == "everything.yaml"))
    (folder / "bare.yaml").write_text("workload: {trace: {path: mine.csv}}\nslo: {ttft_ms: 500, tpot_ms: 50}\n")
    for name in ("everything", "bare"):
        shell(f"kvsim run {name}.yaml --out runs/lock_of_{name} --overwrite", folder)
    locks = [(folder / f"runs/lock_of_{n}/scenario.lock.yaml").read_text() for n in ("everything", "bare")]
    assert locks[0].replace("label: everything", "label: bare") == locks[1]


def test_the_columns_are_those_that_are_written() -> None:
    for name, schema in (("requests", REQUESTS), ("timeline", TIMELINE)):
        listed = re.search(rf"<!-- columns: {name} -->\n`{name}\.parquet`: `([^`]*)`", README)
        assert listed
        assert listed[1].split() == schema.names


def test_numbers_in_the_text_are_those_that_are_printed() -> None:
    shown = dict(
        re.findall(r"^(P99 (?:ITL|TTFT)) \(ms\): +([\d.]+)$", README.split("## Your own trace")[0], re.MULTILINE)
    )
    gentle = dict(
        re.findall(r"^(P99 (?:ITL|TTFT)) \(ms\): +([\d.]+)$", README.split("## A scheduler")[1], re.MULTILINE)
    )
    text = " ".join(README.split())
    assert f"falls from {shown['P99 ITL']} to {gentle['P99 ITL']} ms" in text
    assert f"rises from {shown['P99 TTFT']} to {gentle['P99 TTFT']} ms" in text


def test_links_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", README, re.MULTILINE)) <= targets
