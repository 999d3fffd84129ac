"""Many runs for one question: sweeps over keys of a scenario, capacity, expectations against noise and baselines.

The steps, one per file: ``design.py`` says which points, ``work.py`` does one run, ``traces.py`` shares a parsed trace,
``executors.py`` is where runs are computed, ``store.py`` keeps them by what they depend on, ``driver.py`` puts a sweep
together. ``sizing.py`` searches, ``expect.py`` judges; both ask for runs through the same seam.

Implement here: an executor (anything that is a ``concurrent.futures.Executor``; name it ``package.module:factory``) or
a way to choose points (``design.py``). May import: everything below the command line. Copy: ``ray.py``. Check:
``pytest tests/unit/sweeps``. Called by: ``kvsim.sweep``, the command line, the pytest plug-in.
"""

from kvsim.sweeps.driver import sweep
from kvsim.sweeps.sizing import capacity

__all__ = ["capacity", "sweep"]
