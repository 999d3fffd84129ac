"""What every built-in cost model promises: the same step has the same price, alone or in a stretch."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvsim.core.plugins import load
from kvsim.core.seats import StepCost
from kvsim.core.shape import BatchShape
from kvsim.costs import COSTS
from kvsim.costs.affine import Affine
from kvsim.costs.calibrated import Calibrated
from kvsim.costs.roofline import Roofline
from kvsim.costs.table import Table
from kvsim.hardware import load_gpu
from kvsim.models import load_model

LLAMA = load_model("llama-3.1-8b")
H100 = load_gpu("h100-sxm")


def write_tables(folder: Path) -> Table:
    """Tables of 1 to 8 decodes with a context up to 1024, and batches up to 64 tokens; each time is its own key."""
    linear, decode, prefill = folder / "linear.csv", folder / "decode.csv", folder / "prefill.csv"
    linear.write_text("num_tokens,ms_all_layers\n" + "".join(f"{n},{n}\n" for n in range(8, 65, 8)))
    decode.write_text(
        "batch_size,kv_tokens_mean_ceil64,ms_all_layers\n"
        + "".join(f"{b},{c},{b / 7 + c / 3}\n" for b in range(1, 9) for c in range(0, 1025, 64))
    )
    prefill.write_text("chunk_tokens,ms_all_layers\n" + "".join(f"{n},{n / 10}\n" for n in range(1, 65)))
    return Table(linear, decode, prefill)


@pytest.fixture(scope="module")
def step_costs(tmp_path_factory: pytest.TempPathFactory) -> Sequence[StepCost]:
    models = (Affine(sampled_request_s=1e-7), Roofline(), Calibrated(), write_tables(tmp_path_factory.mktemp("tables")))
    return [model.start(LLAMA, H100, 1) for model in models]


def decodes(contexts: Sequence[int]) -> BatchShape:
    return BatchShape(
        decode_requests=len(contexts),
        decode_context_tokens=sum(contexts),
        decode_context_squares=sum(context * context for context in contexts),
        sampled_requests=len(contexts),
    )


def test_every_name_leads_to_a_cost_model() -> None:
    assert {name: load("cost", name, COSTS).__name__ for name in COSTS} == {
        "affine": "Affine",
        "calibrated": "Calibrated",
        "roofline": "Roofline",
        "table": "Table",
    }


@given(
    contexts=st.lists(st.integers(0, 700), min_size=1, max_size=8),
    steps=st.one_of(st.integers(1, 8), st.integers(36, 60), st.integers(200, 300)),
)
def test_a_stretch_is_its_steps_to_the_last_bit(
    step_costs: Sequence[StepCost], contexts: list[int], steps: int
) -> None:
    alone = [decodes([context + step for context in contexts]) for step in range(steps)]
    for cost in step_costs:
        assert list(cost.steps_s(decodes(contexts), steps)) == [cost.step_s(shape) for shape in alone]


@pytest.mark.parametrize("steps", [1, 39, 40, 41, 55, 56, 57])
def test_list_and_array_agree_at_their_borders(step_costs: Sequence[StepCost], steps: int) -> None:
    for cost in step_costs:
        shape = decodes([17, 300, 301])
        assert list(cost.steps_s(shape, steps)) == list(cost.steps_s(shape, 200))[:steps]


def test_affine_is_the_formula_of_the_recordings() -> None:
    shape = BatchShape(
        prefill_tokens=100,
        prefill_context_tokens=50,
        prefill_requests=1,
        decode_requests=3,
        decode_context_tokens=1000,
        sampled_requests=4,
    )
    assert round(Affine().start(LLAMA, H100, 1).step_s(shape) * 1e9) == 4_000_000 + 6_000_000 + 60_000 + 21_000
