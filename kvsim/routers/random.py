"""Any replica, with equal chances."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import ReplicaView


@dataclass(frozen=True)
class Random:
    """A uniform draw per request from the run's seed."""

    reads_counters = False

    def start(self, rng: np.random.Generator) -> np.random.Generator:
        return rng

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: np.random.Generator) -> int:
        return int(memory.integers(len(replicas)))
