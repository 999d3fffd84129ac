"""scenario.lock.yaml: a scenario with every default written out, and the checksums of what it read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.scenario.scenario import Scenario
from kvsim.scenario.source import Key, dotted

HEADER = "# Every setting of a run, with nothing left to defaults. Again: kvsim run scenario.lock.yaml --out DIR\n"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex; of a folder, of the names and checksums of its files. Raises InputError."""
    try:
        if path.is_dir():
            files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
            listing = "".join(f"{sha256_of(path / name)}  {name}\n" for name in files)
            return hashlib.sha256(listing.encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None


def lock_text(label: str, keys: Mapping[str, Any], checksums: Mapping[Key, str]) -> str:
    """The text of a lock: the same keys and checksums give the same bytes.

    ``output`` is left out: where the result lies is no part of the question.
    """
    lock = {"label": label, "kvsim": __version__, "files": {dotted(key): checksums[key] for key in checksums}}
    out = StringIO()
    yaml = YAML(typ="safe", pure=True)  # writes null as null; the round-trip writer leaves it empty
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # declared as None
    yaml.width = 4096
    yaml.dump({**keys, "lock": lock}, out)
    return HEADER + out.getvalue()


def scenario_hash(keys: Mapping[str, Any], checksums: Mapping[Key, str]) -> str:
    """SHA-256 over the keys as canonical JSON, each file's checksum in place of its path: the same on any machine."""
    content = json.loads(json.dumps(keys))
    for key, checksum in checksums.items():
        node = content
        for part in key[:-1]:
            node = node[part]
        node[key[-1]] = f"sha256:{checksum}"
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_lock(scenario: Scenario, files: Mapping[Key, Path], checksums: Mapping[Key, str]) -> None:
    """Refuse a lock if a file that it names is not what it was; a key that an override replaced is not compared.

    Raises InputError with both checksums.
    """
    if scenario.lock is None:
        return
    locked = scenario.lock.files
    for key, checksum in checksums.items():
        then = locked.get(dotted(key))
        if then is not None and then != checksum and not scenario.source.overridden(key):
            raise scenario.source.error(
                f"{files[key]} has changed since the lock was written: SHA-256 was {then}, is {checksum}",
                key,
                f"restore the file, or run the new one with --set {dotted(key)}=PATH",
            )
