"""Bytes of a trace, whatever holds them: a file (plain, gzip, zstd, xz, bzip2), a tar archive, or a folder."""

import io
import lzma
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import pyarrow as pa

from kvsim.core.errors import InputError

HEAD_BYTES: Final = 64 * 1024
MOST_HEAD_BYTES: Final = 32 * 1024 * 1024
"""A line of JSON with the block ids of a long prompt can be far longer than HEAD_BYTES."""

_MAGIC: Final = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz"), (b"BZh", "bz2"))
_UNREADABLE: Final = (OSError, EOFError, ValueError, lzma.LZMAError, tarfile.TarError, pa.ArrowException)
"""What reading, unpacking and taking apart of damaged files may raise."""


def head_of(path: Path) -> bytes:
    """The first 64 KiB of a trace, unpacked (JSON: at least the first line, up to 32 MiB); of a folder or an archive,
    those of its first member.

    Raises InputError if there is no such file, it cannot be read or unpacked, it is empty, or a Git LFS pointer stands
    in its place.
    """
    with readable(path):
        if not path.exists():
            raise InputError("there is no such file", file=path, hint="check the path of the trace")
        if not path.is_file() and not path.is_dir():
            raise InputError("is not a regular file", file=path, hint="save the trace to a file first")
    if holds_members(path):
        with readable(path):
            first = next(members(path), None)
        if first is None:
            raise InputError(
                "holds no .json or .jsonl file", file=path, hint="name the trace file, or a folder of sessions"
            )
        head = first[1][:HEAD_BYTES]
    else:
        with readable(path), open_bytes(path) as file:
            head = file.read(HEAD_BYTES)
            while head.lstrip().startswith(b"{") and b"\n" not in head and len(head) < MOST_HEAD_BYTES:
                more = file.read(1 << 20)
                if not more:
                    break
                head += more
    if not head.strip():
        raise InputError("is empty", file=path, hint="a trace has a header line and at least one row")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(
            "is a Git LFS pointer, not the trace itself",
            file=path,
            line=1,
            hint="fetch the data with 'git lfs pull' in its repository, or with kvsim trace fetch",
        )
    if head.startswith(b"PK\x03\x04"):
        raise InputError("is a ZIP archive", file=path, hint="unpack it first; gzip, zstd, xz and tar are read as is")
    return head


def open_bytes(path: Path) -> IO[bytes]:
    """The unpacked bytes of a file, to be read once from the start; the packing is told from its first bytes.

    Reading from it may raise any of the errors that ``readable`` words.
    """
    with path.open("rb") as file:
        start = file.read(8)
    packing = next((name for magic, name in _MAGIC if start.startswith(magic)), None)
    if packing == "xz":
        return lzma.open(path)
    stream: IO[bytes] = pa.input_stream(str(path), compression=packing)
    return stream


def open_text(path: Path) -> io.TextIOWrapper:
    """The unpacked text of a file: UTF-8 (a byte order mark skipped), line ends as they are.

    Bytes that are not UTF-8 come as lone surrogates.
    """
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="surrogateescape", newline="")


def holds_members(path: Path) -> bool:
    """True for a folder and a tar archive, which hold documents; false for a file that is one."""
    if path.is_dir():
        return True
    with readable(path), open_bytes(path) as file:
        return bool(file.read(512)[257:262] == b"ustar")


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and unpacked bytes of each document: the ``.json`` and ``.jsonl`` files of a folder (by name) or of a
    tar archive (as they come), else the one file itself. Packed files in a folder are unpacked."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and _is_document(file.name):
                with open_bytes(file) as stream:
                    yield str(file.relative_to(path)), stream.read()
    elif holds_members(path):
        with open_bytes(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() and _is_document(member.name) else None
                if content is not None:
                    yield member.name, content.read()
    else:
        with open_bytes(path) as stream:
            yield path.name, stream.read()


def _is_document(name: str) -> bool:
    name = name.lower()
    for packed in (".gz", ".zst", ".xz", ".bz2"):
        name = name.removesuffix(packed)
    return name.endswith((".json", ".jsonl"))


@contextmanager
def located(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A trace as a path of this machine. ``s3://bucket/key`` and other addresses that Arrow's file systems know (gs,
    abfss, hdfs, file) are copied to a temporary file, which goes when the block ends; errors name the address.

    Raises InputError if the address cannot be read.
    """
    address = os.fspath(path)
    if "://" not in address:
        yield Path(address).expanduser()
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory(prefix="kvsim-") as folder:
        try:
            system, inner = fs.FileSystem.from_uri(address)
            if not system.get_file_info(inner).is_file:
                raise InputError("there is no such file", file=address, hint="check the address of the trace")
            target = Path(folder, Path(inner).name)
            with system.open_input_stream(inner, compression=None) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot be read: {first_line(error)}", file=address) from None
        try:
            yield target
        except InputError as error:
            if error.file != target:
                raise
            raise InputError(error.problem, file=address, line=error.line, key=error.key, hint=error.hint) from None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what reading and unpacking may raise into an InputError."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
        raise InputError(f"cannot be read: {why}", file=path) from None


def shown(text: str) -> str:
    """Text from a file in quotes, printable on any terminal, cut at 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, as ``shown``."""
    return shown((str(error).splitlines() or [type(error).__name__])[0])


def checksum(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes as they lie; of a folder, of its members' names and checksums.

    Raises OSError if something cannot be read.
    """
    import hashlib

    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            if file.is_file() and _is_document(file.name):
                whole.update(f"{checksum(file)}  {file.relative_to(path).as_posix()}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
