"""Two whole workloads with few arguments: conversations, and the Poisson and lognormal of many benchmarks.

Each random quantity has a child generator of its own, so that changing how one is drawn leaves the others as they were.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows

# ---- sessions, from the first 400 rows of BurstGPT_3 (135 sessions)

SINGLE_TURN_FRAC: Final = 0.44
MORE_TURNS_MEAN: Final = (2.9 - 0.44) / 0.56 - 2  # beyond the second, so that the mean is 2.9 turns
MAX_TURNS: Final = 24
THINK_MEDIAN_S, THINK_SIGMA = 116.0, 1.928  # p90 1,372 s: ln(1372 / 116) / 1.2816
ANSWER_MEDIAN, ANSWER_SIGMA, MAX_ANSWER = 100.0, 1.222, 1_101  # p90 479 tokens: ln(4.79) / 1.2816


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
