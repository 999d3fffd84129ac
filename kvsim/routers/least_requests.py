"""The replica with the fewest requests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import ReplicaView


@dataclass(frozen=True)
class LeastRequests:
    """Fewest requests waiting or running; ties go to the lowest id."""

    def start(self, rng: np.random.Generator) -> None:
        return None

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: None) -> int:
        loads = [replica.requests_count for replica in replicas]
        return loads.index(min(loads))
