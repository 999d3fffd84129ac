"""How long a step takes: one cost model per file. ``rank.py`` has the operators of every kind of layer, by the
roofline's constants, and ``pieces.py`` prices steps from them; the two are shared by ``roofline`` and ``calibrated``.

Implement: ``start(model, gpu, tensor_parallel_size) -> StepCost``, and on what it returns ``step_s(shape)`` and
``steps_s(shape, steps)`` (seats ``CostModel`` and ``StepCost`` in ``kvsim/core/seats.py``). A cost model is a frozen
dataclass whose fields are its parameters; scalar and vector forms must agree in the last bit.
You may import: kvsim.core and numpy. Models and GPUs arrive as objects.
Copy: ``affine.py``. Then add its line below, and run ``pytest tests/unit/costs``.
Who calls you: the engine, ``step_s`` once per planned step and ``steps_s`` once per stretch of pure decoding.
"""

COSTS: dict[str, str] = {
    "affine": "kvsim.costs.affine:Affine",
    "calibrated": "kvsim.costs.calibrated:Calibrated",
    "roofline": "kvsim.costs.roofline:Roofline",
    "table": "kvsim.costs.table:Table",
}
"""Built-in cost models: name in a scenario -> ``module:Class``."""
