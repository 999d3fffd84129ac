"""Synthetic traces from published statistics, seeded: the same arguments give the same bytes.

    python -m kvsim.workload.generate burstgpt-like --rows 2000 --start-hour 8 --seed 1 --out burstgpt_like.csv
    python -m kvsim.workload.generate chat-sessions --sessions 100 --seed 1 --out chat_sessions.csv
    python -m kvsim.workload.generate lognormal-poisson --rows 10000 --rate 5.8 --seed 1 --out w.parquet

Each random quantity (arrivals, prompts, outputs, ...) has a child generator of its own, so that changing how one is
drawn leaves the others as they were.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.writers import write_csv, write_plain_csv, write_plain_parquet

# ---- BurstGPT, in figures (Wang et al., KDD '25, doi 10.1145/3711896.3737413; data CC-BY-4.0)

REQUESTS_PER_HOUR: Final = (
    *(940.3, 892.6, 571.6, 513.0, 368.2, 341.5, 193.8, 153.3, 177.7, 415.9, 878.8, 1286.5),  # 0h to 11h
    *(1744.3, 1501.1, 1795.9, 1401.1, 1475.5, 1355.8, 1181.2, 1567.6, 1352.8, 1175.0, 1129.0, 1025.8),
)
"""Mean requests in each hour of the day over the 61 days of BurstGPT_1 (a count over all its rows)."""

ARRIVAL_SHAPE: Final = 0.25
"""Gamma shape of the gaps between arrivals: default of the generator that the authors publish (``example/``)."""

GPT4_FRAC: Final = 9_505 / 59_999
CONVERSATION_FRAC: Final = 27_737 / 59_999
"""Shares in the first 59,999 rows of BurstGPT_1; the others are ChatGPT and API rows."""

FAILED_FRAC: Final = 0.0178
"""Rows without tokens in BurstGPT_1: 1 - 1,404.3k / 1,429.7k (README of the data set)."""

REQUEST_QUANTILES: Final = ((0.0, 0.5, 0.9, 0.95, 0.99, 1.0), (5, 74, 1291, 1697, 3023, 6142))
"""Request tokens in the first 59,999 rows of BurstGPT_1; the least is an assumption."""

RESPONSE_MEANS: Final = {
    "ChatGPT": ((30, 100, 300, 2000), (265, 160, 160, 450)),
    "GPT-4": ((30, 100, 300, 2000), (290, 150, 150, 410)),
}
"""Mean response to a conversation's request of so many tokens, straight lines between (``img/req-res.png``)."""

RESPONSE_SIGMA: Final = 0.381
"""ln(700 / 200) / (2 * 1.645): 5 and 95 % of the responses to 2,000 tokens, same figure."""

API_RESPONSE_MEDIAN, API_RESPONSE_SIGMA = 6.7, 0.5
"""Chosen so that all rows together have the median 14 of the first 59,999 rows: responses are bimodal."""

MAX_RESPONSE_TOKENS: Final = 7_315

# ---- sessions, from the first 400 rows of BurstGPT_3 (135 sessions)

SINGLE_TURN_FRAC: Final = 0.44
MORE_TURNS_MEAN: Final = (2.9 - 0.44) / 0.56 - 2  # beyond the second, so that the mean is 2.9 turns
MAX_TURNS: Final = 24
THINK_MEDIAN_S, THINK_SIGMA = 116.0, 1.928  # p90 1,372 s: ln(1372 / 116) / 1.2816
ANSWER_MEDIAN, ANSWER_SIGMA, MAX_ANSWER = 100.0, 1.222, 1_101  # p90 479 tokens: ln(4.79) / 1.2816


@dataclass(frozen=True)
class BurstGPTRows:
    """Rows in the columns of BurstGPT_1, shape (n,) each; failed rows have no tokens.

    ``timestamp_s`` int64, whole seconds since midnight of the first day; ``gpt4`` and ``conversation`` bool
    (otherwise ChatGPT, API); ``request_tokens``, ``response_tokens`` int64.
    """

    timestamp_s: NDArray[np.int64]
    gpt4: NDArray[np.bool_]
    request_tokens: NDArray[np.int64]
    response_tokens: NDArray[np.int64]
    conversation: NDArray[np.bool_]

    def write_csv(self, path: Path) -> None:
        """Write a file in the format of BurstGPT_1. Raises OSError if it cannot be written."""
        columns = {
            "Timestamp": self.timestamp_s.tolist(),
            "Model": np.where(self.gpt4, "GPT-4", "ChatGPT").tolist(),
            "Request tokens": self.request_tokens.tolist(),
            "Response tokens": self.response_tokens.tolist(),
            "Total tokens": (self.request_tokens + self.response_tokens).tolist(),
            "Log Type": np.where(self.conversation, "Conversation log", "API log").tolist(),
        }
        write_csv(columns, path)


def burstgpt_like(rows: int, *, start_hour: int = 0, rate: float = 1.0, seed: int = 0) -> BurstGPTRows:
    """Rows that look like BurstGPT_1, from midnight plus ``start_hour``, at ``rate`` times its mean day.

    Kept: the hourly profile, Gamma gaps (bursts, whole-second ties), shares of models, log types and failures,
    quantiles of request tokens, mean and spread of responses given the request, bimodal responses. Not kept:
    differences between days, API bursts apart from the rest, sessions. Sources stand beside the constants.
    Raises InputError for an argument out of range.
    """
    _at_least_1("rows", rows)
    _positive("rate", rate)
    if not 0 <= start_hour <= 23:
        raise InputError(f"{start_hour} is not an hour", key="start_hour", hint="allowed: whole numbers from 0 to 23")
    arrivals, kinds, requests, responses, failures = np.random.default_rng(seed).spawn(5)

    # Gaps with mean 1 in a time that runs with the profile: one unit per expected request.
    expected = np.concatenate(([0.0], np.cumsum(REQUESTS_PER_HOUR))) * rate
    clock = expected[start_hour] + np.cumsum(arrivals.gamma(ARRIVAL_SHAPE, 1 / ARRIVAL_SHAPE, rows))
    days, rest = np.divmod(clock, expected[-1])
    timestamp_s = days * 86_400 + np.interp(rest, expected, np.arange(25) * 3_600.0)

    gpt4 = kinds.random(rows) < GPT4_FRAC
    conversation = kinds.random(rows) < CONVERSATION_FRAC
    shares, tokens = REQUEST_QUANTILES
    request = np.rint(np.exp(np.interp(requests.random(rows), shares, np.log(tokens))))

    mean = np.where(gpt4, np.interp(request, *RESPONSE_MEANS["GPT-4"]), np.interp(request, *RESPONSE_MEANS["ChatGPT"]))
    median = np.where(conversation, mean * np.exp(-(RESPONSE_SIGMA**2) / 2), API_RESPONSE_MEDIAN)
    sigma = np.where(conversation, RESPONSE_SIGMA, API_RESPONSE_SIGMA)
    response = np.clip(np.rint(median * np.exp(sigma * responses.standard_normal(rows))), 1, MAX_RESPONSE_TOKENS)

    answered = failures.random(rows) >= FAILED_FRAC
    return BurstGPTRows(
        timestamp_s.astype(np.int64),
        gpt4,
        np.where(answered, request, 0).astype(np.int64),
        np.where(answered, response, 0).astype(np.int64),
        conversation,
    )


def chat_sessions(
    sessions: int,
    *,
    gap_s: float = 30.0,
    first_prompt_median: float = 80.0,
    message_median: float = 40.0,
    seed: int = 0,
) -> Trace:
    """Conversations whose every turn sends the whole history and a new message.

    Sessions start ``gap_s`` apart on average (exponential). Turns per session, think times and answers follow the
    first 400 rows of BurstGPT_3 (constants above); first prompts and later messages are lognormal, sigma 1, with the
    given medians in tokens. Unlike there, histories are never truncated. The recorded arrival of a later turn
    assumes that answers came at 40 tokens/s. Times are whole milliseconds, think times at most an hour.
    Raises InputError for an argument out of range.
    """
    _at_least_1("sessions", sessions)
    for name, value in (("gap_s", gap_s), ("prompt", first_prompt_median), ("message", message_median)):
        _positive(name, value)
    starts, lengths, messages, answers, pauses = np.random.default_rng(seed).spawn(5)

    start_s = np.concatenate(([0.0], np.cumsum(starts.exponential(gap_s, sessions - 1))))
    more = 2 + lengths.geometric(1 / (1 + MORE_TURNS_MEAN), sessions) - 1
    turns = np.minimum(np.where(lengths.random(sessions) < SINGLE_TURN_FRAC, 1, more), MAX_TURNS)
    rows: list[tuple[int, int, int, int, int]] = []  # arrival_ms, session, prompt, output, think_ms
    for session, count in enumerate(turns.tolist()):
        at_ms, history = round(start_s[session] * 1e3), 0
        for turn in range(count):
            median = message_median if turn else first_prompt_median
            prompt = history + max(1, round(median * np.exp(messages.standard_normal())))
            answer = ANSWER_MEDIAN * np.exp(ANSWER_SIGMA * answers.standard_normal())
            output = int(np.clip(round(answer), 1, MAX_ANSWER))
            pause = min(3_600.0, THINK_MEDIAN_S * np.exp(THINK_SIGMA * pauses.standard_normal()))
            think_ms = round(pause * 1e3) if turn else 0
            at_ms += think_ms
            rows.append((at_ms, session, prompt, output, think_ms))
            at_ms += output * 25
            history = prompt + output

    arrival_ms, session_ids, prompts, outputs, think = np.array(sorted(rows), np.int64).T
    return Trace(
        arrival_ms * 10**6,
        prompts,
        outputs,
        session=session_ids,
        think_ns=think * 10**6,
        session_names=[f"chat-{k:03d}" for k in range(sessions)],
        rows=TraceRows(read=len(rows)),
    )


def lognormal_poisson(
    n: int,
    rate_per_s: float = 5.8,
    *,
    prompt_mean: float = 512,
    prompt_sigma: float = 0.9,
    prompt_range: tuple[int, int] = (16, 3072),
    output_mean: float = 256,
    output_sigma: float = 0.7,
    output_range: tuple[int, int] = (8, 1000),
    seed: int = 0,
) -> Trace:
    """Poisson arrivals and lognormal lengths, clipped to a range and scaled so that the clipped mean is as given.

    The defaults are the recipe of the benchmark workloads w1 (n = 1,000) and w2 (n = 10,000).
    Raises InputError for an argument out of range.
    """
    _at_least_1("n", n)
    _positive("rate_per_s", rate_per_s)
    arrivals, prompts, outputs = np.random.default_rng(seed).spawn(3)
    gap_ns = np.rint(arrivals.exponential(1e9 / rate_per_s, n)).astype(np.int64)
    gap_ns[0] = 0
    return Trace(
        np.cumsum(gap_ns),
        _lognormal(prompts, n, prompt_mean, prompt_sigma, prompt_range),
        _lognormal(outputs, n, output_mean, output_sigma, output_range),
        rows=TraceRows(read=n),
    )


def _lognormal(
    rng: np.random.Generator, n: int, mean: float, sigma: float, bounds: tuple[int, int]
) -> NDArray[np.int64]:
    low, high = bounds
    if not 1 <= low <= mean <= high:
        raise InputError(f"mean {mean} is not in {low}..{high}", hint="allowed: 1 <= lowest <= mean <= highest")
    shape = np.exp(sigma * rng.standard_normal(n))
    scale = mean / float(shape.mean())
    for _ in range(20):  # clipping moves the mean; a few corrections bring it back
        scale *= mean / float(np.clip(shape * scale, low, high).mean())
    return np.rint(np.clip(shape * scale, low, high)).astype(np.int64)


def _at_least_1(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{value} is too few", key=name, hint="allowed: whole numbers from 1")


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise InputError(f"{value} is not a positive number", key=name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one trace, as the command line says. Returns the exit code: 0, or 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m kvsim.workload.generate", description="Write a synthetic trace.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    burst = kinds.add_parser("burstgpt-like", help="rows in the format and with the statistics of BurstGPT_1")
    burst.add_argument("--rows", type=int, default=2000)
    burst.add_argument("--start-hour", type=int, default=0, help="hour of the day at which it begins")
    burst.add_argument("--rate", type=float, default=1.0, help="multiple of BurstGPT_1's mean day (default 1)")
    chat = kinds.add_parser("chat-sessions", help="conversations with think times, history growing")
    chat.add_argument("--sessions", type=int, default=100)
    poisson = kinds.add_parser("lognormal-poisson", help="Poisson arrivals, lognormal lengths")
    poisson.add_argument("--rows", type=int, default=10_000)
    poisson.add_argument("--rate", type=float, default=5.8, help="requests per second (default 5.8)")
    for kind in (burst, chat, poisson):
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--out", type=Path, required=True, help="file to write; .parquet gives Parquet")
    given = parser.parse_args(arguments)

    parquet = given.out.suffix == ".parquet"
    try:
        if given.kind == "burstgpt-like":
            if parquet:
                raise InputError("burstgpt-like writes CSV", key="--out", hint="name a .csv file")
            burstgpt_like(given.rows, start_hour=given.start_hour, rate=given.rate, seed=given.seed).write_csv(
                given.out
            )
            return 0
        if given.kind == "chat-sessions":
            trace = chat_sessions(given.sessions, seed=given.seed)
        else:
            trace = lognormal_poisson(given.rows, given.rate, seed=given.seed)
        (write_plain_parquet if parquet else write_plain_csv)(trace, given.out)
    except (InputError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
