"""What is printed after a run, as a whole."""

import numpy as np
import pytest

from kvsim.core.runlog import REJECTED, UNFINISHED
from kvsim.core.trace import TraceRows
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from kvsim.report.terminal import print_summary, summary_text
from tests.unit.metrics.tiny_log import Row, queue_log, tiny_log, trace_of

LOG = tiny_log(
    [
        Row(0, (500, 600, 800), prompt=100, scheduled=100, preemptions=1),
        Row(1000, (1250,), prompt=50),
        Row(1500, prompt=9000, status=REJECTED, reason=1, ended=1500),
        Row(None, prompt=10, status=UNFINISHED, reason=2, output=4),
    ],
    reasons=("", "prompt_exceeds_max_model_len", "not_sent", "stuck"),
    clipped=1,
)
READ = TraceRows(read=7, source_failed=2, dropped={"zero output tokens": 1})


def summary(log=LOG, **options):
    return summarise(log, trace_of(log, rows=READ), version="1", **options)


def test_the_whole_report():
    text = summary_text(
        summary(slo=Slo(ttft_ms=400), max_concurrency=8, approximation=["prefix caching is off"]),
        ledger=[("GPU memory", 80 * 2**30), ("- weights", -(13 * 2**30))],
        notes=["result in runs/a"],
    )
    assert (
        text
        == """\
================ Serving Benchmark Result ================
Successful requests:                         2
Failed requests:                             2
Maximum request concurrency:                 8
Request rate (req/s):                        1.33
Benchmark duration (s):                      1.25
Total input tokens:                          150
Total generated tokens:                      4
Request throughput (req/s):                  1.60
Request goodput (req/s):                     0.80
SLO attainment (%):                          33.33
  ttft <= 400 ms (%):                        33.33
Output token throughput (tok/s):             3.20
Peak output token throughput (tok/s):        3.00
Peak concurrent requests:                    1
Total token throughput (tok/s):              123.20
-------------------Time to First Token--------------------
Mean TTFT (ms):                              375.00
Median TTFT (ms):                            375.00
P90 TTFT (ms):                               475.00
P99 TTFT (ms):                               497.50
---------Time per Output Token (excl. 1st token)----------
Mean TPOT (ms):                              150.00
Median TPOT (ms):                            150.00
P90 TPOT (ms):                               150.00
P99 TPOT (ms):                               150.00
-------------------Inter-token Latency--------------------
Mean ITL (ms):                               150.00
Median ITL (ms):                             150.00
P90 ITL (ms):                                190.00
P99 ITL (ms):                                199.00
--------------------End-to-end Latency--------------------
Mean E2EL (ms):                              525.00
Median E2EL (ms):                            525.00
P90 E2EL (ms):                               745.00
P99 E2EL (ms):                               794.50
-------------------------Requests-------------------------
Trace rows read:                             7
  failed in the traced system:               2
  dropped:                                   1
    zero output tokens:                      1
  replayed:                                  4
Rejected:                                    1
Abandoned by the client:                     0
Unfinished:                                  1
  prompt_exceeds_max_model_len:              1
  not_sent:                                  1
Outputs clipped at the model's length:       1
-------------------------KV Cache-------------------------
GPU memory:                                  80.00 GiB
- weights:                                   -13.00 GiB
Peak KV usage (%):                           50.00
Mean KV usage (%):                           -
Preemptions:                                 1
==========================================================
Note: result in runs/a
Note: prefix caching is off
Note: latencies leave out the requests that had not ended when the run did (1)
"""
    )


def test_deadlines_are_printed_if_anybody_has_one():
    trace = trace_of(LOG, rows=READ, deadline_ns=np.array([800_000_000, 1, -1, -1]))
    assert "Deadlines kept (%):                          50.00\n" in summary_text(summarise(LOG, trace, version="1"))
    assert "Deadlines" not in summary_text(summary())


def test_an_overloaded_run_says_so_first():
    log = queue_log(np.arange(0, 2000, 5.0), service_ms=10)
    assert summary_text(summary(log)).startswith("OVERLOADED: arrivals outpace completions. ")


def test_a_stuck_run_says_why_next():
    log = tiny_log([Row(0, output=2, status=UNFINISHED, reason=3)], reasons=LOG.reasons, diagnosis="replica 0: why")
    first, second = summary_text(summary(log)).splitlines()[:2]
    assert (first, second) == ("STUCK: nothing could move any more and requests were left.", "replica 0: why")


def test_piped_output_is_the_plain_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # never wrapped
    print_summary(summary(), ledger=[("[bold]weights[/bold]", 1)])
    assert capsys.readouterr().out == summary_text(summary(), ledger=[("[bold]weights[/bold]", 1)])


@pytest.mark.parametrize("log", [tiny_log([]), tiny_log([Row(None, status=UNFINISHED)])])
def test_a_run_in_which_nothing_finished_prints_dashes(log):
    assert "Mean TTFT (ms):                              -\n" in summary_text(summary(log))
