"""The result folder: its columns, its bytes, and that it is whole or not there at all."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from kvsim.core.errors import InputError
from kvsim.core.runlog import ABANDONED, REJECTED, UNFINISHED
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from kvsim.report import tables
from kvsim.report.files import prepare_output, read_summary, read_table, run_info, write_run
from tests.unit.metrics.tiny_log import Row, timeline, tiny_log, trace_of

FILES = ["requests.parquet", "run.json", "scenario.lock.yaml", "summary.json", "timeline.parquet"]
LOG = tiny_log(
    [
        Row(0, (500, 600, 800), prompt=100, scheduled=100, preemptions=1, swaps=1, swapped_tokens=102),
        Row(1000, (1250,), prompt=50, scheduled=1100, client_queue=500),
        Row(1500, prompt=9000, status=REJECTED, reason=1, ended=1500),
        Row(2000, (2400, 2500), prompt=80, output=9, status=ABANDONED, ended=3000),
        Row(None, prompt=10, status=UNFINISHED, reason=2, output=4),
    ],
    reasons=("", "prompt_exceeds_max_model_len", "not_sent"),
    timeline=timeline((0, 0, 0, 1, 20), (1000, 0, 1, 0, 40)),
)
TRACE = trace_of(
    LOG,
    session=np.array([1, 0, -1, 1, -1]),
    session_names=("ann", "bob é"),
    priority=np.array([0, 1, 2, 3, 4]),
    deadline_ns=np.array([800_000_000, 249_999_999, 5_000_000_000, -1, 0]),
)


def write(out_dir, log=LOG, trace=TRACE, slo=None, **options):
    summary = summarise(log, trace, version="1", slo=slo)
    return write_run(out_dir, log, trace, summary, "seed: 0\n", {"date": "today"}, **options)


def test_requests_parquet(tmp_path):
    table = pq.read_table(write(tmp_path / "run", slo=Slo(ttft_ms=400)) / "requests.parquet")
    assert table.to_pydict() == {
        "request_id": [0, 1, 2, 3, 4],
        "session_id": ["bob é", "ann", None, "bob é", None],
        "tenant": [None] * 5,
        "priority": [0, 1, 2, 3, 4],
        "arrival_s": [0.0, 1.0, 1.5, 2.0, None],
        "queued_s": [0.0, 1.0, None, 2.0, None],
        "first_scheduled_s": [0.1, 1.1, None, 2.0, None],
        "first_token_s": [0.5, 1.25, None, 2.4, None],
        "finish_s": [0.8, 1.25, 1.5, 3.0, None],
        "prompt_tokens": [100, 50, 9000, 80, 10],
        "output_tokens": [3, 1, 1, 9, 4],
        "cached_tokens": [0, 0, 0, 0, 0],
        "computed_tokens": [100, 50, 0, 80, 0],
        "preemptions": [1, 0, 0, 0, 0],
        "replica_prefill": [0, 0, None, 0, None],
        "replica_decode": [0, 0, None, 0, None],
        "status": ["finished", "finished", "rejected", "abandoned", "unfinished"],
        "reason": [None, None, "prompt_exceeds_max_model_len", None, "not_sent"],
        "ttft_s": [0.5, 0.25, None, 0.4, None],
        "tpot_s": [0.15, None, None, None, None],
        "e2el_s": [0.8, 0.25, None, None, None],
        "queue_s": [0.1, 0.1, None, 0.0, None],
        "max_itl_s": [0.2, None, None, 0.1, None],
        "good": [False, True, False, False, False],
        "client_queue_s": [0.0, 0.5, 0.0, 0.0, None],
        "generated_tokens": [3, 1, 0, 2, 0],
        "swaps": [1, 0, 0, 0, 0],
        "swapped_tokens": [102, 0, 0, 0, 0],
        "deadline_s": [0.8, 0.249999999, 5.0, None, 0.0],
        "deadline_met": [True, False, False, None, False],
    }
    assert table.schema.metadata[b"kvsim.schema_version"] == b"1"
    assert {str(field.type) for field in table.schema} == {"int64", "double", "string", "bool"}


def test_timeline_parquet(tmp_path):
    assert pq.read_table(write(tmp_path / "run") / "timeline.parquet").to_pydict() == {
        "time_s": [0.0, 1.0],
        "replica": [0, 0],
        "step_s": [0.005, None],
        "waiting": [0, 1],
        "running": [1, 0],
        "batch_tokens": [1, 0],
        "prefill_tokens": [0, 0],
        "decode_requests": [1, 0],
        "kv_used_blocks": [20, 40],
        "kv_cached_blocks": [0, 0],
        "kv_free_blocks": [80, 60],
        "kv_usage_frac": [0.2, 0.4],
    }


def test_without_sessions_slo_or_priorities_the_columns_stay(tmp_path):
    table = pq.read_table(write(tmp_path / "run", trace=trace_of(LOG)) / "requests.parquet")
    assert table.schema.names == tables.REQUESTS.names
    absent = ("session_id", "priority", "good", "deadline_s", "deadline_met")
    assert [table[name].null_count for name in absent] == [5] * 5


def test_sessions_without_names_are_numbers(tmp_path):
    table = pq.read_table(write(tmp_path / "run", trace=replace(TRACE, session_names=None)) / "requests.parquet")
    assert table["session_id"].to_pylist() == ["1", "0", None, "1", None]


def test_an_empty_run_has_columns_too(tmp_path):
    empty = tiny_log([])
    folder = write(tmp_path / "run", empty, trace_of(empty))
    assert pq.read_table(folder / "requests.parquet").num_rows == 0
    assert pq.read_table(folder / "timeline.parquet").schema.names == tables.TIMELINE.names


def test_long_tables_are_written_in_row_groups(tmp_path, monkeypatch):
    whole = read_table(write(tmp_path / "whole"), "requests")
    monkeypatch.setattr(tables, "BATCH_ROWS", 2)
    parts = write(tmp_path / "parts") / "requests.parquet"
    assert pq.ParquetFile(parts).num_row_groups == 3
    assert pq.read_table(parts).equals(whole)


def test_equal_runs_have_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert sorted(path.name for path in first.iterdir()) == FILES
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_json_keeps_the_order_and_every_digit(tmp_path):
    folder = write(tmp_path / "run")
    summary = summarise(LOG, TRACE, version="1")
    assert list(json.loads((folder / "summary.json").read_text())) == list(summary)
    assert read_summary(folder) == summary
    assert (folder / "scenario.lock.yaml").read_bytes() == b"seed: 0\n"


def test_writing_imports_neither_pandas_nor_matplotlib(tmp_path):
    script = """
import sys
from kvsim.report.terminal import print_summary
from tests.unit.report.test_files import write
from kvsim.report.files import read_summary, run_info
run_info({})
print_summary(read_summary(write(sys.argv[1])))
found = {"pandas", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {found}" if found else 0)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class TestTarget:
    def test_parents_are_made_and_the_folder_is_readable_by_others(self, tmp_path):
        target = tmp_path / "a" / "b" / "run"
        assert prepare_output(target) == target
        assert list(tmp_path.iterdir()) == []
        write(target)
        (tmp_path / "plain").mkdir()
        assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_path_may_be_relative(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert write("run") == tmp_path / "run"

    def test_an_empty_folder_is_used(self, tmp_path):
        write(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == FILES

    def test_a_folder_with_something_in_it_is_refused(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(InputError) as refusal:
            write(tmp_path)
        assert str(refusal.value) == (
            f"output.dir: {tmp_path} is not empty; pass --overwrite to replace a result in it, or name another"
        )
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    def test_overwrite_replaces_what_a_run_writes_and_nothing_else(self, tmp_path):
        write(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        write(tmp_path, tiny_log([]), trace_of(tiny_log([])), overwrite=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", *FILES]
        assert (tmp_path / "notes.txt").read_text() == "mine"
        assert read_summary(tmp_path)["num_prompts"] == 0

    def test_a_file_is_refused_even_with_overwrite(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match="run is a file; name a folder"):
            prepare_output(tmp_path / "run", overwrite=True)

    def test_a_parent_that_is_a_file_is_refused(self, tmp_path):
        (tmp_path / "run").write_text("")
        with pytest.raises(InputError, match=r"output\.dir: .*run/x cannot be written: "):
            prepare_output(tmp_path / "run" / "x")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_without_permission_is_refused(self, tmp_path):
        tmp_path.chmod(0o555)
        with pytest.raises(InputError, match=r"cannot be written: Permission denied; name a folder that can"):
            prepare_output(tmp_path / "run")

    def test_a_file_system_that_refuses_is_a_refusal(self, tmp_path, monkeypatch):
        def refuse(*_args, **_options):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("pathlib.Path.mkdir", refuse)
        with pytest.raises(InputError, match=r"run cannot be written: Permission denied; name a folder that can"):
            prepare_output(tmp_path / "run")


class TestInterruption:
    """Ctrl-C, or a full disk, at any file."""

    @pytest.mark.parametrize("stop", FILES)
    @pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
    def test_a_new_folder_does_not_appear(self, tmp_path, monkeypatch, stop, error):
        self.interrupt(monkeypatch, stop, error)
        with pytest.raises((KeyboardInterrupt, InputError)) as raised:
            write(tmp_path / "new" / "run")
        if isinstance(error, OSError):
            assert "cannot be written: No space left on device" in str(raised.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("stop", FILES)
    def test_an_old_result_stays_while_the_new_one_is_written(self, tmp_path, monkeypatch, stop):
        write(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        self.interrupt(monkeypatch, stop, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, overwrite=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_a_half_replaced_result_is_no_result(self, tmp_path, monkeypatch):
        write(tmp_path)
        move = os.replace

        def stop(source, target):
            if target.name == "scenario.lock.yaml":
                raise KeyboardInterrupt
            move(source, target)

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, overwrite=True)
        with pytest.raises(InputError, match="not a run folder"):
            read_summary(tmp_path)

    @staticmethod
    def interrupt(monkeypatch, name, error):
        import kvsim.report.files as files

        write_text, write_parquet = files.Path.write_text, files._write_parquet

        def text(self, *args, **options):
            write_text(self, *args, **options)
            if self.name == name:
                raise error

        def parquet(file, *args):
            write_parquet(file, *args)
            if file.name == name:
                raise error

        monkeypatch.setattr(files.Path, "write_text", text)
        monkeypatch.setattr(files, "_write_parquet", parquet)


class TestReading:
    def test_not_a_run_folder(self, tmp_path):
        with pytest.raises(InputError) as refusal:
            read_summary(tmp_path)
        assert str(refusal.value) == (
            f"{tmp_path}: not a run folder: summary.json no such file or directory; "
            "name the folder that kvsim run wrote"
        )

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("{", "summary.json is not JSON"),
            ("[]", "was not written by kvsim"),
            ('{"backend": "vllm"}', "was not written"),
        ],
    )
    def test_somebody_elses_summary(self, tmp_path, text, problem):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(InputError, match=problem):
            read_summary(tmp_path)

    def test_a_missing_and_a_broken_table(self, tmp_path):
        write(tmp_path)
        (tmp_path / "requests.parquet").unlink()
        (tmp_path / "timeline.parquet").write_text("no parquet")
        with pytest.raises(InputError, match=r"requests\.parquet is missing; run the scenario again"):
            read_table(tmp_path, "requests")
        with pytest.raises(InputError, match=r"timeline\.parquet cannot be read: "):
            read_table(tmp_path, "timeline")


def test_run_info_says_when_where_and_with_what():
    info = run_info({"simulate": 1.5})
    assert list(info) == ["date", "wall_s", "machine", "versions"]
    assert info["wall_s"] == {"simulate": 1.5}
    assert info["versions"]["numpy"] == np.__version__
    assert json.loads(json.dumps(info)) == info
