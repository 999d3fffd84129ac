"""The replica with the least work in tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvsim.core.request import Request
from kvsim.core.seats import ReplicaView


@dataclass(frozen=True)
class LeastTokens:
    """Fewest tokens: prompt tokens still waiting plus context resident in KV; ties go to the lowest id."""

    def start(self, rng: np.random.Generator) -> None:
        return None

    def route(self, request: Request, replicas: Sequence[ReplicaView], memory: None) -> int:
        loads = [replica.waiting_tokens + replica.resident_tokens for replica in replicas]
        return loads.index(min(loads))
