"""YAML with line numbers, and overrides on top of it."""
# ruff: noqa: E501  (a table of cases: one per line)

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.errors import InputError
from kvsim.scenario import Scenario, parse_set
from kvsim.scenario.source import Source, apply, overrides_of, parse_yaml, read_yaml


def written(folder: Path, text: str) -> Path:
    path = folder / "s.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_is_1_2() -> None:
    text = "{text: on, yes: no, ten: 010, small: 1e-3, hex: 0x10, none: ~, quoted: '5', flag: true}"
    assert parse_yaml(text) == {
        "text": "on",
        "yes": "no",
        "ten": 10,
        "small": 0.001,
        "hex": 16,
        "none": None,
        "quoted": "5",
        "flag": True,
    }


def test_values_are_plain_types() -> None:
    data = parse_yaml("{a: 010, b: 1e-3, c: 'x', d: &anchor true, e: [1, {f: 2.50}]}")
    assert [type(value) for value in data.values()] == [int, float, str, bool, list]
    assert type(data["e"][1]["f"]) is float


def test_keys_have_lines_and_hyphens_are_underscores(tmp_path: Path) -> None:
    path = written(tmp_path, "# comment\na-key: 1\n\nb:\n  - {c: 2}\n  -\n    d: 3\n")
    data, lines = read_yaml(path)
    assert data == {"a_key": 1, "b": [{"c": 2}, {"d": 3}]}
    assert lines == {("a_key",): 2, ("b",): 4, ("b", 0): 5, ("b", 0, "c"): 5, ("b", 1): 7, ("b", 1, "d"): 7}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{file}: is empty, not keys and values; a scenario begins with 'workload:'"),
        ("- 1\n", "{file}: holds a list, not keys and values; a scenario begins with 'workload:'"),
        ("a: 1\nb: [1\n", "{file}:3: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\na: 2\n", '{file}:2: not valid YAML: found duplicate key "a"; keep one of them'),
        ("max-num-seqs: 1\nmax_num_seqs: 2\n", "{file}:2: duplicate key 'max_num_seqs'; keep one of them"),
        ("a: !!bool x\n", "{file}: not valid YAML: KeyError: 'x'"),
        ("a: !!python/object/apply:os.getcwd []\n", "{file}:1: a: tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' is not supported"),
        ("a:\n  b: 2024-01-01\n", "{file}:2: a.b: '2024-01-01' is not a value here; put it in quotes"),
        ("1: 2\n", "{file}:1: key 1 is not text"),
        ("---\na: 1\n---\nb: 1\n", "{file}:3: not valid YAML: but found another document"),
        ("a: \x00\n", "{file}: not valid YAML: unacceptable character #x0000: special characters are not allowed"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as refusal:
        read_yaml(path)
    assert str(refusal.value) == message.format(file=path)


@given(st.text(alphabet="ab1:-#&*!?|>'\"%@[]{},<~ \n\t.0e+_\\é", max_size=30), st.integers(0, 34))
def test_any_text_is_data_or_a_refusal(noise: str, at: int) -> None:
    text = "workload:\n  trace: {path: a.csv}\n"
    for broken in (noise, text[:at] + noise + text[at:]):
        try:
            parse_yaml(broken)
        except InputError as refusal:
            assert "\n" not in str(refusal)  # noqa: PT017  # either outcome is right


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("no.yaml", "no such scenario file"), (".", "cannot be read"), ("b.yaml", "UTF-8")):
        with pytest.raises(InputError, match=words):
            read_yaml(tmp_path / name)


def test_the_last_override_wins_and_reaches_into_short_forms() -> None:
    data = {
        "scheduler": "chunked_prefill",
        "engine": "vllm@0.33",
        "cluster": {"pools": [{"role": "prefill"}]},
        "slo": None,
    }
    settings = [
        "scheduler.max-num-seqs=4",
        "scheduler.max_num_seqs=8",
        "engine.mode=step",
        "cluster.pools.0.replicas=2",
        "slo.ttft_ms=1e3",
        "workload.trace={path: a.csv}",
    ]
    assert apply(data, [parse_set(setting) for setting in settings]) == {
        "scheduler": {"name": "chunked_prefill", "max_num_seqs": 8},
        "engine": {"preset": "vllm@0.33", "mode": "step"},
        "cluster": {"pools": [{"role": "prefill", "replicas": 2}]},
        "slo": {"ttft_ms": 1000.0},
        "workload": {"trace": {"path": "a.csv"}},
    }


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed", "--set: 'seed' is not PATH=VALUE; for example --set cluster.replicas=2"),
        ("a..b=1", "--set: 'a..b=1' is not PATH=VALUE; for example --set cluster.replicas=2"),
        ("seed=[", "--set seed: not valid YAML: expected the node content, but found '<stream end>'"),
    ],
)
def test_an_override_that_is_no_override_is_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse_set(setting)
    assert str(refusal.value) == message


def test_an_override_cannot_lead_through_a_value_or_past_a_list() -> None:
    for setting, message in (
        ("seed.x=1", "--set seed.x: seed is 3 and has no keys"),
        ("cluster.pools.2.role=decode", "--set cluster.pools.2.role: cluster.pools is a list of 1: it has no item 2; items count from 0"),
    ):  # fmt: skip
        with pytest.raises(InputError) as refusal:
            apply({"seed": 3, "cluster": {"pools": [{}]}}, [parse_set(setting)])
        assert str(refusal.value) == message


def test_keywords_merge_but_a_named_policy_replaces() -> None:
    base = {"cluster": {"gpu": "l40s", "replicas": 1}, "scheduler": {"name": "chunked_prefill", "watermark": 0.1}}
    keys = {"cluster": {"replicas": 2}, "scheduler": {"name": "prefill_first"}, "slo.ttft_ms": 5}
    assert apply(base, overrides_of(keys)) == {
        "cluster": {"gpu": "l40s", "replicas": 2},
        "scheduler": {"name": "prefill_first"},
        "slo": {"ttft_ms": 5},
    }


def test_relative_paths_start_where_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    path = written(tmp_path / "sub", "workload: {trace: {path: a.csv}}\noutput: {dir: out}\n")
    monkeypatch.chdir(tmp_path)
    assert Scenario.load(path).output_dir == tmp_path / "sub" / "out"
    assert Scenario.load(path, [parse_set("output.dir=out")]).output_dir == tmp_path / "out"
    assert Scenario.load(path, {"output": {"dir": "out"}}).output_dir == tmp_path / "out"
    assert Scenario(workload={"trace": {"path": "a.csv"}}, output={"dir": "out"}).output_dir == tmp_path / "out"


def test_an_error_names_the_nearest_line_that_is_known(tmp_path: Path) -> None:
    source = Source(tmp_path / "s.yaml", {("kv",): 4}, (parse_set("slo.ttft_ms=1"),))
    assert str(source.error("bad", ("kv", "block_size"))) == f"{tmp_path / 's.yaml'}:4: kv.block_size: bad"
    assert str(source.error("bad", ("slo", "ttft_ms"), "mend it")) == "--set slo.ttft_ms: bad; mend it"
    with pytest.raises(InputError, match=r"s.yaml:4: kv.x: inner; hint"), source.locate(("kv",)):
        raise InputError("inner", key="x", hint="hint")
    with pytest.raises(InputError, match=r"^other:1: inner$"), source.locate(("kv",)):
        raise InputError("inner", file="other", line=1)
