"""The summary as one flat row of named figures: what tables, expectations and comparisons call them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

SHORT: Final = {"preemptions": "num_preemptions"}
"""Other names under which a figure may be asked for."""


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> value of everything in a summary that is a number, a text or a list of texts.

    kvsim's own keys stand without ``kvsim.``; what is nested is joined by a dot.

    >>> figures({"duration": 2.0, "kvsim": {"stability": "stable", "trace_rows": {"read": 3}}})
    {'duration': 2.0, 'stability': 'stable', 'trace_rows.read': 3}
    """
    own = summary.get("kvsim", {})
    return dict(_flat({key: value for key, value in summary.items() if key != "kvsim"})) | dict(_flat(own))


def _flat(node: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value
