"""Which replica gets a request.

Implement: a frozen dataclass with ``start(rng)`` and ``route(request, replicas, memory)``
(``kvsim/core/seats.py``), and name it in ``ROUTERS``. A router that reads counters leaves ``reads_counters`` out;
one that does not sets it to False and is faster. May import: ``kvsim.core`` only. Copy: ``least_tokens.py``. Check:
``make check-plugin P=package.module:Class``. Called by: the engine, once per request that is sent to the pool.
"""

ROUTERS: dict[str, str] = {
    "least_requests": "kvsim.routers.least_requests:LeastRequests",
    "least_tokens": "kvsim.routers.least_tokens:LeastTokens",
    "random": "kvsim.routers.random:Random",
    "round_robin": "kvsim.routers.round_robin:RoundRobin",
}
