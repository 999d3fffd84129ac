"""Where runs are computed: anything that is a ``concurrent.futures.Executor``, and what to do when a worker dies."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import wait as wait_for_end
from types import ModuleType
from typing import Any, Final

from kvsim.core.errors import InputError
from kvsim.sweeps.work import Outcome, Task, evaluate

DEATHS: Final = 3
"""A run whose worker dies so many times, alone in its pool, is a failure: it needs more memory than there is."""

Maker = Callable[[int], Executor]
"""Makes an executor for so many workers."""


class Processes(ProcessPoolExecutor):
    """Worker processes that end with the process that started them, and that need nothing of its script."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn" if os.name == "nt" else "forkserver")
        if os.name != "nt":
            context.set_forkserver_preload(["kvsim.sweeps.work"])  # imported once, not by each worker
        super().__init__(workers, mp_context=context, initializer=_start_worker)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As any executor's; the first call starts the workers."""
        with _nameless_main():
            return super().submit(fn, *args, **kwargs)

    def stop(self) -> None:
        """End the workers now, in the middle of what they do."""
        for process in list((self._processes or {}).values()):
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Hide the caller's script: a new process would run it again, and without ``if __name__ == "__main__"`` start
    workers of its own. Policies are imported by name, so workers do not need it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides what it means
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed driver closes no queue: without this, its workers would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_end([parent.sentinel])
        os._exit(1)


def ray_executor(workers: int) -> Executor:
    """Runs on Ray (``pip install 'kvsim[ray]'``): the cluster in RAY_ADDRESS, else ``workers`` CPUs here."""
    try:
        from kvsim.sweeps.ray import RayExecutor
    except ImportError:
        raise InputError("Ray is not installed", key="executor", hint="pip install 'kvsim[ray]'") from None
    return RayExecutor(workers)


class Here(Executor):
    """This very process, one call after the other: for runs that are shorter than starting a worker."""

    def __init__(self, workers: int) -> None: ...

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


EXECUTORS: Final[dict[str, Maker]] = {"processes": Processes, "here": Here, "ray": ray_executor}


def for_few(executor: str | Executor | None, workers: int) -> str | Executor:
    """The executor for a handful of runs: where one worker is enough, starting it takes longer than it saves."""
    return executor or ("here" if workers == 1 else "processes")


def find_executor(name: str | Executor | None) -> Maker:
    """What makes the executor that is meant: a built-in name, ``package.module:factory`` (called without arguments),
    or an Executor itself, which is used and left open. Raises InputError for an unknown one."""
    if isinstance(name, Executor):
        return lambda workers: _Borrowed(name)
    if name is None or name in EXECUTORS:
        return EXECUTORS[name or "processes"]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        known = f"known: {', '.join(EXECUTORS)}, or package.module:factory"
        raise InputError(f"unknown executor {name!r}", key="executor", hint=known)
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{name!r} cannot be imported: {error}", key="executor") from error
    finally:
        sys.path.remove(os.getcwd())

    def made(workers: int) -> Executor:
        executor = factory()
        if not isinstance(executor, Executor):
            found = type(executor).__qualname__
            raise InputError(f"{name} gave a {found}, not a concurrent.futures.Executor", key="executor")
        return executor

    return made


class _Borrowed(Executor):
    """Somebody else's executor: it is not ours to shut down."""

    def __init__(self, owner: Executor) -> None:
        self._owner = owner

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._owner.submit(fn, *args, **kwargs)


class Crew:
    """The executor of one question: made when first needed, made anew after a worker has died, ended by ``close``.

    Raises InputError for an unknown executor.
    """

    def __init__(self, executor: str | Executor | None, workers: int) -> None:
        self._make, self._workers = find_executor(executor), workers
        self._executor: Executor | None = None

    def outcomes(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, in the order in which they end; a few are under way at a time.

        A worker that dies (killed, out of memory) takes the pool with it: what was under way is then done again, one
        at a time, so that the run whose worker dies again is known. It becomes an outcome, and the others go on.
        """
        queue = iter(tasks)
        while True:
            lost = yield from self._until_broken(queue)
            if not lost:
                return
            for task in lost:
                yield task, self._alone(task)

    def close(self) -> None:
        """End the executor, if there is one."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _until_broken(self, queue: Iterator[Task]) -> Generator[tuple[Task, Outcome], None, list[Task]]:
        """Yields outcomes; returns what was under way when the pool broke, nothing if it never did."""
        if self._executor is None:
            self._executor = self._make(self._workers)
        running: dict[Future[Outcome], Task] = {}
        usable = False
        try:
            while True:
                for task in islice(queue, 2 * self._workers - len(running)):
                    try:
                        running[self._executor.submit(evaluate, task)] = task
                    except BrokenExecutor:
                        return [*running.values(), task]
                if not running:
                    usable = True
                    return []
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    try:
                        outcome = future.result()
                    except BrokenExecutor:
                        continue  # stays in running: it was under way
                    except Exception as error:  # of the executor itself: evaluate raises nothing
                        outcome = {"error": " ".join(f"{type(error).__name__}: {error}".split())}
                    yield running.pop(future), outcome
                if any(future in running for future in ended):
                    done = [f for f in running if f.done() and not f.cancelled() and f.exception() is None]
                    for future in done:
                        yield running.pop(future), future.result()
                    return list(running.values())
        finally:
            if not usable:
                _stop(self._executor, running)
                self._executor = None

    def _alone(self, task: Task) -> Outcome:
        for _ in range(DEATHS):
            executor = self._make(1)
            try:
                outcome: Outcome = executor.submit(evaluate, task).result()
                return outcome
            except BrokenExecutor:
                continue
            finally:
                _stop(executor)
        return {"error": f"the worker process died {DEATHS} times in this run (killed, or out of memory)"}


def _stop(executor: Executor, running: Iterable[Future[Outcome]] = ()) -> None:
    """End an executor without waiting for what is under way."""
    for future in running:
        future.cancel()
    if isinstance(executor, Processes):
        executor.stop()
    else:
        executor.shutdown(wait=False)  # not all executors know cancel_futures
