"""kvsim's own format, in CSV and Parquet, and the way there and back."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload import read_trace
from kvsim.workload.generate import lognormal_poisson
from kvsim.workload.writers import write_plain_csv, write_plain_parquet

HEADER = "arrival_s,prompt_tokens,output_tokens\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def columns(trace: Trace) -> dict[str, list[int] | None]:
    names = ("arrival_ns", "prompt_tokens", "output_tokens", "session", "think_ns", "priority")
    return {name: None if (c := getattr(trace, name)) is None else c.tolist() for name in names}


def test_required_columns_and_provenance(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "1.5,10,20\n1.500000001,11,21\n\n2,12,22\n")
    trace = read_trace(path)
    assert columns(trace) == {
        "arrival_ns": [0, 1, 500_000_000],
        "prompt_tokens": [10, 11, 12],
        "output_tokens": [20, 21, 22],
        "session": None,
        "think_ns": None,
        "priority": None,
    }
    assert (trace.path, trace.format, trace.rows) == (str(path), "plain", TraceRows(read=3))
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_optional_columns_quotes_and_other_columns(tmp_path: Path) -> None:
    text = (
        'note,"session_id",output_tokens,input_tokens,think_s,priority,arrival_s\r\n'
        '"a, b",x,1,2,,-1,0\r\n,,3,4,0.25,0,1e-3\r\n"",y,5,6,1,7,1\r\n,x,7,8,2.5,0,1'
    )
    assert columns(read_trace(written(tmp_path, b"\xef\xbb\xbf" + text.encode()))) == {
        "arrival_ns": [0, 1_000_000, 10**9, 10**9],
        "prompt_tokens": [2, 4, 6, 8],
        "output_tokens": [1, 3, 5, 7],
        "session": [0, -1, 1, 0],
        "think_ns": [0, 250_000_000, 10**9, 2_500_000_000],
        "priority": [-1, 0, 7, 0],
    }


def test_sessions_keep_their_numbers_across_batches(tmp_path: Path) -> None:
    n = 200_000  # several of Arrow's 1 MiB blocks
    rows = "".join(f"{i},1,1,chat-{i * 7919 % 1000:04d}\n" for i in range(n))
    trace = read_trace(written(tmp_path, HEADER.replace("\n", ",session_id\n") + rows))
    assert trace.session is not None
    assert trace.session_names is not None
    assert len(trace.session_names) == 1000
    assert [trace.session_names[k] for k in trace.session[::9973]] == [
        f"chat-{i * 7919 % 1000:04d}" for i in range(0, n, 9973)
    ]
    assert trace.session[:1000].tolist() == list(range(1000))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.csv: is empty; a trace has a header line and at least one row"),
        (" \n\n", "t.csv: is empty; a trace has a header line and at least one row"),
        (HEADER, "t.csv: has a header but no rows; a trace needs at least one row"),
        (HEADER.strip(), "t.csv: has a header but no rows; a trace needs at least one row"),
        (
            HEADER + "0,1,2\n1,-5,2\n",
            "t.csv:3: prompt_tokens: '-5' is not a possible number of tokens; "
            "allowed: whole numbers from 1 to 2147483647",
        ),
        (
            HEADER + "0,1,0\n",
            "t.csv:2: output_tokens: '0' is not a possible number of tokens; "
            "allowed: whole numbers from 1 to 2147483647",
        ),
        (HEADER + "0,1,2\nnan,1,2\n", "t.csv:3: arrival_s: 'nan' is not a finite time; allowed: times of at most"),
        (HEADER + "0,1,2\ninf,1,2\n", "t.csv:3: arrival_s: 'inf' is not a finite time; allowed: times of at most"),
        (
            HEADER + "".join(f"{i},5,5\n" for i in range(299)) + "299,abc,5\n" + "300,5,5\n" * 9000,
            "t.csv:301: prompt_tokens: 'abc' is not a whole number of at most 18 digits; correct the cell or leave out",
        ),
        (HEADER + "0,,2\n", "t.csv:2: prompt_tokens: '' is not a whole number of at most 18 digits"),
        (HEADER + "0,1.0,2\n", "t.csv:2: prompt_tokens: '1.0' is not a whole number of at most 18 digits"),
        (HEADER + "0,1,2\n\n5,1,2\n4,1,2\n", "t.csv:5: arrival_s: '4' is earlier than the row before it; rows must be"),
        (
            HEADER + "0,1,2\n1,2\n",
            "t.csv:3: '1,2': has 2 cells, the header has 3; each row needs as many cells as the header",
        ),
        (HEADER + "0,1,2\n1,2,3,4\n", "t.csv:3: '1,2,3,4': has 4 cells, the header has 3; each row needs"),
        ((HEADER + "0,1,2\n").encode() + b"1,\xff,3\n", "t.csv:3: is not UTF-8 text; save it as CSV in UTF-8"),
        (
            (HEADER + "0,1,2\n" * 20_000).encode() + b"1,\xff,3\n",
            "t.csv:20002: prompt_tokens: '\\udcff' is not a whole number of at most 18 digits",
        ),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4bb3\nsize 52283111\n",
            "t.csv:1: is a Git LFS pointer, not the trace itself; fetch the data with 'git lfs pull' in its repository",
        ),
        (b"\x1f\x8b\x08\x00", "t.csv: cannot be read: "),
        (b"\xfd7zXZ\x00\x00", "t.csv: cannot be read: "),
        (b"\x28\xb5\x2f\xfdxx", "t.csv: cannot be read: "),
        (b"PK\x03\x04", "t.csv: is a ZIP archive; unpack it first"),
        (b"PAR1abcPAR1", "t.csv: cannot be read as Parquet: "),
        (
            "arrival,promt_tokens,output_tokens\n0,1,2\n",
            "t.csv:1: header 'arrival,promt_tokens,output_tokens' is of no known trace format; closest is plain, "
            "which lacks 'arrival_s' (is it 'arrival'?), 'prompt_tokens' (is it 'promt_tokens'?); "
            "known: canonical, burstgpt",
        ),
        (
            "arrival_s,output_tokens\n0,1\n",
            "t.csv:1: header 'arrival_s,output_tokens' is of no known trace format; closest is plain, "
            "which lacks 'prompt_tokens'; known: ",
        ),
        (HEADER.replace("\n", ",arrival_s\n") + "0,1,2,0\n", "t.csv:1: column 'arrival_s' is there twice; keep one"),
        (
            HEADER.replace("\n", ",input_tokens\n") + "0,1,2,3\n",
            "t.csv:1: has both prompt_tokens and input_tokens; they mean the same; keep one",
        ),
        (
            HEADER.replace("\n", ",sesion_id\n") + "0,1,2,3\n",
            "t.csv:1: sesion_id: unknown column; did you mean 'session_id'? rename or remove it",
        ),
        (
            HEADER.replace("\n", ",think_s\n") + "0,1,2,3\n",
            "t.csv:1: think_s: needs the column session_id; think time is the pause",
        ),
        (
            HEADER.replace("\n", ",think_s,session_id\n") + "0,1,2,-3,x\n",
            "t.csv:2: think_s: '-3' is negative; allowed: seconds from 0",
        ),
    ],
)
def test_bad_input_is_named_in_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(written(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: there is no such file; check the path of the trace$"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"holds no \.json or \.jsonl file; name the trace file, or a folder of"):
        read_trace(tmp_path)
    with pytest.raises(InputError, match="is not a regular file"):
        read_trace("/dev/zero")


def test_named_format_speaks_for_itself_and_plugins_can_be_refused(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "0,1,2\n")
    with pytest.raises(InputError, match="1: column 'TIMESTAMP' is missing; the header has 'arrival_s,prompt"):
        read_trace(path, "azure_2023")
    with pytest.raises(InputError, match="unknown trace format 'plian'; did you mean 'plain'"):
        read_trace(path, "plian")
    plugin = "kvsim.workload.readers.plain:Plain"
    assert read_trace(path, plugin).format == plugin
    with pytest.raises(InputError, match="is a plug-in, and plug-ins are refused"):
        read_trace(path, plugin, allow_plugins=False)


def parquet_file(folder: Path, **table: object) -> Path:
    path = folder / "t"
    parquet.write_table(
        pa.table({"arrival_s": [0.0, 1.0], "prompt_tokens": [1, 2], "output_tokens": [3, 4]} | table), path
    )
    return path


def test_parquet_takes_narrow_integers_and_sessions_of_any_kind(tmp_path: Path) -> None:
    path = parquet_file(
        tmp_path,
        arrival_s=pa.array([1, 3], pa.int32()),
        output_tokens=pa.array([3, 4], pa.uint16()),
        session_id=pa.array(["x", None]).dictionary_encode(),
        think_s=pa.array([None, 0.5]),
        other=[1, 2],
    )
    assert columns(read_trace(path)) == {
        "arrival_ns": [0, 2 * 10**9],
        "prompt_tokens": [1, 2],
        "output_tokens": [3, 4],
        "session": [0, -1],
        "think_ns": [0, 500_000_000],
        "priority": None,
    }
    whole = read_trace(parquet_file(tmp_path, session_id=[7, 7])).session
    assert whole is not None
    assert whole.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"prompt_tokens": [1, 0]}, "row 2: prompt_tokens: '0' is not a possible number of tokens"),
        ({"prompt_tokens": [1, None]}, "row 2: prompt_tokens: 'None' is not a whole number"),
        ({"prompt_tokens": [1.0, 2.0]}, "prompt_tokens: has type double; allowed: a whole number"),
        ({"arrival_s": [1.0, float("nan")]}, "row 2: arrival_s: 'nan' is not a finite time"),
        ({"arrival_s": [2.0, 1.0]}, "row 2: arrival_s: '1.0' is earlier than the row before it"),
        ({"arrival_s": [{"x": 1}, {"x": 2}]}, "arrival_s: has type struct<x: int64>; allowed: a number of seconds"),
    ],
)
def test_bad_parquet_is_named_by_row(tmp_path: Path, table: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(parquet_file(tmp_path, **table))
    assert str(caught.value).startswith(f"{tmp_path}/t: {message}")


def test_parquet_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "t"
    parquet.write_table(pa.table({"arrival_s": pa.array([], pa.float64())}), path)
    with pytest.raises(InputError, match="header 'arrival_s' is of no known trace format"):
        read_trace(path)
    parquet.write_table(pa.table({c: pa.array([], pa.int64()) for c in HEADER.strip().split(",")}), path)
    with pytest.raises(InputError, match=r"t: has no rows; a trace needs at least one row$"):
        read_trace(path)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(1, 20))

    def column(low: int, high: int) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(low, high), min_size=n, max_size=n)), np.int64)

    arrival = np.sort(column(0, 2**50))
    session = names = think = priority = None
    if draw(st.booleans()):
        texts = [f'chat "{k}", {k}' for k in column(0, 3)]
        names = list(dict.fromkeys(texts))
        session = np.array([names.index(text) for text in texts])
        think = column(0, 10**13) if draw(st.booleans()) else None
    if draw(st.booleans()):
        priority = column(-9, 9)
    return Trace(
        arrival - arrival[0], column(1, 10**6), column(1, 10**6), session, think, priority, session_names=names
    )


@given(traces())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = tmp_path_factory.mktemp("t") / "t"
    for write in (write_plain_csv, write_plain_parquet):
        write(trace, path)
        again = read_trace(path)
        assert columns(again) == columns(trace)
        assert again.session_names == trace.session_names


def test_a_good_file_is_read_without_pandas_in_little_time_and_memory(tmp_path: Path) -> None:
    """300,000 rows; generous limits (an idle core needs a tenth), enough to notice work per row in Python."""
    trace = lognormal_poisson(300_000, seed=1)
    write_plain_csv(trace, tmp_path / "t.csv")
    write_plain_parquet(trace, tmp_path / "t.parquet")
    code = (
        "import sys, time, resource; from kvsim.workload import read_trace; import pyarrow.parquet\n"
        "read_trace('traces/chat_sessions.csv'); low = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.process_time()\n"
        "for path in sys.argv[1:]: trace = read_trace(path)\n"
        "spent = time.process_time() - start; high = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert len(trace) == 300_000\n"
        "print('pandas' in sys.modules, spent, (high - low) * 1024)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "t.csv", tmp_path / "t.parquet"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    pandas, spent_s, grown_bytes = done.stdout.split()
    assert pandas == "False"
    assert float(spent_s) < 1.5
    assert int(grown_bytes) < 300_000 * 200


def test_workloads_of_peers(shared_data: Path) -> None:
    for name, n, last_ns, prompt, output in (
        ("w1", 1_000, 163_154_134_000, 511.915, 255.894),
        ("w2", 10_000, 1_708_091_943_000, 511.9164, 255.8719),
    ):
        trace = read_trace(shared_data / f"peer_runs/{name}.csv")
        assert (trace.format, trace.rows, trace.arrival_ns[-1]) == ("plain", TraceRows(read=n), last_ns)
        assert (trace.prompt_tokens.mean(), trace.output_tokens.mean()) == (prompt, output)


def test_json_lines_without_a_key_have_no_such_column(tmp_path: Path) -> None:
    """Turns of a session wait for the one before unless a row says otherwise."""
    path = tmp_path / "t.jsonl"
    line = '{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1, "session_id": "a"}\n'
    path.write_text(line * 2)
    assert read_trace(path).wait_for is None
    path.write_text(line + line.replace("}", ', "wait_for": [0]}') + line.replace("}", ', "wait_for": []}'))
    wait_for = read_trace(path).wait_for
    assert wait_for is not None
    assert [wait_for.row(i).tolist() for i in range(3)] == [[], [0], []]
