"""Which model is simulated: a catalogue of data files, and the reader of Hugging Face ``config.json``.

Add a model: copy a file of ``data/``, which holds keys of a ``config.json`` and where they and the published number of
parameters were read; its name is the file's. Add a family: a line in ``families.py``. No other code.
You may import: kvsim.core. Copy: ``data/llama-3.1-8b.toml``. Check: ``pytest tests/unit/models``.
Who calls you: the scenario, once per run (``load_model``), and ``kvsim list models`` (``MODELS``).
"""

from pathlib import Path

from kvsim.core import catalogue
from kvsim.core.model import ModelSpec
from kvsim.models.huggingface import read_config, spec_of

_DATA = Path(__file__).parent / "data"

MODELS: tuple[str, ...] = catalogue.names(_DATA)
"""Names of the catalogue, sorted."""


def load_model(name_or_path: str, base_dir: Path = Path()) -> ModelSpec:
    """The model that a scenario names: a catalogue entry, a ``config.json``, or a ``.toml`` with the same keys.

    Paths are relative to ``base_dir``. Raises InputError for an unknown name (with the nearest), a missing file, a
    missing or wrong key (in a ``.toml`` also a misspelt one), and naming the key for what is not modelled.

    >>> load_model("llama-3.1-8b").hidden_size
    4096
    """
    path = catalogue.locate("model", name_or_path, _DATA, base_dir, (".toml", ".json"))
    if path.suffix == ".json":
        return read_config(path)
    keys = catalogue.read_toml(path)
    return spec_of(keys, path, path.stem, keys.get("source", {}), typed=True)


__all__ = ["MODELS", "load_model"]
