"""What a pool's front end refuses is counted, with its reason."""

import pytest

from kvsim.metrics.laws import broken_laws
from kvsim.metrics.summary import summarise
from tests.worlds import Mode, assert_same, replica, requests, world


@pytest.mark.parametrize("mode", ["leap", "step"])
def test_refused_requests_are_counted_with_their_reason_over_all_replicas(mode: Mode) -> None:
    rows = [(0.0, 40, 100)] * 3 + [(0.001, 5, 1)] + [(0.1, 5, 1)] * 3
    pool = replica(replicas=2, max_num_queued_reqs=5, max_num_queued_tokens=100)
    tried = world(requests(*rows), pool)
    log = tried.simulate(mode)
    assert_same(log, tried.reference())
    assert broken_laws(log) == []
    assert [log.reasons[reason] for reason in log.reason] == [
        "", "", "", "max_num_queued_tokens", "", "", "max_num_queued_reqs"
    ]  # fmt: skip
    summary = summarise(log, tried.trace, version="")
    assert (summary["completed"], summary["failed"]) == (5, 2)
    by_reason = summary["kvsim"]["requests_by_reason"]
    assert {name: n for name, n in by_reason.items() if n} == {"max_num_queued_reqs": 1, "max_num_queued_tokens": 1}
    assert summary["kvsim"]["requests_by_status"]["rejected"] == 2
    counted = summary["kvsim"]["trace_rows"]
    assert counted["read"] == counted["replayed"] + counted["source_failed"] + counted["dropped"] == len(rows)


def test_limits_go_with_mixed_pools() -> None:
    pools = (replica(role="prefill", kv_bytes_per_token=1, max_num_queued_reqs=3), replica(role="decode"))
    with pytest.raises(ValueError, match="mixed pools only"):
        world(requests((0.0, 4, 4)), *pools, link=(1000, 0.0)).simulate()
