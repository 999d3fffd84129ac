"""From a trace file to a ``Trace``: one format per file.

- Here: the formats that kvsim reads; ``files.py`` (bytes, however packed), ``table.py`` (CSV, Parquet and JSON lines
  as checked columns, with the line of a bad cell), ``prefixes.py`` (block ids), ``turns.py`` (pauses).
- You implement ``recognises`` and ``read`` (``TraceReader`` in kvsim/core/seats.py), and add a line to ``READERS``. A
  reader kept elsewhere is named ``"my_pkg.my_module:MyReader"`` in the scenario. A class attribute ``columns`` (the
  names that the format cannot do without) makes the error for an unknown header more helpful. Fields of the dataclass
  are parameters: ``format: {name: mooncake, hash_block_tokens: 16}``. A second argument ``quarantine`` of ``read``,
  given on to ``open_table``, lets users set bad rows aside; append ``batch.good`` rows only.
- You may import kvsim.core, numpy, and ``kvsim.workload.readers.table``; pyarrow behind that door; never pandas.
- Copy ``azure_2023.py``. State rules on whole columns (``batch.refuse``): nothing per row in Python on the good path.
- Then run ``pytest tests/unit/workload tests/invariants/test_readers.py`` (random bytes must give a Trace or an
  InputError; the new reader is included by its line in ``READERS``).
- ``kvsim.workload.read_trace`` calls you.
"""

from typing import Final

READERS: Final[dict[str, str]] = {
    "canonical": "kvsim.workload.readers.canonical:Canonical",
    "burstgpt": "kvsim.workload.readers.burstgpt:BurstGPT",
    "azure_2023": "kvsim.workload.readers.azure_2023:Azure2023",
    "azure_2024": "kvsim.workload.readers.azure_2024:Azure2024",
    "azure_2025": "kvsim.workload.readers.azure_2025:Azure2025",
    "mooncake": "kvsim.workload.readers.mooncake:Mooncake",
    "kv_cache_tester": "kvsim.workload.readers.kv_cache_tester:KVCacheTester",
    "dynamo": "kvsim.workload.readers.dynamo:Dynamo",
    "bailian": "kvsim.workload.readers.bailian:Bailian",
    "tracelab": "kvsim.workload.readers.tracelab:TraceLab",
    "timed_trace": "kvsim.workload.readers.timed_trace:TimedTrace",
    "lengths": "kvsim.workload.readers.lengths:Lengths",
    "plain": "kvsim.workload.readers.plain:Plain",
}
"""Trace formats by name, in the order in which ``format: auto`` tries them."""
