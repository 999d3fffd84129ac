"""workload.generate and workload.transforms in a scenario: what can be written, what is refused, what the lock says."""

from pathlib import Path
from typing import Any

import pytest

import kvsim
from kvsim.core.errors import InputError
from kvsim.scenario.json_schema import schema
from kvsim.scenario.resolve import Resolved, resolve
from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import parse_set

PARTS = """\
workload:
  generate:
    requests: 200
    arrivals: {name: gamma, rate_per_s: 5, cv: 2}
    lengths:
      prompt: {name: lognormal, mean: 512, sigma: 0.9, least: 16, most: 3072}
      output: {name: mixture, weights: [3, 1], parts: [7, {name: exponential, mean: 200}]}
    sessions: chat
    prefixes: {name: system_prompts, groups: 10, tokens: {name: uniform, least: 100, most: 2000}}
    images: {name: uniform, least: 0, most: 1}
    tokens_per_image: 576
  transforms:
    - {name: thin, keep_frac: 0.5}
    - spread_ties
    - {name: fit_context, max_tokens: 4096, policy: clip}
  sessions: closed
model: llama-3.1-8b
"""


def scenario(tmp_path: Path, text: str = PARTS, *sets: str) -> Scenario:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    return Scenario.load(file, [parse_set(one) for one in sets])


def resolved(tmp_path: Path, *sets: str) -> Resolved:
    return resolve(scenario(tmp_path, PARTS, *sets))


def test_parts_make_a_trace_and_the_lock_makes_it_again(tmp_path: Path) -> None:
    first = resolved(tmp_path)
    assert first.trace.rows is not None
    assert first.trace.rows.read == 200
    assert first.trace.rows.replayed == len(first.trace)
    assert set(first.trace.rows.dropped) <= {"thinned", "prompt exceeds max_tokens"}
    assert first.trace.prefix_hashes is not None
    lock = tmp_path / "scenario.lock.yaml"
    lock.write_text(first.lock)
    again = resolve(Scenario.load(lock))
    assert again.trace.arrival_ns.tolist() == first.trace.arrival_ns.tolist()
    assert again.trace.prefix_hashes is not None
    assert again.trace.prefix_hashes.values.tolist() == first.trace.prefix_hashes.values.tolist()
    assert again.lock == first.lock
    assert again.scenario_hash == first.scenario_hash


def test_a_composed_scenario_runs_with_every_row_accounted_for(tmp_path: Path) -> None:
    summary = kvsim.run(scenario(tmp_path)).summary
    rows = summary["kvsim"]["trace_rows"]
    assert rows["read"] == 200
    assert rows["read"] == rows["replayed"] + rows["dropped"] + rows["source_failed"]
    assert summary["completed"] == rows["replayed"]


def test_the_seed_of_the_scenario_moves_generators_and_transforms(tmp_path: Path) -> None:
    one, two = resolved(tmp_path), resolved(tmp_path, "seed=1")
    assert one.trace.arrival_ns.tolist() != two.trace.arrival_ns.tolist()
    fixed = [
        resolved(tmp_path, f"seed={seed}", "workload.generate.seed=7", "workload.transforms=[]") for seed in (1, 2)
    ]
    assert fixed[0].trace.arrival_ns.tolist() == fixed[1].trace.arrival_ns.tolist()


def test_files_of_parts_and_transforms_are_in_the_lock(tmp_path: Path) -> None:
    (tmp_path / "lengths.txt").write_text("10\n20\n")
    (tmp_path / "more.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n")
    sets = (
        "workload.sessions=open",
        f"workload.generate.lengths.prompt={{name: empirical, path: {tmp_path}/lengths.txt}}",
        f"workload.transforms=[{{name: merge, path: {tmp_path}/more.csv}}]",
    )
    found = resolved(tmp_path, *sets)
    lock = tmp_path / "again.yaml"
    lock.write_text(found.lock)
    for key in ("workload.generate.lengths.prompt.path", "workload.transforms.0.path"):
        assert key in Scenario.load(lock).lock.files  # type: ignore[union-attr]
    (tmp_path / "lengths.txt").write_text("10\n30\n")
    with pytest.raises(InputError, match=r"lengths\.txt has changed since the lock was written"):
        resolve(Scenario.load(lock))


def test_parts_of_others_work_and_can_be_refused(tmp_path: Path) -> None:
    name = "kvsim.workload.generate.arrivals:Deterministic"
    own = scenario(tmp_path, PARTS, f"workload.generate.arrivals={{name: '{name}', rate_per_s: 2}}")
    assert len(resolve(own).trace) > 50
    with pytest.raises(InputError, match="is a plug-in, and plug-ins are refused"):
        resolve(own, allow_plugins=False)


GENERATE, TRANSFORM = "--set workload.generate", "--set workload.transforms"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "workload.generate.arrivals=gama",
            f"{GENERATE}.arrivals.name: unknown arrivals 'gama'; did you mean 'gamma'?",
        ),
        ("workload.generate.arrivals=gamma", f"{GENERATE}.arrivals: gamma needs rate_per_s"),
        ("workload.generate.arrivals=5", f"{GENERATE}.arrivals: expected a name or keys and values, found 5"),
        (
            "workload.generate.arrivals={cv: 2}",
            f"{GENERATE}.arrivals.name: name is missing; known: at_once, closed_loop",
        ),
        ("workload.generate.arrivals.cv=-1", f"{GENERATE}.arrivals.cv: -1.0 is not a positive number"),
        (
            "workload.generate.arrivals.rate=3",
            f"{GENERATE}.arrivals.rate: unknown key; known: cv, name, normalize, rate_per_s",
        ),
        ("workload.generate.lengths={output: 5}", f"{GENERATE}.lengths: independent needs prompt"),
        ("workload.generate.lengths.output.parts=3", f"{GENERATE}.lengths.output.parts: expected a list, found 3"),
        (
            "workload.generate.lengths.output=true",
            f"{GENERATE}.lengths.output: expected a name, a number or keys and val",
        ),
        ("workload.generate.requests=null", f"{GENERATE}.requests: give either requests or duration_s"),
        ("workload.generate.sesions=chat", f"{GENERATE}.sesions: unknown key; did you mean 'sessions'?"),
        ("workload.generate.name=compsed", f"{GENERATE}.name: unknown generator 'compsed'; did you mean 'composed'?"),
        ("workload.transforms.0.name=thinn", f"{TRANSFORM}.0.name: unknown transform 'thinn'; did you mean 'thin'?"),
        ("workload.transforms.0.keep_frac=2", f"{TRANSFORM}.0.keep_frac: 2.0 is not allowed; it must be at most 1"),
        (
            "workload.transforms=[{name: window, from_s: 1e9}]",
            f"{TRANSFORM}.0: no request is left: all 200 are outside",
        ),
        ("workload.transforms=thin", f"{TRANSFORM}: expected a list, found 'thin'"),
        ("workload.transforms=[{keep_frac: 1}]", f"{TRANSFORM}.0.name: name is missing; known: fit_context"),
        (
            "workload.transforms=[{name: keep_rows, column: tenant, among: [a]}]",
            f"{TRANSFORM}.0.column: the trace has no column 'tenant'",
        ),
        (
            "workload.generate={name: servegen, path: nowhere.tar}",
            "{cwd}/nowhere.tar: cannot be read: No such file or directory",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        resolved(tmp_path, change)
    assert str(error.value).startswith(message.format(cwd=tmp_path) if "{cwd}" in message else message)
    assert "\n" not in str(error.value)


def test_a_mistake_in_the_file_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s\.yaml:4: workload\.generate\.arrivals\.cv: 0\.0 is not a positive number"):
        resolve(scenario(tmp_path, PARTS.replace("cv: 2", "cv: 0")))


def test_a_closed_loop_of_users_needs_closed_sessions(tmp_path: Path) -> None:
    loop = ("workload.generate={requests: 20, arrivals: {name: closed_loop, users: 4, think_s: 1}, lengths: {prompt: 9, output: 9}}",)  # fmt: skip  # noqa: E501
    trace = resolved(tmp_path, *loop, "workload.transforms=[]").trace
    assert trace.session is not None
    assert trace.session.tolist() == [0, 1, 2, 3] * 5
    with pytest.raises(
        InputError, match=r"arrivals: a closed loop has no arrival times of its own; write workload\.ses"
    ):
        resolved(tmp_path, *loop, "workload.sessions=open")


def test_the_schema_offers_parts_by_name_and_by_their_parameters() -> None:
    definitions: dict[str, Any] = schema()["$defs"]
    number, bare, _, mapping = definitions["distribution"]["anyOf"]
    assert number == {"type": "number"}
    assert "lognormal" in bare["enum"]
    mixture = next(p for p in mapping["anyOf"] if p["properties"]["name"].get("const") == "mixture")
    assert mixture["properties"]["parts"]["items"] == {"$ref": "#/$defs/distribution"}
    composed = next(g for g in definitions["generate"]["anyOf"] if g["properties"]["name"]["const"] == "composed")
    assert composed["required"] == ["arrivals", "lengths"]
    assert composed["properties"]["sessions"]["anyOf"] == [{"$ref": "#/$defs/sessions"}, {"type": "null"}]
    thin = next(t for t in definitions["transform"]["anyOf"] if t["properties"]["name"]["const"] == "thin")
    assert set(thin["properties"]) == {"name", "keep_frac", "seed"}
