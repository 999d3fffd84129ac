"""Rows that look like BurstGPT_1, season after season (Wang et al., KDD '25, doi 10.1145/3711896.3737413; CC-BY-4.0).

Two streams: *conversation* (people: daily and weekly rhythm, nearly Poisson) and *API* (programs: on and off, and from
day to day so different in volume and size that they make the whole file's mean). ``docs/workloads.md`` derives each
constant below and compares 61 days with the published aggregates.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import FailedRows, Trace, TraceRows
from kvsim.workload.generate.arrivals import BURSTGPT_DAY

DAY_S: Final = 86_400
SEASON_DAYS: Final = 61
"""Days of BurstGPT_1. A plan is made for so many at a time, so that their totals are as published."""

QUIET_DAYS: Final = 9
"""No API traffic before: 27,737 conversation rows of the first 59,999 are all of the 27,873 rows of days 0 to 8."""

# ---- conversation

TALK_PER_DAY: Final = (3389, 3172, 2659, 1576, 2099, 3176, 3360)
"""Rows of days 0 to 6, before there was API traffic: a week whose days 3 and 4 are a weekend."""

TALK_PROFILE: Final = (
    *(38, 11, 23, 5, 5, 5, 5, 10, 55, 161),  # 0h to 9h: rows of day 0 in each hour, 3h to 6h evened out
    *np.array(BURSTGPT_DAY[10:]) * (3389 - 318) / sum(BURSTGPT_DAY[10:]),  # then as all traffic
)
"""Shares of a conversation day by hour: nights are far emptier than in all traffic."""

TALK_SHAPE: Final = 0.8
"""Gamma shape of the gaps: CV 1.12, as within the hours of the first 400 rows (0.8 to 1.5)."""

TALK_REQUEST_QUANTILES: Final = (
    (0.0, 0.1, 0.25, 0.5, 0.795, 0.899, 0.980, 1.0),
    (5, 23, 68, 353, 1291, 1697, 3023, 6142),
)
"""Request tokens. To the median: first 400 rows. Above: quantiles of the first 59,999 rows, whose API half is short."""

RESPONSE_MEANS: Final = {
    "ChatGPT": ((30, 100, 300, 2000), (265, 160, 160, 450)),
    "GPT-4": ((30, 100, 300, 2000), (290, 150, 150, 410)),
}
"""Mean response to a conversation's request of so many tokens, straight lines between (``img/req-res.png``)."""

RESPONSE_SIGMAS: Final = ((100, 300, 2000), (1.0, 0.9, 0.381))
"""Spread of log response by request tokens: first 400 rows; at 2,000 the figure's 5 and 95 %, ln(700 / 200) / 3.29."""

TALK_GPT4_FRAC, TALK_FAILED_FRAC = 0.2, 0.0425
"""80 and 17 of the first 400 rows."""

# ---- API

API_ROWS: Final = 1_429_737 - round(SEASON_DAYS * sum(TALK_PER_DAY) / 7)
API_DAY_SHAPE: Final = 0.87
"""Weibull shape of a day's volume: CV over days, busiest five days and median at once (docs)."""

API_DAY_CORRELATION, API_SIZE_CORRELATION = 0.43, 0.62
"""From one day to the next: of log volume, of log size."""

API_SIZE_MEDIAN, API_SIZE_SIGMA = 660.0, 0.69
"""Of a day's mean tokens per API row, over the days: geometric mean, and standard deviation of the logarithm."""

MOST_TOKENS_PER_DAY: Final = 110e6
"""Of API rows; the published day with most tokens has 106.6 million. Orders of the days that exceed it, or that need
sizes changed by more than 10 % to have the right mean, are redrawn."""

API_REQUEST_MEAN, API_RESPONSE_MEAN = 620.0, 104.0
"""Tokens per answered row, so that all answered rows together have the published 621 and 126."""

API_REQUEST_SIGMA: Final = 1.2
SHORT_RESPONSE, SHORT_SIGMA = 6.7, 0.5
LONG_RESPONSE, LONG_SIGMA = 300.0, 0.6
"""Responses are bimodal: labels of a few tokens (the published first 59,999 rows have median 14), and texts."""

API_GPT4_FRAC: Final = (9_505 - TALK_GPT4_FRAC * 27_737) / 32_262
API_FAILED_FRAC: Final = 0.0143
"""So that all rows together have the published 1.78 %."""

ON_MINUTES, OFF_MINUTES, ON_SIGMA = 6.0, 14.0, 0.4
"""Mean length of an on and an off phase, and sigma of the level of an on phase."""

PEAK_TOKENS_PER_MINUTE: Final = 5_400 * 60
"""Above it a phase is stretched in time, as by a rate limit: the published peak is 7,311 tokens/s over a minute."""

API_SHAPE: Final = 0.25
"""Gamma shape of the gaps within a phase: default of the generator that the authors publish (``example/``)."""

MAX_REQUEST, MAX_RESPONSE = 31_400, 12_500
"""Largest values of BurstGPT_1 and _2."""


@dataclass(frozen=True)
class BurstGPTRows:
    """Rows in the columns of BurstGPT_1, shape (n,) each; failed rows have no tokens.

    ``timestamp_s`` int64, whole seconds since midnight of day 0; ``gpt4`` and ``conversation`` bool (otherwise
    ChatGPT, API); ``request_tokens``, ``response_tokens`` int64.
    """

    timestamp_s: NDArray[np.int64]
    gpt4: NDArray[np.bool_]
    request_tokens: NDArray[np.int64]
    response_tokens: NDArray[np.int64]
    conversation: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.timestamp_s)

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "BurstGPTRows":
        return BurstGPTRows(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def trace(self) -> Trace:
        """The rows that were answered as a trace; the others are counted as ``source_failed``."""
        kept = self.response_tokens > 0
        if not kept.any():
            raise InputError("there is no answered row", hint="make more rows or days")
        first_s = int(self.timestamp_s[kept][0])
        columns: dict[str, Any] = {
            "arrival_ns": (self.timestamp_s - first_s) * 10**9,
            "prompt_tokens": self.request_tokens,
            "tenant": self.conversation.astype(np.int64),
            "model": self.gpt4.astype(np.int64),
        }
        return Trace(
            output_tokens=self.response_tokens[kept],
            **{name: column[kept] for name, column in columns.items()},
            tenant_names=["API log", "Conversation log"],
            model_names=["ChatGPT", "GPT-4"],
            origin_ns=first_s * 10**9,
            rows=TraceRows(read=len(kept), source_failed=int((~kept).sum())),
            source_failed=FailedRows(
                np.cumsum(kept, dtype=np.int64)[~kept], **{name: column[~kept] for name, column in columns.items()}
            ),
        )


def burstgpt_like_days(
    days: int = SEASON_DAYS, *, start_day: int = 0, start_hour: int = 0, rate: float = 1.0, seed: int = 0
) -> Iterator[BurstGPTRows]:
    """The rows of ``days`` days, one day at a time, so that memory does not grow with their number.

    ``rate`` multiplies the number of rows of every hour. A day's rows depend on the seed and the day alone.
    Raises InputError for an argument out of range.
    """
    if days < 1:
        raise InputError(f"{days} is too few", key="days", hint="allowed: whole numbers from 1")
    if start_day < 0:
        raise InputError(f"{start_day} is not a day", key="start_day", hint="allowed: whole numbers from 0")
    if not 0 <= start_hour <= 23:
        raise InputError(f"{start_hour} is not an hour", key="start_hour", hint="allowed: whole numbers from 0 to 23")
    if not 0 < rate < math.inf:
        raise InputError(f"{rate} is not a positive number", key="rate")
    return _days(days, start_day, start_hour, rate, seed)


def _days(days: int, start_day: int, start_hour: int, rate: float, seed: int) -> Iterator[BurstGPTRows]:
    plan = None
    for day in range(start_day, start_day + days):
        season, within = divmod(day, SEASON_DAYS)
        if plan is None or within == 0:
            plan = _Season.planned(np.random.default_rng([seed, season]))
        rows = plan.rows(within, rate, np.random.default_rng([seed, season, within]))
        rows = dataclasses.replace(rows, timestamp_s=rows.timestamp_s + day * DAY_S)
        if day == start_day:
            rows = rows[slice(int(np.searchsorted(rows.timestamp_s, day * DAY_S + start_hour * 3600)), None)]
        yield rows


def burstgpt_like_rows(
    days: int = SEASON_DAYS,
    *,
    rows: int | None = None,
    start_day: int = 0,
    start_hour: int = 0,
    rate: float = 1.0,
    seed: int = 0,
) -> BurstGPTRows:
    """The days of ``burstgpt_like_days`` in one piece; no more than the first ``rows`` rows if that is given."""
    if rows is not None and rows < 1:
        raise InputError(f"{rows} is too few", key="rows", hint="allowed: whole numbers from 1")
    parts, length = [], 0
    for part in burstgpt_like_days(days, start_day=start_day, start_hour=start_hour, rate=rate, seed=seed):
        parts.append(part)
        length += len(part)
        if rows is not None and length >= rows:
            break
    names = [field.name for field in dataclasses.fields(BurstGPTRows)]
    whole = BurstGPTRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return whole[slice(None, rows)]


def burstgpt_like(
    days: int = SEASON_DAYS,
    *,
    rows: int | None = None,
    start_day: int = 0,
    start_hour: int = 0,
    rate: float = 1.0,
    seed: int = 0,
) -> Trace:
    """The published aggregates of BurstGPT_1: its days, hours, bursts, lengths, failures; 1.43 million rows in 61 days.

    The first 9 days are conversation alone, as there; ``start_day: 9`` begins with API traffic.
    """
    return burstgpt_like_rows(days, rows=rows, start_day=start_day, start_hour=start_hour, rate=rate, seed=seed).trace()


@dataclass(frozen=True)
class _Season:
    """Expected API rows of every minute, (61, 1440), and mean tokens of an API row of each day, (61,)."""

    api_per_minute: NDArray[np.float64]
    api_size: NDArray[np.float64]

    @classmethod
    def planned(cls, rng: np.random.Generator) -> "_Season":
        volumes, sizes, phases, levels = rng.spawn(4)
        days = SEASON_DAYS - QUIET_DAYS
        # Quantiles of the fitted distributions, every one once: any season has their spread, the seed their order.
        u = (np.arange(days) + 0.5) / days
        volume = (-np.log1p(-u)) ** (1 / API_DAY_SHAPE)
        volume = (volume * API_ROWS / volume.sum())[_ranks(volumes, days, API_DAY_CORRELATION)]
        spread = API_SIZE_MEDIAN * np.exp(API_SIZE_SIGMA * _normal_quantiles(days))
        while True:  # about every fourth order will do
            size = spread[_ranks(sizes, days, API_SIZE_CORRELATION)]
            factor = (API_REQUEST_MEAN + API_RESPONSE_MEAN) * volume.sum() / (size * volume).sum()
            size *= factor
            if abs(factor - 1) <= 0.1 and (size * volume).max() <= MOST_TOKENS_PER_DAY:
                break

        level = _on_off(phases, levels, days * 1440).reshape(days, 24, 60)
        by_hour = level.sum(axis=2)
        talk = np.array(TALK_PROFILE) / sum(TALK_PROFILE) * sum(TALK_PER_DAY) / 7
        profile = np.maximum(np.array(BURSTGPT_DAY) - talk, 0)
        raked = _raked(by_hour, volume, profile * volume.sum() / profile.sum())
        scale = raked / np.where(by_hour > 0, by_hour, 1)
        quiet = np.zeros((QUIET_DAYS, 1440))
        per_minute = (level * scale[:, :, None]).reshape(days, 1440)
        per_minute = np.array([_capped(*day) for day in zip(per_minute, PEAK_TOKENS_PER_MINUTE / size, strict=True)])
        return cls(np.vstack((quiet, per_minute)), np.concatenate((np.zeros(QUIET_DAYS), size)))

    def rows(self, day: int, rate: float, rng: np.random.Generator) -> BurstGPTRows:
        """The rows of one day, times from its midnight."""
        talk, api = rng.spawn(2)
        profile = np.array(TALK_PROFILE) * (TALK_PER_DAY[day % 7] * rate / sum(TALK_PROFILE))
        people = _talk(_times(talk, np.repeat(profile / 60, 60), TALK_SHAPE), talk)
        programs = _api(_times(api, self.api_per_minute[day] * rate, API_SHAPE), self.api_size[day], api)
        order = np.argsort(np.concatenate((people.timestamp_s, programs.timestamp_s)), kind="stable")
        names = [field.name for field in dataclasses.fields(BurstGPTRows)]
        both = (np.concatenate((getattr(people, name), getattr(programs, name))) for name in names)
        return BurstGPTRows(*both)[order]


def _ranks(rng: np.random.Generator, n: int, correlation: float) -> NDArray[np.int64]:
    """An order of 0..n-1 in which neighbours are alike: the ranks of a Gaussian autoregression."""
    value = rng.standard_normal(n)
    for i in range(1, n):
        value[i] = correlation * value[i - 1] + math.sqrt(1 - correlation**2) * value[i]
    return np.argsort(np.argsort(value))


def _normal_quantiles(n: int) -> NDArray[np.float64]:
    return np.array([NormalDist().inv_cdf((i + 1) / (n + 1)) for i in range(n)])


def _on_off(phases: np.random.Generator, levels: np.random.Generator, minutes: int) -> NDArray[np.float64]:
    """Activity by minute: exponential on and off phases, each on phase at a lognormal level of its own."""
    count = 2 * int(minutes / (ON_MINUTES + OFF_MINUTES) * 1.5) + 100
    lengths = phases.exponential(1.0, count) * np.where(np.arange(count) % 2, ON_MINUTES, OFF_MINUTES)
    level = np.where(np.arange(count) % 2, np.exp(ON_SIGMA * levels.standard_normal(count)), 0.0)
    ends = np.cumsum(lengths)
    total = np.concatenate(([0.0], np.cumsum(level * lengths)))
    inside = np.interp(np.arange(minutes + 1), np.concatenate(([0.0], ends)), total)
    return np.diff(inside)


def _raked(
    table: NDArray[np.float64], row_sums: NDArray[np.float64], column_sums: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The table scaled by rows and columns in turn until both have these sums (iterative proportional fitting)."""
    for _ in range(100):
        table = table * (column_sums / table.sum(axis=0))
        table = table * (row_sums / table.sum(axis=1))[:, None]
    return table


def _capped(rows: NDArray[np.float64], most: float) -> NDArray[np.float64]:
    """A day's minutes with what exceeds ``most`` moved to its other busy minutes, then to all."""
    total = float(rows.sum())
    for _ in range(50):
        rows = np.minimum(rows, most)
        free = (rows > 0) & (rows < most)
        if not free.any() or total - rows.sum() < 1e-6 * total:
            break
        rows = np.where(free, rows * (1 + (total - rows.sum()) / rows[free].sum()), rows)
    spread: NDArray[np.float64] = rows + (total - rows.sum()) / len(rows)
    return spread


def _times(rng: np.random.Generator, per_minute: NDArray[np.float64], shape: float) -> NDArray[np.int64]:
    """Whole seconds of arrivals in a day: Gamma gaps with mean 1 in a time that runs with the expected rows."""
    expected = np.concatenate(([0.0], np.cumsum(per_minute)))
    total = float(expected[-1])
    if total == 0:
        return np.zeros(0, np.int64)
    clock = -rng.random() / shape  # starts between two arrivals
    times: list[NDArray[np.float64]] = []
    while clock < total:
        more = clock + np.cumsum(rng.gamma(shape, 1 / shape, int(total * 1.1 + 100)))
        times.append(more)
        clock = float(more[-1])
    at = np.concatenate(times)
    at = at[(at >= 0) & (at < total)]
    minute = np.interp(at, expected, np.arange(len(expected)))
    return np.minimum(minute * 60, DAY_S - 1).astype(np.int64)


def _talk(times: NDArray[np.int64], rng: np.random.Generator) -> BurstGPTRows:
    n = len(times)
    gpt4 = rng.random(n) < TALK_GPT4_FRAC
    shares, tokens = TALK_REQUEST_QUANTILES
    request = np.rint(np.exp(np.interp(rng.random(n), shares, np.log(tokens))))
    mean = np.where(gpt4, np.interp(request, *RESPONSE_MEANS["GPT-4"]), np.interp(request, *RESPONSE_MEANS["ChatGPT"]))
    sigma = np.interp(request, *RESPONSE_SIGMAS)
    response = mean * np.exp(sigma * rng.standard_normal(n) - sigma**2 / 2)
    return _answered(times, gpt4, request, response, rng.random(n) >= TALK_FAILED_FRAC, conversation=True)


def _api(times: NDArray[np.int64], size: float, rng: np.random.Generator) -> BurstGPTRows:
    """Requests lognormal around the day's mean; the larger they are, the more responses are texts, not labels."""
    n = len(times)
    scale = size / (API_REQUEST_MEAN + API_RESPONSE_MEAN)
    request_mean, response_mean = scale * API_REQUEST_MEAN, scale * API_RESPONSE_MEAN
    request = request_mean * np.exp(API_REQUEST_SIGMA * rng.standard_normal(n) - API_REQUEST_SIGMA**2 / 2)
    label_mean = SHORT_RESPONSE * math.exp(SHORT_SIGMA**2 / 2)
    long_frac = min(1.0, max(0.0, response_mean - label_mean) / (LONG_RESPONSE - label_mean))
    long_mean = max(LONG_RESPONSE, response_mean)
    label = SHORT_RESPONSE * np.exp(SHORT_SIGMA * rng.standard_normal(n))
    text = long_mean * np.exp(LONG_SIGMA * rng.standard_normal(n) - LONG_SIGMA**2 / 2)
    response = np.where(rng.random(n) < long_frac, text, label)
    gpt4 = rng.random(n) < API_GPT4_FRAC
    return _answered(times, gpt4, request, response, rng.random(n) >= API_FAILED_FRAC, conversation=False)


def _answered(
    times: NDArray[np.int64],
    gpt4: NDArray[np.bool_],
    request: NDArray[np.float64],
    response: NDArray[np.float64],
    answered: NDArray[np.bool_],
    *,
    conversation: bool,
) -> BurstGPTRows:
    request = np.clip(np.rint(request), 1, MAX_REQUEST)
    response = np.clip(np.rint(response), 1, MAX_RESPONSE)
    return BurstGPTRows(
        times,
        gpt4,
        np.where(answered, request, 0).astype(np.int64),
        np.where(answered, response, 0).astype(np.int64),
        np.full(len(times), conversation),
    )


def write_burstgpt_csv(parts: Iterator[BurstGPTRows], path: str | os.PathLike[str]) -> int:
    """Write parts one after the other in the format of BurstGPT_1; returns the number of rows.

    Raises OSError if the file cannot be written.
    """
    import pyarrow as pa

    from kvsim.workload.writers import write_arrow_csv

    def whole(values: NDArray[np.int64]) -> pa.Array:
        return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])

    def either(choice: NDArray[np.bool_], yes: str, no: str) -> pa.Array:
        index = pa.py_buffer(choice.astype(np.int8))
        return pa.DictionaryArray.from_arrays(
            pa.Array.from_buffers(pa.int8(), len(choice), [None, index]), pa.array([no, yes])
        ).cast(pa.string())

    rows = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal rows
        for part in parts:
            columns = {
                "Timestamp": whole(part.timestamp_s),
                "Model": either(part.gpt4, "GPT-4", "ChatGPT"),
                "Request tokens": whole(part.request_tokens),
                "Response tokens": whole(part.response_tokens),
                "Total tokens": whole(part.request_tokens + part.response_tokens),
                "Log Type": either(part.conversation, "Conversation log", "API log"),
            }
            yield pa.Table.from_arrays(list(columns.values()), names=list(columns))
            rows += len(part)

    write_arrow_csv(tables(), path)
    return rows
