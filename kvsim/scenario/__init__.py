"""From a YAML file to what the engine runs: keys checked, defaults decided, files read, policies built.

The steps, one per file: ``source.py`` reads YAML with line numbers and applies overrides; ``keys.py`` says which keys
there are (the only place for pydantic models); ``messages.py`` words what is wrong; ``presets.py`` holds an engine's
defaults; ``seats.py`` builds policies from their names; ``resolve.py`` puts it together; ``lock.py`` writes it out;
``json_schema.py`` is for editors.

Implement here: a key (a field in ``keys.py``, used in ``resolve.py``) or a preset (an entry in ``presets.py``). A
parameter of a policy is a field of its dataclass and needs nothing here. May import: everything that a scenario can
name, pydantic, ruamel.yaml; not the engine, metrics or reports. Check: ``pytest tests/unit/scenario``.
Called by: ``kvsim.run`` and the command line.
"""

from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import Override, parse_set

__all__ = ["Override", "Scenario", "parse_set"]
