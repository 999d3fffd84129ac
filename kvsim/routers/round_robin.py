"""One replica after the other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import ReplicaView


@dataclass(frozen=True)
class RoundRobin:
    """The k-th request goes to replica k modulo their number, whatever their load."""

    reads_counters = False

    def start(self, rng: np.random.Generator) -> Iterator[int]:
        return count()

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: Iterator[int]) -> int:
        return next(memory) % len(replicas)
