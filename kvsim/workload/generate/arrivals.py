"""When requests come. Every process is a frozen dataclass with ``times_s(n, rng) -> (n,) float64``, not falling.

A rate that changes is a change of clock: gaps are drawn with mean 1 in a time that runs with the expected number of
requests, and that time is turned into seconds (Çinlar, Introduction to Stochastic Processes, 1975, section 4.7). Gaps
that are exponential there make a non-homogeneous Poisson process; Gamma gaps make bursts that follow the rate. A trace
begins at its first request, so a rate that changes starts with one: times of day and of spikes are those of the trace.
"""

import copy
import math
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from kvsim.core.errors import InputError
from kvsim.workload.generate.distributions import Constant, Distribution, Numbers, positive

BURSTGPT_DAY: Final = (
    *(940.3, 892.6, 571.6, 513.0, 368.2, 341.5, 193.8, 153.3, 177.7, 415.9, 878.8, 1286.5),  # 0h to 11h
    *(1744.3, 1501.1, 1795.9, 1401.1, 1475.5, 1355.8, 1181.2, 1567.6, 1352.8, 1175.0, 1129.0, 1025.8),
)
"""Mean requests in each hour of the day over the 61 days of BurstGPT_1 (doi 10.1145/3711896.3737413)."""


class Arrivals(Protocol):
    """A process of arrivals; with sessions, of their starts."""

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        """The first ``n`` arrivals, (n,) float64 seconds from the start of the process."""
        ...


def unit_times(n: int, cv: float, rng: np.random.Generator) -> Numbers:
    """Arrivals with Gamma gaps of mean 1 and this CV, (n,); CV 0 is one arrival per unit."""
    if cv == 0:
        return np.arange(1.0, n + 1)
    return np.cumsum(rng.gamma(cv**-2, cv**2, n) if cv != 1 else rng.standard_exponential(n))


def _from_first(n: int, cv: float, rng: np.random.Generator) -> Numbers:
    """``unit_times``, counted from the first arrival."""
    times = unit_times(n, cv, rng)
    times -= times[0]
    return times


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InputError(f"{value} is not a number from 0", key=name)


@dataclass(frozen=True)
class AtOnce:
    """Everybody at time 0: ``vllm bench serve --request-rate inf``."""

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return np.zeros(n)


@dataclass(frozen=True)
class Deterministic:
    """One arrival every 1 / rate seconds."""

    rate_per_s: float

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return np.arange(n) / self.rate_per_s


@dataclass(frozen=True)
class Poisson:
    """Exponential gaps of mean 1 / rate; CV 1.

    ``normalize`` stretches the sequence so that its last arrival is at n / rate, as ``vllm bench serve`` does.
    """

    rate_per_s: float
    normalize: bool = False

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return _stretched(unit_times(n, 1, rng), self.normalize) / self.rate_per_s


@dataclass(frozen=True)
class Gamma:
    """Gamma gaps of mean 1 / rate and this CV: shape 1 / cv^2 (vLLM's ``--burstiness``), scale cv^2 / rate.

    ``normalize`` stretches the sequence so that its last arrival is at n / rate, as ``vllm bench serve`` does.
    """

    rate_per_s: float
    cv: float = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)
        positive("cv", self.cv)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return _stretched(unit_times(n, self.cv, rng), self.normalize) / self.rate_per_s


@dataclass(frozen=True)
class Weibull:
    """Weibull gaps of mean 1 / rate and this CV.

    The shape k solves cv^2 = Γ(1 + 2/k) / Γ(1 + 1/k)^2 - 1; the scale is 1 / (rate Γ(1 + 1/k)).
    """

    rate_per_s: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)
        if not 0.01 <= self.cv <= 100:
            raise InputError(f"{self.cv} is not allowed", key="cv", hint="allowed: 0.01 to 100")

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        shape = weibull_shape(self.cv)
        return np.cumsum(rng.weibull(shape, n)) / (self.rate_per_s * math.gamma(1 + 1 / shape))


def weibull_shape(cv: float) -> float:
    """The shape of a Weibull distribution with this CV, by bisection.

    >>> round(weibull_shape(1.0), 9)
    1.0
    """
    low, high = math.log(0.05), math.log(200.0)
    for _ in range(100):
        shape = math.exp((low + high) / 2)
        squared = math.expm1(math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape))
        low, high = ((low + high) / 2, high) if squared > cv**2 else (low, (low + high) / 2)
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Ramp:
    """The rate goes in a straight line from ``start_per_s`` to ``end_per_s`` in ``over_s`` seconds, and stays there.

    Expected arrivals until t: start t + (end - start) t^2 / (2 over). ``cv``: of the gaps where the rate is 1.
    """

    start_per_s: float
    end_per_s: float
    over_s: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        _not_negative("start_per_s", self.start_per_s)
        positive("end_per_s", self.end_per_s)
        positive("over_s", self.over_s)
        _not_negative("cv", self.cv)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        u = _from_first(n, self.cv, rng)
        start, slope = self.start_per_s, (self.end_per_s - self.start_per_s) / self.over_s
        on_ramp = (self.start_per_s + self.end_per_s) / 2 * self.over_s
        # x = start t + slope t^2 / 2, solved for t without a difference of large numbers
        x = np.minimum(u, on_ramp)
        root = np.sqrt(np.maximum(start**2 + 2 * slope * x, 0))
        rate = np.where(x > 0, start + root, 1)  # both are 0 at the beginning of a ramp from 0
        return 2 * x / rate + np.maximum(u - on_ramp, 0) / self.end_per_s


@dataclass(frozen=True)
class Spike:
    """``rate_per_s``, but ``factor`` times as much for ``for_s`` seconds from ``at_s``. ``cv``: where the rate is 1."""

    rate_per_s: float
    factor: float
    at_s: float
    for_s: float
    cv: float = 1.0

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)
        _not_negative("factor", self.factor)
        positive("for_s", self.for_s)
        _not_negative("cv", self.cv)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        u = _from_first(n, self.cv, rng) / self.rate_per_s
        before, inside = self.at_s, self.factor * self.for_s
        after = np.maximum(u - before - inside, 0)
        within = np.clip(u - before, 0, inside) / self.factor if self.factor else np.where(u > before, self.for_s, 0)
        return np.minimum(u, before) + within + after


@dataclass(frozen=True)
class OnOff:
    """A Markov-modulated process: exponential phases, on and off in turn, each with a constant rate.

    ``rate_per_s`` is the mean over all time; an off phase has ``off_level`` times the rate of an on phase. With
    off_level 0 and cv 1 (an interrupted Poisson process; Kuczura, BSTJ 52, 1973) the squared CV of the gaps is
    1 + 2 λ w / (w + v)^2, where λ is the on rate, 1/w and 1/v the mean on and off phase. It starts in either phase,
    in proportion to their lengths.
    """

    rate_per_s: float
    on_mean_s: float
    off_mean_s: float
    off_level: float = 0.0
    cv: float = 1.0

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)
        positive("on_mean_s", self.on_mean_s)
        positive("off_mean_s", self.off_mean_s)
        _not_negative("off_level", self.off_level)
        _not_negative("cv", self.cv)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return _modulated(n, self.rate_per_s, (1.0,), 0.0, self, self.cv, rng)


@dataclass(frozen=True)
class Diurnal:
    """A rate that follows the hours of the day, times a burst process.

    ``profile`` gives relative rates for equal parts of the day (24: hours; default: BurstGPT's), ``rate_per_s`` the
    mean over a day, ``start_hour`` the time of day at which it begins. Bursts: ``cv`` of the gaps where the rate is 1
    (Gamma), and on and off phases of the given means if both are given (as ``on_off``).
    """

    rate_per_s: float
    profile: tuple[float, ...] = BURSTGPT_DAY
    start_hour: float = 0.0
    cv: float = 1.0
    on_mean_s: float | None = None
    off_mean_s: float | None = None
    off_level: float = 0.0

    def __post_init__(self) -> None:
        positive("rate_per_s", self.rate_per_s)
        _not_negative("cv", self.cv)
        if not self.profile or min(self.profile) < 0 or not 0 < sum(self.profile) < math.inf:
            raise InputError("a profile is a list of numbers from 0, not all 0", key="profile")
        if not 0 <= self.start_hour < 24:
            raise InputError(f"{self.start_hour} is not an hour", key="start_hour", hint="allowed: 0 to below 24")
        if (self.on_mean_s is None) != (self.off_mean_s is None):
            raise InputError("on_mean_s and off_mean_s go together", key="on_mean_s")
        self._phases()

    def _phases(self) -> OnOff | None:
        if self.on_mean_s is None or self.off_mean_s is None:
            return None
        return OnOff(self.rate_per_s, self.on_mean_s, self.off_mean_s, self.off_level)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        return _modulated(n, self.rate_per_s, self.profile, self.start_hour, self._phases(), self.cv, rng)


def _modulated(
    n: int,
    rate_per_s: float,
    profile: tuple[float, ...],
    start_hour: float,
    phases: OnOff | None,
    cv: float,
    rng: np.random.Generator,
) -> Numbers:
    """Arrivals at a rate that is constant between the edges of the profile's parts and of the phases."""
    gaps, states = rng.spawn(2)
    unit = _from_first(n, cv, gaps)
    horizon_s = 1.2 * n / rate_per_s + 3600
    while True:
        edges = np.array([0.0, horizon_s])
        level = np.ones(1)
        if phases is not None:
            edges, level = _phase_edges(phases, horizon_s, copy.deepcopy(states))
        part_s = 86_400 / len(profile)
        if len(profile) > 1:
            offset = start_hour * 3600
            first, last = math.floor(offset / part_s) + 1, math.floor((offset + horizon_s) / part_s)
            both = np.union1d(edges, np.arange(first, last + 1) * part_s - offset)
            middle = (both[1:] + both[:-1]) / 2
            shape = np.array(profile) * len(profile) / sum(profile)
            hours = shape[(((middle + offset) % 86_400) / part_s).astype(np.int64) % len(profile)]
            edges, level = both, hours * level[np.clip(np.searchsorted(edges, middle) - 1, 0, len(level) - 1)]
        expected = np.concatenate(([0.0], np.cumsum(level * np.diff(edges)))) * rate_per_s
        if expected[-1] > unit[-1]:
            times: Numbers = np.interp(unit, expected, edges)
            return times
        horizon_s *= 2


def _phase_edges(phases: OnOff, horizon_s: float, rng: np.random.Generator) -> tuple[Numbers, Numbers]:
    """Edges (m+1,) of on and off phases from 0 to past the horizon, and their levels (m,), whose mean is 1."""
    on_s, off_s = phases.on_mean_s, phases.off_mean_s
    on_first = bool(rng.random() < on_s / (on_s + off_s))
    lengths: list[Numbers] = []
    total = 0.0
    pairs = int(horizon_s / (on_s + off_s)) + 16
    while total <= horizon_s:
        pair = rng.standard_exponential((pairs, 2)) * ((on_s, off_s) if on_first else (off_s, on_s))
        lengths.append(pair.ravel())
        total += float(pair.sum())
    edges = np.concatenate(([0.0], np.cumsum(np.concatenate(lengths))))
    on_level = (on_s + off_s) / (on_s + phases.off_level * off_s)
    both = (on_level, on_level * phases.off_level)
    return edges, np.tile(both if on_first else both[::-1], len(edges) // 2)


NO_PAUSE: Final = Constant(0.0)


@dataclass(frozen=True)
class ClosedLoop:
    """``users`` people, each of whom sends a request, waits for its end, thinks, and sends the next.

    Everyone is a session with an equal number of turns; needs ``workload.sessions: closed``. Users start evenly over
    ``ramp_s`` seconds. (A closed loop without thinking, whose fast slots do more: ``at_once`` and
    ``max_concurrency``.)
    """

    users: int
    think_s: Distribution = NO_PAUSE
    ramp_s: float = 0.0

    def __post_init__(self) -> None:
        if self.users < 1:
            raise InputError(f"{self.users} is too few", key="users", hint="allowed: whole numbers from 1")
        _not_negative("ramp_s", self.ramp_s)

    def times_s(self, n: int, rng: np.random.Generator) -> Numbers:
        """When everybody starts: (n,), of which the first ``users`` count."""
        starts: Numbers = np.minimum(np.arange(n), self.users) * (self.ramp_s / self.users)
        return starts


def _stretched(unit: Numbers, wanted: bool) -> Numbers:
    return unit * (len(unit) / unit[-1]) if wanted else unit


ARRIVALS: Final = {
    name: f"{__name__}:{kind.__name__}"
    for name, kind in {
        "at_once": AtOnce,
        "closed_loop": ClosedLoop,
        "deterministic": Deterministic,
        "diurnal": Diurnal,
        "gamma": Gamma,
        "on_off": OnOff,
        "poisson": Poisson,
        "ramp": Ramp,
        "spike": Spike,
        "weibull": Weibull,
    }.items()
}
