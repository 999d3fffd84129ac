"""Whatever bytes a reader is given, it returns a Trace that holds together, or raises an InputError of one line."""

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kvsim.core.errors import InputError
from kvsim.core.plugins import load
from kvsim.core.trace import FailedRows, Ragged, Trace, TraceRows
from kvsim.testing.readers import trace_fault
from kvsim.workload import read_trace
from kvsim.workload.readers import READERS
from kvsim.workload.reading import recognised
from kvsim.workload.writers import write_canonical

FILES = {
    "burstgpt": [
        b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        b"5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,0,0,0,Conversation log\n118,GPT-4,417,276,693,API log\n",
        b"Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        b"19440110.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n19440161.0,,2,ChatGPT,36,29,65,API log\n"
        b"19440192.5,1722ac82,8,GPT-4,1779,123,1902,Conversation log\n",
    ],
    "azure_2023": [
        b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
        b"2023-11-16 18:15:50.9951690,396,109\r\n2023-11-16 18:15:51.2224670,879,55"
    ],
    "azure_2024": [
        b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
        b"2024-05-10 00:00:00.017335+00:00,2399,6\n2024-05-10 02:00:01+02:00,76,1\n"
    ],
    "azure_2025": [
        b"TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15T12:00:00.269Z,0,770,491\n"
        b"2024-10-15T12:00:05.819Z,3,949,126\n"
    ],
    "mooncake": [
        b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}\n'
        b'{"timestamp": 3000, "input_length": 1024, "output_length": 9, "hash_ids": [0, 9]}\n'
    ],
    "kv_cache_tester": [
        b'{"id": "s", "models": ["m"], "block_size": 64, "hash_id_scope": "local", "requests": [\n'
        b'{"t": 0.0, "type": "n", "model": "m", "in": 130, "out": 8, "hash_ids": [1, 2], "api_time": 2.5, '
        b'"think_time": 0.0},\n{"t": 3.0, "type": "subagent", "requests": [{"t": 0.0, "type": "s", "model": "h", '
        b'"in": 64, "out": 2, "hash_ids": [9], "api_time": 1.0}]},\n'
        b'{"t": 9.0, "type": "n", "model": "m", "in": 200, "out": 0, "hash_ids": [1, 2, 3], "think_time": 6.5},\n'
        b'{"t": 19.0, "type": "n", "model": "m", "in": 200, "out": 4, "hash_ids": [1, 2, 3], "think_time": 6.5}]}'
    ],
    "dynamo": [
        b'{"timestamp": 5, "event": {"schema": "dynamo.request.trace.v1", "event_type": "request_end", '
        b'"agent_context": {"session_id": "a"}, "request": {"request_id": "r1", "model": "q", "input_tokens": 20, '
        b'"output_tokens": 3, "request_received_ms": 1779163048815, "total_time_ms": 1381.9, "replay": '
        b'{"trace_block_size": 16, "input_length": 20, "input_sequence_hashes": '
        b"[1549729496416048079, 18446744073709551615]}}}}\n"
        b'{"timestamp": 6, "event": {"schema": "dynamo.request.trace.v1", "event_type": "tool_start"}}\n'
    ],
    "bailian": [
        b'{"chat_id": 4, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, "output_length": 3, '
        b'"type": "text", "turn": 1, "hash_ids": [7, 8]}\n'
        b'{"chat_id": 5, "parent_chat_id": 4, "timestamp": 61.1, "input_length": 33, '
        b'"output_length": 1, "type": "text", "turn": 2, "hash_ids": [7, 9, 8]}\n'
    ],
    "tracelab": [
        b'{"session_id": "claude:1", "model": "o", "input_tokens_total": 100, "prefix_tokens": 20, "output_tokens": 9, '
        b'"timing_events": [{"event_type": "user_message", "timestamp": "2026-06-01T05:40:20.151Z"}, '
        b'{"event_type": "text", "timestamp": "2026-06-01T05:40:29.420Z"}]}\n'
        b'{"session_id": "claude:1", "model": "o", "input_tokens_total": 200, "prefix_tokens": 96, "output_tokens": 4, '
        b'"timing_events": [{"event_type": "tool_result", "timestamp": "2026-06-01T05:41:00Z"}]}\n'
    ],
    "timed_trace": [
        b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 7], "session_id": "a"}\n'
        b'{"delay": 250.5, "input_length": 1300, "output_length": 5, "hash_ids": [0, 7, 8], "session_id": "a"}\n'
        b'{"timestamp": 100, "input_length": 60, "output_length": 5}\n'
    ],
    "lengths": [b"num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n374,44,418,8.5\n10,20,30,0.5\n"],
    "plain": [
        b"arrival_s,prompt_tokens,output_tokens\n0.000000,131,441\n0.020622,928,74\n0.343911,281,352\n",
        b"\xef\xbb\xbfarrival_s,input_tokens,output_tokens,session_id,think_s,priority\n"
        b'0,1,2,"a, b",,0\n1e0,3,4,,2.5,-1\n',
        b'{"arrival_ns": 5, "prompt_tokens": 20, "output_tokens": 2, "tenant": "a", "images": 1}\n'
        b'{"arrival_ns": 7, "prompt_tokens": 40, "output_tokens": 2, "deadline_s": 2.5, "wait_for": [0]}\n',
    ],
}


def canonical_bytes() -> bytes:
    """A small trace in kvsim's own Parquet form, with every column."""
    trace = Trace(
        *(np.array(column) for column in ([0, 5, 9], [20, 40, 30], [2, 3, 4])),
        session=np.array([0, -1, 0]),
        session_names=["s"],
        think_ns=np.array([0, 0, 4]),
        images=np.array([0, 1, 0]),
        wait_for=Ragged(np.array([0]), np.array([0, 0, 0, 1])),
        prefix_hashes=Ragged(np.array([0, 1, 0, 2]), np.array([0, 2, 2, 4])),
        hash_block_tokens=16,
        rows=TraceRows(read=4, source_failed=1),
        source_failed=FailedRows(np.array([1]), np.array([3]), np.array([0]), session=np.array([0])),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.parquet")
        write_canonical(trace, path)
        return path.read_bytes()


FILES["canonical"] = [canonical_bytes()]


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PIECES = [b"", b",", b"\n", b"\r", b'"', b"-", b"0", b"nan", b"1e999", b"\xff", b"\x00", b"9" * 25, b" ", b"x", b";"]
PIECES += [b"null", b"[", b"]", b"{", b"}", b":", b"1.5", b"18446744073709551616"]


@st.composite
def mutated(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A valid file after a few cuts, insertions, replacements and repetitions."""
    data = draw(st.sampled_from(files))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=6) | st.just(data[start:end] * 2))
        data = data[:start] + piece + data[end:]
    return data


def check(path: Path, data: bytes, format: str) -> None:
    path.write_bytes(data)
    for on_bad_row in ("refuse", "quarantine"):
        check_policy(path, format, on_bad_row)


def check_policy(path: Path, format: str, on_bad_row: Literal["refuse", "quarantine"]) -> None:
    message = trace = None
    try:
        trace = read_trace(path, format, on_bad_row=on_bad_row)
    except InputError as error:
        message = str(error)
    if message is not None:
        assert message.startswith(f"{path}:") or "on_bad_row" in message or "hash_block_tokens" in message
        assert "\n" not in message
        assert message.encode()  # printable: no lone surrogates
        return
    assert isinstance(trace, Trace)
    assert trace_fault(trace) is None
    assert len(trace) > 0
    assert trace.rows is not None
    if on_bad_row == "refuse":
        assert not trace.rows.rejected
    assert len(trace.rows.rejected) <= sum(trace.rows.dropped.values())
    if trace.session is not None:
        assert trace.session_names is not None


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "trace"


@pytest.mark.parametrize("format", [*READERS, "auto"])
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(data=b"PAR1")
@example(data=b"\xef\xbb\xbf")
@settings(max_examples=40, deadline=None)
def test_random_bytes(path: Path, format: str, data: bytes) -> None:
    check(path, data, format)


@pytest.mark.parametrize("format", READERS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_files(path: Path, format: str, data: st.DataObject) -> None:
    mutant = data.draw(mutated(FILES[format]))
    check(path, mutant, format)
    check(path, mutant, "auto")


@pytest.mark.parametrize("format", READERS)
@given(body=st.binary(max_size=200))
@settings(max_examples=40, deadline=None)
def test_a_valid_header_over_random_bytes(path: Path, format: str, body: bytes) -> None:
    check(path, FILES[format][0].splitlines(keepends=True)[0] + body, format)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, zstd])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_mutated_archives(path: Path, pack: Callable[[bytes], bytes], data: st.DataObject) -> None:
    packed = pack(FILES["plain"][0])
    path.write_bytes(packed)
    assert len(read_trace(path)) == 3
    check(path, data.draw(mutated([packed])), "plain")


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_mutated_tar(path: Path, data: st.DataObject) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("a/one.json", "a/two.json", "a/readme.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(FILES["kv_cache_tester"][0])
            archive.addfile(member, io.BytesIO(FILES["kv_cache_tester"][0]))
    path.write_bytes(packed.getvalue())
    assert read_trace(path).session_names == ["a/one", "a/two"]
    check(path, data.draw(mutated([packed.getvalue()])), "auto")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_parquet(path: Path, data: st.DataObject) -> None:
    table = pa.table(
        {"arrival_s": [0.0, 0.5], "prompt_tokens": [1, 2], "output_tokens": [3, 4], "session_id": ["a", ""]}
    )
    parquet.write_table(table, path)
    check(path, data.draw(mutated([path.read_bytes()])), "plain")


def test_every_format_recognises_its_own_files_and_no_other(path: Path) -> None:
    assert set(FILES) == set(READERS)
    readers = {name: load("trace format", name, READERS)() for name in READERS}
    for name, files in FILES.items():
        for data in files:
            if name != "canonical":
                assert [other for other in readers if readers[other].recognises(data.decode())] == [name]
            path.write_bytes(data)
            assert recognised(path) == name
