"""Keys with several values: what is read, what is refused, and which points follow."""

from pathlib import Path

import numpy as np
import pytest

from kvsim import InputError, Scenario
from kvsim.scenario.axes import Question
from kvsim.sweeps.design import Shard, points

BASE = "workload: {generate: {name: lognormal_poisson, n: 10, rate_per_s: %s}}\n"


def question(tmp_path: Path, rate: str, rest: str = "") -> Question:
    (tmp_path / "s.yaml").write_text(BASE % rate + rest)
    return Question.load(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ("{choices: [4, 1, 2]}", (4, 1, 2)),
        ("{range: {from: 1, to: 7, step: 2}}", (1, 3, 5, 7)),
        ("{range: {from: 1, to: 20, log: 2}}", (1, 2, 4, 8, 16)),
        ("{range: {from: 0.1, to: 0.5, step: 0.1}}", (0.1, 0.2, 0.3, 0.4, 0.5)),
    ],
)
def test_what_an_axis_takes(tmp_path: Path, spec: str, values: tuple[object, ...]) -> None:
    (axis,) = question(tmp_path, spec).axes
    assert (axis.name, axis.values) == ("workload.generate.rate_per_s", values)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{choices: []}", "expected a list of values, found an empty list; for example choices: [1, 2, 4]"),
        ("{choices: 3}", "expected a list of values, found 3; for example choices: [1, 2, 4]"),
        ("{choices: [1, 1]}", "1 is there twice; each value once"),
        ("{range: {from: 1}}", "is missing"),
        ("{range: {from: 2, to: 1, step: 1}}", "from 2 is not below to 1"),
        ("{range: {from: 1, to: 2, step: 0}}", "0 is not allowed; it must be greater than 0"),
        ("{range: {from: 0, to: 2, log: 2}}", "0 is not allowed; it must be greater than 0 where log is given"),
        ("{range: {from: 1, to: 2, log: 1}}", "it must be greater than 1"),
        ("{range: {from: 1, to: 2, stp: 1}}", "unknown key; known: from, to, step, log"),
        ("{range: {from: 1, to: 2, step: 1.0e-9}}", "gives more than 100000 values"),
        ("{range: {from: one, to: 2}}", "expected a number, found 'one'"),
    ],
)
def test_impossible_axes_name_file_line_and_key(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        question(tmp_path, spec)
    assert str(refused.value).startswith(f"{tmp_path}/s.yaml:1: workload.generate.rate_per_s.")
    assert message in str(refused.value)


def test_a_value_that_the_key_never_takes_is_refused_at_its_line(tmp_path: Path) -> None:
    asked = question(tmp_path, "2", "cluster: {replicas: {choices: [1, two]}}\n")
    with pytest.raises(InputError, match=r"s.yaml:2: cluster.replicas: expected a whole number, found 'two'"):
        [asked.scenario(point) for point in points(asked.axes)]


def test_a_run_takes_one_value(tmp_path: Path) -> None:
    question(tmp_path, "{choices: [1, 2]}")
    with pytest.raises(InputError, match=r"rate_per_s: has several values, and a run takes one; kvsim sweep runs them"):
        Scenario.load(tmp_path / "s.yaml")


def test_axes_come_from_the_file_from_set_and_from_the_call(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(BASE % "{choices: [1, 2]}")
    asked = Question.load(
        path,
        {"cluster.replicas": np.array([1, 2]), "scheduler": ["chunked_prefill", {"name": "prefill_first"}]},
        {"workload.generate.rate_per_s": 3, "kv.block_size": {"choices": [16, 32]}},
    )
    assert sorted(axis.name for axis in asked.axes) == ["cluster.replicas", "kv.block_size", "scheduler"]
    last = asked.scenario(points(asked.axes)[-1])
    assert last.workload.generate is not None
    assert last.workload.generate.parameters["rate_per_s"] == 3
    assert (last.cluster.replicas, last.scheduler.name, last.kv.parameters) == (2, "prefill_first", {"block_size": 32})


def test_relative_paths_of_choices_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("workload: {trace: {path: {choices: [a.csv, b.csv]}}}\n")
    asked = Question.load(tmp_path / "s.yaml")
    scenario = asked.scenario(points(asked.axes)[1])
    assert scenario.source.folder(("workload", "trace", "path")) == tmp_path


def test_grid_order_and_samples(tmp_path: Path) -> None:
    asked = question(tmp_path, "{choices: [1, 2]}", "cluster: {replicas: {choices: [3, 4]}}\n")
    assert [tuple(point.values()) for point in points(asked.axes)] == [(1, 3), (1, 4), (2, 3), (2, 4)]
    with pytest.raises(InputError, match="a grid is run as a whole"):
        points(asked.axes, samples=3)
    with pytest.raises(InputError, match="lhs needs the number of points"):
        points(asked.axes, "lhs")


def test_a_latin_hypercube_meets_every_part_of_every_axis_once(tmp_path: Path) -> None:
    ranges = "{range: {from: 1.0, to: 100.0, log: true}}", "cluster: {replicas: {range: {from: 1, to: 50}}}\n"
    asked = question(tmp_path, *ranges)
    with pytest.raises(InputError, match="a grid needs steps"):
        points(asked.axes)
    drawn = points(asked.axes, "lhs", 50, seed=3)
    rates, replicas = zip(*(point.values() for point in drawn), strict=True)
    assert sorted(replicas) == list(range(1, 51))
    parts = np.floor(np.log10(rates) / 2 * 50 + 1e-6).astype(int)  # six digits may put a value on the border
    assert len(set(parts.tolist())) >= 49
    assert points(asked.axes, "lhs", 50, seed=3) == drawn
    assert points(asked.axes, "random", 50, seed=3) != drawn


def test_shards_are_a_partition() -> None:
    assert [sum(Shard(i, 3).takes(run) for i in (1, 2, 3)) for run in range(7)] == [1] * 7
    for wrong in ("0/3", "4/3", "1", "a/b", "1/3/2"):
        with pytest.raises(InputError, match="is not I/N"):
            Shard.parse(wrong)
