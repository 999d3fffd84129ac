"""Times of single requests, and the exact percentiles of a pooled histogram."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.runlog import ABANDONED, REJECTED, UNFINISHED
from kvsim.metrics import histogram, latency
from tests.unit.metrics.tiny_log import Row, tiny_log

NAN = np.nan

LOG = tiny_log(
    [
        Row(100, (300, 350, 450, 500), scheduled=150),  # four tokens
        Row(200, (260,), scheduled=210, client_queue=40),  # one token
        Row(300, status=REJECTED, reason=1, ended=300),
        Row(400, (600, 640), output=5, scheduled=410, status=ABANDONED, ended=700),
        Row(500, (900,), output=3, scheduled=700, status=UNFINISHED),
        Row(None, status=UNFINISHED, reason=2, output=4),
    ],
    reasons=("", "prompt_exceeds_max_model_len", "not_sent"),
)


@pytest.mark.parametrize(
    ("of", "seconds"),
    [
        (latency.ttft_s, [0.2, 0.06, NAN, 0.2, 0.4, NAN]),
        (latency.e2el_s, [0.4, 0.06, NAN, NAN, NAN, NAN]),
        (latency.tpot_s, [0.2 / 3, NAN, NAN, NAN, NAN, NAN]),
        (latency.max_itl_s, [0.1, NAN, NAN, 0.04, NAN, NAN]),
        (latency.queue_s, [0.05, 0.01, NAN, 0.01, 0.2, NAN]),
        (latency.prefill_s, [0.15, 0.05, NAN, 0.19, 0.2, NAN]),
        (latency.decode_s, [0.2, 0.0, NAN, NAN, NAN, NAN]),
        (latency.inference_s, [0.35, 0.05, NAN, NAN, NAN, NAN]),
        (latency.normalized_tpot_s, [0.1, 0.06, NAN, NAN, NAN, NAN]),
        (latency.client_queue_s, [0.0, 0.04, 0.0, 0.0, 0.0, NAN]),
    ],
)
def test_definitions(of, seconds):
    np.testing.assert_array_equal(of(LOG), seconds)


def test_an_empty_log_has_empty_times():
    assert latency.tpot_s(tiny_log([])).shape == (0,)


values_and_counts = st.dictionaries(st.integers(1, 10**12), st.integers(1, 6), min_size=1, max_size=12)


@given(values_and_counts, st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_histogram_percentiles_are_those_of_the_expanded_list(count_by_ns, levels):
    values = np.array(sorted(count_by_ns)) / 1e9
    counts = np.array([count_by_ns[ns] for ns in sorted(count_by_ns)])
    expanded = np.repeat(values, counts)
    assert histogram.percentiles(values, counts, levels) == np.percentile(expanded, levels, method="linear").tolist()
    assert histogram.mean(values, counts) == pytest.approx(expanded.mean(), rel=1e-12)
    assert histogram.std(values, counts) == pytest.approx(expanded.std(), rel=1e-9, abs=1e-12 * expanded.max())


@pytest.mark.parametrize("of", [lambda *h: histogram.percentiles(*h, [50]), histogram.mean, histogram.std])
def test_an_empty_histogram_has_no_statistics(of):
    with pytest.raises(ValueError, match="empty histogram"):
        of(np.zeros(0), np.zeros(0, np.int64))
