"""Small HTML for notebooks: a card of facts, and histograms as inline SVG. Text only; no library draws them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

BARS: Final = 40
WIDTH: Final = 240
HEIGHT: Final = 60


def card(title: str, facts: Mapping[str, str], plots: Sequence[str] = ()) -> str:
    """A titled table of (name, value) with plots below.

    >>> card("Trace", {"requests": "3"})
    '<div><b>Trace</b><table><tr><th>requests</th><td>3</td></tr></table></div>'
    """
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items())
    return f"<div><b>{escape(title)}</b><table>{rows}</table>{''.join(plots)}</div>"


def bars(values: NDArray[Any], label: str) -> str:
    """A histogram of the finite values (n,) in 40 bars, as SVG with the lowest and highest value under it."""
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    counts, edges = np.histogram(values, bins=BARS)
    step, highest = WIDTH / BARS, max(int(counts.max()), 1)
    columns = "".join(
        f'<rect x="{k * step:.1f}" y="{HEIGHT * (1 - count / highest):.1f}" width="{step - 0.5:.1f}" '
        f'height="{HEIGHT * count / highest:.1f}" fill="#0072B2"/>'
        for k, count in enumerate(counts.tolist())
        if count
    )
    caption = f"{edges[0]:.3g} to {edges[-1]:.3g}: {label}"
    text = f'<text x="0" y="{HEIGHT + 14}" font-size="10" fill="currentColor">{escape(caption)}</text>'
    size = f'width="{WIDTH + 16}" height="{HEIGHT + 18}"'
    return f'<svg {size} role="img" aria-label="{escape(caption)}">{columns}{text}</svg>'
