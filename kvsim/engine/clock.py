"""SimPy as the clock, and the one place that settles what happens first at equal times."""

from collections.abc import Callable
from typing import Final

import simpy
from simpy.events import Event

FOREVER: Final = 1 << 62
"""A time in ns that never comes (146 years)."""

ENDS: Final = 0
"""Phase of ends of steps and of transfers: what happened is applied first."""
ARRIVALS: Final = 1
"""Phase of arrivals, deliveries, offers and timeouts."""
PLANS: Final = 2
"""Phase of plans: they see everything that ended or arrived at their time."""

_IDENTITIES: Final = 1 << 32


class Clock:
    """Calls functions at integer nanoseconds, in the order (time, phase, identity), up to a horizon."""

    __slots__ = ("_environment", "_horizon_ns", "_schedule", "events")

    def __init__(self, horizon_ns: int) -> None:
        self._environment = simpy.Environment(initial_time=0)
        self._schedule = self._environment.schedule
        self._horizon_ns = horizon_ns
        self.events = 0

    @property
    def now_ns(self) -> int:
        return self._environment._now  # type: ignore[return-value]

    def post(
        self, time_ns: int, phase: int, identity: int, call: Callable[[Event], None], value: object = None
    ) -> None:
        """Have ``call(event)`` at this time (not beyond the horizon), ``event.value`` being ``value``.

        Identity (a replica id, say) orders events of one time and phase.
        """
        if time_ns > self._horizon_ns:
            return
        environment = self._environment
        event = Event(environment)
        event._ok = True
        event._value = value
        event.callbacks.append(call)
        self.events += 1
        self._schedule(event, phase * _IDENTITIES + identity, time_ns - environment._now)

    def run(self) -> None:
        """Until nothing is left to happen."""
        self._environment.run()
