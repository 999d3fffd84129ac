"""Bad rows set aside, packed files, tables with a map of their columns, and kvsim's own Parquet form."""

import bz2
import dataclasses
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from kvsim.core.errors import InputError
from kvsim.core.trace import COLUMNS, FailedRows, Ragged, RejectedRow, Trace, TraceRows
from kvsim.workload import read_trace
from kvsim.workload.generate import burstgpt_like_days, chat_sessions, write_burstgpt_csv
from kvsim.workload.readers.canonical import META_ABOUT, META_VERSION
from kvsim.workload.writers import write_burstgpt_csv as write_as_burstgpt
from kvsim.workload.writers import write_canonical, write_plain_csv, write_plain_jsonl
from tests.unit.workload.equal_traces import same

BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BUNDLED = Path(__file__).parents[3] / "traces"


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_kind_of_bad_row_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    rows = (
        "5,ChatGPT,10,2,12,API log\n"
        "6,ChatGPT,ten,2,12,API log\n"
        "7,ChatGPT,10,2,13,API log\n"
        '8,ChatGPT,10,2,12,"API log"\n8,ChatGPT,10,2,12,"API\nlog"\n'
        "9,ChatGPT,-1,2,1,API log\n"
        "4,ChatGPT,10,2,12,API log\n"
        "10,ChatGPT,10,2\n"
        "11,GPT-4,0,0,0,API log\n"
        "12,,10,2,12,Conversation log\n"
        "\n"
        "99999999999,GPT-4,10,2,12,API log\n"
        "12,GPT-4,10,0,10,API log\n"
    )
    path = written(tmp_path, BURSTGPT + rows)
    with pytest.raises(InputError, match=r"t\.csv:3: Request tokens: 'ten' is not a whole number"):
        read_trace(path)
    trace = read_trace(path, on_bad_row="quarantine")
    assert (trace.arrival_ns // 10**9).tolist() == [0, 3, 7]
    assert trace.rows is not None
    assert trace.rows.rejected == (
        RejectedRow("line 3", "Request tokens", "ten", "is not a whole number of at most 18 digits"),
        RejectedRow("line 4", "Total tokens", "13", "is not request + response tokens"),
        RejectedRow("line 6", "", '8,ChatGPT,10,2,12,"API', "has a quote that is not closed on its line"),
        RejectedRow("line 7", "", 'log"', "has 1 cells, the header has 6"),
        RejectedRow("line 8", "Request tokens", "-1", "is not a possible number of tokens"),
        RejectedRow("line 9", "Timestamp", "4", "is earlier than the row before it"),
        RejectedRow("line 10", "", "10,ChatGPT,10,2", "has 4 cells, the header has 6"),
        RejectedRow("line 14", "Timestamp", "99999999999", "is not seconds with at most nine decimals"),
    )
    assert (trace.rows.read, trace.rows.source_failed) == (13, 2)
    assert trace.rows.replayed == 3


@pytest.mark.parametrize("closed_at", [None, 301])
@pytest.mark.parametrize("rows", [400, 10_000])
def test_a_stray_quote_costs_its_own_row_alone(tmp_path: Path, rows: int, closed_at: int | None) -> None:
    """Arrow and the csv module would take all rows up to the next quote for one cell, one of any size."""
    lines = [BURSTGPT, *(f"{i},ChatGPT,10,2,12,API log\n" for i in range(2, rows + 2))]
    lines[9] = lines[9].replace("ChatGPT", '"ChatGPT')
    if closed_at:
        lines[closed_at - 1] = lines[closed_at - 1].replace("ChatGPT", 'ChatGPT"')
    path = written(tmp_path, "".join(lines))
    with pytest.raises(InputError, match=r"t\.csv:10: .* has a quote that is not closed on its line"):
        read_trace(path)
    rejected = read_trace(path, on_bad_row="quarantine").rows
    assert rejected is not None
    assert (rejected.read, [row.place for row in rejected.rejected]) == (rows, ["line 10"])


def test_a_stray_quote_counts_in_columns_that_nobody_reads(tmp_path: Path) -> None:
    rows = '0,1,1,ok\n1,1,1,"odd\n2,1,1,\n\n3,1,1,odd"\n4,1,1,"a ""b"", c"\n5,0,1,\n'
    path = written(tmp_path, f"arrival_s,prompt_tokens,output_tokens,note\n{rows}")
    with pytest.raises(InputError, match=r"t\.csv:3: .* has a quote"):
        read_trace(path)
    trace = read_trace(path, on_bad_row="quarantine")
    assert trace.rows is not None
    assert (len(trace), [row.place for row in trace.rows.rejected]) == (4, ["line 3", "line 8"])
    with pytest.raises(InputError, match=r"a CSV does not hold the session 'a.nb'"):
        write_plain_csv(dataclasses.replace(trace, session=np.zeros(4, np.int64), session_names=["a\nb"]), path)


def test_a_file_without_a_good_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has nothing to replay: no row can be used; a trace needs at least one"):
        read_trace(written(tmp_path, BURSTGPT + "x,A,1,1,2,API log\n"), on_bad_row="quarantine")


def test_a_good_file_in_quarantine_is_the_same_trace() -> None:
    strict = read_trace(BUNDLED / "burstgpt_like.csv")
    assert strict.rows == read_trace(BUNDLED / "burstgpt_like.csv", on_bad_row="quarantine").rows


def test_one_bad_row_in_many_changes_nothing_else(tmp_path: Path) -> None:
    lines = (BUNDLED / "burstgpt_like.csv").read_text().splitlines(keepends=True)
    path = written(tmp_path, "".join([*lines[:1000], "oops\n", *lines[1000:]]))
    one, other = read_trace(BUNDLED / "burstgpt_like.csv"), read_trace(path, on_bad_row="quarantine")
    assert np.array_equal(one.arrival_ns, other.arrival_ns)
    assert np.array_equal(one.prompt_tokens, other.prompt_tokens)
    assert other.rows is not None
    assert other.rows.rejected == (RejectedRow("line 1001", "", "oops", "has 1 cells, the header has 6"),)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_row_that_is_not_text_is_set_aside(tmp_path: Path, mark: bytes) -> None:
    """Also right behind a whole character, in a file that begins with a byte order mark: both count as three bytes."""
    path = tmp_path / "t.csv"
    path.write_bytes(
        mark + b"arrival_s,prompt_tokens,output_tokens,session_id\n0,1,2,a\n0,1,2,\xef\xbb\xbf\n1,\xd4,2,b\n2,3,4,b\n"
    )
    with pytest.raises(InputError, match=r"t\.csv:4: is not UTF-8 text"):
        read_trace(path)
    trace = read_trace(path, on_bad_row="quarantine")
    assert trace.prompt_tokens.tolist() == [1, 1, 3]
    assert trace.rows is not None
    assert [row.place for row in trace.rows.rejected] == ["line 4"]


def test_json_lines_and_parquet_have_a_quarantine_too(tmp_path: Path) -> None:
    good = '{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 2}\n'
    text = good + '{"arrival_s": 1, "prompt_tokens": 5.5, "output_tokens": 2}\n[1]\n{oops\n\n' + good
    trace = read_trace(written(tmp_path, text, "t.jsonl"), on_bad_row="quarantine")
    assert trace.rows is not None
    assert [(row.place, row.column, row.value) for row in trace.rows.rejected] == [
        ("line 2", "prompt_tokens", "5.5"),
        ("line 3", "", "[1]"),
        ("line 4", "", "{oops"),
    ]
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"arrival_s": [0.0, 1.0], "prompt_tokens": [0, 1], "output_tokens": [2, None]}), path)
    with pytest.raises(InputError, match="has nothing to replay"):
        read_trace(path, on_bad_row="quarantine")


@pytest.mark.parametrize(
    ("pack", "name"),
    [
        (gzip.compress, "t.csv.gz"),
        (bz2.compress, "t"),
        (lzma.compress, "t.csv.xz"),
        (lambda data: pa.compress(data, codec="zstd", asbytes=True), "t.zst"),
    ],
)
def test_packed_files_are_read_as_they_are(tmp_path: Path, pack: Callable[[bytes], bytes], name: str) -> None:
    plain = BUNDLED / "burstgpt_like.csv"
    (tmp_path / name).write_bytes(pack(plain.read_bytes()))
    one, other = read_trace(plain), read_trace(tmp_path / name)
    assert (other.format, other.rows) == (one.format, one.rows)
    assert np.array_equal(one.arrival_ns, other.arrival_ns)
    (tmp_path / name).write_bytes(pack(plain.read_bytes() + b"1,x\n"))
    with pytest.raises(InputError, match=":2002: '1,x': has 2 cells, the header has 6"):
        read_trace(tmp_path / name)
    (tmp_path / name).write_bytes(pack(plain.read_bytes())[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / name)


def test_any_table_with_a_map_of_its_columns(tmp_path: Path) -> None:
    columns = {"arrival_ms": "ts", "prompt_tokens": "in", "output_tokens": "out", "tenant": "who", "deadline_s": "ttl"}
    path = written(tmp_path, "ts,in,who,out,ttl,x\n7.5,10,a,1,2.5,\n8,20,,2,,\n8,30,b,3,0,\n")
    trace = read_trace(path, "plain", parameters={"columns": columns})
    assert trace.arrival_ns.tolist() == [0, 500_000, 500_000]
    assert trace.prompt_tokens.tolist() == [10, 20, 30]
    assert trace.tenant is not None
    assert trace.deadline_ns is not None
    assert (trace.tenant.tolist(), trace.tenant_names) == ([0, -1, 1], ["a", "b"])
    assert trace.deadline_ns.tolist() == [2_500_000_000, -1, 0]
    with pytest.raises(InputError, match="columns: unknown name 'arival_ms'; did you mean 'arrival_ms'"):
        read_trace(path, "plain", parameters={"columns": {"arival_ms": "ts"}})
    with pytest.raises(InputError, match="column 'when' is missing"):
        read_trace(path, "plain", parameters={"columns": columns | {"arrival_ms": "when"}})


@pytest.mark.parametrize("stamp", ["2024-05-10 00:00:00.5", "2024-05-10T02:00:00.5+02:00"])
def test_dates_as_arrivals_tell_the_hour(tmp_path: Path, stamp: str) -> None:
    path = written(tmp_path, f"arrival_time,prompt_tokens,output_tokens\n{stamp},1,1\n")
    trace = read_trace(path)
    assert trace.origin_ns is not None
    assert trace.origin_ns % (86_400 * 10**9) == 500_000_000


PUBLISHED = ("kv_cache_tester/samples", "burstgpt/BurstGPT_3_rows001-200.csv", "mooncake/conversation_trace.jsonl")


@pytest.mark.parametrize("file", PUBLISHED)
def test_the_canonical_form_keeps_everything(file: str, shared_data: Path, tmp_path: Path) -> None:
    trace = read_trace(shared_data / "traces" / file)
    write_canonical(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    assert again.format == "canonical"
    same(trace, again)


def test_json_lines_keep_everything_but_what_failed(shared_data: Path, tmp_path: Path) -> None:
    trace = read_trace(shared_data / "traces/kv_cache_tester/samples/trace_0274.json")
    write_plain_jsonl(trace, tmp_path / "t.jsonl")
    again = read_trace(tmp_path / "t.jsonl", "plain", parameters={"hash_block_tokens": 64})
    same(dataclasses.replace(trace, source_failed=None, elapsed_ns=None), again)
    with pytest.raises(InputError, match=r"a CSV does not hold wait_for; write \.jsonl or \.parquet"):
        write_plain_csv(trace, tmp_path / "t.csv")


@pytest.mark.parametrize("named", [True, False])
def test_generated_sessions_survive_the_canonical_form(tmp_path: Path, named: bool) -> None:
    """Also those that nobody gave a name: their numbers are written."""
    trace = chat_sessions(300, seed=3)
    if not named:
        trace = dataclasses.replace(trace, session_names=None)
    write_canonical(trace, tmp_path / "t.parquet")
    same(trace, read_trace(tmp_path / "t.parquet"))


def test_the_canonical_form_has_every_column(tmp_path: Path) -> None:
    n = 5
    whole = {name: np.arange(n) + 1 for name in COLUMNS} | {"arrival_ns": np.arange(n), "ends_by_eos": np.arange(n) % 2}
    trace = Trace(
        **whole,  # type: ignore[arg-type]
        session_names=list("abcdef"),
        tenant_names=list("abcdef"),
        model_names=list("abcdef"),
        wait_for=Ragged(np.array([0, 1, 2]), np.array([0, 0, 0, 2, 2, 3])),
        rows=TraceRows(9, 2, {"odd": 2}, clipped=1),
        source_failed=FailedRows(*np.array([[1, 5], [0, 9], [0, 7], [5, -1], [3, -1], [0, 5], [-1, 8]])),
    )
    write_canonical(trace, tmp_path / "t.parquet")
    same(trace, read_trace(tmp_path / "t.parquet"))
    assert trace.source_failed is not None
    unknown = dataclasses.replace(trace.source_failed, elapsed_ns=None)
    write_canonical(dataclasses.replace(trace, source_failed=unknown), tmp_path / "t.parquet")
    same(dataclasses.replace(trace, source_failed=unknown), read_trace(tmp_path / "t.parquet"))
    triples = np.stack((np.zeros(n, np.int64), np.zeros(n, np.int64), trace.prompt_tokens), axis=1).ravel()
    made = dataclasses.replace(trace, segments=Ragged(triples, np.arange(n + 1) * 3))
    for write in (write_canonical, write_plain_jsonl):
        with pytest.raises(InputError, match="no file holds segments"):
            write(made, tmp_path / "u.parquet")


def test_documents_of_one_name_are_two_sessions_in_every_form(tmp_path: Path) -> None:
    document = {"block_size": 64, "hash_id_scope": "local"}
    request = {"t": 0.0, "type": "n", "model": "m", "in": 70, "out": 8, "hash_ids": [1]}
    data = json.dumps({**document, "requests": [request, {**request, "t": 9.0}]}).encode()
    folder = tmp_path / "sessions"
    folder.mkdir()
    (folder / "a.json").write_bytes(data)
    (folder / "a.json.gz").write_bytes(gzip.compress(data))
    trace = read_trace(folder)
    assert trace.session_names == ["a", "a (2)"]
    (folder / "b.JSON.bz2").write_bytes(bz2.compress(data))
    assert len(read_trace(folder)) == 6
    write_canonical(trace, tmp_path / "t.parquet")
    same(trace, read_trace(tmp_path / "t.parquet"))


@pytest.mark.parametrize("file", ["burstgpt/BurstGPT_1_head400.csv", "burstgpt/BurstGPT_3_rows001-200.csv"])
def test_burstgpt_written_again_is_the_same_file(file: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "traces" / file
    write_as_burstgpt(read_trace(source), tmp_path / "t.csv")
    one, other = (pd.read_csv(path) for path in (source, tmp_path / "t.csv"))
    pd.testing.assert_frame_equal(one[other.columns], other, check_dtype=False)


def test_canonical_spans_many_batches_with_failures_between(tmp_path: Path) -> None:
    write_burstgpt_csv(burstgpt_like_days(2, start_day=9, rate=5, seed=1), tmp_path / "t.csv")
    trace = read_trace(tmp_path / "t.csv")
    write_canonical(trace, tmp_path / "t.parquet")
    same(trace, read_trace(tmp_path / "t.parquet"))


def test_parquet_that_only_looks_right_is_refused(tmp_path: Path) -> None:
    """Text that is not UTF-8, items of lists that are missing, rows of numbers that no int64 holds."""
    path = tmp_path / "t.parquet"
    three = {"arrival_ns": [0, 1], "prompt_tokens": [20, 20], "output_tokens": [1, 1]}

    def refused(columns: dict[str, Any], message: str, **metadata: str) -> None:
        parquet.write_table(pa.table({**three, **columns}).replace_schema_metadata(metadata), path)
        for on_bad_row in ("refuse", "quarantine"):
            if on_bad_row == "refuse" or "wait_for" not in columns:
                with pytest.raises(InputError, match=message):
                    read_trace(path, on_bad_row=on_bad_row)  # type: ignore[arg-type]

    latin = pa.array([b"caf\xe9", b"ok"]).cast(pa.binary()).view(pa.string())
    canonical = {META_VERSION: "1", META_ABOUT: '{"hash_block_tokens": 16}'}
    refused({"tenant": latin}, "cannot be read as Parquet: .*UTF8")
    refused({"tenant": latin}, "cannot be read as Parquet: .*UTF8", **canonical)
    far = pa.array([[], [2**63]], pa.list_(pa.uint64()))
    refused({"wait_for": far}, "row 2: wait_for: .* names a row that is not before its own", **canonical)
    holes = pa.array([[1, 2], [1, None]], pa.list_(pa.int64()))
    parquet.write_table(pa.table({**three, "prefix_hashes": holes}).replace_schema_metadata(canonical), path)
    with pytest.raises(InputError, match=r"row 2: prefix_hashes: .* has an empty item"):
        read_trace(path)
    rows = read_trace(path, on_bad_row="quarantine").rows
    assert rows is not None
    assert [row.place for row in rows.rejected] == ["row 2"]


def test_another_version_of_the_canonical_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    columns = {"arrival_ns": [0], "prompt_tokens": [1], "output_tokens": [1]}
    parquet.write_table(pa.table(columns).replace_schema_metadata({META_VERSION: "2"}), path)
    with pytest.raises(InputError, match="has version 2 of kvsim's trace form; this kvsim reads version 1"):
        read_trace(path)
    parquet.write_table(pa.table(columns), path)
    assert read_trace(path).format == "plain"
    with pytest.raises(InputError, match=r"has no metadata kvsim\.trace_version"):
        read_trace(path, "canonical")
