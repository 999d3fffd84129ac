"""Arrival processes: mean rate and CV against closed forms, and the shape of those whose rate changes."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.workload.generate.arrivals import (
    ARRIVALS,
    BURSTGPT_DAY,
    Arrivals,
    AtOnce,
    ClosedLoop,
    Deterministic,
    Diurnal,
    Gamma,
    OnOff,
    Poisson,
    Ramp,
    Spike,
    Weibull,
    weibull_shape,
)


def times(process: Arrivals, n: int, seed: int = 1) -> NDArray[np.float64]:
    found = process.times_s(n, np.random.default_rng(seed))
    assert found.shape == (n,)
    assert (np.diff(found) >= 0).all()
    assert found[0] >= 0
    return found


def kuczura_cv(rate: float, on_s: float, off_s: float) -> float:
    """CV of the gaps of an interrupted Poisson process with this mean rate (Kuczura 1973)."""
    on_rate, w, v = rate * (on_s + off_s) / on_s, 1 / on_s, 1 / off_s
    return math.sqrt(1 + 2 * on_rate * w / (w + v) ** 2)


@pytest.mark.parametrize(
    ("process", "rate", "cv"),
    [
        (Deterministic(4), 4, 0),
        (Poisson(5), 5, 1),
        (Poisson(0.01), 0.01, 1),
        (Gamma(5, 0.5), 5, 0.5),
        (Gamma(5, 2), 5, 2),
        (Gamma(0.3, 4), 0.3, 4),
        (Weibull(5, 0.3), 5, 0.3),
        (Weibull(5, 2), 5, 2),
        (Weibull(7, 3), 7, 3),
        (OnOff(2, 10, 30), 2, kuczura_cv(2, 10, 30)),
        (OnOff(10, 1, 1), 10, kuczura_cv(10, 1, 1)),
        (OnOff(5, 10, 10, off_level=1), 5, 1),  # both phases alike: Poisson
        (Diurnal(1000, profile=(3,)), 1000, 1),  # a flat day: Poisson
        (Diurnal(1000, profile=(3,), cv=2.5), 1000, 2.5),
        (Ramp(6, 6, 10, cv=2), 6, 2),
        (Spike(6, 1, 10, 10), 6, 1),
    ],
)
def test_mean_rate_and_cv_are_those_of_the_closed_form(process: Arrivals, rate: float, cv: float) -> None:
    n = 400_000
    found = times(process, n)
    gaps = np.diff(found)
    # Six standard errors: of the mean of n gaps, and (roughly, for heavy tails) of their CV.
    assert (n - 1) / float(found[-1] - found[0]) == pytest.approx(
        rate, rel=6 * max(cv, 0.001) ** 2 / math.sqrt(n) + 0.01
    )
    assert float(gaps.std() / gaps.mean()) == pytest.approx(cv, abs=0.001, rel=0.04)


def test_markov_modulated_counts_have_the_dispersion_of_the_closed_form() -> None:
    """Two rates r1, r2, left at s1, s2: variance over mean of counts in long windows (Heffes and Lucantoni, 1986).

    1 + 2 s1 s2 (r1 - r2)^2 / ((s1 + s2)^2 (r1 s2 + r2 s1))
    """
    on_s, off_s, level, rate = 2.0, 3.0, 0.25, 20.0
    r1 = rate * (on_s + off_s) / (on_s + level * off_s)
    r2, s1, s2 = level * r1, 1 / on_s, 1 / off_s
    expected = 1 + 2 * s1 * s2 * (r1 - r2) ** 2 / ((s1 + s2) ** 2 * (r1 * s2 + r2 * s1))
    found = times(OnOff(rate, on_s, off_s, off_level=level), 2_000_000)
    counts = np.bincount((found / 200).astype(int))[:-1]
    assert float(counts.var() / counts.mean()) == pytest.approx(expected, rel=0.2)  # 500 windows: 6 % standard error
    assert 2_000_000 / found[-1] == pytest.approx(rate, rel=0.03)


def test_a_day_follows_its_profile_and_its_mean() -> None:
    rate = 0.5
    found = times(Diurnal(rate, start_hour=0), 60 * 43_200, seed=3)  # 60 days
    per_hour = np.bincount((found % 86_400 // 3600).astype(int), minlength=24) / (found[-1] / 86_400)
    assert per_hour == pytest.approx(
        np.array(BURSTGPT_DAY) * rate * 86_400 / sum(BURSTGPT_DAY), rel=0.05
    )  # hours of 16,000 and more: 0.8 %


def test_a_day_begins_at_its_hour_and_wraps() -> None:
    day = Diurnal(1.0, profile=(1, 0, 0, 1), start_hour=3.0)  # busy from 18h to 6h
    found = times(day, 200_000) / 3600
    clock = (found + 3) % 24
    assert ((clock < 6) | (clock >= 18)).all()
    assert (found < 3).any()
    assert not ((found > 3.001) & (found < 14.999)).any()


def test_phases_multiply_the_day() -> None:
    process = Diurnal(5.0, profile=(1, 3), on_mean_s=60, off_mean_s=240)
    found = times(process, 2_000_000)
    half = found % 86_400 < 43_200
    assert float((~half).sum() / half.sum()) == pytest.approx(3, rel=0.1)
    minutes = np.bincount((found / 10).astype(int))
    assert float((minutes == 0).mean()) == pytest.approx(0.8, abs=0.06)  # off, less the edges of phases


def test_a_ramp_has_the_expected_count_at_every_time() -> None:
    ramp = Ramp(2, 10, 100)
    found = np.concatenate([times(ramp, 2_000, seed) for seed in range(400)])
    for t in (20, 50, 100, 150):
        expected = 2 * t + 8 * t**2 / 200 if t <= 100 else 600 + 10 * (t - 100)
        assert float((found <= t).sum()) / 400 == pytest.approx(expected, rel=0.03)
    down = times(Ramp(10, 2, 100, cv=0), 1000)
    assert int((down <= 100).sum()) == 1 + 600  # the first stands at the start
    assert times(Ramp(0, 4, 10, cv=0), 21)[-1] == pytest.approx(10)  # half of 4 x 10, behind the first


def test_a_spike_is_as_high_and_as_long_as_said() -> None:
    found = times(Spike(4, 10, at_s=100, for_s=20, cv=0), 2_000)
    for start, end, rate in ((0, 100, 4), (100, 120, 40), (120, 300, 4)):
        assert int(((found > start) & (found <= end)).sum()) == pytest.approx(rate * (end - start), abs=1)
    pause = times(Spike(4, 0, at_s=100, for_s=20), 1_000)
    assert not ((pause > 100) & (pause < 120)).any()


def test_normalised_sequences_end_where_vllm_ends_them() -> None:
    for process in (Poisson(5, normalize=True), Gamma(5, 3, normalize=True)):
        assert times(process, 1000)[-1] == pytest.approx(200)


def test_at_once_and_closed_loop_starts() -> None:
    assert not times(AtOnce(), 7).any()
    assert times(ClosedLoop(4, ramp_s=8), 4).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(("cv", "shape"), [(1.0, 1.0), (math.sqrt(5), 0.5), (math.sqrt(4 / math.pi - 1), 2.0)])
def test_weibull_shapes_known_on_paper(cv: float, shape: float) -> None:
    assert weibull_shape(cv) == pytest.approx(shape)


@pytest.mark.parametrize("name", ARRIVALS)
def test_the_same_seed_gives_the_same_times(name: str) -> None:
    examples: dict[str, Arrivals] = {
        "at_once": AtOnce(),
        "closed_loop": ClosedLoop(3),
        "deterministic": Deterministic(2),
        "diurnal": Diurnal(2, cv=2, on_mean_s=5, off_mean_s=5),
        "gamma": Gamma(2, 2),
        "on_off": OnOff(2, 5, 5),
        "poisson": Poisson(2),
        "ramp": Ramp(1, 2, 10),
        "spike": Spike(1, 2, 10, 10),
        "weibull": Weibull(2, 2),
    }
    process = examples[name]
    assert times(process, 500, 3).tolist() == times(process, 500, 3).tolist()
    if name not in ("at_once", "closed_loop", "deterministic"):
        assert times(process, 500, 3).tolist() != times(process, 500, 4).tolist()


@pytest.mark.parametrize(
    ("process", "wrong", "message"),
    [
        (Poisson(1), {"rate_per_s": 0}, "rate_per_s: 0 is not a positive number"),
        (Gamma(1), {"cv": -1}, "cv: -1 is not a positive number"),
        (Weibull(1), {"cv": 1000}, "cv: 1000 is not allowed"),
        (Ramp(1, 1, 1), {"end_per_s": 0}, "end_per_s: 0 is not a positive number"),
        (OnOff(1, 1, 1), {"off_mean_s": float("inf")}, "off_mean_s: inf is not a positive number"),
        (Diurnal(1), {"profile": (0.0, 0.0)}, "profile: a profile is a list of numbers"),
        (Diurnal(1), {"on_mean_s": 5}, "on_mean_s and off_mean_s go together"),
        (Diurnal(1), {"start_hour": 24}, "start_hour: 24 is not an hour"),
        (ClosedLoop(1), {"users": 0}, "users: 0 is too few"),
    ],
)
def test_impossible_parameters_are_refused(process: Arrivals, wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(process, **wrong)  # type: ignore[type-var]
