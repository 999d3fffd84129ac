"""Which prompts carry on which: from sessions, as generators know it, and after transforms."""

from pathlib import Path
from typing import Any

import numpy as np

from kvsim.core.content import Contents, carried_on, histories
from kvsim.core.trace import Ragged, Trace
from kvsim.scenario import Scenario
from kvsim.scenario.resolve import resolve
from kvsim.workload import read_trace
from kvsim.workload.generate import composed
from kvsim.workload.generate import distributions as d
from kvsim.workload.generate.arrivals import ClosedLoop, Poisson
from kvsim.workload.generate.lengths import Independent
from kvsim.workload.generate.sessions import AgentChains, Chat
from kvsim.workload.transforms import keep_rows, merge, repeat
from kvsim.workload.writers import write_canonical

SIZES = Independent(d.Lognormal(0.7, median=100), d.Lognormal(0.7, median=50))


def talk(*turns: tuple[int, int, int], **columns: Any) -> Trace:
    """(session, prompt tokens, output tokens) of each row."""
    session, prompt, output = np.array(turns).T
    return Trace(np.arange(len(turns)) * 10**9, prompt, output, session=session, **columns)


def test_a_turn_carries_on_the_one_before_if_it_is_long_enough_for_both() -> None:
    trace = talk((0, 10, 5), (1, 20, 5), (0, 15, 5), (-1, 30, 5), (1, 24, 9), (-1, 40, 5), (0, 60, 1), (1, 33, 1))
    assert carried_on(trace).tolist() == [-1, -1, 0, -1, -1, -1, 2, 4]  # 24 < 20 + 5: cut
    assert histories(trace).tolist() == [0, 1, 0, 3, 4, 5, 0, 4]


def test_long_conversations_have_one_number() -> None:
    trace = talk(*((0, 1 + 3 * turn, 2) for turn in range(1000)))
    assert set(histories(trace).tolist()) == {0}


def test_of_parallel_requests_only_those_who_wait_carry_on() -> None:
    """A sub-agent in the session of its agent starts by itself; the agent's next step waits for both."""
    turns = ((0, 10, 5), (0, 15, 5), (0, 20, 5), (0, 80, 5))
    apart = talk(*turns, wait_for=Ragged(np.array([0, 1]), np.array([0, 0, 0, 1, 2])))
    assert carried_on(apart).tolist() == [-1, -1, -1, -1]
    joined = talk(*turns, wait_for=Ragged(np.array([1, 1, 2]), np.array([0, 0, 0, 1, 3])))
    assert carried_on(joined).tolist() == [-1, -1, 1, 2]


def test_only_what_another_turn_has_is_shared() -> None:
    trace = talk((0, 10, 5), (0, 15, 5), (0, 60, 30), (1, 9, 9))
    contents = Contents(trace)
    tokens = [content.tokens if (content := contents.of(i, 1000, 1000)) else 0 for i in range(4)]
    assert tokens == [15, 20, 20, 0]
    assert contents
    assert not Contents(talk((0, 10, 5), (0, 14, 5), (1, 9, 9)))


def test_generators_say_which_turns_carry_on() -> None:
    chat = composed(Poisson(1), SIZES, requests=500, sessions=Chat(), seed=1)
    assert chat.history is not None
    assert chat.session is not None
    before = carried_on(chat)
    plain = carried_on(Trace(chat.arrival_ns, chat.prompt_tokens, chat.output_tokens, session=chat.session))
    assert (before >= 0).sum() > 100
    assert (before == plain).mean() > 0.99  # a history that is cut may be as long as before, with its message
    assert (chat.session[before[before >= 0]] == chat.session[before >= 0]).all()
    users = composed(ClosedLoop(5), SIZES, requests=100, seed=1)  # whose requests have nothing to do with each other
    assert (carried_on(users) == -1).all()
    pictures = composed(
        Poisson(1), SIZES, requests=100, sessions=Chat(), images=d.Constant(1), tokens_per_image=9, seed=1
    )
    assert (carried_on(pictures) == -1).all()


def test_sub_agents_carry_on_themselves() -> None:
    agents = composed(Poisson(1), SIZES, requests=400, sessions=AgentChains(fan_out_frac=0.2), seed=2)
    before = carried_on(agents)
    assert agents.session is not None
    later = before >= 0
    assert (agents.session[before[later]] == agents.session[later]).all()
    assert later.sum() > 300


def test_transforms_keep_conversations_together_and_apart(tmp_path: Path) -> None:
    chat = composed(Poisson(1), SIZES, requests=200, sessions=Chat(), seed=1)
    carries_on = (carried_on(chat) >= 0).sum()
    assert (carried_on(repeat(chat, 2)) >= 0).sum() == 2 * carries_on
    plain = talk((0, 10, 5), (0, 15, 5), (-1, 30, 5))
    merged = carried_on(merge(chat, plain))
    assert (merged >= 0).sum() == carries_on + 1
    third = talk((0, 10, 5), (0, 20, 5), (0, 40, 5))
    kept = keep_rows(third, column="prompt_tokens", among=(10, 40))
    assert carried_on(kept).tolist() == [-1, 0]  # what was left out between was part of it
    write_canonical(chat, tmp_path / "chat.parquet")
    assert (carried_on(read_trace(tmp_path / "chat.parquet")) == carried_on(chat)).all()


def test_a_scenario_says_what_is_taken_to_be_shared(tmp_path: Path) -> None:
    rows = ("0,a,100,20", "1,a,140,20", "2,a,90,20", "3,b,50,20")
    (tmp_path / "t.csv").write_text("arrival_s,session_id,prompt_tokens,output_tokens\n" + "\n".join(rows))
    file = tmp_path / "s.yaml"
    file.write_text("workload: {trace: {path: t.csv}}\nmodel: llama-3.1-8b\nkv: {enable_prefix_caching: true}\n")

    def said(*sets: Any) -> tuple[int, list[str]]:
        found = resolve(Scenario.load(file, sets))
        return int((carried_on(found.trace) >= 0).sum()), [note for note in found.notes if "prefix caching" in note]

    assert said() == (
        1,
        [
            "prefix caching: 1 of 2 later turns are too short for the turn before, prompt and answer: their history "
            "was cut, and they are taken to share nothing with it"
        ],
    )
    file.write_text(file.read_text().replace("t.csv}", "t.csv}, history_in_prompts: false"))
    assert said() == (
        0,
        ["prefix caching: the trace does not say what prompts share, so only preempted requests find blocks"],
    )
