"""The flat summary: its keys, its order, and every figure of a run small enough to do by hand."""

import json

import numpy as np
import pytest

from kvsim.core.runlog import ABANDONED, REJECTED, UNFINISHED
from kvsim.core.trace import TraceRows
from kvsim.metrics.slo import Slo
from kvsim.metrics.summary import summarise
from tests.unit.metrics.tiny_log import Row, timeline, tiny_log, trace_of

REASONS = ("", "prompt_exceeds_max_model_len", "not_sent")
ROWS = [
    Row(0, (500, 600, 800), prompt=100, scheduled=100, preemptions=1, swaps=1, swapped_tokens=102),
    Row(1000, (1250,), prompt=50, scheduled=1100, client_queue=500),
    Row(1500, prompt=9000, status=REJECTED, reason=1, ended=1500),
    Row(2000, (2400, 2500), prompt=80, output=9, status=ABANDONED, ended=3000),
    Row(2500, (2900, 3000, 3100, 3200, 3300), prompt=70),
    Row(None, prompt=10, status=UNFINISHED, reason=2, output=4),
]
SAMPLES = timeline((0, 0, 0, 1, 20), (1000, 0, 1, 1, 40), (2000, 0, 0, 2, 60), (9000, 0, 0, 0, 0))
LOG = tiny_log(ROWS, reasons=REASONS, timeline=SAMPLES, clipped=1, copy_ns=(250_000_000,))
ROWS_READ = TraceRows(read=9, source_failed=2, dropped={"zero output tokens": 1})
SLO = Slo(ttft_ms=400, tpot_ms=100)


def summary(log=LOG, **options):
    return summarise(log, trace_of(log, rows=ROWS_READ, sha256="abc"), version="1.2.3", **options)


def test_the_whole_summary():
    assert summary(
        slo=SLO,
        gpus=2,
        label="a",
        model_id="m",
        max_concurrency=3,
        seed=7,
        scenario_hash="h",
        engine_preset="vllm@0.33",
    ) == {
        "backend": "kvsim",
        "label": "a",
        "model_id": "m",
        "tokenizer_id": None,
        "num_prompts": 6,
        "request_rate": 4 / 2.5,  # ready at 0, 0.5, 1.5, 2 and 2.5 s
        "burstiness": None,
        "max_concurrency": 3,
        "duration": 3.3,
        "completed": 3,
        "failed": 3,
        "total_input_tokens": 220,
        "total_output_tokens": 9,
        "request_throughput": 3 / 3.3,
        "request_goodput": 2 / 3.3,
        "output_throughput": 9 / 3.3,
        "total_token_throughput": 229 / 3.3,
        "max_output_tokens_per_s": 4.0,  # 3000, 3100, 3200 and 3300 ms
        "max_concurrent_requests": 2,
        "mean_ttft_ms": pytest.approx((500 + 250 + 400) / 3),
        "median_ttft_ms": pytest.approx(400),
        "std_ttft_ms": pytest.approx(np.std([500, 250, 400])),
        "p90_ttft_ms": pytest.approx(480),
        "p95_ttft_ms": pytest.approx(490),
        "p99_ttft_ms": pytest.approx(498),
        "mean_tpot_ms": pytest.approx(125),  # 150 and 100; the single token has none
        "median_tpot_ms": pytest.approx(125),
        "std_tpot_ms": pytest.approx(25),
        "p90_tpot_ms": pytest.approx(145),
        "p95_tpot_ms": pytest.approx(147.5),
        "p99_tpot_ms": pytest.approx(149.5),
        "mean_itl_ms": pytest.approx(800 / 7),  # 100, 200, 100 (abandoned), 100, 100, 100, 100
        "median_itl_ms": pytest.approx(100),
        "std_itl_ms": pytest.approx(np.std([100] * 6 + [200])),
        "p90_itl_ms": pytest.approx(140),
        "p95_itl_ms": pytest.approx(170),
        "p99_itl_ms": pytest.approx(194),
        "mean_e2el_ms": pytest.approx(1850 / 3),
        "median_e2el_ms": pytest.approx(800),
        "std_e2el_ms": pytest.approx(np.std([800, 250, 800])),
        "p90_e2el_ms": pytest.approx(800),
        "p95_e2el_ms": pytest.approx(800),
        "p99_e2el_ms": pytest.approx(800),
        "slo_attainment": 2 / 5,  # of those that arrived
        "slo_attainment_by_metric": {"ttft": 2 / 5, "tpot": 2 / 5},
        "concurrency": pytest.approx(1.85 / 3.3),
        "kvsim": {
            "schema_version": 1,
            "version": "1.2.3",
            "seed": 7,
            "scenario_hash": "h",
            "trace_sha256": "abc",
            "engine_preset": "vllm@0.33",
            "stability": "stable",
            "diagnosis": None,
            "percentile_method": "linear",
            "measured_from_s": 0.0,
            "measured_to_s": 3.3,
            "excluded_requests": 0,
            "num_preemptions": 1,
            "num_swaps": 1,
            "recomputed_tokens": 0,
            "swapped_tokens": 102,
            "swap_s": 0.25,
            "prefix_cache_hit_frac": None,
            "peak_kv_usage_frac": 0.5,
            "mean_kv_usage_frac": 0.4,  # the instant at 9 s is after the window
            "gpu_hours": 2 * 3.3 / 3600,
            "slo": {"ttft": 400, "tpot": 100},
            "token_goodput": (50 + 1 + 70 + 5) / 3.3,
            "goodput_output_throughput": 6 / 3.3,
            "deadline_attainment": None,
            "deadline_goodput": None,
            "trace_rows": {
                "read": 9,
                "replayed": 6,
                "source_failed": 2,
                "dropped": 1,
                "clipped": 1,
                "dropped_by_reason": {"zero output tokens": 1},
            },
            "requests_by_status": {"finished": 3, "rejected": 1, "abandoned": 1, "unfinished": 1},
            "requests_by_reason": {"prompt_exceeds_max_model_len": 1, "not_sent": 1},
            "replica_roles": ["mixed"],
            "steps": 7,
            "events": 11,
            "approximation": [
                "itl includes the gaps of requests that did not finish (1)",
                "latencies leave out the requests that had not ended when the run did (1)",
            ],
        },
    }


def test_keys_stand_in_the_order_of_vllm():
    statistics = [
        f"{statistic}_{name}_ms"
        for name in ("ttft", "tpot", "itl", "e2el")
        for statistic in ("mean", "median", "std", "p90", "p95", "p99")
    ]
    assert list(summary()) == [
        *("backend", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "burstiness"),
        *("max_concurrency", "duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
        *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
        *("max_output_tokens_per_s", "max_concurrent_requests"),
        *statistics,
        *("slo_attainment", "slo_attainment_by_metric", "concurrency", "kvsim"),
    ]


def test_without_slo_goodput_is_unknown():
    bare = summary()
    goodput = [bare[key] for key in ("request_goodput", "slo_attainment", "slo_attainment_by_metric")]
    assert goodput == [None, None, None]
    assert bare["kvsim"]["slo"] is bare["kvsim"]["token_goodput"] is None


def test_deadlines_count_for_those_that_have_one_and_arrived():
    # kept, missed, rejected, none, none, never sent
    deadline_ns = np.array([800_000_000, 249_999_999, 5_000_000_000, -1, -1, 9])
    trace = trace_of(LOG, deadline_ns=deadline_ns)
    own = summarise(LOG, trace, version="1")["kvsim"]
    assert (own["deadline_attainment"], own["deadline_goodput"]) == (1 / 3, 1 / 3.3)
    later = summarise(LOG, trace, version="1", warmup_s=0.5)["kvsim"]
    assert (later["deadline_attainment"], later["deadline_goodput"]) == (0.0, 0.0)
    nobody = summarise(LOG, trace_of(LOG, deadline_ns=np.full(6, -1)), version="1")["kvsim"]
    assert nobody["deadline_attainment"] is nobody["deadline_goodput"] is None


def test_every_statistic_can_be_recomputed_from_the_columns():
    from kvsim.metrics.latency import e2el_s, finished

    values = e2el_s(LOG)[finished(LOG)]
    assert summary()["p95_e2el_ms"] == float(np.percentile(values, 95)) * 1e3


def test_a_warm_up_is_cut_by_arrival():
    cut = summary(warmup_s=1.5, slo=SLO)
    kvsim = cut["kvsim"]
    assert (cut["num_prompts"], cut["completed"], cut["failed"], kvsim["excluded_requests"]) == (6, 1, 3, 2)
    assert (kvsim["measured_from_s"], kvsim["measured_to_s"], cut["duration"]) == (1.5, 3.3, pytest.approx(1.8))
    assert (cut["mean_ttft_ms"], cut["total_input_tokens"]) == (pytest.approx(400), 70)
    assert cut["slo_attainment"] == 1 / 3
    assert kvsim["num_preemptions"] == 0
    assert kvsim["approximation"][0].startswith(
        "itl, max_output_tokens_per_s and peak_kv_usage_frac are pooled over all"
    )


@pytest.mark.parametrize(
    "log",
    [
        tiny_log([]),
        tiny_log([Row(0, status=REJECTED, reason=1, ended=0)], reasons=REASONS),
        tiny_log([Row(None, status=UNFINISHED, reason=2)], reasons=REASONS),
        tiny_log([Row(0, (0,))]),
    ],
    ids=["no request", "all rejected", "none sent", "no time passes"],
)
def test_what_is_empty_is_null_never_zero_or_nan(log):
    nothing = summary(log, slo=SLO, gpus=1)
    json.dumps(nothing, allow_nan=False)
    unknown = [
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "mean_tpot_ms",
        "median_itl_ms",
        "request_rate",
    ]
    assert [nothing[key] for key in unknown] == [None] * len(unknown)


def test_all_at_once_is_an_infinite_rate():
    assert summary(tiny_log([Row(0, (100,)), Row(0, (200,))]))["request_rate"] == "inf"


def test_rows_of_a_trace_made_in_python_are_all_read():
    log = tiny_log([Row(0, (100,))])
    rows = summarise(log, trace_of(log), version="1")["kvsim"]["trace_rows"]
    assert rows == {
        "read": 1,
        "replayed": 1,
        "source_failed": 0,
        "dropped": 0,
        "clipped": 0,
        "dropped_by_reason": {},
    }
