"""Lengths and other numbers: quantiles and means against closed forms."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from kvsim.core.errors import InputError
from kvsim.workload.generate import distributions as d
from kvsim.workload.generate.lengths import ByPrompt, FromTrace, Independent
from kvsim.workload.generate.sessions import AgentChains, Chat

N = 200_000


def sample(distribution: d.Distribution, seed: int = 1) -> NDArray[np.float64]:
    found = distribution.sample(N, np.random.default_rng(seed))
    assert found.shape == (N,)
    assert found.dtype == np.float64
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (d.Exponential(20), stats.expon(scale=20)),
        (d.Gamma(20, 0.5), stats.gamma(4, scale=5)),
        (d.Gamma(20, 2), stats.gamma(0.25, scale=80)),
        (d.Lognormal(0.9, median=300), stats.lognorm(0.9, scale=300)),
        (d.Lognormal(0.7, mean=300), stats.lognorm(0.7, scale=300 * math.exp(-0.245))),
        (d.Uniform(5, 14), stats.randint(5, 15)),
        (d.Geometric(3), stats.geom(1 / 3)),
        (d.Zipf(1.1, 1, 1000), stats.zipfian(1.1, 1000)),
    ],
)
def test_quantiles_are_those_of_the_closed_form(ours: d.Distribution, theirs: object) -> None:
    found = sample(ours)
    for share in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99):
        value = theirs.ppf(share)  # type: ignore[attr-defined]
        above = float((found <= value).mean())
        assert above == pytest.approx(float(theirs.cdf(value)), abs=5 * math.sqrt(share * (1 - share) / N) + 1e-9)  # type: ignore[attr-defined]
    assert float(found.mean()) == pytest.approx(float(theirs.mean()), rel=0.02)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "distribution",
    [
        d.Lognormal(0.9, mean=512, least=16, most=3072),
        d.Lognormal(2.5, mean=100, least=50),
        d.Lognormal(1.5, mean=900, most=1000),
    ],
)
def test_a_clipped_lognormal_has_its_mean_and_bounds(distribution: d.Lognormal) -> None:
    found = sample(distribution)
    assert distribution.mean is not None
    error = 5 * float(found.std()) / math.sqrt(N)
    assert float(found.mean()) == pytest.approx(distribution.mean, abs=error)
    assert float(found.min()) >= distribution.least
    assert float(found.max()) <= (distribution.most or math.inf)


def test_a_geometric_from_two_has_its_mean_and_its_cut() -> None:
    found = sample(d.Geometric(4.393, least=2))
    assert float(found.mean()) == pytest.approx(4.393, rel=0.01)
    assert float((found == 2).mean()) == pytest.approx(1 / 3.393, rel=0.02)
    assert sample(d.Geometric(4.393, least=2, most=5)).max() == 5
    assert (sample(d.Geometric(1)) == 1).all()


def test_published_percentiles_come_out_as_published() -> None:
    found = sample(d.Quantiles(((0, 5), (0.5, 74), (0.9, 1291), (0.99, 3023), (1, 6142))))
    assert np.percentile(found, [50, 90, 99]) == pytest.approx([74, 1291, 3023], rel=0.03)
    assert (found >= 5).all()
    assert (found <= 6142).all()


def test_an_empirical_one_draws_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_text("10\n20\n20\n30.5\n")
    found, counts = np.unique(sample(d.Empirical(file)), return_counts=True)
    assert found.tolist() == [10, 20, 30.5]
    assert counts / N == pytest.approx([0.25, 0.5, 0.25], abs=0.006)


def test_a_mixture_is_what_it_is_made_of() -> None:
    found = sample(d.Mixture((3, 1), (d.Constant(7), d.Exponential(100))))
    assert float((found == 7).mean()) == pytest.approx(0.75, abs=0.006)
    assert float(found[found != 7].mean()) == pytest.approx(100, rel=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: d.Uniform(5, 4), "least: least 5 is more than most 4"),
        (lambda: d.Gamma(0), "mean: 0 is not a positive number"),
        (lambda: d.Lognormal(1, mean=5, median=5), "give either mean or median"),
        (lambda: d.Lognormal(1, mean=5, least=6), "5 is not between least 6 and most None"),
        (lambda: d.Geometric(0.5), "mean: mean 0.5 is less than least 1"),
        (lambda: d.Zipf(math.nan), "a: nan is not a number from 0"),
        (lambda: d.Quantiles(((0, 5), (0.5, 4), (1, 6))), "points: these are not quantiles"),
        (lambda: d.Quantiles(((0, 5),)), "points: these are not quantiles"),
        (lambda: d.Mixture((1,), ()), "weights: 1 weights for 0 parts"),
        (lambda: d.Zipf(most=2 * 10**9), "most: 2000000000 is too many; allowed: up to 10000000"),
        (lambda: Independent(d.Constant(-5), d.Constant(1)), "prompt: -5 is not possible; allowed: from 1 to"),
        (lambda: Independent(d.Constant(1), d.Uniform(-5, 9)), "output: -5 is not possible; allowed: from 1 to"),
        (lambda: Independent(d.Constant(1e300), d.Constant(1)), r"prompt: 1e\+300 is not possible; allowed: from 1"),
        (lambda: ByPrompt(d.Mixture((1,), (d.Constant(0),))), "prompt: 0 is not possible; allowed: from 1 to"),
        (lambda: Chat(message=d.Constant(0)), "message: 0 is not possible"),
        (lambda: AgentChains(steps=d.Constant(math.nan)), "steps: nan is not possible"),
        (
            lambda: Independent(d.Lognormal(9, median=1e9), d.Constant(1)).sample(99, np.random.default_rng(0)),
            "a distribution gives .*; allowed: up to 2147483647",
        ),
        (lambda: d.Mixture((0,), (d.Constant(1),)), "weights: weights must be 0 or more, and not all 0"),
    ],
)
def test_impossible_parameters_are_refused(make: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"1\nx\n", r"2: 'x' is not a number from 0"), (b"", "holds no numbers"), (b"\xff\xfe", "not text in UTF-8")],
)
def test_files_that_hold_no_numbers_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "lengths.txt"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        d.Empirical(file).sample(1, np.random.default_rng(0))


def test_independent_lengths_are_whole_and_uncorrelated() -> None:
    lengths = Independent(d.Lognormal(1, median=100), d.Exponential(0.2))
    prompts, outputs = lengths.sample(N, np.random.default_rng(2))
    assert prompts.dtype == outputs.dtype == np.int64
    assert int(prompts.min()) >= 1
    assert int(outputs.min()) == 1
    assert abs(float(np.corrcoef(np.log(prompts), outputs)[0, 1])) < 0.01


def test_outputs_by_prompt_have_the_published_means_and_spread() -> None:
    """BurstGPT's conversation: means at 30, 100, 300, 2,000 tokens; 5 and 95 % at 2,000 about 200 and 700."""
    for prompt, mean in ((30, 265), (100, 160), (200, 160), (300, 160), (1150, 305), (2000, 450), (9000, 450)):
        prompts, outputs = ByPrompt(d.Constant(prompt)).sample(N, np.random.default_rng(3))
        assert (prompts == prompt).all()
        assert float(outputs.mean()) == pytest.approx(mean, rel=0.01)
    _, outputs = ByPrompt(d.Constant(2000)).sample(N, np.random.default_rng(3))
    assert np.percentile(outputs, [5, 95]) == pytest.approx([200, 700], rel=0.15)
    with pytest.raises(InputError, match="output_means: these are not means by prompt"):
        ByPrompt(d.Constant(1), ((5, 1), (4, 1)))


def test_pairs_from_a_trace_stay_pairs(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,1\n1,20,2\n2,30,3\n")
    prompts, outputs = FromTrace(file).sample(3_000, np.random.default_rng(4))
    assert (prompts == outputs * 10).all()
    assert np.bincount(outputs)[1:] == pytest.approx(1000, abs=150)
