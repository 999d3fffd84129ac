"""One random number after another: token counts, turns, pauses.

Every distribution is a frozen dataclass with ``sample(n, rng) -> (n,) float64``. Whoever needs whole numbers rounds.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import MAX_TOKENS

Numbers = NDArray[np.float64]


class Distribution(Protocol):
    """Where numbers come from: a number (always that one), or a name with parameters."""

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        """(n,) float64, independent draws."""
        ...


def positive(name: str, value: float) -> None:
    """Raise InputError unless ``value`` is a positive finite number."""
    if not 0 < value < math.inf:
        raise InputError(f"{value} is not a positive number", key=name)


def _ordered(least: float, most: float) -> None:
    if not least <= most:
        raise InputError(f"least {least} is more than most {most}", key="least")


@dataclass(frozen=True)
class Constant:
    """Always the same number."""

    value: float

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return np.full(n, float(self.value))


@dataclass(frozen=True)
class Uniform:
    """Whole numbers from ``least`` to ``most``, each as likely as the others."""

    least: int
    most: int

    def __post_init__(self) -> None:
        _ordered(self.least, self.most)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return rng.integers(self.least, self.most, n, endpoint=True).astype(np.float64)


@dataclass(frozen=True)
class Exponential:
    """Density exp(-x / mean) / mean; CV 1."""

    mean: float

    def __post_init__(self) -> None:
        positive("mean", self.mean)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return rng.exponential(self.mean, n)


@dataclass(frozen=True)
class Gamma:
    """Gamma of shape 1 / cv^2 and scale mean * cv^2."""

    mean: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        positive("mean", self.mean)
        positive("cv", self.cv)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return rng.gamma(self.cv**-2, self.mean * self.cv**2, n)


@dataclass(frozen=True)
class Geometric:
    """Whole numbers k from ``least``: P(k) = p (1 - p)^(k - least), p = 1 / (mean - least + 1); more than ``most`` is
    ``most``."""

    mean: float
    least: int = 1
    most: float | None = None

    def __post_init__(self) -> None:
        if not self.least <= self.mean < math.inf:
            raise InputError(f"mean {self.mean} is less than least {self.least}", key="mean")
        if self.most is not None:
            _ordered(self.least, self.most)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        k = self.least - 1 + rng.geometric(1 / (self.mean - self.least + 1), n)
        return np.minimum(k, math.inf if self.most is None else self.most).astype(np.float64)


@dataclass(frozen=True)
class Lognormal:
    """exp(mu + sigma Z), clipped to ``least..most``. Give its ``mean`` or its ``median``.

    ``mean`` is that of the clipped distribution: mu solves (by bisection)
    mean = least Φ(a) + most (1 - Φ(b)) + exp(mu + sigma^2 / 2) (Φ(b - sigma) - Φ(a - sigma)),
    where a = (ln least - mu) / sigma and b = (ln most - mu) / sigma. From a published median m and 90th percentile q:
    sigma = ln(q / m) / 1.2816.
    """

    sigma: float
    mean: float | None = None
    median: float | None = None
    least: float = 0.0
    most: float | None = None

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)
        if (self.mean is None) == (self.median is None):
            raise InputError("give either mean or median", key="mean")
        middle = self.mean if self.mean is not None else self.median
        assert middle is not None
        positive("mean" if self.mean is not None else "median", middle)
        if not 0 <= self.least < middle < (math.inf if self.most is None else self.most):
            problem = f"{middle} is not between least {self.least} and most {self.most}"
            raise InputError(problem, hint="allowed: 0 <= least < mean or median < most")

    @cached_property
    def mu(self) -> float:
        """Mean of the logarithm before clipping."""
        if self.median is not None:
            return math.log(self.median)
        assert self.mean is not None
        sigma, least, most, cdf = self.sigma, self.least, self.most, NormalDist().cdf

        def mean(mu: float) -> float:
            total = math.exp(mu + sigma**2 / 2)
            below = above = 0.0  # probability mass that the clipped lognormal leaves to the bounds, in tokens
            inside = 1.0
            if most is not None:
                b = (math.log(most) - mu) / sigma
                above, inside = most * (1 - cdf(b)), cdf(b - sigma)
            if least:
                a = (math.log(least) - mu) / sigma
                below, inside = least * cdf(a), inside - cdf(a - sigma)
            return below + total * inside + above

        free = math.log(self.mean) - sigma**2 / 2
        if least == 0 and most is None:
            return free
        low, high = free - 20 * (1 + sigma), free + 20 * (1 + sigma)
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) < self.mean else (low, middle)
        return (low + high) / 2

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return np.clip(np.exp(self.mu + self.sigma * rng.standard_normal(n)), self.least, self.most)


@dataclass(frozen=True)
class Zipf:
    """Whole numbers k from ``least`` to ``most`` with P(k) proportional to k^-a.

    BurstGPT's authors draw request lengths so, with a = 1.1 (their example generator). Takes 8 bytes per number.
    """

    MOST: ClassVar[int] = 10_000_000

    a: float = 1.1
    least: int = 1
    most: int = 4096

    def __post_init__(self) -> None:
        _ordered(1, self.least)
        _ordered(self.least, self.most)
        if self.most > self.MOST:
            raise InputError(f"{self.most} is too many", key="most", hint=f"allowed: up to {self.MOST}")
        if not 0 <= self.a < math.inf:
            raise InputError(f"{self.a} is not a number from 0", key="a")

    @cached_property
    def cumulative(self) -> Numbers:
        """P(at most k) for each k."""
        weights = np.arange(self.least, self.most + 1, dtype=np.float64) ** -self.a
        cumulative: Numbers = np.cumsum(weights) / weights.sum()
        return cumulative

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        below = np.searchsorted(self.cumulative, rng.random(n), side="right")
        return (self.least + np.minimum(below, len(self.cumulative) - 1)).astype(np.float64)


@dataclass(frozen=True)
class Quantiles:
    """What published percentiles say: straight lines between ``(share, value)`` points, in the logarithm of the value.

    >>> Quantiles(((0, 1), (0.5, 100), (1, 10_000))).sample(3, np.random.default_rng(0)).round()
    array([353.,  12.,   1.])
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        shares, values = zip(*self.points, strict=True) if len(self.points) > 1 else ((), ())
        rising = all(a < b for a, b in pairwise(shares)) and list(values) == sorted(values)
        if not shares or (shares[0], shares[-1]) != (0, 1) or not rising or values[0] <= 0:
            hint = "allowed: [share, value] pairs, shares rising from 0 to 1, values positive and not falling"
            raise InputError("these are not quantiles", key="points", hint=hint)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        shares, values = zip(*self.points, strict=True)
        return np.exp(np.interp(rng.random(n), shares, np.log(values)))


@dataclass(frozen=True)
class Empirical:
    """Draws with replacement from the numbers of a text file, one per line."""

    path: Path

    @cached_property
    def values(self) -> Numbers:
        """The numbers of the file. Raises InputError for a line that is none, or a negative one."""
        try:
            lines = self.path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
            raise InputError(f"cannot be read: {reason}", file=self.path) from None
        found = []
        for number, line in enumerate(lines, 1):
            try:
                value = float(line)
            except ValueError:
                value = -1.0
            if not 0 <= value < math.inf:
                raise InputError(f"{line!r} is not a number from 0", file=self.path, line=number)
            found.append(value)
        if not found:
            raise InputError("holds no numbers", file=self.path)
        return np.array(found)

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        return rng.choice(self.values, n)


@dataclass(frozen=True)
class Mixture:
    """One of ``parts`` each time, with probability proportional to ``weights``: bimodal responses, for instance."""

    weights: tuple[float, ...]
    parts: tuple[Distribution, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.parts):
            problem = f"{len(self.weights)} weights for {len(self.parts)} parts"
            raise InputError(problem, key="weights", hint="one weight per part, at least one")
        if min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf:
            raise InputError("weights must be 0 or more, and not all 0", key="weights")

    def sample(self, n: int, rng: np.random.Generator) -> Numbers:
        which = rng.choice(len(self.parts), n, p=np.array(self.weights) / sum(self.weights))
        found = np.empty(n)
        for k, part in enumerate(self.parts):
            chosen = which == k
            found[chosen] = part.sample(int(chosen.sum()), rng)
        return found


DISTRIBUTIONS: Final = {
    name: f"{__name__}:{kind.__name__}"
    for name, kind in {
        "constant": Constant,
        "empirical": Empirical,
        "exponential": Exponential,
        "gamma": Gamma,
        "geometric": Geometric,
        "lognormal": Lognormal,
        "mixture": Mixture,
        "quantiles": Quantiles,
        "uniform": Uniform,
        "zipf": Zipf,
    }.items()
}


def refuse_none(**distributions: Distribution) -> None:
    """Raise InputError, by keyword, if numbers of tokens or turns come from what can say 0 of them, or too many."""
    for name, each in distributions.items():
        if isinstance(each, Mixture):
            for part in each.parts:
                refuse_none(**{name: part})
        bounds: tuple[float, ...] = (each.value,) if isinstance(each, Constant) else ()
        bounds = (each.least, each.most) if isinstance(each, Uniform) else bounds
        for bound in bounds:
            if not 1 <= bound <= MAX_TOKENS:
                raise InputError(f"{bound:g} is not possible", key=name, hint=f"allowed: from 1 to {MAX_TOKENS}")


def whole(values: Numbers, least: int = 1) -> NDArray[np.int64]:
    """Values rounded to whole numbers, none below ``least``. Raises InputError for one above 2^31 - 1."""
    if len(values) and not float(values.max()) <= MAX_TOKENS:
        problem = f"a distribution gives {values.max():.6g}"
        raise InputError(problem, hint=f"allowed: up to {MAX_TOKENS}; most: ... cuts its tail")
    return np.maximum(np.rint(values), least).astype(np.int64)
