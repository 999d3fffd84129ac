"""Downloading published traces: where they are, their checksums, and a download that goes on where it stopped."""

import difflib
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from kvsim import __version__
from kvsim.core.errors import InputError
from kvsim.workload.reading import recognised

CHUNK_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Source:
    """A published file. ``sha256`` None: nobody has published or computed one that could be pinned here."""

    url: str
    about: str
    sha256: str | None = None


_BURSTGPT: Final = "https://github.com/HPMLL/BurstGPT/releases/download"
_AZURE: Final = "https://raw.githubusercontent.com/Azure/AzurePublicDataset/master/data"
_AZURE_BLOBS: Final = "https://azurepublicdatasettraces.blob.core.windows.net/azurellminfererencetrace"
_MOONCAKE: Final = "https://raw.githubusercontent.com/kvcache-ai/Mooncake/main/FAST25-release"
_BAILIAN: Final = "https://media.githubusercontent.com/media/alibaba-edu/qwen-bailian-usagetraces-anon/main"

SOURCES: Final = {
    "burstgpt_1": Source(
        f"{_BURSTGPT}/v1.1/BurstGPT_1.csv",
        "BurstGPT, first two months with failures, 52 MB, CC-BY-4.0",
        "4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122",
    ),
    "burstgpt_2": Source(
        f"{_BURSTGPT}/v1.1/BurstGPT_2.csv",
        "BurstGPT, second two months with failures, 145 MB, CC-BY-4.0",
        "44bf5942b03fca42c01a226a545ad3a750ec62688faecd67b6831c56a8928bf7",
    ),
    "burstgpt_without_fails_1": Source(
        f"{_BURSTGPT}/v1.1/BurstGPT_without_fails_1.csv",
        "BurstGPT, first two months, 51 MB, CC-BY-4.0",
        "a4d068a7113ec0290e74063a1b3447dc6001a30e4298eb313581b71006dda1f4",
    ),
    "burstgpt_without_fails_2": Source(
        f"{_BURSTGPT}/v1.1/BurstGPT_without_fails_2.csv",
        "BurstGPT, second two months, 142 MB, CC-BY-4.0",
        "56193aa9b2bb26128ded43d2d29a960df6bf5af062bcfc9b005f3fcaa4e6e501",
    ),
    "burstgpt_3": Source(
        f"{_BURSTGPT}/v2.0/BurstGPT_3.csv", "BurstGPT with sessions, 110 days, 220 MB, CC-BY-4.0; no checksum"
    ),
    "azure_2023_conv": Source(
        f"{_AZURE}/AzureLLMInferenceTrace_conv.csv",
        "Azure 2023, conversation, 0.7 MB, CC-BY",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    ),
    "azure_2023_code": Source(f"{_AZURE}/AzureLLMInferenceTrace_code.csv", "Azure 2023, code, CC-BY; no checksum"),
    "azure_2024_code": Source(
        f"{_AZURE_BLOBS}/AzureLLMInferenceTrace_code_1week.csv", "Azure 2024, a week of code, CC-BY; no checksum"
    ),
    "azure_2024_conv": Source(
        f"{_AZURE_BLOBS}/AzureLLMInferenceTrace_conv_1week.csv",
        "Azure 2024, a week of conversation, 1.1 GB, CC-BY; no checksum",
    ),
    "azure_2025": Source(
        f"{_AZURE}/AzureLMMInferenceTrace_multimodal.csv.gz", "Azure 2025, multimodal, CC-BY; no checksum"
    ),
    "mooncake_conversation": Source(
        f"{_MOONCAKE}/traces/conversation_trace.jsonl",
        "Mooncake FAST '25, conversation, 3 MB, Apache-2.0",
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
    ),
    "mooncake_toolagent": Source(
        f"{_MOONCAKE}/traces/toolagent_trace.jsonl", "Mooncake FAST '25, tool and agent, Apache-2.0; no checksum"
    ),
    "bailian_coder": Source(
        f"{_BAILIAN}/qwen_coder_blksz_16.jsonl",
        "Qwen-Bailian, coder, 132 MB, Apache-2.0",
        "3d74974cebb7bccb69b1ca6ea210a44d9a3033443c0271ed015327284dea1aff",
    ),
    "bailian_thinking": Source(
        f"{_BAILIAN}/qwen_thinking_blksz_16.jsonl",
        "Qwen-Bailian, thinking, 28 MB, Apache-2.0",
        "41ac36d9d1b54d084eeb6b05e9d142ba9d02f8bf79cfc9fff418d8ab7cdee906",
    ),
}
"""Published traces by name. Checksums are those of the files in ``Azure/AzurePublicDataset`` (b469a113) and
``kvcache-ai/Mooncake`` (3b5a5941), and of the Git LFS pointers in the histories of the other repositories."""


def fetch(
    name: str,
    folder: Path,
    *,
    url: str | None = None,
    say: Callable[[str], None] | None = None,
    sources: "dict[str, Source] | None" = None,
) -> Path:
    """Download a trace into a folder (made if it is missing) and check it. Returns the file.

    What arrived before an interruption stays beside it as ``.part``, and the next call goes on there. Proxies are
    those of the environment (``https_proxy``, ``no_proxy``). ``url`` is another place that serves the same file. A file
    that is there already is only checked. Raises InputError for an unknown name, a server that does not deliver, a
    Git LFS pointer, another checksum, or a folder that cannot be written.
    """
    known = SOURCES if sources is None else sources
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"unknown trace {name!r}", key="NAME", hint=f"{meant}known: {', '.join(known)}")
    source = known[name]
    address = url or source.url
    if urlsplit(address).scheme not in ("http", "https"):
        raise InputError(f"{address!r} is not an http or https address", key="--url")
    target = folder / Path(urlsplit(source.url).path).name
    part = target.with_name(target.name + ".part")
    tell = say or (lambda text: None)
    with _writable(target):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        if not target.exists():
            _download(address, part, source.sha256 is not None, tell)
            _check(part, source, address)
            with _writable(target):
                part.replace(target)
                _tag(part).unlink(missing_ok=True)
    except urllib.error.HTTPError as error:
        hint = "name another place with --url" if error.code in (403, 404, 410) else "try again later"
        problem = f"the server answers {error.code} {error.reason}".strip()
        raise InputError(problem, file=address, hint=hint) from None
    except (OSError, HTTPException) as error:  # URLError, TimeoutError and ConnectionError are OSErrors
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        hint = "try again: what has arrived is kept" if part.exists() else "is the network there? a proxy needed?"
        raise InputError(f"cannot be fetched: {reason or type(error).__name__}", file=address, hint=hint) from None
    checksum = _check(target, source, address)
    tell(f"sha256 {checksum}" + ("" if source.sha256 else " (no checksum is pinned for this file)"))
    return target


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turns what writing may raise into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror or error}", file=path) from None


def _tag(part: Path) -> Path:
    """Where the server's name for this version of the file (its ETag, else its date) is kept beside the ``.part``."""
    return part.with_name(f"{part.name}.version")


def _download(address: str, part: Path, pinned: bool, tell: Callable[[str], None]) -> None:
    """Bring ``part`` to its full length. It goes on where it ends if the server says that its file is still the same,
    or if a checksum will tell (``pinned``)."""
    start = part.stat().st_size if part.exists() else 0
    version = _tag(part).read_text() if start and _tag(part).exists() else ""
    request = urllib.request.Request(address, headers={"User-Agent": f"kvsim/{__version__}"})
    if start and (version or pinned):
        request.add_header("Range", f"bytes={start}-")
    if version:
        request.add_header("If-Range", version)
    try:
        answer = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)  # urlopen keeps its first proxies
    except urllib.error.HTTPError as error:
        if error.code != 416 or not request.has_header("Range"):
            raise
        if pinned or error.headers.get("Content-Range", "") == f"bytes */{start}":  # all of it has arrived
            return
        part.unlink()
        return _download(address, part, pinned, tell)
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        length = answer.headers.get("Content-Length", "")
        expected = int(length) + (start if resumed else 0) if length.isdigit() else None
        tell(
            f"{address}: {'from byte ' + str(start) if resumed else 'from the start'}, of {expected or 'unknown'} bytes"
        )
        tag = answer.headers.get("ETag", "")
        with _writable(part):
            _tag(part).write_text(answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag)
            file = part.open("ab" if resumed else "wb")
        with file:
            while chunk := answer.read1(CHUNK_BYTES):
                with _writable(part):
                    file.write(chunk)
    if expected is not None and part.stat().st_size < expected:
        raise urllib.error.URLError(f"the connection ended after {part.stat().st_size} of {expected} bytes")


def _check(path: Path, source: Source, address: str) -> str:
    """The file's SHA-256. Removes a ``.part`` that is not what it should be, and raises InputError."""
    with path.open("rb") as file:
        is_pointer = file.read(40).startswith(b"version https://git-lfs")
        file.seek(0)
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    found = address if path.suffix == ".part" else path
    if is_pointer:
        error = InputError(
            "serves a Git LFS pointer, not the trace itself", file=found, hint="name another place with --url"
        )
    elif source.sha256 is None:
        try:  # without a checksum it should at least be a trace
            recognised(path)
            return checksum
        except InputError as unfit:
            hint = "name another place with --url, or remove the file and fetch again"
            error = InputError(f"is no trace: {unfit.problem}", file=found, hint=hint)
    elif source.sha256 == checksum:
        return checksum
    else:
        problem = f"has another checksum: SHA-256 is {checksum}, expected {source.sha256}"
        hint = "the file was changed or damaged; remove it and fetch again, or name another place with --url"
        error = InputError(problem, file=found, hint=hint)
    if path.suffix == ".part":
        path.unlink()
        _tag(path).unlink(missing_ok=True)
    raise error
