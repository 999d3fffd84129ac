"""From measured operator times to what the cost models read: surfaces of utilisation, and three constants.

``measured`` reads the tables and says what each row moved and computed; ``fitting`` fits a surface; ``accuracy`` says
how well it predicts what it has not seen; ``constants`` fits the ``[efficiency]`` of a GPU's data file.
To calibrate another operator: a reader in ``measured.READERS`` and its axes in ``fitting.AXES``.
You may import: kvsim.core, and here alone scipy and pyarrow, inside functions. Copy: ``measured.gemm``.
Who calls you: ``kvsim calibrate``, by hand. Nothing here runs in a simulation.
"""
