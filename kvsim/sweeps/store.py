"""The folder of a sweep: a file per finished run, named by what its result depends on, and one table of all.

sweep.json         what was asked, by which version, and the runs in order; written last
results.parquet    a row per run
points/ADDRESS.json  the summary of one run
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from kvsim.core.errors import InputError
from kvsim.core.files import TEMPORARY, write_whole
from kvsim.metrics.figures import figures
from kvsim.metrics.summary import SCHEMA_VERSION
from kvsim.sweeps.traces import TRACE
from kvsim.sweeps.work import Outcome

MANIFEST: Final = "sweep.json"
RESULTS: Final = "results.parquet"
POINTS: Final = "points"
LOCK: Final = ".lock"

MUST_AGREE: Final = {
    "kvsim": "by kvsim",
    "code": "by a copy of kvsim with checksum",
    "question": "for question",
    "of": "with a number of runs of",
}
"""What parts of one sweep have in common, and how a message says it."""


class Store:
    """Outcomes by address, in a folder or (None) in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, Outcome] = {}
        self._lock = None if folder is None else _taken(folder)

    def get(self, address: str) -> Outcome | None:
        """The outcome of a run that has been done. A file that cannot be read counts as not done."""
        if address not in self._known and self.folder is not None:
            found = read_point(self.folder, address)
            if found is not None:
                self._known[address] = found
        return self._known.get(address)

    def put(self, address: str, outcome: Outcome) -> None:
        """Keep an outcome; on disk only what succeeded, so that what failed is tried again next time.

        Raises InputError if it cannot be written; what was written before stays.
        """
        self._known[address] = outcome
        if self.folder is not None and "summary" in outcome:
            folder = self.folder / POINTS
            _write(folder / f"{address}.json", _json({"address": address, "summary": outcome["summary"]}), self.folder)

    def finish(self, manifest: Mapping[str, Any], table: Any) -> None:
        """Write the table and the manifest. Raises InputError if they cannot be written."""
        if self.folder is None:
            return
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        _write(self.folder / RESULTS, sink.getvalue(), self.folder)
        _write(self.folder / MANIFEST, _json(manifest), self.folder)

    def close(self) -> None:
        """Let others work in the folder."""
        if self.folder is not None and self._lock is not None:
            (self.folder / LOCK).unlink(missing_ok=True)
            self._lock.close()


def read_point(folder: Path, address: str) -> Outcome | None:
    """The outcome that is stored under an address; None if there is none, or none that can be read."""
    try:
        text = (folder / POINTS / f"{address}.json").read_text(encoding="utf-8")
        return {"summary": json.loads(text)["summary"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _taken(folder: Path) -> Any:
    """Make the folder and an open file in it that only one process can hold; a killed process lets go of it.

    Raises InputError if the folder holds something else, cannot be written, or is being worked in.
    """
    _usable(folder)
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out
        return None
    lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        hint = "wait for it, or name another folder; parts (--shard) have a folder each"
        raise InputError(f"another sweep is at work in {folder}", key="--out", hint=hint) from None
    except OSError:  # a file system without locks
        return lock
    for rest in (*folder.glob(f"*{TEMPORARY}*"), *(folder / POINTS).glob(f"*{TEMPORARY}*")):
        rest.unlink(missing_ok=True)  # of a sweep that was killed
    return lock


def _usable(folder: Path) -> None:
    """Make the folder; refuse one that holds something else."""
    try:
        strange = folder.exists() and (
            not folder.is_dir()
            or any(
                entry.name not in (MANIFEST, RESULTS, POINTS, LOCK)
                and not entry.name.startswith(TRACE)
                and TEMPORARY not in entry.name
                for entry in folder.iterdir()
            )
        )
        if strange:
            hint = "name a new folder, or one of an earlier sweep to go on with it"
            raise InputError(f"{folder} holds something else than a sweep", key="--out", hint=hint)
        (folder / POINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}", key="--out", hint="name another") from error


def _write(path: Path, content: Any, folder: Path) -> None:
    """Write a file of the sweep. Raises InputError if that is impossible."""
    try:
        write_whole(path, content)
    except OSError as error:
        kept = sum(1 for _ in (folder / POINTS).glob("*.json"))
        hint = f"free some space and run it again; {kept} finished runs are kept"
        raise InputError(f"{path} cannot be written: {error.strerror}", key="--out", hint=hint) from error


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def results_rows(manifest: Mapping[str, Any], found: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """The rows of a sweep: ``point``, the axes, ``seed``, ``error``, then every figure of the summary, ``address``.

    ``manifest["runs"]`` says which rows; ``found`` has the summary behind each address.
    """
    rows = []
    for run in manifest["runs"]:
        row = {"point": run["point"], **run["values"], "seed": run["seed"], "error": run["error"]}
        outcome = found.get(run["address"]) if run["address"] else None
        own = figures(outcome["summary"]) if outcome else {}
        rows.append(row | {name: value for name, value in own.items() if name not in row} | {"address": run["address"]})
    return rows


def results_table(manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a pyarrow Table. Equal rows give equal tables."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "address"))
    columns = {name: _column([row.get(name) for row in rows]) for name in (*names, "address")}
    about = {
        "kvsim.schema_version": str(SCHEMA_VERSION),
        "kvsim.sweep": json.dumps({key: value for key, value in manifest.items() if key != "runs"}),
    }
    return pa.table(columns).replace_schema_metadata(about)


def _column(values: Sequence[Any]) -> Any:
    """Arrow data of one type: what the values have in common, else their JSON texts."""
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds <= {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if kinds <= {str}:
        return pa.array(values, pa.string())
    if kinds <= {list} and all(isinstance(text, str) for value in values if value for text in value):
        return pa.array(values, pa.list_(pa.string()))
    return pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values], pa.string())


def read_manifest(folder: Path) -> dict[str, Any]:
    """``sweep.json`` of a folder. Raises InputError if it is not a complete sweep (or part of one)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{MANIFEST} is missing", file=folder, hint="finish the sweep there first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{MANIFEST} cannot be read: {error}", file=folder) from None
    if not isinstance(manifest, dict) or not {"runs", "axes", "shard", *MUST_AGREE} <= manifest.keys():
        raise InputError(f"{MANIFEST} was not written by kvsim sweep", file=folder)
    return manifest


def merge(folders: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Any:
    """Join the parts of a sweep into ``out``, as if it had never been cut. Returns the table.

    Raises InputError if the parts are of different questions or versions, if they disagree, or if runs are missing.
    """
    paths = [Path(folder) for folder in folders]
    if not paths:
        raise InputError("nothing to merge", hint="name the folders of the parts")
    manifests = [read_manifest(path) for path in paths]
    first = manifests[0]
    for path, manifest in zip(paths[1:], manifests[1:], strict=True):
        for name, word in MUST_AGREE.items():
            if manifest[name] != first[name]:
                raise InputError(
                    f"{paths[0]} was computed {word} {first[name]}, {path} {word} {manifest[name]}",
                    hint="merge parts of one sweep, computed by one version",
                )
    runs: dict[tuple[int, int], dict[str, Any]] = {}
    origin: dict[tuple[int, int], Path] = {}
    for path, manifest in zip(paths, manifests, strict=True):
        for run in manifest["runs"]:
            key = (run["point"], run["seed"])
            if runs.setdefault(key, run) != run:
                raise InputError(
                    f"{origin[key]} and {path} disagree about point {key[0]}, seed {key[1]}",
                    hint="were they computed from the same files?",
                )
            origin.setdefault(key, path)
    _same_files(runs, origin, first["axes"])
    if len(runs) != first["of"]:
        parts = ", ".join(
            f"{path} ({manifest['shard'] or 'whole'})" for path, manifest in zip(paths, manifests, strict=True)
        )
        raise InputError(
            f"{first['of'] - len(runs)} of {first['of']} runs are missing in {parts}", hint="name every part"
        )
    found = {}
    for key, run in sorted(runs.items()):
        if run["address"] and run["error"] is None:
            outcome = read_point(origin[key], run["address"])
            if outcome is None:
                raise InputError(f"{POINTS}/{run['address']}.json is missing", file=origin[key])
            found[run["address"]] = outcome
    manifest = first | {"shard": None, "runs": [run for _, run in sorted(runs.items())]}
    table = results_table(manifest, results_rows(manifest, found))
    with closing(Store(Path(out))) as store:
        for address, outcome in found.items():
            store.put(address, outcome)
        store.finish(manifest, table)
    return table


def _same_files(runs: Mapping[Any, Mapping[str, Any]], origin: Mapping[Any, Path], axes: Mapping[str, Any]) -> None:
    """Parts computed on different machines must have read the same trace."""
    if any(name.startswith("workload.trace.path") for name in axes):
        return  # it is a question of the sweep
    seen: dict[str, Path] = {}
    for key, run in runs.items():
        if run["trace_sha256"] is not None:
            seen.setdefault(run["trace_sha256"], origin[key])
    if len(seen) > 1:
        (one, first), (other, second) = list(seen.items())[:2]
        raise InputError(
            f"{first} read a trace with SHA-256 {one}, {second} one with {other}", hint="use the same file everywhere"
        )
