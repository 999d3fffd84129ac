"""Where KV lives: allocators (which blocks a request holds) and the ledger of GPU memory (how many there are).

Implement: a frozen dataclass with ``start(total_blocks) -> KVPool`` (``kvsim/core/seats.py``), and name it in
``MANAGERS``. May import: ``kvsim.core`` only. Copy: ``paged.py``. Check: ``make check-plugin
P=package.module:Class``. Called by: the engine (pools), the scenario (``memory.py``, the printed ledger).
"""

MANAGERS: dict[str, str] = {
    "paged": "kvsim.kv.paged:Paged",
}
