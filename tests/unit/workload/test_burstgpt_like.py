"""burstgpt_like against what is published about BurstGPT_1 as a whole."""

from pathlib import Path

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.workload.generate import burstgpt_like, burstgpt_like_days, burstgpt_like_rows
from kvsim.workload.generate.arrivals import BURSTGPT_DAY
from tests.unit.workload.burstgpt_aggregates import PUBLISHED, aggregates, table

DOCS = Path(__file__).parents[3] / "docs" / "workloads.md"


@pytest.fixture(scope="module")
def of_seed_0() -> dict[str, float]:
    return aggregates(burstgpt_like_rows(seed=0))


def test_the_table_in_the_docs_is_what_comes_out(of_seed_0: dict[str, float]) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for line in table(of_seed_0):
        assert line in text, "run: python -m tests.unit.workload.burstgpt_aggregates"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_61_days_have_the_published_aggregates(seed: int, of_seed_0: dict[str, float]) -> None:
    found = aggregates(burstgpt_like_rows(seed=seed)) if seed else of_seed_0
    wrong = {
        name: (found[name], published)
        for name, (published, allowed) in PUBLISHED.items()
        if allowed is not None and abs(found[name] / published - 1) > allowed
    }
    assert not wrong


def test_the_published_aggregates_are_those_of_the_trace(shared_data: Path) -> None:
    """What can be computed from the whole-file totals per day and hour."""
    daily = np.loadtxt(shared_data / "traces/burstgpt/BurstGPT_1_daily.csv", delimiter=",", skiprows=1)
    hours = np.loadtxt(shared_data / "traces/burstgpt/BurstGPT_1_hour_of_day.csv", delimiter=",", skiprows=1)[:, 1]
    rows, tokens = daily[:, 1], daily[:, 2]
    size = tokens / rows
    computed = {
        "rows in 61 days": rows.sum(),
        "tokens per row, mean of all rows": tokens.sum() / rows.sum(),
        "rows per day, median": np.median(rows),
        "rows per day, least": rows.min(),
        "rows per day, most": rows.max(),
        "rows per day, CV": rows.std() / rows.mean(),
        "share of the busiest 5 days": np.sort(rows)[-5:].sum() / rows.sum(),
        "tokens per row by day, median": np.median(size),
        "tokens per row by day, least": size.min(),
        "tokens per row by day, most": size.max(),
        "rows in the busiest hour of the day, mean": hours.max(),
        "busiest hour / quietest hour": hours.max() / hours.min(),
        "first week: tokens/s by minute, mean": tokens[:7].sum() / (7 * 86_400),
        "days 0 to 8: tokens per row, mean": tokens[:9].sum() / rows[:9].sum(),
    }
    for name, value in computed.items():
        assert float(value) == pytest.approx(PUBLISHED[name][0], rel=0.02), name  # published to two or three digits
    assert hours.tolist() == list(BURSTGPT_DAY)
    # conversation alone before day 9: all 27,873 rows of these days are at most the 27,737 + 136 of the first 59,999
    assert rows[:9].sum() == 27_873


def test_every_hour_of_the_day_has_its_share() -> None:
    rows = burstgpt_like_rows(seed=4)
    per_hour = np.bincount(rows.timestamp_s % 86_400 // 3600, minlength=24) / 61
    assert per_hour == pytest.approx(np.array(BURSTGPT_DAY), rel=0.15)


def test_api_traffic_comes_in_bursts_and_conversation_hardly() -> None:
    """Within the hour of most traffic: variance over mean of requests per minute."""
    rows = burstgpt_like_rows(20, seed=6)
    midday = rows.timestamp_s % 86_400 // 3600 == 14
    for conversation, least, most in ((True, 0.9, 2.5), (False, 30.0, 1e9)):
        minutes = rows.timestamp_s[midday & (rows.conversation == conversation)] // 60
        hours = [np.arange(day * 1440 + 840, day * 1440 + 901) for day in range(9, 20)]
        per_minute = [np.histogram(minutes, bins=hour)[0] for hour in hours]
        dispersion = np.mean([m.var() / m.mean() for m in per_minute if m.sum() > 20])
        assert least < float(dispersion) < most


def test_conversation_resembles_the_published_first_rows(shared_data: Path) -> None:
    """The first 400 rows (398 of conversation) beside nine generated days: lengths, models, gaps."""
    file = shared_data / "traces/burstgpt/BurstGPT_1_head400.csv"
    real = np.genfromtxt(file, delimiter=",", names=True, dtype=None, encoding="utf-8")
    ours = burstgpt_like_rows(9, seed=5)
    for name, column in (("Request_tokens", ours.request_tokens), ("Response_tokens", ours.response_tokens)):
        theirs = real[name][real["Response_tokens"] > 0]
        mine = column[ours.response_tokens > 0]
        assert np.percentile(mine, [50, 75]) == pytest.approx(np.percentile(theirs, [50, 75]), rel=0.35)
        assert float(mine.mean()) == pytest.approx(float(theirs.mean()), rel=0.35)
    assert float(ours.gpt4.mean()) == pytest.approx(float((real["Model"] == "GPT-4").mean()), abs=0.02)
    within_hours = [np.diff(real["Timestamp"][real["Timestamp"] // 3600 == hour]) for hour in range(11)]
    cv = np.mean([gaps.std() / gaps.mean() for gaps in within_hours if len(gaps) > 9])
    gaps = np.diff(ours.timestamp_s[ours.timestamp_s // 3600 == 14])
    assert float(gaps.std() / gaps.mean()) == pytest.approx(float(cv), rel=0.25)


def test_a_day_depends_on_its_number_and_the_seed_alone() -> None:
    whole = burstgpt_like_rows(12, seed=7)
    (last,) = burstgpt_like_days(1, start_day=11, seed=7)
    part = whole[np.flatnonzero(whole.timestamp_s // 86_400 == 11)]
    assert part.timestamp_s.tolist() == last.timestamp_s.tolist()
    assert part.response_tokens.tolist() == last.response_tokens.tolist()
    afternoon = burstgpt_like_rows(1, start_day=11, start_hour=15, rows=100, seed=7)
    assert (
        afternoon.timestamp_s.tolist() == part.timestamp_s[part.timestamp_s >= 11 * 86_400 + 15 * 3600][:100].tolist()
    )
    assert burstgpt_like_rows(1, seed=8).timestamp_s.tolist() != burstgpt_like_rows(1, seed=7).timestamp_s.tolist()


def test_seasons_follow_each_other_and_the_rate_multiplies() -> None:
    rows = burstgpt_like_rows(3, start_day=60, rate=0.1, seed=1)
    assert set((rows.timestamp_s // 86_400).tolist()) == {60, 61, 62}
    assert rows.conversation[rows.timestamp_s >= 61 * 86_400].all()  # a season begins quietly
    assert len(burstgpt_like_rows(20, rate=3.0, seed=1)) == pytest.approx(
        3 * len(burstgpt_like_rows(20, seed=1)), rel=0.05
    )


def test_as_a_trace_every_row_is_accounted_for() -> None:
    rows = burstgpt_like_rows(10, seed=2)
    trace = burstgpt_like(10, seed=2)
    assert trace.rows is not None
    assert trace.rows.read == len(rows)
    assert trace.rows.replayed == len(trace) == int((rows.response_tokens > 0).sum())
    assert trace.arrival_ns[0] == 0
    assert trace.model_names == ["ChatGPT", "GPT-4"]
    assert trace.tenant_names == ["API log", "Conversation log"]
    assert trace.source_failed is not None
    assert len(trace.source_failed) == trace.rows.source_failed


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"days": 0}, "days: 0 is too few"),
        ({"rows": 0}, "rows: 0 is too few"),
        ({"start_day": -1}, "start_day: -1 is not a day"),
        ({"start_hour": 24}, "start_hour: 24 is not an hour"),
        ({"rate": float("nan")}, "rate: nan is not a positive number"),
    ],
)
def test_impossible_arguments_are_refused(keys: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        burstgpt_like(**keys)  # type: ignore[arg-type]
