"""What is published about BurstGPT_1 as a whole, and the same figures of any rows in its columns.

python -m tests.unit.workload.burstgpt_aggregates     # prints the table of docs/workloads.md
"""

import numpy as np

from kvsim.workload.generate import BurstGPTRows, burstgpt_like_rows

PUBLISHED: dict[str, tuple[float, float | None]] = {
    "rows in 61 days": (1_429_737, 0.10),
    "failed rows": (0.0178, 0.10),
    "request tokens, mean of answered rows": (621, 0.10),
    "response tokens, mean of answered rows": (126, 0.10),
    "tokens per row, mean of all rows": (733.9, 0.10),
    "rows per day, median": (14_457, 0.10),
    "rows per day, least": (1_576, 0.25),
    "rows per day, most": (149_520, 0.25),
    "rows per day, CV": (1.13, 0.25),
    "share of the busiest 5 days": (0.32, 0.25),
    "tokens per row by day, median": (756, 0.25),
    "tokens per row by day, least": (224, 0.25),
    "tokens per row by day, most": (2_441, 0.25),
    "rows in the busiest hour of the day, mean": (1_796, 0.10),
    "busiest hour / quietest hour": (11.7, 0.25),
    "tokens/s by minute, mean of non-empty minutes": (287, 0.10),
    "tokens/s by minute, p99 of non-empty minutes": (3_670, 0.25),
    "tokens/s by minute, peak": (7_311, 0.25),
    "first week: empty minutes of 10,080": (3_714, 0.25),
    "first week: tokens/s by minute, mean": (28.0, 0.10),
    "first week: tokens/s by minute, CV": (1.32, 0.25),
    "first week: tokens/s by minute, p50": (13.7, 0.25),
    "first week: tokens/s by minute, p99": (150.8, 0.25),
    "first week: tokens/s by minute, peak": (540, None),
    "days 0 to 8: tokens per row, mean": (870.5, 0.10),
    "first 59,999 rows: GPT-4": (9_505 / 59_999, 0.10),
    "first 59,999 rows: conversation": (27_737 / 59_999, None),
}
"""Figure -> published value, and how far a generated one may be from it (None: shown, not held)."""


def aggregates(rows: BurstGPTRows) -> dict[str, float]:
    """The figures of ``PUBLISHED`` for 61 days of rows."""
    tokens = rows.request_tokens + rows.response_tokens
    answered = rows.response_tokens > 0
    day, minute = rows.timestamp_s // 86_400, rows.timestamp_s // 60
    per_day = np.bincount(day, minlength=61)
    day_tokens = np.bincount(day, weights=tokens, minlength=61) / per_day
    per_hour = np.bincount(rows.timestamp_s % 86_400 // 3600, minlength=24) / 61
    tokens_per_s = np.bincount(minute, weights=tokens, minlength=61 * 1440) / 60
    occupied = np.bincount(minute, minlength=61 * 1440) > 0
    busy, week = tokens_per_s[occupied], tokens_per_s[:10_080]
    found = (
        len(rows),
        1 - answered.mean(),
        rows.request_tokens[answered].mean(),
        rows.response_tokens[answered].mean(),
        tokens.mean(),
        np.median(per_day),
        per_day.min(),
        per_day.max(),
        per_day.std() / per_day.mean(),
        np.sort(per_day)[-5:].sum() / per_day.sum(),
        np.median(day_tokens),
        day_tokens.min(),
        day_tokens.max(),
        per_hour.max(),
        per_hour.max() / per_hour.min(),
        busy.mean(),
        np.percentile(busy, 99),
        busy.max(),
        (~occupied[:10_080]).sum(),
        week.mean(),
        week.std() / week.mean(),
        np.median(week),
        np.percentile(week, 99),
        week.max(),
        tokens[day < 9].mean(),
        rows.gpt4[:59_999].mean(),
        rows.conversation[:59_999].mean(),
    )
    return {name: float(value) for name, value in zip(PUBLISHED, found, strict=True)}


def shown(value: float) -> str:
    """Four digits, or all of a large number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(found: dict[str, float]) -> list[str]:
    """Lines of Markdown: figure, published, generated, deviation, allowed."""
    lines = ["| figure | published | generated | deviation | allowed |", "|---|---|---|---|---|"]
    for name, (published, allowed) in PUBLISHED.items():
        deviation = f"{found[name] / published - 1:+.1%}"
        limit = "none" if allowed is None else f"{allowed:.0%}"
        lines.append(f"| {name} | {shown(published)} | {shown(found[name])} | {deviation} | {limit} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(aggregates(burstgpt_like_rows(seed=0)))))
