"""The timeline is the same whether the engine leaps or steps, at sampling instants and at every step."""

import numpy as np
import pytest

from kvsim.core.runlog import Timeline
from tests.differential.test_exactness import CONFIGURATIONS


@pytest.mark.parametrize("instants", [None, 37, 2000])
@pytest.mark.parametrize("name", ["preemptions", "threshold", "three replicas, random", "impatient clients", "handoff"])
def test_leaping_and_stepping_draw_the_same_timeline(name: str, instants: int | None) -> None:
    leap = CONFIGURATIONS[name].simulate("leap", timeline_instants=instants)
    step = CONFIGURATIONS[name].simulate("step", timeline_instants=instants)
    for column in Timeline.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(leap.timeline, column), getattr(step.timeline, column), column)
    if instants is None:
        assert len(leap.timeline.time_ns) == sum(leap.steps)
    else:
        assert 0 < len(set(leap.timeline.time_ns.tolist())) <= instants
