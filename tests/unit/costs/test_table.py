"""Steps from tables: rounding to the grid, Vidur's step times, and what is refused."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.core.shape import BatchShape
from kvsim.costs.table import Table, TableStep
from kvsim.hardware import load_gpu
from kvsim.models import load_model


def tables(folder: Path, *, decode_rows: str = "1,0,0.5\n1,64,0.6\n2,0,0.7\n2,64,0.8\n") -> Table:
    linear, decode, prefill = folder / "linear.csv", folder / "decode.csv", folder / "prefill.csv"
    linear.write_text("num_tokens,ms_all_layers\n8,10\n16,11\n")
    decode.write_text("batch_size,kv_tokens_mean_ceil64,ms_all_layers\n" + decode_rows)
    prefill.write_text("chunk_tokens,ms_all_layers\n" + "".join(f"{n},{n}\n" for n in range(1, 10)))
    return Table(linear, decode, prefill)


def start(table: Table) -> TableStep:
    return table.start(load_model("llama-2-7b"), load_gpu("a100-80gb-sxm"), 1)


def decode(requests: int, context_tokens: int) -> BatchShape:
    return BatchShape(decode_requests=requests, decode_context_tokens=context_tokens, sampled_requests=requests)


def prefill(*chunks: int) -> BatchShape:
    squares = sum(chunk * chunk for chunk in chunks)
    return BatchShape(prefill_tokens=sum(chunks), prefill_chunk_squares=squares, prefill_requests=len(chunks))


def test_tokens_and_mean_context_are_rounded_up(tmp_path: Path) -> None:
    cost = start(tables(tmp_path))
    # The mean of 2 decodes with 127 tokens between them is 63.5, truncated to 63, and 64 with the token being made.
    assert cost.step_s(decode(2, 127)) == 10 / 1e3 + 0.8 / 1e3
    assert cost.step_s(decode(1, 0)) == 10 / 1e3 + 0.6 / 1e3
    assert cost.step_s(prefill(9)) == 11 / 1e3 + 9 / 1e3
    assert cost.step_s(prefill(3, 3)) == 10 / 1e3 + 4 / 1e3  # sqrt(18) = 4.24, rounded to 4


def test_contexts_without_the_new_token(tmp_path: Path) -> None:
    cost = start(replace(tables(tmp_path), counts_new_token=False))
    assert cost.step_s(decode(1, 0)) == 10 / 1e3 + 0.5 / 1e3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (decode(3, 10), "decode.csv: no time for 3 decodes; it holds 1 to 2"),
        (
            decode(1, 64),
            "decode.csv: no time for 1 decodes with a mean context of 65 tokens; it holds contexts up to 64",
        ),
        (prefill(17), "linear.csv: no time for a batch of 17 tokens; it holds 8 to 16 in steps of 8"),
        (prefill(8, 8), "prefill.csv: no time for 2 chunks that amount to one of 11 tokens; it holds 1 to 9"),
        (
            BatchShape(prefill_tokens=2, prefill_chunk_squares=4, prefill_context_tokens=5, prefill_requests=1),
            "prefill.csv: no time for chunks with 5 tokens of context before them; "
            "use a scheduler that prefills whole prompts",
        ),
    ],
)
def test_a_step_outside_the_tables_is_refused(tmp_path: Path, shape: BatchShape, message: str) -> None:
    with pytest.raises(InputError) as refused:
        start(tables(tmp_path)).step_s(shape)
    assert str(refused.value) == f"{tmp_path}/{message}"


def test_a_stretch_that_leaves_the_tables_is_refused(tmp_path: Path) -> None:
    cost = start(tables(tmp_path))
    assert cost.steps_s(decode(1, 0), 64) is not None
    with pytest.raises(InputError, match="no time for 1 decodes with a mean context of 65 tokens"):
        cost.steps_s(decode(1, 0), 65)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,0,0.5\n1,64,x\n", "decode.csv:3: cannot read '1,64,x'; expected 2 integer(s) and a number of milliseconds"),
        (
            "1,0,0.5\n1,128,1\n",
            "decode.csv: batch_size 1: the row after context 0 is 128; "
            "contexts must run from 0 in steps of context_grid = 64",
        ),
        ("", "decode.csv: has no rows"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        start(tables(tmp_path, decode_rows=rows))
    assert str(refused.value) == f"{tmp_path}/{message}"


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.csv: cannot be read: .*No such file"):
        start(replace(tables(tmp_path), linear_csv=tmp_path / "gone.csv"))


def test_vidurs_first_requests(shared_data: Path) -> None:
    """The first request of w1 runs alone until the second arrives: Vidur's first token is one prompt step."""
    runs = shared_data / "peer_runs"
    cost = start(
        Table(
            runs / "vidur_cost_linear_ops.csv",
            runs / "vidur_cost_attn_decode.csv",
            runs / "vidur_cost_attn_prefill.csv",
        )
    )
    with open(runs / "vidur_w1_requests.csv", newline="") as file:
        first = next(csv.DictReader(file))
    assert cost.step_s(prefill(int(first["prompt_tokens"]))) == pytest.approx(float(first["ttft_s"]), abs=1e-9)
