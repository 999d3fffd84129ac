"""Verdicts in the forms that continuous integration reads: JUnit XML, GitHub annotations, a step summary.

A report is anything with ``scenario verdict findings notes seeds line``; a finding has ``expectation verdict found``.
"""

import re
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr


def junit_xml(reports: Sequence[Any]) -> str:
    """JUnit XML: a suite per scenario, a case per expectation. No verdict is a failure that says so."""
    suites = []
    for report in reports:
        cases = [_case(report.scenario, finding) for finding in report.findings]
        failures = sum(finding.verdict in ("fail", "no verdict") for finding in report.findings)
        errors = sum(finding.verdict == "error" for finding in report.findings)
        name = quoteattr(report.scenario)
        counts = f'tests="{len(cases)}" failures="{failures}" errors="{errors}" skipped="0"'
        suites.append("\n".join([f"<testsuite name={name} {counts}>", *cases, "</testsuite>"]))
    body = "\n".join(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<testsuites>\n{_printable(body)}\n</testsuites>\n'


def _case(scenario: str, finding: Any) -> str:
    head = f"  <testcase classname={quoteattr(scenario)} name={quoteattr(finding.expectation)}"
    if finding.verdict == "pass":
        return f"{head}/>"
    kind = "error" if finding.verdict == "error" else "failure"
    inside = f"<{kind} type={quoteattr(finding.verdict)} message={quoteattr(finding.found)}>"
    return f"{head}>\n    {inside}{escape(str(finding))}</{kind}>\n  </testcase>"


def _printable(text: str) -> str:
    """Without the control characters that XML cannot hold."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "?", text)


def github_annotations(reports: Sequence[Any]) -> str:
    """Workflow commands, one line for each expectation that does not pass, at the scenario's ``expect``."""
    lines = []
    for report in reports:
        place = f"file={_property(report.scenario)}" + (f",line={report.line}" if report.line else "")
        for finding in report.findings:
            if finding.verdict != "pass":
                kind = "warning" if finding.verdict == "no verdict" else "error"
                title = _property(f"{finding.verdict}: {finding.expectation}")
                lines.append(f"::{kind} {place},title={title}::{_data(finding.found)}\n")
        lines += [f"::notice {place}::{_data(note)}\n" for note in report.notes]
    return "".join(lines)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def step_summary(reports: Sequence[Any]) -> str:
    """Markdown: a table of all expectations."""
    rows = ["| scenario | expectation | verdict | found |", "|---|---|---|---|"]
    for report in reports:
        for finding in report.findings:
            cells = (report.scenario, finding.expectation, finding.verdict, finding.found)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        rows += [f"| {report.scenario} | | note | {note} |" for note in report.notes]
    return "### kvsim check\n\n" + "\n".join(rows) + "\n\n"
