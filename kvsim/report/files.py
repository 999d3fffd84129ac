"""The result folder of a run: checked before the simulation, written after it, moved into place when complete."""

import csv
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from kvsim.core.errors import InputError
from kvsim.core.runlog import RunLog
from kvsim.core.trace import RejectedRow, Trace
from kvsim.metrics.slo import Slo
from kvsim.report.tables import REQUESTS, TIMELINE, request_batches, timeline_batches

SUMMARY: Final = "summary.json"
"""Written last: a folder with it is a complete run."""

_TEMPORARY: Final = ".kvsim-tmp-"


def prepare_output(out_dir: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Make sure, before a long simulation, that a result can be written there. Returns the absolute path.

    Creates nothing that stays. Raises InputError if it is a file, is not empty (unless ``overwrite``), or cannot be
    written.
    """
    path = Path(out_dir).expanduser().resolve()
    try:
        if path.exists():
            if not path.is_dir():
                raise _refusal(path, "is a file", "name a folder")
            if not overwrite and any(_TEMPORARY not in entry.name for entry in path.iterdir()):
                raise _refusal(path, "is not empty", "pass --overwrite to replace a result in it, or name another")
        existing = next(folder for folder in (path, *path.parents) if folder.exists())
        with _temporary_folder(existing, path.name):
            pass  # the only sure test: permissions alone do not tell about read-only file systems
    except OSError as error:
        raise _refusal(path, f"cannot be written: {error.strerror}", "name a folder that can") from error
    return path


def write_run(
    out_dir: str | os.PathLike[str],
    log: RunLog,
    trace: Trace,
    summary: Mapping[str, Any],
    lock_text: str,
    run_info: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Write ``requests.parquet timeline.parquet scenario.lock.yaml run.json summary.json``, and
    ``rejected_rows.csv`` if rows of the trace were set aside. Returns the folder.

    Equal runs give equal bytes in all but ``run.json``. A new folder appears complete in one rename. In a folder
    that is already there, files are replaced one by one and the summary goes first and comes last, so that an
    interrupted run never looks complete; files that a run does not write are left alone. On any error, also
    Ctrl-C, what was written is removed. The summary's ``slo`` fills the column ``good``.
    Raises InputError as ``prepare_output``.
    """
    path = prepare_output(out_dir, overwrite)
    slo = Slo.of(summary["kvsim"]["slo"] or {})
    try:
        with _moved_into_place(path) as folder:
            _write_parquet(folder / "requests.parquet", REQUESTS, request_batches(log, trace, slo))
            _write_parquet(folder / "timeline.parquet", TIMELINE, timeline_batches(log))
            if trace.rows is not None and trace.rows.rejected:
                _write_rejected(folder / "rejected_rows.csv", trace.rows.rejected)
            (folder / "scenario.lock.yaml").write_text(lock_text, encoding="utf-8", newline="\n")
            (folder / "run.json").write_text(to_json(run_info), encoding="utf-8", newline="\n")
            (folder / SUMMARY).write_text(to_json(summary), encoding="utf-8", newline="\n")
    except OSError as error:
        raise _refusal(path, f"cannot be written: {error.strerror}", "free some space or name another") from error
    return path


def to_json(document: Mapping[str, Any]) -> str:
    """JSON text in the order of the document, one key per line. Raises ValueError on NaN and infinity."""
    return json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def run_info(wall_s: Mapping[str, float]) -> dict[str, Any]:
    """What may differ between equal runs, for ``run.json``: date (UTC), wall seconds by stage, machine, versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_s": dict(wall_s),
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cpus": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("kvsim", "numpy", "simpy", "pyarrow")},
        },
    }


def read_summary(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The summary of a run folder. Raises InputError for anything that is not a complete run folder."""
    folder = Path(run_dir)
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"not a run folder: {SUMMARY} {(error.strerror or 'cannot be read').lower()}",
            file=folder,
            hint="name the folder that kvsim run wrote",
        ) from error
    except ValueError as error:
        raise InputError(f"{SUMMARY} is not JSON: {error}", file=folder, hint="run the scenario again") from error
    if not isinstance(summary, dict) or summary.get("backend") != "kvsim" or "kvsim" not in summary:
        raise InputError(f"{SUMMARY} was not written by kvsim", file=folder, hint="name the folder of a run")
    return summary


def read_table(run_dir: str | os.PathLike[str], name: str) -> Any:
    """The pyarrow Table ``requests`` or ``timeline`` of a run folder. Raises InputError if it cannot be read."""
    file = Path(run_dir) / f"{name}.parquet"
    try:
        return pq.read_table(file, partitioning=None)
    except (OSError, pa.ArrowInvalid) as error:
        problem = "is missing" if not file.exists() else f"cannot be read: {error}"
        raise InputError(f"{file.name} {problem}", file=Path(run_dir), hint="run the scenario again") from error


@contextmanager
def _moved_into_place(path: Path) -> Iterator[Path]:
    """A temporary folder whose files end up in ``path`` if, and only if, the block completes."""
    parent = path if path.exists() else path.parent  # what exists may be a mount of its own
    with _missing_parents(path), _temporary_folder(parent, path.name) as temporary:
        yield temporary
        if path.exists():
            (path / SUMMARY).unlink(missing_ok=True)
            for file in sorted(temporary.iterdir(), key=lambda file: file.name == SUMMARY):
                os.replace(file, path / file.name)
        else:
            os.rename(temporary, path)


@contextmanager
def _missing_parents(path: Path) -> Iterator[None]:
    """Makes the parents of ``path``; those that were missing go again if they are empty at the end."""
    missing = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # something is in it
                folder.rmdir()


@contextmanager
def _temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder in ``parent``; removed at the end, if it is still there."""
    folder = parent / f"{name}{_TEMPORARY}{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_parquet(file: Path, schema: Any, batches: Iterator[Any]) -> None:
    text = [field.name for field in schema if field.type == pa.string()]
    with pq.ParquetWriter(file, schema, compression="zstd", compression_level=1, use_dictionary=text) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_rejected(file: Path, rejected: Sequence[RejectedRow]) -> None:
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(RejectedRow._fields)
        writer.writerows(rejected)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _refusal(path: Path, problem: str, hint: str) -> InputError:
    return InputError(f"{path} {problem}", key="output.dir", hint=hint)
