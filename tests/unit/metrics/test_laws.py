"""Laws on the log alone: they hold on a sound one and name what is broken in a wrong one."""

from dataclasses import replace

import numpy as np
import pytest

from kvsim.core.runlog import FINISHED, REJECTED, UNFINISHED
from kvsim.metrics.laws import broken_laws, in_system, littles_law, peak_in_system
from tests.unit.metrics.tiny_log import MS, Row, queue_log, timeline, tiny_log

ROWS = [
    Row(0, (20, 30, 40)),
    Row(10, (50,), scheduled=30),
    Row(10, status=REJECTED, reason=1, ended=10),
    Row(40, output=2, status=UNFINISHED),
]
SAMPLES = timeline((0, 0, 0, 1, 10), (10, 0, 1, 1, 10), (40, 0, 1, 1, 20), (50, 0, 1, 0, 0))
LOG = tiny_log(ROWS, reasons=("", "exceeds_kv_pool"), timeline=SAMPLES)


def test_who_is_in_the_system():
    at_ms = np.array([0, 9, 10, 39, 40, 49, 50, 1000])
    assert in_system(LOG, at_ms * MS).tolist() == [1, 1, 2, 2, 2, 2, 1, 1]  # at 40 one leaves as another arrives
    assert peak_in_system(LOG) == 2
    assert peak_in_system(LOG, from_ns=41 * MS) == 0
    assert peak_in_system(tiny_log([])) == 0


def test_littles_law_on_a_queue():
    log = queue_log(np.cumsum(np.random.default_rng(1).exponential(20, 400)), service_ms=10)
    every_ms = np.arange(0, int(log.end_ns / MS) + 2)
    waiting = [(t >= log.arrival_ns / MS).sum() - (t >= log.first_scheduled_ns / MS).sum() for t in every_ms]
    running = [(t >= log.first_scheduled_ns / MS).sum() - (t >= log.finish_ns / MS).sum() for t in every_ms]
    samples = [(t, 0, w, r, 0) for t, w, r in zip(every_ms, waiting, running, strict=True)]
    log = replace(log, timeline=timeline(*samples))
    in_queue, rate_times_stay = littles_law(log)
    assert in_queue == pytest.approx(rate_times_stay, rel=0.01)
    assert broken_laws(log) == []


def test_littles_law_in_numbers():
    # requests 0, 1 and 3 stay 40, 40 and 10 ms of the 50 that the timeline spans; the samples say 1, 2, 2 requests
    assert littles_law(LOG) == ((1 * 10 + 2 * 30 + 2 * 10) / 50, (40 + 40 + 10) / 50)


def test_littles_law_needs_a_span():
    with pytest.raises(ValueError, match="spans no time"):
        littles_law(tiny_log(ROWS))


def test_a_sound_log_breaks_nothing():
    assert broken_laws(LOG) == []
    assert broken_laws(tiny_log([])) == []


def column(name, row, value):
    changed = getattr(LOG, name).copy()
    changed[row] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("change", "law"),
    [
        (column("first_token_ns", 1, 60 * MS), "first token <= finish: not in 1 rows, first row 1"),
        (column("first_scheduled_ns", 1, 5 * MS), "queued <= first scheduled: not in 1 rows, first row 1"),
        (column("finish_ns", 3, 60 * MS), "ended <=> has a finish time: not in 1 rows, first row 3"),
        (column("reason", 2, 0), "a rejected request has a reason: not in 1 rows, first row 2"),
        (column("output_tokens", 0, 4), "finished: tokens made = asked for: not in 1 rows, first row 0"),
        (column("generated_tokens", 1, 0), "tokens made = tokens delivered by second: 3 != 4"),
        (column("generated_tokens", 0, 2), "gaps pooled = tokens after the first: 2 != 1"),
        (column("status", 2, FINISHED), "finished: tokens made = asked for: not in 1 rows, first row 2"),
        ({"peak_used_blocks": (101,)}, "peak blocks <= total blocks: not in 1 rows, first row 0"),
        ({"total_blocks": (99,)}, "timeline: used + cached + free = total blocks: not in 4 rows, first row 0"),
        (
            {"timeline": timeline((0, 0, 0, 1, 10), (10, 0, 0, 1, 10))},
            "timeline: waiting + running = arrived - ended: not in 1 rows, first row 1",
        ),
    ],
)
def test_a_wrong_log_is_named(change, law):
    assert law in broken_laws(replace(LOG, **change))
