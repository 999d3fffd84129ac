"""Which tokens run in the next step: batch formation, order, preemption.

Implement: a frozen dataclass with ``max_num_seqs``, ``max_num_batched_tokens`` and ``plan(replica, plan)``
(``kvsim/core/seats.py``), and name it in ``SCHEDULERS``. Set ``every_step = False`` if the policy never looks at
the clock: then the replica can leap. May import: ``kvsim.core`` only. Copy: ``chunked_prefill.py``. Check: ``make
check-plugin P=package.module:Class``. Called by: the engine, whenever there is something to decide.
"""

SCHEDULERS: dict[str, str] = {
    "chunked_prefill": "kvsim.schedulers.chunked_prefill:ChunkedPrefill",
    "prefill_first": "kvsim.schedulers.prefill_first:PrefillFirst",
}
