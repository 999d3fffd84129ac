"""Cost models to compare with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvsim.core.hardware import Efficiency, Gpu
from kvsim.core.model import ModelSpec
from kvsim.core.seats import StepCost
from kvsim.costs.rank import GENERIC
from kvsim.costs.roofline import Roofline

IDEAL = Efficiency(compute=1.0, memory=1.0, fixed_s=0.0)


@dataclass(frozen=True)
class DataSheet:
    """The roofline as the data sheet draws it: every operator at full efficiency, nothing for starts and host."""

    def start(self, model: ModelSpec, gpu: Gpu, tensor_parallel_size: int) -> StepCost:
        """The prices of ``Roofline`` at efficiency 1."""
        ideal = replace(gpu, efficiency=dict.fromkeys(GENERIC, IDEAL))
        return Roofline(host_step_s=0.0).start(model, ideal, tensor_parallel_size)
