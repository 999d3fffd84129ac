"""Draws the import graph of the house from its source and checks where arrows may point."""

import ast
import dataclasses
import importlib
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvsim
from kvsim.cli import COMMANDS
from kvsim.core.plugins import load

HOUSE = Path(kvsim.__file__).parent
THIRD_PARTIES = {
    "click", "hypothesis", "matplotlib", "numpy", "pandas", "pyarrow", "pydantic", "pydantic_core", "pytest", "rich",
    "ray", "ruamel", "scipy", "simpy",
}  # fmt: skip

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "workload": {"core"},
    "schedulers": {"core"},
    "kv": {"core"},
    "routers": {"core"},
    "costs": {"core"},
    "hardware": {"core"},
    "models": {"core"},
    "engine": {"core"},
    "metrics": {"core"},
    "report": {"core", "metrics"},
    "scenario": {"core", "workload", "schedulers", "kv", "routers", "costs", "hardware", "models"},
    "accuracy": {"api", "core", "costs", "hardware", "kv", "metrics", "models", "scenario", "schedulers", "sweeps"},
    "sweeps": {"api", "core", "costs", "engine", "hardware", "metrics", "report", "scenario", "workload"},
}
"""Rooms of the house and the rooms that each may enter. ``testing``, ``api`` and ``cli`` stand on top and enter any."""

DOORS: dict[str, tuple[str, ...]] = {
    "simpy": ("kvsim.engine",),
    "pydantic": ("kvsim.scenario",),
    "pydantic_core": ("kvsim.scenario",),
    "ruamel": ("kvsim.scenario",),
    "pandas": ("kvsim.report", "kvsim.sweeps"),
    "matplotlib": ("kvsim.report",),
    "pyarrow": (
        "kvsim.workload.readers",
        "kvsim.workload.writers",
        "kvsim.workload.generate.burstgpt",
        "kvsim.report",
        "kvsim.hardware.calibration",
        "kvsim.sweeps",
    ),
    "ray": ("kvsim.sweeps.ray",),
    "scipy": ("kvsim.hardware.calibration",),
    "click": ("kvsim.cli",),
    "rich": ("kvsim.cli", "kvsim.report"),
    "pytest": ("kvsim.testing",),
    "hypothesis": ("kvsim.testing",),
}
"""Where a third party may be imported; numpy may be anywhere."""

PLUG_IN_ROOMS = ("costs", "kv", "routers", "schedulers", "workload.readers")


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(HOUSE.rglob("*.py")):
        parts = ("kvsim", *path.relative_to(HOUSE).with_suffix("").parts)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(module: str, path: Path) -> Iterator[tuple[str, int]]:
    """Full names of what a module imports, at its top or inside functions, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide where an arrow points"
            assert node.module is not None
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


MODULES = dict(modules())
ROOMS = sorted(
    {name.split(".")[1] for name in MODULES if name.count(".") >= 1 and (HOUSE / name.split(".")[1]).is_dir()}
)


def test_every_room_is_on_the_map() -> None:
    assert set(ROOMS) == set(MAY_IMPORT) | {"cli", "testing"}


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    room = module.split(".")[1] if "." in module else None
    for name, line in imports(module, MODULES[module]):
        if not name.startswith("kvsim.") or room not in MAY_IMPORT:
            continue
        entered = name.split(".")[1]
        if entered in (*MAY_IMPORT, "testing", "api", "cli"):  # else a name of the package itself: __version__
            allowed = entered == room or entered in MAY_IMPORT[room]
            assert allowed, f"{MODULES[module]}:{line}: {room} may not import {entered}"


@pytest.mark.parametrize("module", MODULES)
def test_third_parties_stay_behind_their_doors(module: str) -> None:
    for name, line in imports(module, MODULES[module]):
        party = name.split(".")[0]
        if party == "kvsim" or party in sys.stdlib_module_names:
            continue
        where = f"{MODULES[module]}:{line}: {party}"
        assert party in THIRD_PARTIES, f"{where} is not a dependency"
        assert party == "numpy" or within(module, DOORS[party]), f"{where} belongs in {' or '.join(DOORS[party])}"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_every_package_has_a_door_sign(module: str) -> None:
    """What lives here and who calls it; in plug-in packages also what to copy and which check to run."""
    sign = ast.get_docstring(ast.parse(MODULES[module].read_text())) or ""
    assert len(sign.splitlines()) >= 3, f"{module} needs a door sign"
    if module.removeprefix("kvsim.") in PLUG_IN_ROOMS:
        for word in ("import", "copy", "call"):
            assert word in sign.lower(), f"the door sign of {module} does not say what to {word}"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if "__all__" in path.read_text()])
def test_all_names_exist(module: str) -> None:
    loaded = importlib.import_module(module)
    for name in loaded.__all__:
        assert hasattr(loaded, name), f"{module}.__all__ names {name}"


def test_what_is_used_from_outside_is_declared() -> None:
    assert set(kvsim.__all__) >= {"run", "Scenario", "Result", "InputError"}
    assert importlib.import_module("kvsim.engine").__all__ == ["simulate"]


TABLES = {
    "scheduler": ("kvsim.schedulers", "SCHEDULERS"),
    "router": ("kvsim.routers", "ROUTERS"),
    "cost": ("kvsim.costs", "COSTS"),
    "kv": ("kvsim.kv", "MANAGERS"),
}


@pytest.mark.parametrize("seat", TABLES)
def test_built_in_policies_are_frozen_dataclasses(seat: str) -> None:
    module, table_name = TABLES[seat]
    table = getattr(importlib.import_module(module), table_name)
    for name in table:
        policy = load(seat, name, table)
        assert dataclasses.is_dataclass(policy), name
        assert vars(policy)["__dataclass_params__"].frozen, f"{seat} {name} can change after it was made"


def loaded_after(statement: str) -> set[str]:
    """Third parties that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    return set(done.stdout.splitlines()[-1].split()) & THIRD_PARTIES


@pytest.mark.parametrize(
    ("statement", "parties"),
    [
        ("import kvsim", set()),
        ("import kvsim.core.cluster, kvsim.core.plugins, kvsim.metrics.summary", {"numpy"}),
        ("import kvsim.schedulers.chunked_prefill, kvsim.kv.paged, kvsim.costs.roofline", {"numpy"}),
        ("import kvsim.engine", {"numpy", "simpy"}),
        ("from kvsim.cli import cli\ntry: cli(['--help'])\nexcept SystemExit: pass", {"click"}),
    ],
)
def test_importing_loads_no_more_than_needed(statement: str, parties: set[str]) -> None:
    assert loaded_after(statement) == parties


@pytest.mark.parametrize("command", COMMANDS)
def test_help_on_a_command_loads_click_alone(command: str) -> None:
    assert loaded_after(f"from kvsim.cli import cli\ntry: cli(['{command}', '--help'])\nexcept SystemExit: pass") == {
        "click"
    }


WITHOUT: dict[str, tuple[str, ...]] = {
    "list": ("matplotlib", "pandas", "simpy"),
    "validate": ("matplotlib", "pandas"),  # with expect: it runs one request, to know the names of figures
    "schema": ("matplotlib", "pandas", "simpy"),  # readers have parameters, and import pyarrow
    "check": ("matplotlib", "pandas"),
    "capacity": ("matplotlib", "pandas"),
    "sweep": ("matplotlib",),  # its table is made by pyarrow.array, which imports pandas
    "merge": ("matplotlib",),
    "compare": ("matplotlib", "simpy"),  # reading columns with pyarrow imports pandas
    "plot": ("simpy",),
}
"""Command -> what it must not load, since it does not need it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scenario, a run of it, and a sweep."""
    path = tmp_path_factory.mktemp("commands")
    (path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "0.0,100,5\n" * 10 + "0.1,50,3\n" * 10)
    scenario = path / "s.yaml"
    scenario.write_text(
        'workload: {trace: {path: t.csv}}\nslo: {ttft_ms: 900}\nexpect: {p99_ttft_ms: "< 900"}\n', encoding="utf-8"
    )
    kvsim.run(scenario, out=path / "run")
    kvsim.sweep(scenario, {"seed": [1]}, out=path / "sweep", executor="here")
    return path


@pytest.mark.parametrize("command", WITHOUT)
def test_a_command_loads_no_more_than_it_needs(command: str, folder: Path, tmp_path: Path) -> None:
    scenario, run, out = str(folder / "s.yaml"), str(folder / "run"), str(tmp_path / "out")
    arguments = {
        "validate": [scenario],
        "check": [scenario],
        "capacity": [scenario, "--out", out, "--workers", "1", "--seeds", "2", "--attainment", "0.5"],
        "sweep": [scenario, "--vary", "seed=[1]", "--executor", "here", "--out", out],
        "merge": [str(folder / "sweep"), "--out", out],
        "compare": [run, run],
        "plot": [run, "--out", out],
    }
    call = [command, *arguments.get(command, [])]
    loaded = loaded_after(
        f"from kvsim.cli import cli\ntry: cli({call})\nexcept SystemExit as e: assert e.code in (0, 1)"
    )
    assert not loaded & set(WITHOUT[command])


def test_help_is_quick() -> None:
    """``kvsim --help``: 0.12 s of CPU time, the interpreter's own start included (best of five)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = []
    for _ in range(5):
        subprocess.run([sys.executable, "-m", "kvsim.cli", "--help"], capture_output=True, check=True, cwd=HOUSE.parent)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        before = after
    assert min(spent) <= 0.12


def test_a_run_reaches_the_simulation_without_plotting_libraries(tmp_path: Path) -> None:
    """Pandas and matplotlib take longer to import than many runs take; nothing before or in a run may load them."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,100,5\n0.1,50,3\n")
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text("workload: {trace: {path: trace.csv}}\nmodel: llama-2-7b\ncluster: {gpu: a100-80gb-sxm}\n")
    out = tmp_path / "out"
    run = ["run", str(scenario), "--out", str(out)]
    loaded = loaded_after(f"from kvsim.cli import cli\ntry: cli({run})\nexcept SystemExit: pass")
    assert (out / "summary.json").is_file()
    assert "simpy" in loaded
    assert not loaded & {"pandas", "matplotlib", "scipy"}
