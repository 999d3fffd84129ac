"""Ray behind the seam: an Executor whose work is done by Ray tasks."""

import logging
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry unless somebody asks for it

import ray  # after the line above, which it reads


class RayExecutor(Executor):
    """One Ray task, of one CPU, per call. Starts Ray with ``workers`` CPUs unless RAY_ADDRESS names a cluster or Ray
    runs; stops what it has started."""

    def __init__(self, workers: int) -> None:
        self._started = not ray.is_initialized()
        if self._started:
            here: dict[str, Any] = (
                {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
            )
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **here)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """The future of ``fn(*args, **kwargs)``, computed by a Ray task."""
        future: Future[Any] = ray.remote(fn).remote(*args, **kwargs).future()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop Ray, if this executor started it."""
        if self._started and ray.is_initialized():
            ray.shutdown()
