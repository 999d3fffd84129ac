"""KV on its way between pools: transfers that share a link fairly, to the nanosecond."""

from collections.abc import Callable
from dataclasses import dataclass

from kvsim.core.hardware import Link
from kvsim.core.request import Request
from kvsim.engine.clock import ENDS, Clock

_PER_SECOND = 1_000_000_000


@dataclass
class Flow:
    """One transfer under way. ``work`` is what is left, in bytes times 10^9."""

    request: Request
    bytes: int
    start_ns: int
    work: int


class SharedLink:
    """Processor sharing in integers: of m flows under way each advances by floor(dt * bytes_per_s / m) in dt ns.

    Shares change only when a flow starts or ends, so the sum never exceeds the bandwidth, and a flow ends at the
    first nanosecond at which its work is done. Latency comes after the flow and is not shared.
    """

    def __init__(self, link: Link, clock: Clock, on_end: Callable[[Flow, int], None]) -> None:
        self._bytes_per_s = link.bytes_per_s
        self._clock = clock
        self._on_end = on_end
        self._flows: list[Flow] = []
        self._settled_ns = 0
        self._version = 0

    def start(self, request: Request, transfer_bytes: int, now_ns: int) -> Flow:
        """Send so many bytes from now on."""
        self._advance(now_ns)
        flow = Flow(request, transfer_bytes, now_ns, transfer_bytes * _PER_SECOND)
        self._flows.append(flow)
        self._post()
        return flow

    def _advance(self, now_ns: int) -> None:
        if self._flows and now_ns > self._settled_ns:
            done = (now_ns - self._settled_ns) * self._bytes_per_s // len(self._flows)
            for flow in self._flows:
                flow.work -= done
        self._settled_ns = now_ns

    def _post(self) -> None:
        self._version += 1
        if not self._flows:
            return
        version = self._version
        least = max(0, min(flow.work for flow in self._flows))
        end_ns = self._settled_ns + -(-least * len(self._flows) // self._bytes_per_s)
        self._clock.post(end_ns, ENDS, 1 << 31, [lambda _: self._end(version, end_ns)])

    def _end(self, version: int, now_ns: int) -> None:
        if version != self._version:
            return
        self._advance(now_ns)
        ended = sorted((f for f in self._flows if f.work <= 0), key=lambda f: f.request.id)
        self._flows = [f for f in self._flows if f.work > 0]
        self._post()
        for flow in ended:
            self._on_end(flow, now_ns)
