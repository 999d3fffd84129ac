"""Formats with sessions, predecessors and block ids: small files, and every column that they become."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvsim.core.errors import InputError
from kvsim.core.trace import Ragged, Trace, TraceRows
from kvsim.workload import limit, read_trace

SECOND = 10**9


def written(folder: Path, *rows: object, name: str = "t.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lists(column: Ragged | None) -> list[list[int]]:
    assert column is not None
    return [column.row(i).tolist() for i in range(len(column))]


def request(t: float, tokens: int, out: int = 5, ids: int | list[int] = 0, **more: object) -> dict[str, Any]:
    hashes = ids if isinstance(ids, list) else list(range(ids, ids + tokens // 64))
    return {"t": t, "type": "n", "model": "m", "in": tokens, "out": out, "hash_ids": hashes, **more}


def session(*requests: object, block_size: int = 64) -> dict[str, Any]:
    return {"id": "x", "block_size": block_size, "hash_id_scope": "local", "requests": list(requests)}


def test_agents_wait_for_what_made_them_and_are_joined(tmp_path: Path) -> None:
    one = session(
        request(0, 130, ids=1, api_time=2, think_time=0),
        {"t": 3, "type": "subagent", "requests": [request(0, 70, ids=40, api_time=1), request(2, 128, ids=40)]},
        {"t": 4, "type": "subagent", "requests": [request(0, 64, ids=40, api_time=90)]},
        request(10, 192, ids=1, api_time=1, think_time=8),
        request(12, 192, out=0, ids=1, think_time=1),
        request(99, 256, ids=1, think_time=86),
    )
    other = session(request(1, 63), request(1, 64, ids=1, api_time=5))
    (tmp_path / "b.json").write_text(json.dumps(one))
    (tmp_path / "a.json").write_text(json.dumps(other))
    trace = read_trace(tmp_path)
    assert (trace.format, trace.session_names) == ("kv_cache_tester", ["a", "b"])
    assert trace.session is not None
    assert trace.think_ns is not None
    assert (trace.arrival_ns // SECOND).tolist() == [0, 1, 1, 3, 4, 5, 10, 99]
    assert trace.session.tolist() == [1, 0, 0, 1, 1, 1, 1, 1]
    assert trace.prompt_tokens.tolist() == [130, 63, 64, 70, 64, 128, 192, 256]
    # rows 3 and 4 start two agents; 6 joins the first (5 is its last request); 7 joins the second, and in place of the
    # request that failed waits for the one before it
    assert lists(trace.wait_for) == [[], [], [1], [0], [0], [3], [0, 5], [4, 6]]
    assert (trace.think_ns // SECOND).tolist() == [0, 0, 0, 1, 2, 1, 5, 5]
    assert trace.rows == TraceRows(read=9, source_failed=1)
    assert trace.source_failed is not None
    assert trace.source_failed.arrival_ns.tolist() == [12 * SECOND]
    assert trace.hash_block_tokens == 64
    blocks = lists(trace.prefix_hashes)
    assert [len(row) for row in blocks] == [2, 0, 1, 1, 1, 2, 3, 4]
    assert blocks[7][:3] == blocks[6]
    assert blocks[6][:2] == blocks[0]
    assert blocks[3] == blocks[4] == blocks[5][:1]
    assert blocks[2][0] not in blocks[0]  # id 1 in both documents, and nothing in common


def test_documents_may_start_one_after_the_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(session(request(0, 64), request(100, 64))))
    trace = read_trace(tmp_path, "kv_cache_tester", parameters={"session_gap_s": 30.0})
    assert (trace.arrival_ns // SECOND).tolist() == [0, 30, 100, 130]
    assert lists(trace.wait_for) == [[], [], [0], [1]]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (session(request(0, 130, ids=[1])), "requests[0].hash_ids: '1' are not the 2 full blocks of 130 tokens"),
        (session(request(5, 64), request(4, 64)), "requests[1].t: '4' is earlier than the request before it"),
        (session({**request(0, 64), "in": 0}), "requests[0].in: '0' is not in 1 .. 2.14748e+09"),
        (session({**request(0, 64), "out": "9"}), "requests[0].out: '\"9\"' is not a whole number"),
        (session(), "requests: 'nothing' is not a list of requests"),
        ({**session(request(0, 64)), "hash_id_scope": "global"}, "hash_id_scope: '\"global\"' is not 'local'"),
    ],
)
def test_a_bad_document_is_named_or_set_aside_as_a_whole(tmp_path: Path, document: object, message: str) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(document))
    (tmp_path / "good.json").write_text(json.dumps(session(request(0, 64))))
    with pytest.raises(InputError) as caught:
        read_trace(tmp_path, "kv_cache_tester")
    assert str(caught.value).startswith(f"{tmp_path}: bad.json: {message}")
    rows = read_trace(tmp_path, "kv_cache_tester", on_bad_row="quarantine").rows
    assert rows is not None
    assert (rows.read, rows.replayed, [row.place for row in rows.rejected]) == (2, 1, ["bad.json"])


def chat(chat_id: int, parent: int, t: float, tokens: int, ids: list[int]) -> dict[str, object]:
    lengths = {"input_length": tokens, "output_length": 3}
    return {"chat_id": chat_id, "parent_chat_id": parent, "timestamp": t, "type": "text", "hash_ids": ids, **lengths}


def test_chats_with_a_parent_pointer(tmp_path: Path) -> None:
    trace = read_trace(
        written(
            tmp_path,
            chat(7, -1, 1.5, 20, [90, 91]),
            chat(8, 99, 2.0, 16, [91]),  # its parent came before the trace began; 91 at the start is another prefix
            chat(9, 7, 4.5, 40, [90, 91, 92]),
            chat(3, 7, 5.0, 10, [90]),
            chat(2, 9, 9.0, 33, [90, 91, 92]),
        )
    )
    assert (trace.format, trace.session_names, trace.tenant_names) == ("bailian", ["7", "8"], ["text"])
    assert trace.session is not None
    assert trace.think_ns is not None
    assert trace.session.tolist() == [0, 1, 0, 0, 0]
    assert lists(trace.wait_for) == [[], [], [0], [0], [2]]
    assert (trace.think_ns / SECOND).tolist() == [0, 0, 3, 3.5, 4.5]
    assert lists(trace.prefix_hashes) == [[0, 1], [2], [0, 1, 3], [0], [0, 1, 3]]
    assert trace.hash_block_tokens == 16


def test_a_chat_id_twice_and_ids_that_contradict_the_length(tmp_path: Path) -> None:
    path = written(tmp_path, chat(7, -1, 1.5, 20, [1, 2]), chat(7, -1, 2, 20, [1, 2]), chat(8, -1, 3, 20, [1]))
    with pytest.raises(InputError, match=r"t\.jsonl:3: hash_ids: .* has not one id for each 16 tokens of input_length"):
        read_trace(path)
    trace = read_trace(path, on_bad_row="quarantine")
    assert trace.rows is not None
    assert [(row.place, row.column, row.reason) for row in trace.rows.rejected] == [
        ("line 2", "chat_id", "is there twice"),
        ("line 3", "hash_ids", "has not one id for each 16 tokens of input_length"),
    ]
    assert trace.rows.dropped == {
        "hash_ids has not one id for each 16 tokens of input_length": 1,
        "chat_id is there twice": 1,
    }
    assert trace.rows.read == 3


def test_timed_trace_with_delays_is_put_in_order_of_arrival(tmp_path: Path) -> None:
    row = {"input_length": 600, "output_length": 5}
    trace = read_trace(
        written(
            tmp_path,
            {**row, "timestamp": 0, "session_id": "a", "hash_ids": [4, 5]},
            {**row, "delay": 2500, "session_id": "a", "hash_ids": [4]},
            {**row, "timestamp": 1000},
            {**row, "timestamp": 1500.5, "session_id": "b"},
            {**row, "timestamp": 4000, "session_id": "b", "input_length": 10},
        )
    )
    assert trace.format == "timed_trace"
    assert trace.session is not None
    assert trace.think_ns is not None
    assert (trace.arrival_ns / 10**6).tolist() == [0, 1000, 1500.5, 2500, 4000]
    assert trace.session.tolist() == [0, -1, 1, 0, 1]
    assert (trace.think_ns / 10**6).tolist() == [0, 0, 0, 2500, 2499.5]
    assert lists(trace.prefix_hashes) == [[0, 1], [], [], [0], []]


def test_tracelab_rounds_share_what_was_cached(tmp_path: Path) -> None:
    def round_(session: str, minute: int, tokens: int, cached: int, *events: tuple[str, int]) -> dict[str, object]:
        stamps = [{"event_type": e, "timestamp": f"2026-06-01T05:{minute}:{s:02d}Z"} for e, s in events]
        lengths = {"input_tokens_total": tokens, "prefix_tokens": cached, "output_tokens": 9}
        return {"session_id": session, "model": "m", "timing_events": stamps, **lengths}

    trace = read_trace(
        written(
            tmp_path,
            round_("s", 41, 100, 60, ("tool_result", 1), ("tool_result", 4), ("text", 9), ("tool_call", 12)),
            round_("s", 42, 170, 96, ("user_message", 0), ("text", 5)),
            round_("s", 40, 40, 32, ("reasoning", 30), ("text", 40)),
        )
    )
    assert trace.think_ns is not None
    assert (trace.arrival_ns / SECOND).tolist() == [0, 34, 90]
    assert (trace.think_ns / SECOND).tolist() == [0, 24, 48]
    blocks = lists(trace.prefix_hashes)
    assert [len(row) for row in blocks] == [3, 7, 11]
    assert [len(set(a) & set(b)) for a, b in pairwise(blocks)] == [2, 6]


def test_mooncake_needs_the_right_block_size(tmp_path: Path) -> None:
    path = written(tmp_path, {"timestamp": 27, "input_length": 33, "output_length": 2, "hash_ids": [1, 5, 9]})
    hint = "t.jsonl:1: hash_ids: .* has not one id for each 512 tokens of input_length; state hash_block_tokens"
    with pytest.raises(InputError, match=hint):
        read_trace(path)
    trace = read_trace(path, "mooncake", parameters={"hash_block_tokens": 16})
    assert (lists(trace.prefix_hashes), trace.hash_block_tokens) == ([[0, 1, 2]], 16)


def test_a_first_line_longer_than_the_head_is_recognised(tmp_path: Path) -> None:
    blocks = 40_000
    row = {"timestamp": 0, "input_length": 512 * blocks, "output_length": 2, "hash_ids": list(range(blocks))}
    trace = read_trace(written(tmp_path, row, row))
    assert (trace.format, len(trace)) == ("mooncake", 2)


def test_selected_rows_keep_their_lists_and_the_waits_that_are_left() -> None:
    trace = Trace(
        np.arange(4),
        np.array([9, 9, 9, 9]),
        np.array([1, 2, 3, 4]),
        wait_for=Ragged(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 2, 4])),
        prefix_hashes=Ragged(np.array([0, 1, 0, 2]), np.array([0, 2, 2, 3, 4])),
        hash_block_tokens=8,
    )
    chosen = trace.select(np.array([True, False, True, True]))
    assert chosen.output_tokens.tolist() == [1, 3, 4]
    assert lists(chosen.wait_for) == [[], [0], [0, 1]]
    assert lists(chosen.prefix_hashes) == [[0, 1], [0], [2]]
    assert lists(limit(trace, 2).wait_for) == [[], [0]]
    with pytest.raises(ValueError, match="positions must increase"):
        trace.select(np.array([1, 0]))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tenant": np.array([0])}, "tenant has 1 rows, arrival_ns has 2"),
        ({"wait_for": Ragged(np.array([1]), np.array([0, 0, 1]))}, "wait_for must name rows before its own"),
        ({"wait_for": Ragged(np.array([1]), np.array([0, 1, 1]))}, "wait_for must name rows before its own"),
        ({"wait_for": Ragged(np.array([-1]), np.array([0, 0, 1]))}, "wait_for must name rows before its own"),
        ({"wait_for": Ragged(np.array([2]), np.array([0, 0, 1]))}, "wait_for must name rows before its own"),
        ({"think_ns": np.array([0, -1])}, "think_ns must not be negative"),
        ({"hash_block_tokens": 16}, "prefix_hashes and hash_block_tokens belong together"),
        (
            {"prefix_hashes": Ragged(np.array([0, 1]), np.array([0, 0, 2])), "hash_block_tokens": 16},
            "prefix_hashes has more blocks than the prompt",
        ),
    ],
)
def test_columns_that_contradict_each_other(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Trace(np.array([0, 1]), np.array([16, 16]), np.array([1, 1]), **columns)
    with pytest.raises(ValueError, match="offsets must go from 0"):
        Ragged(np.array([1]), np.array([0, 2]))
