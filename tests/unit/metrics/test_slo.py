"""Bounds are inclusive, all must hold, and only finished requests can meet them."""

import numpy as np
import pytest

from kvsim.core.runlog import UNFINISHED
from kvsim.metrics.slo import Slo, good, met
from tests.unit.metrics.tiny_log import Row, tiny_log

LOG = tiny_log(
    [
        Row(0, (100, 120, 160)),  # ttft 100, tpot 30, largest gap 40, e2el 160, normalized tpot 53.33
        Row(0, (250,)),  # ttft = e2el = 250, one token
        Row(0, (80, 90), output=3, status=UNFINISHED),
    ]
)


@pytest.mark.parametrize(
    ("slo", "meet"),
    [
        (Slo(ttft_ms=100), [True, False, False]),
        (Slo(ttft_ms=99.999999), [False, False, False]),
        (Slo(tpot_ms=30), [True, True, False]),  # one token meets any TPOT
        (Slo(tpot_ms=29.999999), [False, True, False]),
        (Slo(itl_ms=40), [True, True, False]),  # the largest gap, not the mean
        (Slo(itl_ms=39), [False, True, False]),
        (Slo(e2el_ms=160), [True, False, False]),
        (Slo(normalized_tpot_ms=53.4), [True, False, False]),
        (Slo(ttft_ms=250, tpot_ms=20), [False, True, False]),
    ],
)
def test_bounds(slo, meet):
    np.testing.assert_array_equal(good(LOG, slo), meet)


def test_each_bound_is_also_told_apart():
    keeps = met(LOG, Slo(ttft_ms=250, tpot_ms=20))
    assert {name: mask.tolist() for name, mask in keeps.items()} == {
        "ttft": [True, True, False],
        "tpot": [False, True, False],
    }


def test_no_bounds_no_goodput():
    assert good(LOG, Slo()) is None


def test_bounds_there_and_back():
    assert Slo.of({"ttft": 500, "itl": 60}) == Slo(ttft_ms=500, itl_ms=60)
    assert Slo(ttft_ms=500, itl_ms=60).bounds() == {"ttft": 500, "itl": 60}
