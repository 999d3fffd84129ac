"""What a run shows to people: the result folder, the terminal, figures, DataFrames in a notebook.

Implement here: one function that takes a RunLog, a summary or a run folder and writes or draws one thing. May import:
kvsim.metrics, kvsim.core, numpy; pyarrow to write files; rich, pandas and matplotlib inside the function that needs
them, so that ``kvsim run`` loads neither pandas nor matplotlib. Copy: ``tables.py`` for a file, ``plot.py`` for a
figure. Check: ``pytest tests/unit/report``. Called by: the command line and ``kvsim.run``.
"""
