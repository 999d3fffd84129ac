"""Whatever bytes a reader is given, it returns a Trace that holds together, or raises an InputError of one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kvsim.core.errors import InputError
from kvsim.core.plugins import load
from kvsim.core.trace import Trace
from kvsim.workload import read_trace
from kvsim.workload.readers import READERS

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
    "plain": [
        b"arrival_s,prompt_tokens,output_tokens\n0.000000,131,441\n0.020622,928,74\n0.343911,281,352\n",
        b"\xef\xbb\xbfarrival_s,input_tokens,output_tokens,session_id,think_s,priority\n"
        b'0,1,2,"a, b",,0\n1e0,3,4,,2.5,-1\n',
    ],
}
PIECES = [b"", b",", b"\n", b"\r", b'"', b"-", b"0", b"nan", b"1e999", b"\xff", b"\x00", b"9" * 25, b" ", b"x", b";"]


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
    message = trace = None
    try:
        trace = read_trace(path, format)
    except InputError as error:
        message = str(error)
    if message is not None:
        assert message.startswith(f"{path}:")
        assert "\n" not in message
        assert message.encode()  # printable: no lone surrogates
        return
    assert isinstance(trace, Trace)
    assert trace.rows is not None
    assert trace.rows.replayed == len(trace) > 0
    assert trace.arrival_ns[0] == 0
    if trace.session is not None:
        assert trace.session_names is not None
        assert set(trace.session.tolist()) - {-1} == set(range(len(trace.session_names)))
    for column in (trace.arrival_ns, trace.prompt_tokens, trace.output_tokens, trace.session, trace.think_ns):
        assert column is None or column.dtype == np.int64


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "trace"


@pytest.mark.parametrize("format", [*READERS, "auto"])
@given(data=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(data=b"PAR1")
@example(data=b"\xef\xbb\xbf")
@settings(max_examples=100, deadline=None)
def test_random_bytes(path: Path, format: str, data: bytes) -> None:
    check(path, data, format)


@pytest.mark.parametrize("format", READERS)
@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_mutated_files(path: Path, format: str, data: st.DataObject) -> None:
    mutant = data.draw(mutated(FILES[format]))
    check(path, mutant, format)
    check(path, mutant, "auto")


@pytest.mark.parametrize("format", READERS)
@given(body=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_a_valid_header_over_random_bytes(path: Path, format: str, body: bytes) -> None:
    check(path, FILES[format][0].splitlines(keepends=True)[0] + body, format)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_parquet(path: Path, data: st.DataObject) -> None:
    table = pa.table(
        {"arrival_s": [0.0, 0.5], "prompt_tokens": [1, 2], "output_tokens": [3, 4], "session_id": ["a", ""]}
    )
    parquet.write_table(table, path)
    check(path, data.draw(mutated([path.read_bytes()])), "plain")


def test_every_format_recognises_its_own_files_and_no_other() -> None:
    assert set(FILES) == set(READERS)
    readers = {name: load("trace format", name, READERS)() for name in READERS}
    for name, files in FILES.items():
        for data in files:
            assert [other for other in readers if readers[other].recognises(data.decode())] == [name]
