"""The Azure 2023 format: seven decimals, CRLF, no final newline."""

from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.core.trace import TraceRows
from kvsim.workload import read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def test_stamps_are_exact_to_the_nanosecond_across_midnight(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{HEADER}2023-11-16 23:59:59.9999990,374,44\r\n2023-11-17 00:00:00.6805901,396,109".encode())
    trace = read_trace(path)
    assert trace.format == "azure_2023"
    assert trace.arrival_ns.tolist() == [0, 680_591_100]
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([374, 396], [44, 109])
    assert trace.rows == TraceRows(read=2)


@pytest.mark.parametrize("stamp", ["2023-13-16 18:15:46.6805900", "2024-05-10 00:00:00.009930+00:00", "5", "", "nan"])
def test_other_stamps_are_refused(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"{HEADER}{stamp},1,2".encode())
    with pytest.raises(InputError) as caught:
        read_trace(path, "azure_2023")
    assert str(caught.value) == (
        f"{path}:2: TIMESTAMP: '{stamp}' is not YYYY-MM-DD hh:mm:ss with at most nine decimals and no time zone; "
        "correct the cell or leave out the row"
    )


def test_published_conversation_trace(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/azure_2023/AzureLLMInferenceTrace_conv.csv")
    assert trace.rows == TraceRows(read=19_366)
    assert trace.arrival_ns[-1] == 3_501_721_937_000
    assert trace.arrival_ns[1] == 4_314_579_000  # 18:15:50.9951690 - 18:15:46.6805900
    assert round(float(trace.prompt_tokens.mean()), 1) == 1154.7
    assert round(float(trace.output_tokens.mean()), 1) == 211.1
    assert (int(trace.prompt_tokens.max()), int(trace.output_tokens.max())) == (14_050, 1_000)


def test_an_empty_line_does_not_hide_the_time_zone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n\n2024-05-10 00:00:00.009930+00:00,2162,5\n")
    assert read_trace(path).format == "azure_2024"
