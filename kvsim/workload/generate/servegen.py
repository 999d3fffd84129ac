"""ServeGen's client models, composed (Xiang et al., arXiv 2505.09999; data Apache-2.0, ``alibaba/ServeGen``).

A client is a tenant's traffic in windows of 600 s, each with a rate, a CV and a family of gaps, and of 21,600 s, each
with the distributions of its input and output tokens. A workload is the sum of its clients.
"""

import csv
import io
import json
import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from kvsim.core.errors import InputError
from kvsim.core.trace import Trace, TraceRows
from kvsim.workload.generate.distributions import Numbers, positive

WINDOW_S: Final = 600
LENGTHS_S: Final = 21_600

Pdf = tuple[NDArray[np.int64], Numbers]
"""Token counts, rising, and the probability of at most so many; (k,) each."""


@dataclass(frozen=True)
class Window:
    """A client's traffic in 600 s: gaps of a family with a shape, and what was measured."""

    start_s: int
    rate_per_s: float
    cv: float
    family: str
    shape: float


@dataclass
class Client:
    """One client: its busy windows, and input and output distributions by start of their window."""

    number: int
    windows: list[Window] = field(default_factory=list)
    lengths: dict[int, tuple[Pdf, Pdf]] = field(default_factory=dict)

    def requests(self, start_s: float, end_s: float) -> float:
        """Expected requests in windows that begin in this time."""
        return sum(w.rate_per_s * WINDOW_S for w in self.windows if start_s - WINDOW_S < w.start_s < end_s)


def read_clients(path: Path, start_s: float = 0.0, end_s: float = math.inf) -> list[Client]:
    """The clients in a folder or tar archive of ``chunk-N-trace.csv`` and ``chunk-N-dataset.json``, by number.

    Only windows that overlap ``start_s..end_s`` are kept; of the lengths, where a client has none then, its first
    ones. Raises InputError for files that cannot be read and content that is not as published.
    """
    clients: dict[int, Client] = {}
    for name, content in _files(Path(path)):
        parts = PurePosixPath(name).name.split("-")
        if len(parts) != 3 or parts[0] != "chunk" or not parts[1].isdigit():
            continue
        client = clients.setdefault(int(parts[1]), Client(int(parts[1])))
        if parts[2] == "trace.csv":
            client.windows += _windows(name, content, start_s, end_s)
        elif parts[2] == "dataset.json":
            client.lengths |= _lengths(name, content, start_s, end_s)
    if not any(client.windows for client in clients.values()):
        problem = "holds no busy window of a client in this time" if clients else "holds no client"
        raise InputError(
            problem, file=str(path), hint="a folder or tar archive of chunk-N-trace.csv, chunk-N-dataset.json"
        )
    return [clients[number] for number in sorted(clients)]


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    from kvsim.workload.readers.files import open_bytes, readable

    with readable(path):
        if path.is_dir():
            for file in sorted(path.rglob("chunk-*-*")):
                yield str(file), file.read_bytes()
            return
        with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield f"{path}:{member.name}", content.read()


def _windows(name: str, content: bytes, start_s: float, end_s: float) -> Iterator[Window]:
    for line, row in enumerate(csv.reader(io.StringIO(content.decode("utf-8", errors="replace"))), 1):
        try:
            start, rate, cv, family, shape, _ = row
            if not family or not start_s - WINDOW_S < int(start) < end_s:
                continue
            window = Window(int(start), float(rate), float(cv), family, float(shape))
        except ValueError:
            hint = "window start, rate, CV, family, shape, scale"
            raise InputError(f"{','.join(row)!r} is no window", file=name, line=line, hint=hint) from None
        numbers = (window.rate_per_s, window.cv, window.shape)
        if family not in ("Gamma", "Weibull") or not all(0 < number <= 1e6 for number in numbers):
            hint = "family Gamma or Weibull; rate, CV and shape positive, at most a million"
            raise InputError(f"{','.join(row)!r} is no window", file=name, line=line, hint=hint)
        yield window


def _lengths(name: str, content: bytes, start_s: float, end_s: float) -> dict[int, tuple[Pdf, Pdf]]:
    found: dict[int, tuple[Pdf, Pdf]] = {}
    try:
        fields_by_start: Mapping[str, Mapping[str, str]] = json.loads(content)
        for start in sorted(fields_by_start, key=int):
            texts = fields_by_start[start]["input_tokens"], fields_by_start[start]["output_tokens"]
            wanted = start_s - LENGTHS_S < int(start) < end_s
            if "{}" in texts or not (wanted or not found):
                continue
            if wanted and found and min(found) <= start_s - LENGTHS_S:
                found.clear()  # only kept for want of better
            found[int(start)] = _pdf(texts[0]), _pdf(texts[1])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        hint = "window start -> input_tokens and output_tokens, each '{tokens: probability, ...}'"
        raise InputError(f"cannot be read: {error}", file=name, hint=hint) from None
    return found


def _pdf(text: str) -> Pdf:
    """A distribution from the text of a Python dict, which is never evaluated.

    >>> _pdf("{45: 0.25, 46: 0.75}")
    (array([45, 46]), array([0.25, 1.  ]))
    """
    pairs = np.array(text.strip("{} ").replace(":", ",").split(","), np.float64).reshape(-1, 2)
    pairs = pairs[np.argsort(pairs[:, 0])]
    if not (pairs >= 0).all() or not 0.99 < pairs[:, 1].sum() < 1.01:
        raise ValueError("probabilities do not add up to 1")
    return pairs[:, 0].astype(np.int64), np.cumsum(pairs[:, 1]) / pairs[:, 1].sum()


def servegen(
    path: Path,
    *,
    start_s: float = 0.0,
    duration_s: float = 3600.0,
    clients: int | None = None,
    rate_per_s: float | None = None,
    gaps: Literal["measured", "fitted"] = "measured",
    seed: int = 0,
) -> Trace:
    """Client models of ServeGen (a folder or tar archive of its data), composed; every client is a tenant.

    Requests from ``start_s`` on. In each of its windows a client sends rate x 600 requests, whose gaps are drawn from
    the window's family and scaled to fill it. ``gaps: fitted`` leaves it at that, as ServeGen's own code does;
    ``measured`` also raises them to the power that gives the sample the CV measured there, since Weibull shapes of the
    data do not have their window's CV (docs). Input and output tokens are independent draws of the window's
    distributions; a client without any borrows those of the client with the nearest number of requests.
    ``clients``: only the busiest so many. ``rate_per_s``: the mean rate of all together over the time, shares kept.
    Raises InputError for bad files and arguments.
    """
    if not 0 <= start_s < math.inf:
        raise InputError(f"{start_s} is not a number from 0", key="start_s")
    positive("duration_s", duration_s)
    if rate_per_s is not None:
        positive("rate_per_s", rate_per_s)
    if clients is not None and clients < 1:
        raise InputError(f"{clients} is too few", key="clients", hint="allowed: whole numbers from 1")
    end_s = start_s + duration_s
    pool = [client for client in read_clients(path, start_s, end_s) if client.windows or client.lengths]
    volume = {client.number: client.requests(start_s, end_s) for client in pool}
    donors = [client for client in pool if client.lengths]
    if not donors:
        raise InputError("holds no lengths", file=path, hint="chunk-N-dataset.json lie beside the traces")
    busy = sorted((c for c in pool if c.windows), key=lambda c: -volume[c.number])[:clients]
    whole_s = (math.ceil(end_s / WINDOW_S) - math.floor(start_s / WINDOW_S)) * WINDOW_S
    scale = 1.0 if rate_per_s is None else rate_per_s * whole_s / sum(volume[c.number] for c in busy)

    times: list[Numbers] = []
    tenants: list[NDArray[np.int64]] = []
    inputs: list[NDArray[np.int64]] = []
    outputs: list[NDArray[np.int64]] = []
    for client in busy:
        donor = client if client.lengths else min(donors, key=lambda d: abs(volume[d.number] - volume[client.number]))
        arrivals, lengths = np.random.default_rng([seed, client.number]).spawn(2)
        for window in client.windows:
            at_s = window.start_s + _in_window(window, window.rate_per_s * scale, gaps == "measured", arrivals)
            at_s = at_s[(at_s >= start_s) & (at_s < end_s)]
            begun = [start for start in donor.lengths if start <= window.start_s]
            for found, pdf in zip((inputs, outputs), donor.lengths[max(begun or donor.lengths)], strict=True):
                found.append(_drawn(pdf, len(at_s), lengths))
            times.append(at_s)
            tenants.append(np.full(len(at_s), client.number))

    at = np.concatenate(times)
    if not len(at):
        raise InputError("no client sends anything in this time", file=path, key="duration_s", hint="lengthen it")
    order = np.argsort(at, kind="stable")
    arrival_ns = np.rint((at[order] - at[order[0]]) * 1e9).astype(np.int64)
    numbers, tenant = np.unique(np.concatenate(tenants)[order], return_inverse=True)
    return Trace(
        arrival_ns,
        np.concatenate(inputs)[order],
        np.concatenate(outputs)[order],
        tenant=tenant,
        tenant_names=[f"client-{number}" for number in numbers],
        rows=TraceRows(read=len(at)),
    )


def _in_window(window: Window, rate_per_s: float, match_cv: bool, rng: np.random.Generator) -> Numbers:
    """Arrivals from the start of a window, (n,) s: n is rate x 600, a fraction of a request by chance."""
    expected = rate_per_s * WINDOW_S
    n = int(expected + rng.random()) if abs(expected - round(expected)) > 1e-6 else round(expected)
    if n == 0:
        return np.zeros(0)
    # Logarithms, because a shape below 0.01 leaves the range of float64: a Weibull is a power of an exponential, a
    # Gamma of shape k is one of shape k + 1 times a uniform to the power 1 / k.
    log = np.log(rng.standard_exponential(n)) / window.shape
    if window.family == "Gamma":
        log = np.log(rng.gamma(window.shape + 1, 1.0, n)) - rng.standard_exponential(n) / window.shape
    log -= log.max()
    gap = np.exp(log * (_exponent(log, window.cv) if match_cv else 1.0))
    gap /= gap.mean()
    # The window's edges fall into one gap, of which nobody sees the length: an average one, so the others keep the CV.
    edge = int(np.argmin(np.abs(gap - 1)))
    gap[0], gap[edge] = gap[edge], gap[0]
    at: Numbers = (np.cumsum(gap) - rng.random() * gap[0]) * (WINDOW_S / n)
    return np.minimum(at, math.nextafter(WINDOW_S, 0.0))  # where one gap is nearly all, the sum rounds to the end


def _exponent(log: Numbers, cv: float) -> float:
    """The power that gives numbers of these logarithms (largest 0) this CV, by bisection: the CV rises with it.

    n numbers cannot have a CV above sqrt(n - 1); then it is what gives 99 % of that.
    """
    n = len(log)
    target = min(cv, 0.99 * math.sqrt(n - 1)) ** 2 + 1  # the mean square over the squared mean

    def too_even(p: float) -> bool:
        value = np.exp(p * log)
        return n * float(value @ value) < target * float(value.sum()) ** 2

    low, high = 0.0, 1.0
    while n > 1 and too_even(high) and high < 2**20:
        low, high = high, high * 2
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if too_even(middle) else (low, middle)
    return (low + high) / 2


def _drawn(pdf: Pdf, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    tokens, cumulative = pdf
    at = np.minimum(np.searchsorted(cumulative, rng.random(n), side="right"), len(tokens) - 1)
    return np.maximum(tokens[at], 1)
