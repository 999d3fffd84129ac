"""KV on its way between pools: transfers that share a link fairly, to the nanosecond."""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import NamedTuple

from simpy.events import Event

from kvsim.core.hardware import Link
from kvsim.core.request import Request
from kvsim.engine.clock import ENDS, Clock

_PER_SECOND = 1_000_000_000
_IDENTITY = 1 << 31  # after the ends of steps at the same time


class Flow(NamedTuple):
    """One transfer under way; it ends when every flow has been given ``until`` (bytes times 10^9) since the start."""

    until: int
    request_id: int
    request: Request
    bytes: int
    start_ns: int


class SharedLink:
    """Processor sharing in integers: of m flows under way each advances by floor(dt * bytes_per_s / m) in dt ns.

    Shares change only when a flow starts or ends, so the sum never exceeds the bandwidth, and a flow ends at the
    first nanosecond at which its work is done. Latency comes after the flow and is not shared. As all advance alike,
    one number says how far: ``_given``, what a flow that was there from the beginning would have got.
    """

    def __init__(self, link: Link, clock: Clock, on_end: Callable[[list[Flow], int], None]) -> None:
        self._bytes_per_s = link.bytes_per_s
        self._clock = clock
        self._on_end = on_end
        self._flows: list[Flow] = []
        self._given = 0
        self._settled_ns = 0
        self._end_ns = -1  # when the event under way comes that counts
        self._calls = [self._end]

    def start(self, request: Request, transfer_bytes: int, now_ns: int) -> None:
        """Send so many bytes from now on."""
        self._advance(now_ns)
        until = self._given + transfer_bytes * _PER_SECOND
        heappush(self._flows, Flow(until, request.id, request, transfer_bytes, now_ns))
        self._post()

    def _advance(self, now_ns: int) -> None:
        if self._flows and now_ns > self._settled_ns:
            self._given += (now_ns - self._settled_ns) * self._bytes_per_s // len(self._flows)
        self._settled_ns = now_ns

    def _post(self) -> None:
        left = self._flows[0].until - self._given
        end_ns = self._settled_ns + max(0, -(-left * len(self._flows) // self._bytes_per_s))
        if end_ns != self._end_ns:
            self._end_ns = end_ns
            self._clock.post(end_ns, ENDS, _IDENTITY, self._calls, end_ns)

    def _end(self, event: Event) -> None:
        now_ns: int = event._value
        if now_ns != self._end_ns:
            return
        self._end_ns = -1
        self._advance(now_ns)
        flows = self._flows
        ended = []
        while flows and flows[0].until <= self._given:
            ended.append(heappop(flows))
        if flows:
            self._post()
        ended.sort(key=lambda flow: flow.request_id)
        self._on_end(ended, now_ns)
