"""From a trace file to the requests of a run.

- Here: ``readers/`` (one format per file), ``reading.py`` (which reader), ``transforms.py`` (Trace to Trace),
  ``writers.py`` (Trace to file), ``generate/`` (seeded synthetic traces; ``python -m kvsim.workload.generate``).
- You implement a reader (see ``readers/``), a part of a generator (see ``generate/``), or a transform: a pure function
  from a Trace to a Trace, named in the table of ``transforms.py``, that keeps ``Trace.rows`` adding up and leaves out
  nothing without counting it.
- You may import kvsim.core and numpy; pyarrow only inside functions or in ``readers/table.py``; never pandas.
- Copy ``readers/azure_2023.py``, ``generate/arrivals.py`` or ``transforms.thin``.
- Then run ``pytest tests/unit/workload tests/invariants/test_readers.py``.
- The scenario layer calls you.
"""

from kvsim.workload.reading import read_trace
from kvsim.workload.transforms import limit, rate_scale

__all__ = ["limit", "rate_scale", "read_trace"]
