"""Requests that belong together: conversations whose history grows, agents that work in steps."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.workload.generate.distributions import (
    Constant,
    Distribution,
    Geometric,
    Lognormal,
    Mixture,
    Numbers,
    positive,
    refuse_none,
    whole,
)
from kvsim.workload.generate.lengths import Lengths

Column = NDArray[np.int64]

# First 400 rows of BurstGPT_3: 135 sessions, 44 % of one turn, mean 2.9; sigma = ln(p90 / p50) / 1.2816.
CHAT_TURNS: Final = Mixture((0.44, 0.56), (Constant(1), Geometric((2.9 - 0.44) / 0.56, least=2, most=24)))
CHAT_THINK_S: Final = Lognormal(1.928, median=116, most=3600)
CHAT_MESSAGE: Final = Lognormal(1.2, median=37)

# 577 recorded coding agents (kv-cache-tester).
AGENT_STEPS: Final = Lognormal(1.03, median=45, most=561)
AGENT_TOOL_S: Final = Lognormal(2.16, median=10, most=77_589)
AGENT_RESULT: Final = Lognormal(1.58, median=500)
CHILD_STEPS: Final = Geometric(10.5)
ONE: Final = Constant(1)


@dataclass(frozen=True)
class Turns:
    """One row per request, in no particular order; arrays have shape (n,).

    - ``arrival_s`` float64: the recorded time, if answers come at ``answer_tokens_per_s``
    - ``session`` int64, from 0; ``think_s`` float64: pause after what it waits for, 0 for the first of a session
    - ``prompt`` and ``output`` int64 tokens; ``prompt`` without a shared prefix
    - ``chain`` int64: rows of one chain extend each other, the longer prompt beginning with the shorter
    - ``parent`` int64: the row whose end started this session, -1 if none
    - ``waits_for`` (m, 2) int64: pairs (row, another row that must have ended before it besides its predecessor)
    """

    arrival_s: Numbers
    session: Column
    think_s: Numbers
    prompt: Column
    output: Column
    chain: Column
    parent: Column
    waits_for: Column

    def __len__(self) -> int:
        return len(self.arrival_s)


class Sessions(Protocol):
    """What happens in a session that starts at a given time."""

    def turns(self, start_s: Numbers, lengths: Lengths, rng: np.random.Generator) -> Turns:
        """The turns of sessions that start at ``start_s`` (s,); session k of the result is the k-th."""
        ...


@dataclass(frozen=True)
class Chat:
    """Conversations: every turn sends the history and a new message; long histories are cut.

    ``turns`` per session; ``think_s`` between the end of an answer and the next turn; ``message`` tokens of a later
    turn (the first prompt and all outputs come from ``lengths``). With probability ``truncate_frac`` a turn sends a cut
    history: a share between ``kept_least_frac`` and 1 (uniform) of the previous turn's prompt and output, message
    included. No prompt exceeds ``most_prompt_tokens``. Defaults: BurstGPT_3, whose 135 first sessions have 44 % single
    turns, mean 2.9, at most 24; think time p50 116 s, p90 1,372 s; 27 % of later prompts smaller than the previous
    total. The recorded arrival of a later turn takes answers to come at ``answer_tokens_per_s``.
    """

    turns_per_session: Distribution = CHAT_TURNS
    think_s: Distribution = CHAT_THINK_S
    message: Distribution = CHAT_MESSAGE
    truncate_frac: float = 0.27
    kept_least_frac: float = 0.7
    most_prompt_tokens: int = 32_768
    answer_tokens_per_s: float = 40.0

    def __post_init__(self) -> None:
        _check(self.truncate_frac, self.most_prompt_tokens, self.answer_tokens_per_s)
        refuse_none(turns_per_session=self.turns_per_session, message=self.message)

    def turns(self, start_s: Numbers, lengths: Lengths, rng: np.random.Generator) -> Turns:
        return _joined(_grow(self, start_s, whole(self.turns_per_session.sample(len(start_s), rng)), lengths, rng))


@dataclass(frozen=True)
class AgentChains:
    """Agents: a step sends everything so far and the result of a tool; some steps start sub-agents and wait for them.

    ``steps`` per agent; ``think_s`` is the time of the tool between two steps, ``message`` the tokens of its result.
    With probability ``truncate_frac`` a step begins after a compaction (kept share as in ``chat``). After a step, with
    probability ``fan_out_frac``, ``children`` sub-agents start at once, each a session of ``child_steps`` whose first
    prompt comes from ``lengths``; the next step waits for all of them. Defaults: 577 recorded coding agents
    (kv-cache-tester, Apache-2.0): steps p50 45, p90 168, at most 561; pauses p50 10 s, p90 160 s; results p50 500
    tokens, p90 3,800; 0.43 % of steps compacted; 47 sub-agents of 10.5 steps in 40,548 requests.
    """

    steps: Distribution = AGENT_STEPS
    think_s: Distribution = AGENT_TOOL_S
    message: Distribution = AGENT_RESULT
    truncate_frac: float = 0.0043
    kept_least_frac: float = 0.1
    fan_out_frac: float = 0.0012
    children: Distribution = ONE
    child_steps: Distribution = CHILD_STEPS
    most_prompt_tokens: int = 900_000
    answer_tokens_per_s: float = 40.0

    def __post_init__(self) -> None:
        _check(self.truncate_frac, self.most_prompt_tokens, self.answer_tokens_per_s)
        if not 0 <= self.fan_out_frac <= 1:
            raise InputError(f"{self.fan_out_frac} is not a share", key="fan_out_frac", hint="allowed: 0 to 1")
        refuse_none(steps=self.steps, message=self.message, children=self.children, child_steps=self.child_steps)

    def turns(self, start_s: Numbers, lengths: Lengths, rng: np.random.Generator) -> Turns:
        return _joined(_grow(self, start_s, whole(self.steps.sample(len(start_s), rng)), lengths, rng, fan_out=self))


def _check(truncate_frac: float, most_prompt_tokens: int, answer_tokens_per_s: float) -> None:
    if not 0 <= truncate_frac <= 1:
        raise InputError(f"{truncate_frac} is not a share", key="truncate_frac", hint="allowed: 0 to 1")
    positive("most_prompt_tokens", most_prompt_tokens)
    positive("answer_tokens_per_s", answer_tokens_per_s)


@dataclass
class _Count:
    """Rows, sessions and chains numbered so far."""

    rows: int = 0
    sessions: int = 0
    chains: int = 0


def _grow(
    rules: Chat | AgentChains,
    start_s: Numbers,
    turns: Column,
    lengths: Lengths,
    rng: np.random.Generator,
    *,
    fan_out: AgentChains | None = None,
    parent: Column | None = None,
    count: _Count | None = None,
    ends: Numbers | None = None,
    last: Column | None = None,
) -> Iterator[Turns]:
    """The sessions' first turns, then their second ones, and so on: vectors over the sessions that go on.

    ``ends`` and ``last`` (s,) are filled with the end and the row of each session's last turn.
    """
    count = count or _Count()
    session = count.sessions + np.arange(len(start_s))
    chain = count.chains + np.arange(len(start_s))
    count.sessions += len(start_s)
    count.chains += len(start_s)
    begins = np.full(len(start_s), -1) if parent is None else parent
    alive = np.arange(len(start_s))
    clock, history = start_s.astype(np.float64), np.zeros(len(start_s), np.int64)
    think = np.zeros(len(start_s))
    waits_for = np.zeros((0, 2), np.int64)
    turn = 0
    while len(alive):
        prompt, output = lengths.sample(len(alive), rng)
        if turn:
            think = np.maximum(rules.think_s.sample(len(alive), rng), 0)
            prompt = history[alive] + whole(rules.message.sample(len(alive), rng))
            cut = rng.random(len(alive)) < rules.truncate_frac
            kept = history[alive] * rng.uniform(rules.kept_least_frac, 1, len(alive))
            prompt = np.where(cut, whole(kept), prompt)
            cut |= prompt > rules.most_prompt_tokens
            chain[alive[cut]] = count.chains + np.arange(int(cut.sum()))
            count.chains += int(cut.sum())
        prompt = np.minimum(prompt, rules.most_prompt_tokens)
        at = clock[alive] + think
        row = count.rows + np.arange(len(alive))
        count.rows += len(alive)
        if len(waits_for):  # sub-agents of the previous turn: they wait in the order of sessions still alive
            waits_for = np.column_stack((row[np.searchsorted(alive, waits_for[:, 0])], waits_for[:, 1]))
        first = begins[alive] if turn == 0 else np.full(len(alive), -1)
        yield Turns(at, session[alive], think, prompt, output, chain[alive].copy(), first, waits_for)

        end = at + output / rules.answer_tokens_per_s
        clock[alive], history[alive] = end, prompt + output
        done = turns[alive] <= turn + 1
        if ends is not None and last is not None:
            ends[alive[done]], last[alive[done]] = end[done], row[done]
        waits_for = np.zeros((0, 2), np.int64)
        if fan_out is not None:
            spawns = np.flatnonzero((rng.random(len(alive)) < fan_out.fan_out_frac) & ~done)
            if len(spawns):
                of = np.repeat(spawns, whole(fan_out.children.sample(len(spawns), rng)))
                steps = whole(fan_out.child_steps.sample(len(of), rng))
                child_ends, child_rows = np.zeros(len(of)), np.zeros(len(of), np.int64)
                yield from _grow(
                    rules, end[of], steps, lengths, rng, parent=row[of], count=count, ends=child_ends, last=child_rows
                )
                np.maximum.at(clock, alive[of], child_ends)
                waits_for = np.column_stack((alive[of], child_rows))
        alive = alive[~done]
        turn += 1


def _joined(parts: Iterator[Turns]) -> Turns:
    every = list(parts)
    return Turns(*(np.concatenate([getattr(part, field.name) for part in every]) for field in fields(Turns)))


SESSIONS: Final = {
    name: f"{__name__}:{kind.__name__}" for name, kind in {"agent_chains": AgentChains, "chat": Chat}.items()
}
