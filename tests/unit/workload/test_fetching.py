"""Downloads from a local server: checked, gone on with, and refused with a reason."""

import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvsim.core.errors import InputError
from kvsim.workload.fetching import SOURCES, Source, fetch

BODY = b"arrival_s,prompt_tokens,output_tokens\n" + b"0,1,1\n" * 500_000
SHA256 = hashlib.sha256(BODY).hexdigest()


ETAG = '"v1"'
PAGES = {"login.html": b"<html>\n<body>Log in</body>\n", "empty.csv": b""}


class Handler(BaseHTTPRequestHandler):
    """``/t.csv`` knows ranges, ``/plain.csv`` does not, ``/short.csv`` hangs up half way the first time, and
    ``/tagged.csv`` has an ETag and does that too."""

    asked: list[tuple[str, str | None]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        first_time = not any(path == self.path for path, _ in self.asked)
        self.asked.append((self.path, wanted))
        name = self.path.rpartition("/")[2]
        if name == "pointer.csv":
            body = b"version https://git-lfs.github.com/spec/v1\noid sha256:4b\n"
        elif name in ("t.csv", "plain.csv", "short.csv", "tagged.csv"):
            body = BODY
        elif name in PAGES:
            body = PAGES[name]
        else:
            self.send_error(404)
            return
        if name == "tagged.csv" and self.headers.get("If-Range") != ETAG:
            wanted = None
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and name != "plain.csv" else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if name == "tagged.csv":
            self.send_header("ETag", ETAG)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = len(body) // 2 if name in ("short.csv", "tagged.csv") and first_time else len(body)
        self.wfile.write(body[start:stop])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def source(server: str, name: str, sha256: str | None = SHA256) -> dict[str, Source]:
    return {"x": Source(f"{server}/{name}", "", sha256)}


def test_a_file_is_fetched_once_and_checked(server: str, tmp_path: Path) -> None:
    said: list[str] = []
    path = fetch("x", tmp_path / "new" / "folder", sources=source(server, "t.csv"), say=said.append)
    assert path.read_bytes() == BODY
    assert [file.name for file in path.parent.iterdir()] == ["t.csv"]
    assert said == [f"{server}/t.csv: from the start, of {len(BODY)} bytes", f"sha256 {SHA256}"]
    assert fetch("x", path.parent, sources=source(server, "t.csv")) == path
    assert Handler.asked == [("/t.csv", None)]
    path.write_bytes(b"changed")
    with pytest.raises(InputError, match=r"has another checksum: SHA-256 is .*, expected"):
        fetch("x", path.parent, sources=source(server, "t.csv"))
    assert path.read_bytes() == b"changed"  # somebody's file is not removed


def test_an_interrupted_download_goes_on_where_it_stopped(server: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"the connection ended after {len(BODY) // 2} of {len(BODY)} bytes; try again"
    ):
        fetch("x", tmp_path, sources=source(server, "short.csv"))
    assert (tmp_path / "short.csv.part").stat().st_size == len(BODY) // 2
    assert fetch("x", tmp_path, sources=source(server, "short.csv")).read_bytes() == BODY
    assert Handler.asked == [("/short.csv", None), ("/short.csv", f"bytes={len(BODY) // 2}-")]


def test_a_file_without_a_checksum_goes_on_only_as_the_same_version(server: str, tmp_path: Path) -> None:
    sources = source(server, "tagged.csv", None)
    with pytest.raises(InputError, match="the connection ended after"):
        fetch("x", tmp_path, sources=sources)
    assert fetch("x", tmp_path, sources=sources).read_bytes() == BODY
    assert Handler.asked == [("/tagged.csv", None), ("/tagged.csv", f"bytes={len(BODY) // 2}-")]
    assert [file.name for file in tmp_path.iterdir()] == ["tagged.csv"]


@pytest.mark.parametrize("name", ["t.csv", "plain.csv", "tagged.csv"])
@pytest.mark.parametrize("foreign", [b"something else\n" * 1_000, b"x" * 4_000_000])
@pytest.mark.parametrize("version", [None, "", ETAG, '"v0"'])
def test_what_another_program_left_is_not_taken_for_a_beginning(
    name: str, foreign: bytes, version: str | None, server: str, tmp_path: Path
) -> None:
    """Of a version that the server no longer has, and what is longer than the file; no checksum would tell."""
    if version == ETAG and len(foreign) < len(BODY):
        return  # it says that it is the same file
    part = tmp_path / f"{name}.part"
    part.write_bytes(foreign)
    if version is not None:
        part.with_name(f"{part.name}.version").write_text(version)
    Handler.asked.append((f"/{name}", None))  # not the first time
    if name == "t.csv" and version and len(foreign) < len(BODY):
        return  # a server that ignores If-Range
    assert fetch("x", tmp_path, sources=source(server, name, None)).read_bytes() == BODY


def test_a_reset_connection_keeps_what_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            connection.recv(10_000)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 70_000)
            time.sleep(0.3)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()  # with a reset

        threading.Thread(target=serve, daemon=True).start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(InputError, match="cannot be fetched: Connection reset by peer; try again: what has arr"):
            fetch("x", tmp_path, sources=source(address, "t.csv"))
    assert (tmp_path / "t.csv.part").stat().st_size == 70_000


@pytest.mark.parametrize("name", ["t.csv", "plain.csv"])
@pytest.mark.parametrize("kept", [b"", BODY[:10], BODY])
def test_what_is_there_is_used_if_the_server_can(name: str, kept: bytes, server: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.part").write_bytes(kept)
    assert fetch("x", tmp_path, sources=source(server, name)).read_bytes() == BODY


@pytest.mark.parametrize(
    ("name", "sha256", "message"),
    [
        ("none.csv", None, "the server answers 404 Not Found; name another place with --url"),
        ("login.html", None, "is no trace: header '<html>' is of no known trace format; name another place"),
        ("empty.csv", None, "is no trace: is empty; name another place"),
        ("pointer.csv", None, "serves a Git LFS pointer, not the trace itself; name another place with --url"),
        ("t.csv", "0" * 64, f"has another checksum: SHA-256 is {SHA256}, expected {'0' * 64}; the file was changed"),
    ],
)
def test_what_is_not_the_trace_is_refused_and_not_kept(
    name: str, sha256: str | None, message: str, server: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        fetch("x", tmp_path, sources=source(server, name, sha256))
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_names_addresses_and_pins(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown trace 'burstgpt1'; did you mean 'burstgpt_1'"):
        fetch("burstgpt1", tmp_path)
    with pytest.raises(InputError, match="is not an http or https address"):
        fetch("burstgpt_1", tmp_path, url="file:///etc/passwd")
    for name, each in SOURCES.items():
        assert each.url.startswith("https://"), name
        assert each.sha256 is None or len(each.sha256) == 64, name


def test_a_proxy_of_the_environment_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        Handler.asked.clear()
        path = fetch("x", tmp_path, sources=source("http://nowhere.invalid", "t.csv"))
        proxy.shutdown()
    assert path.read_bytes() == BODY
    assert Handler.asked == [("http://nowhere.invalid/t.csv", None)]
