"""What a scheduler promises: every request ends, and nothing depends on how often the engine asks."""

from collections.abc import Iterator

from kvsim.core.runlog import RunLog
from kvsim.core.seats import Plan, ReplicaView, Scheduler
from kvsim.metrics.laws import broken_laws
from kvsim.testing.checks import Look
from kvsim.testing.worlds import World, alive, first_difference, scheduler_worlds, splits_prompts


class _EveryStep:
    """The same policy, asked before every step: what it would have said while the engine leaps."""

    every_step = True

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.max_num_seqs = scheduler.max_num_seqs
        self.max_num_batched_tokens = scheduler.max_num_batched_tokens
        self.max_num_scheduled_tokens = getattr(scheduler, "max_num_scheduled_tokens", None)
        self.start = getattr(scheduler, "start", lambda: None)

    def plan(self, replica: ReplicaView, plan: Plan) -> None:
        self._scheduler.plan(replica, plan)


def looks(scheduler: Scheduler) -> Iterator[Look]:
    """The checks of a scheduler. The first one plays the worlds that the others compare with."""
    splits = True
    played: list[tuple[World, RunLog]] = []

    def runs() -> str | None:
        nonlocal splits
        splits = splits_prompts(scheduler)
        played.extend((world, world.run()) for world in scheduler_worlds(scheduler, splits))
        return None

    def ends() -> str | None:
        for world, log in played:
            left = alive(log, world)
            if left:
                return f"{world.name}: {left}"
        return None

    def laws() -> str | None:
        for world, _ in played:
            for law in broken_laws(world.run(check_laws=True)):
                return f"{world.name}: {law}"
        return None

    def repeats() -> str | None:
        for world, log in played:
            difference = first_difference(log, world.run())
            if difference:
                return f"{world.name}, run twice: {difference}"
        return None

    def leaps() -> str | None:
        for world, log in played:
            for how, other in (("stepping", world), ("being asked before every step", _asked(world))):
                difference = first_difference(log, other.run("step"))
                if difference:
                    return f"{world.name}, leaping and {how}: {difference}; {_REMEDY}"
        return None

    def preempts() -> str | None:
        for world, _ in played:
            (pool,) = world.cluster.pools
            log = world.having(kv_blocks=1000 * pool.kv_blocks).run()
            if log.preemptions.any():
                return f"{world.name}: {int(log.preemptions.sum())} preemptions with blocks to spare for everybody"
        return None

    yield "runs", runs
    note = "" if splits else " (it never splits a prompt: one longer than max_num_batched_tokens would wait for ever)"
    yield f"every request ends, in {len(played)} worlds{note}", ends
    yield "laws hold: blocks, tokens and times add up", laws
    yield "the same run twice is the same log", repeats
    yield "leaping, stepping and being asked before every step agree in ns", leaps
    if not getattr(scheduler, "preempts_by_choice", True):
        yield "it says preempts_by_choice = False, and preempts only when blocks are short", preempts


_REMEDY = "a plan stands until something arrives or leaves: say review_at or review_after, or drop every_step = False"


def _asked(world: World) -> World:
    (pool,) = world.cluster.pools
    return world.having(scheduler=_EveryStep(pool.scheduler))
