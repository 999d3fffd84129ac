"""BurstGPT files: the published column sets, sessions, failures, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged, Trace, TraceRows
from kvsim.workload import read_trace
from kvsim.workload.writers import write_burstgpt_csv
from tests.unit.workload.test_quarantine_and_packing import same

V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
V3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_bytes(text.encode())
    return path


def test_first_column_set_shifts_the_origin_counts_failures_and_keeps_ties_in_file_order(tmp_path: Path) -> None:
    rows = (
        "3,ChatGPT,0,0,0,Conversation log\n5,ChatGPT,472,18,490,Conversation log\n5,GPT-4,10,20,30,API log\n"
        "9,GPT-4,0,0,0,API log\n9,GPT-4,7,0,7,API log\n12,GPT-4,1,1,2,API log\n"
    )
    trace = read_trace(written(tmp_path, V1 + rows))
    assert trace.format == "burstgpt"
    assert trace.arrival_ns.tolist() == [0, 0, 7_000_000_000]
    assert trace.prompt_tokens.tolist() == [472, 10, 1]
    assert trace.output_tokens.tolist() == [18, 20, 1]
    assert trace.rows == TraceRows(read=6, source_failed=3)
    assert trace.source_failed is not None
    assert trace.source_failed.before.tolist() == [0, 2, 2]
    assert trace.session is None
    assert trace.think_ns is None


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    text = "Log Type,Total tokens,Timestamp,Model,Response tokens,Request tokens\nAPI log,5,1,GPT-4,2,3\n"
    trace = read_trace(written(tmp_path, text))
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [2])


def test_third_column_set_numbers_sessions_and_derives_think_time(tmp_path: Path) -> None:
    rows = (
        "19440110.0,bb,43,GPT-4,9,4,13,Conversation log\n"
        "19440120.0,,5,GPT-4,9,4,13,API log\n"
        "19440130.0,aa,2,ChatGPT,9,4,13,Conversation log\n"
        "19440140.0,bb,7,ChatGPT,0,0,0,Conversation log\n"  # failed: no turn
        "19440160.5,bb,7,GPT-4,9,4,13,Conversation log\n"  # 50.5 s after its predecessor, which took 43 s
        "19440161.0,bb,7,GPT-4,9,4,13,Conversation log\n"  # before the previous answer was complete
        "19440170.0,aa,2,ChatGPT,9,4,13,Conversation log\n"
    )
    trace = read_trace(written(tmp_path, V3 + rows))
    assert trace.session is not None
    assert trace.think_ns is not None
    assert trace.session.tolist() == [0, -1, 1, 0, 0, 1]
    assert trace.session_names == ["bb", "aa"]
    assert trace.arrival_ns.tolist() == [0, 10 * 10**9, 20 * 10**9, 50_500_000_000, 51 * 10**9, 60 * 10**9]
    assert trace.think_ns.tolist() == [0, 0, 0, 7_500_000_000, 0, 38 * 10**9]
    assert trace.rows == TraceRows(read=7, source_failed=1)


def test_decimal_seconds_are_exact_where_float64_is_not(tmp_path: Path) -> None:
    rows = "19440110.000000001,ChatGPT,1,1,2,API log\n19440110.100000003,ChatGPT,1,1,2,API log\n"
    assert read_trace(written(tmp_path, V1 + rows)).arrival_ns.tolist() == [0, 100_000_002]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "5,A,1,2,4,API log\n",
            "t.csv:2: Total tokens: '4' is not request + response tokens; correct or remove the row",
        ),
        ("5,A,0,2,2,API log\n", "t.csv:2: Request tokens: '0' has a response; allowed: at least 1"),
        ("5,A,0,0,0,API log\n", "t.csv: has nothing to replay: all 1 rows failed in the traced system; a trace"),
        (
            "5,A,-1,2,1,API log\n",
            "t.csv:2: Request tokens: '-1' is not a possible number of tokens; "
            "allowed: whole numbers from 0 to 2147483647",
        ),
        (
            "5.0000000001,A,1,2,3,API log\n",
            "t.csv:2: Timestamp: '5.0000000001' is not seconds with at most nine decimals",
        ),
        ("99999999999,A,1,2,3,API log\n", "t.csv:2: Timestamp: '99999999999' is too large; allowed: times of at most"),
        ("5,A,1,2,3,Chat\n", "t.csv:2: Log Type: 'Chat' is not known; allowed: Conversation log, API log"),
        ("5,A,1,2,3,\n", "t.csv:2: Log Type: '' is not known; allowed: Conversation log, API log"),
        ("nan,A,1,2,3,API log\n", "t.csv:2: Timestamp: 'nan' is not seconds with at most nine decimals"),
        ("5,A,1,1,2,API log\n4.5,A,1,2,3,API log\n", "t.csv:3: Timestamp: '4.5' is earlier than the row before it"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_trace(written(tmp_path, V1 + rows))
    assert str(caught.value).startswith(f"{tmp_path}/{message}")


def test_negative_elapsed_time_and_half_a_session_column_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2: Elapsed time: '-1' is negative"):
        read_trace(written(tmp_path, V3 + "5,aa,-1,A,1,2,3,API log\n"))
    with pytest.raises(InputError, match="1: column 'Elapsed time' is missing"):
        read_trace(written(tmp_path, V1.replace("Model", "Session ID,Model") + "5,aa,A,1,2,3,API log\n"))


def test_published_first_400_rows(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/burstgpt/BurstGPT_1_head400.csv")
    assert trace.rows == TraceRows(read=400, source_failed=17)
    assert trace.rows.replayed == len(trace) == 383
    assert trace.arrival_ns[-1] == 37_269 * 10**9
    assert trace.sha256 is not None
    assert trace.sha256.startswith("7865fda5")


def test_published_rows_with_sessions(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/burstgpt/BurstGPT_3_rows001-200.csv")
    assert trace.rows == TraceRows(read=200, source_failed=1)
    assert trace.arrival_ns[-1] == 36_447 * 10**9
    assert trace.session is not None
    assert trace.session_names is not None
    assert int((trace.session == -1).sum()) == 6
    assert len(trace.session_names) == 74
    assert len(np.unique(trace.session)) == 1 + 73  # the only turn of one failed


def test_a_written_trace_reads_as_it_was(tmp_path: Path) -> None:
    """Failed rows, origin, models, services; sessions with their pauses; times between seconds; names with commas."""
    rows = (
        '3,,0,ChatGPT,7,0,7,Conversation log\n5.25,"a, b",1,"GPT-4, new",472,18,490,Conversation log\n'
        "7,,9,ChatGPT,10,2,12,API log\n8,,0,GPT-4,5,0,5,API log\n"
        '9.5,"a, b",2,ChatGPT,20,30,50,Conversation log\n9.6,"a, b",0,ChatGPT,1,2,3,Conversation log\n'
    )
    trace = read_trace(written(tmp_path, V3 + rows))
    assert trace.think_ns is not None
    assert trace.think_ns.tolist() == [0, 0, 3_250_000_000, 0]
    write_burstgpt_csv(trace, tmp_path / "again.csv")
    same(trace, read_trace(tmp_path / "again.csv"))

    bundled = Path(__file__).parents[3] / "traces" / "burstgpt_like.csv"
    trace = read_trace(bundled)
    write_burstgpt_csv(trace, tmp_path / "again.csv")
    same(trace, read_trace(tmp_path / "again.csv"))
    lines = zip(bundled.read_text().splitlines(), (tmp_path / "again.csv").read_text().splitlines(), strict=True)
    differ = [(one, other) for one, other in lines if one != other]
    assert all(one.split(",")[3] == other.split(",")[3] == "0" for one, other in differ)


def test_what_a_trace_does_not_say_is_written_as_chatgpt_and_by_session(tmp_path: Path) -> None:
    arrival_ns, ones = np.array([0, 10**9, 2 * 10**9]), np.ones(3, np.int64)
    trace = Trace(arrival_ns, ones, ones, session=np.array([0, -1, 0]), think_ns=np.array([0, 0, 2 * 10**9]))
    write_burstgpt_csv(trace, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == V3 + (
        "0,0,0,ChatGPT,1,1,2,Conversation log\n1,,0,ChatGPT,1,1,2,API log\n2,0,0,ChatGPT,1,1,2,Conversation log\n"
    )


def test_what_the_format_cannot_say_is_refused(tmp_path: Path) -> None:
    times, ones = np.array([0, 5]), np.ones(2, np.int64)
    for message, columns in (
        ("does not hold images", {"images": ones}),
        ("does not hold wait_for", {"wait_for": Ragged(np.array([0]), np.array([0, 0, 1]))}),
        ("does not hold these tenants", {"tenant": ones, "tenant_names": ["API log", "acme"]}),
        ("pauses longer than the time between two turns", {"session": 0 * ones, "think_ns": np.array([0, 6])}),
    ):
        with pytest.raises(InputError, match=message):
            write_burstgpt_csv(Trace(times, ones, ones, **columns), tmp_path / "t.csv")
        assert not (tmp_path / "t.csv").exists()
