"""How far predictions are from servers that were measured: every published run that can be simulated, and its errors.

``sets/`` has one module per data set, which turns its files into ``Served`` runs (``served.py``): a scenario, a trace
and what was measured. ``predict.py`` simulates them with each cost model, ``errors.py`` sums up, ``table.py`` prints;
``coverage.py`` asks whether measured figures lie in the intervals of ``kvsim run --uncertainty``. ``bench.py`` reads
what a load generator wrote about a server, and ``fit.py`` fits a cost model to it.
To add a set: copy a module of ``sets/``, add its line in ``sets/__init__.py``. May import: api, core, costs, hardware,
kv, metrics, models, scenario, schedulers, sweeps; the data is never part of kvsim. Who calls you: ``kvsim accuracy``,
and ``kvsim calibrate --from-bench``.
"""
