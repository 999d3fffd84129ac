"""How far predictions are from servers that were measured: every published run that can be simulated, and its errors.

``sets/`` has one module per data set, which turns its files into ``Served`` runs (``served.py``): a scenario, a trace
and what was measured. ``predict.py`` simulates them with each cost model, ``errors.py`` sums up, ``table.py`` prints.
To add a set: copy a module of ``sets/``, add its line in ``sets/__init__.py``. May import: api, core, costs, hardware,
kv, models, scenario, schedulers, sweeps; the data is never part of kvsim. Who calls you: ``kvsim accuracy``.
"""
