"""What the recorder does to keep memory low changes nothing that the log says."""

from collections import Counter

import numpy as np
import pytest

from kvsim.engine import books, recorder
from kvsim.engine.recorder import Recorder, RequestColumns
from tests.worlds import assert_equal_logs, replica, requests, world


def test_tokens_by_second_add_up_in_whatever_order_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds come again in later packs, also much later, and outgrow the first table many times over."""
    monkeypatch.setattr(recorder, "PACK_AT", 4)
    rng = np.random.default_rng(0)
    kept = Recorder(RequestColumns(requests((0, 1, 1)), sent_later=False, handed_on=False))
    expected: Counter[int] = Counter()
    for around in (5, 0, 9, 300, 290, 310, 2, 1_000):
        for second in rng.integers(around, around + 40, 60).tolist():
            kept.tokens_by_second[second] += 3
            expected[second] += 3
        kept.pack_seconds()
    seconds = kept.seconds()
    assert seconds.second.tolist() == sorted(expected)
    assert seconds.tokens.tolist() == [expected[second] for second in sorted(expected)]


def test_packing_more_often_gives_the_same_log(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(0.7 * i, 20, 1 + i % 50) for i in range(200)]
    tiny = world(requests(*rows), replica(replicas=3))
    log = tiny.simulate()
    assert len(log.tokens_by_second.second) > 100
    monkeypatch.setattr(books, "PACK_AT", 2)
    assert_equal_logs(log, tiny.simulate())


def test_the_log_shares_what_the_trace_says_and_leaves_it_alone() -> None:
    trace = requests((0.0, 20, 5), (1.0, 20, 90), (2.0, 99, 9))
    log = world(trace, max_model_len=200).simulate()
    assert log.arrival_ns is log.queued_ns is trace.arrival_ns
    assert log.output_tokens is log.generated_tokens is trace.output_tokens
    log = world(trace, max_model_len=100).simulate()
    assert (log.output_tokens.tolist(), log.clipped) == ([5, 80, 1], 2)
    assert trace.output_tokens.tolist() == [5, 90, 9]
    log = world(trace, horizon_ns=1_500_000_000).simulate()
    assert log.arrival_ns.tolist() == [0, 1_000_000_000, -1]
    assert trace.arrival_ns.tolist() == [0, 1_000_000_000, 2_000_000_000]
