"""Assertions on results, with differences that one can read."""

import difflib
from collections.abc import Mapping
from typing import Any

from kvsim.metrics.figures import SHORT, figures
from kvsim.report.result import Result
from kvsim.sweeps.expect import Change, Expectation, Finding


def assert_expected(result: Result, **expected: Any) -> None:
    """Every figure is as expected: ``assert_expected(result, p99_ttft_ms="< 800", preemptions=0)``.

    One run has no noise: an order is judged as it is. Raises AssertionError with a line per expectation, and
    ValueError for an unknown figure or a comparison that cannot be read.
    """
    own = figures(result.summary)
    findings = []
    for name, written in expected.items():
        value = own[_known(name, own)]
        findings.append(Expectation.parse(SHORT.get(name, name), written).judge([value] * 2, 0.95))
    _raise_unless_pass("is not as expected", result, findings)


def assert_not_worse(result: Result, baseline: Result, **allowed: str) -> None:
    """No figure has moved further than allowed: ``assert_not_worse(new, old, mean_tpot_ms="+3%")``.

    Raises AssertionError with a line per figure, and ValueError for an unknown figure or change.
    """
    mine, theirs = figures(result.summary), figures(baseline.summary)
    findings = []
    for name, written in allowed.items():
        figure = _known(name, mine)
        change = Change.parse(figure, written)
        # each twice: a single run is taken as it is, without noise
        findings.append(change.judge([mine[figure]] * 2, [theirs[figure]] * 2, 0.95, str(baseline.summary["label"])))
    _raise_unless_pass("is worse than the baseline", result, findings)


def _known(name: str, own: Mapping[str, Any]) -> str:
    name = SHORT.get(name, name)
    if name not in own:
        near = difflib.get_close_matches(name, [*own, *SHORT], n=1)
        raise ValueError(f"unknown figure {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return name


def _raise_unless_pass(what: str, result: Result, findings: list[Finding]) -> None:
    if any(finding.verdict != "pass" for finding in findings):
        lines = "\n".join(f"  {finding}" for finding in findings)
        raise AssertionError(f"{result.summary['label']} {what}:\n{lines}")
