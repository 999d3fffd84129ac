"""``workload.deadlines``, and what a closed loop needs: from a file to the summary."""

import json
from pathlib import Path

import pytest

import kvsim
from kvsim.cli import main
from kvsim.core.errors import InputError

# On an affine replica of 10 ms a step: 0.1 s, 1 s, 0.3 s and 0.2 s of service.
ROWS = "arrival_s,prompt_tokens,output_tokens,deadline_s\n0,9,10,0.1\n10,9,100,0.5\n20,9,30,\n30,9,20,0.199\n"
SCENARIO = """\
workload:
  trace: {path: t.csv}
model: llama-2-7b
cluster: {gpu: a100-80gb-sxm}
scheduler: {async_scheduling: false}
cost: {name: affine, base_s: 0.01, prefill_token_s: 0, decode_request_s: 0, context_token_s: 0}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(ROWS)
    (tmp_path / "s.yaml").write_text(SCENARIO)
    return tmp_path


def ending(result: kvsim.Result) -> list[object]:
    rows = result.requests
    return list(zip(rows["status"], rows["reason"].fillna(""), rows["e2el_s"].fillna(-1).round(9), strict=True))


def test_by_default_deadlines_are_reported(here: Path) -> None:
    result = kvsim.run("s.yaml", out="runs/a")
    assert ending(result) == [
        ("finished", "", 0.1),
        ("finished", "", 1.0),
        ("finished", "", 0.3),
        ("finished", "", 0.2),
    ]
    own = json.loads((here / "runs" / "a" / "summary.json").read_text())["kvsim"]
    assert own["deadline_attainment"] == pytest.approx(1 / 3)
    assert own["deadline_goodput"] == pytest.approx(1 / 30.2)
    rows = kvsim.Result.load("runs/a").requests
    assert rows["deadline_met"].tolist() == [True, False, None, False]
    assert rows["deadline_s"].tolist()[:2] == [0.1, 0.5]
    assert not any("deadline" in note for note in own["approximation"])


@pytest.mark.parametrize("frontend_s", [0.0, 0.05])
def test_clients_may_leave_at_their_deadlines(here: Path, frontend_s: float) -> None:
    """Time in a frontend is part of their patience: who gives up has waited for its deadline, not longer."""
    result = kvsim.run("s.yaml", workload={"deadlines": "give_up"}, engine={"frontend_s": frontend_s})
    kept = ("finished", "", 0.1) if not frontend_s else ("abandoned", "deadline", -1)
    left = ("abandoned", "deadline", -1)
    assert ending(result) == [kept, left, ("finished", "", 0.3 + frontend_s), left]
    rows = result.requests[result.requests["status"] == "abandoned"]
    assert (rows["finish_s"] - rows["arrival_s"]).tolist() == pytest.approx(rows["deadline_s"].tolist(), abs=1e-12)
    by_reason = result.summary["kvsim"]["requests_by_reason"]
    assert by_reason["deadline"] == len(rows)
    assert "async scheduling: off (vLLM's default is on)" in result.summary["kvsim"]["approximation"]


def test_a_frontend_is_part_of_every_clients_patience(here: Path) -> None:
    result = kvsim.run("s.yaml", workload={"client_timeout_s": 0.5}, engine={"frontend_s": 0.1})
    assert result.requests["finish_s"].tolist() == pytest.approx([0.2, 10.5, 20.4, 30.3])


@pytest.mark.parametrize(("least", "code"), [("0.3", 0), ("0.4", 1)])
def test_an_expectation_may_name_the_share(here: Path, least: str, code: int) -> None:
    (here / "s.yaml").write_text(
        SCENARIO + f'expect: {{deadline_attainment: ">= {least}", deadline_goodput: "> 0.03"}}\n'
    )
    with pytest.raises(SystemExit) as ended:
        main(["check", "s.yaml", "--quiet"])
    assert ended.value.code == code


def test_what_cannot_be_is_refused(here: Path) -> None:
    (here / "plain.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,9,10\n")
    plain = {"path": "plain.csv"}
    for keys, message in (
        (
            {"trace": plain, "deadlines": "give_up"},
            "workload.deadlines: nobody can give up at a deadline: the trace has",
        ),
        ({"deadlines": "keep"}, "workload.deadlines: 'keep' is not allowed"),
        ({"trace": plain, "sessions": "closed"}, "workload.sessions: closed sessions need a trace that has sessions"),
    ):
        with pytest.raises(InputError, match=message):
            kvsim.run("s.yaml", workload=keys)
    with pytest.raises(InputError, match="clients that give up are not modelled with asynchronous scheduling yet"):
        kvsim.run("s.yaml", workload={"deadlines": "give_up"}, scheduler={"async_scheduling": True})


def test_a_closed_loop_needs_no_sessions_if_rows_say_what_they_wait_for(here: Path) -> None:
    rows = [{"arrival_s": 0.0, "prompt_tokens": 9, "output_tokens": k, "wait_for": w} for k, w in ((10, []), (1, [0]))]
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = kvsim.run("s.yaml", workload={"trace": {"path": "t.jsonl"}, "sessions": "closed"})
    assert result.requests["arrival_s"].tolist() == [0.0, 0.1]


def test_images_are_said_to_be_encoded_in_no_time(here: Path) -> None:
    (here / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens,images\n0,700,2,1\n1,9,2,0\n")
    notes = kvsim.run("s.yaml").summary["kvsim"]["approximation"]
    assert [note for note in notes if "images" in note] == [
        "1 requests have images: their tokens are part of the prompt, encoding them takes no time here"
    ]
