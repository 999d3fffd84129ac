"""How sure a mean over few seeds is: Student's t, without a statistics library."""

from collections.abc import Sequence
from math import atan, cos, pi, sin, sqrt


def t_quantile(probability: float, freedom: int) -> float:
    """The value that Student's t with ``freedom`` degrees stays below with this probability (0.5 to 1).

    Source: the finite sums for whole degrees of freedom, Abramowitz and Stegun 26.7.3 and 26.7.4, bisected.

    >>> round(t_quantile(0.975, 9), 6)
    2.262157
    """
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_probability(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_probability(t: float, freedom: int) -> float:
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term, total = (cos(angle), cos(angle)) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, freedom - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    if not odd:
        return (1 + sin(angle) * total) / 2
    within = angle + (sin(angle) * total if freedom > 1 else 0.0)
    return (1 + 2 / pi * within) / 2


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; values that are all equal give exactly that value."""
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Standard deviation of the mean of independent values (ddof 1); 0 if all are equal, infinite for a single one."""
    if len(values) < 2:
        return float("inf")
    middle = mean(values)
    return sqrt(sum((value - middle) ** 2 for value in values) / (len(values) - 1) / len(values))


def half_width(values: Sequence[float], confidence: float) -> float:
    """The mean lies within this much, on one side, with this confidence."""
    error = standard_error(values)
    return error * t_quantile(confidence, len(values) - 1) if 0 < error < float("inf") else error


def detectable(values: Sequence[float], confidence: float, power: float = 0.8) -> float:
    """The smallest true difference that would be found with this power: (t of confidence + t of power) x error."""
    error = standard_error(values)
    if not 0 < error < float("inf"):
        return error
    freedom = len(values) - 1
    return error * (t_quantile(confidence, freedom) + t_quantile(power, freedom))
