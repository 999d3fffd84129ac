"""From a trace file to a ``Trace``: one format per file.

- Here: the formats that kvsim reads, and ``table.py``, which parses CSV and Parquet and finds the line of a bad cell.
- You implement ``recognises`` and ``read`` (``TraceReader`` in kvsim/core/seats.py), and add a line to ``READERS``. A
  reader kept elsewhere is named ``"my_pkg.my_module:MyReader"`` in the scenario. A class attribute ``columns`` (the
  names that the format cannot do without) makes the error for an unknown header more helpful.
- You may import kvsim.core, numpy, and ``kvsim.workload.readers.table``; pyarrow behind that door; never pandas.
- Copy ``azure_2023.py``. State rules on whole columns (``batch.refuse``): nothing per row in Python on the good path.
- Then run ``pytest tests/unit/workload tests/invariants/test_readers.py`` (random bytes must give a Trace or an
  InputError; the new reader is included by its line in ``READERS``).
- ``kvsim.workload.read_trace`` calls you.
"""

from typing import Final

READERS: Final[dict[str, str]] = {
    "burstgpt": "kvsim.workload.readers.burstgpt:BurstGPT",
    "azure_2023": "kvsim.workload.readers.azure_2023:Azure2023",
    "plain": "kvsim.workload.readers.plain:Plain",
}
"""Trace formats by name, in the order in which ``format: auto`` tries them."""
