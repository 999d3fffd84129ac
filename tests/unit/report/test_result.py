"""The Python face of a run: the same tables from memory and from the folder."""

import pandas as pd
import pytest

from kvsim.core.errors import InputError
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from kvsim.report.files import write_run
from kvsim.report.result import Result
from tests.unit.metrics.tiny_log import Row, timeline, tiny_log, trace_of

LOG = tiny_log(
    [Row(0, (500, 600, 800), prompt=100), Row(1000, (1250,), prompt=50)],
    timeline=timeline((0, 0, 0, 1, 20), (1000, 0, 1, 0, 40)),
)
TRACE = trace_of(LOG)
SUMMARY = summarise(LOG, TRACE, version="1", slo=Slo(ttft_ms=400), label="a<b", model_id="llama-2-7b")
RESULT = Result(SUMMARY, LOG, TRACE)


def test_memory_and_folder_give_the_same_frames(tmp_path):
    folder = write_run(tmp_path / "run", LOG, TRACE, SUMMARY, "", {})
    loaded = Result.load(folder)
    assert loaded.summary == SUMMARY
    pd.testing.assert_frame_equal(loaded.requests, RESULT.requests)
    pd.testing.assert_frame_equal(loaded.timeline, RESULT.timeline)
    assert RESULT.requests[["ttft_s", "good", "status"]].to_dict("list") == {
        "ttft_s": [0.5, 0.25],
        "good": [False, True],
        "status": ["finished", "finished"],
    }
    assert loaded.requests is loaded.requests


def test_loading_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        Result.load(tmp_path / "nowhere")


def test_a_summary_alone_has_no_tables():
    with pytest.raises(ValueError, match="neither a log nor a folder to read requests from"):
        _ = Result(SUMMARY).requests


def test_repr_fits_on_a_screen(tmp_path):
    assert (
        repr(Result(SUMMARY, out_dir=tmp_path))
        == f"""\
kvsim run, a<b, llama-2-7b
finished 2 of 2, duration (s) 1.25, requests/s 1.60, goodput (requests/s) 0.80, output tokens/s 3.20, \
peak KV usage (%) 50.00, preemptions 0
                    mean      median         p90         p95         p99
   TTFT (ms)      375.00      375.00      475.00      487.50      497.50
   TPOT (ms)      150.00      150.00      150.00      150.00      150.00
    ITL (ms)      150.00      150.00      190.00      195.00      199.00
   E2EL (ms)      525.00      525.00      745.00      772.50      794.50
in {tmp_path}"""
    )


def test_notebook_face_is_a_table_and_escapes_names():
    html = RESULT._repr_html_()
    assert html.startswith("<div><b>kvsim run, a&lt;b, llama-2-7b</b><p>finished <b>2 of 2</b>, ")
    assert "<tr><th>TPOT (ms)</th><td>150.00</td>" in html
    assert (html.count("<tr>"), html.count("<table>"), html.count("</table>")) == (5, 1, 1)
