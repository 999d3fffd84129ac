"""SimPy as the clock, and the one place that settles what happens first at equal times."""

import gc
from collections.abc import Callable, Sequence
from typing import Final

import simpy
from simpy.events import Event

FOREVER: Final = 1 << 62
"""A time in ns that never comes (146 years)."""

ENDS: Final = 0
"""Phase of ends of steps and of transfers, and of deliveries: what happened is applied first."""
ARRIVALS: Final = 1
"""Phase of arrivals, offers and timeouts."""
PLANS: Final = 2
"""Phase of plans: they see everything that ended or arrived at their time."""

_IDENTITIES: Final = 1 << 32
_NEW_OBJECTS: Final = 100_000
"""Python looks for cycles after so many new objects. Requests are in none; those of a fleet were looked through again
and again (3 % of its time)."""


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

    @property
    def next_ns(self) -> int:
        """When the next event comes."""
        queue = self._environment._queue
        return queue[0][0] if queue else FOREVER  # type: ignore[return-value]

    def post(
        self,
        time_ns: int,
        phase: int,
        identity: int,
        calls: Sequence[Callable[[Event], None]],
        value: object = None,
        reuse: Event | None = None,
    ) -> Event | None:
        """Have ``calls`` made with an event of this value at this time (not beyond the horizon).

        Identity (a replica id, say) orders events of one time and phase. An event that has happened can be used
        again (``reuse``), which is cheaper than a new one. Returns the event.
        """
        if time_ns > self._horizon_ns:
            return reuse
        environment = self._environment
        if reuse is not None and reuse.processed:
            event = reuse
        else:
            event = Event(environment)
            event._ok = True
        event._value = value
        event.callbacks = calls  # type: ignore[assignment]  # SimPy iterates over it and drops it
        self.events += 1
        # Any integer is a priority to SimPy, whatever its type hints say.
        self._schedule(event, phase * _IDENTITIES + identity, time_ns - environment._now)  # type: ignore[arg-type]
        return event

    def run(self) -> None:
        """Until nothing is left to happen."""
        often = gc.get_threshold()
        gc.set_threshold(often[0] and max(often[0], _NEW_OBJECTS), *often[1:])
        try:
            self._environment.run()
        finally:
            gc.set_threshold(*often)
