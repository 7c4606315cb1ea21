"""Servers for tests: S3 (moto) in a process, a web server with byte ranges, GCS, and a fault-injecting proxy."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

KEY, SECRET, TOKEN = (
    "AKIAFORTESTSONLY0000",
    "a-secret/that+must=not+be/kept",
    "a-token-not-to-be-kept",
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_SESSION_TOKEN": TOKEN,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_MAX_ATTEMPTS": "1",
}


@contextmanager
def s3_server(log: Path) -> Iterator[int]:
    """Run an S3 server in another process; yield its port."""
    with log.open("wb") as sink:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=sink,
            stderr=sink,
        )
    try:
        yield _wait_for_port(server, log)
    finally:
        server.kill()
        server.wait()


def _wait_for_port(server: subprocess.Popen[bytes], log: Path) -> int:
    waited = threading.Event()
    for _ in range(600):
        found = re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())
        if found:
            return int(found[1])
        assert server.poll() is None, log.read_text()
        waited.wait(0.1)
    raise TimeoutError(log.read_text())


Fault = Callable[[str, str], str]
"""Method and path of a request -> "" (no fault), "drop" the connection, or the status of the answer."""


def no_fault(method: str, path: str) -> str:
    return ""


def intermittent_faults(*faults: str) -> Fault:
    """Return a fault function that fails three requests for each object, never all five tries."""
    asked: Counter[str] = Counter()
    kinds = cycle(faults)

    def choose(method: str, path: str) -> str:
        asked[path] += 1
        return next(kinds) if asked[path] in (1, 4, 7) else ""

    return choose


@dataclass
class Traffic:
    """Requests and answers of a server, and the faults to inject."""

    fault: Fault = no_fault
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: int = 0
    body_bytes: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def begin(self, method: str, path: str) -> str:
        with self.lock:
            self.requests.append((method, path))
            fault = self.fault(method, path)
            self.faults += bool(fault)
            return fault

    def count(self, size: int) -> None:
        with self.lock:
            self.body_bytes += size

    def clear(self) -> None:
        self.fault, self.faults, self.body_bytes = no_fault, 0, 0
        self.requests.clear()


@contextmanager
def serving(handler: Any) -> Iterator[int]:
    """Serve in a thread; yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # otherwise each small answer waits 40 ms for the client's ACK

    def __init__(self, traffic: Traffic, *arguments: Any) -> None:
        self.traffic = traffic
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, str], body: bytes, drop: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if drop else body)
        self.traffic.count(len(body))
        if drop:
            self.close_connection = True
            self.connection.shutdown(2)

    def fail(self, status: str) -> None:
        code = {"403": "AccessDenied", "404": "NoSuchUpload", "500": "InternalError"}.get(
            status, "ServiceUnavailable"
        )
        body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.answer(int(status), {"Content-Length": str(len(body))}, body)


class Proxy(_Handler):
    """Forwards requests to another server on this machine."""

    def __init__(self, traffic: Traffic, port: int, *arguments: Any) -> None:
        self.port = port
        super().__init__(traffic, *arguments)

    def relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.traffic.begin(self.command, self.path)
        if fault and fault != "drop":
            self.fail(fault)
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            behind.request(self.command, self.path, body, dict(self.headers))
            answer = behind.getresponse()
            data = answer.read()
        finally:
            behind.close()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in _CONNECTION_HEADERS}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.answer(answer.status, headers | {"Content-Length": length or "0"}, data, bool(fault))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay


_CONNECTION_HEADERS = ("connection", "transfer-encoding", "content-length", "keep-alive")


@dataclass
class Site:
    """Folder, capabilities and traffic of a web server."""

    folder: Path
    etags: bool = True
    ranges: bool = True
    traffic: Traffic = field(default_factory=Traffic)


class Web(_Handler):
    """Serves files as a whole or by byte range."""

    def __init__(self, site: Site, *arguments: Any) -> None:
        self.site = site
        super().__init__(site.traffic, *arguments)

    def serve(self) -> None:
        fault = self.traffic.begin(self.command, self.path)
        if fault and fault != "drop":
            self.fail(fault)
            return
        path = self.site.folder / self.path.lstrip("/").partition("?")[0]
        if not path.is_file():
            self.answer(404, {"Content-Length": "0"}, b"")
            return
        about, status = path.stat(), 200
        start, stop, size = 0, about.st_size, about.st_size
        headers = {"Last-Modified": formatdate(about.st_mtime, usegmt=True)}
        headers |= self.name_version(about)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if wanted and self.site.ranges:
            start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
            stop = min(int(wanted[2]) + 1, size) if wanted[1] and wanted[2] else size
            headers["Content-Range"], status = f"bytes {start}-{stop - 1}/{size}", 206
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        self.answer(status, headers | {"Content-Length": str(len(data))}, data, bool(fault))

    def name_version(self, about: os.stat_result) -> dict[str, str]:
        return {"ETag": f'"{about.st_ino:x}-{about.st_mtime_ns:x}"'} if self.site.etags else {}

    do_GET = do_HEAD = serve


class Cloud(Web):
    """The part of the JSON API of Google Cloud Storage that reads and writes objects."""

    def serve(self) -> None:
        place = urlsplit(self.path)
        _, _, rest = unquote(place.path).partition("/storage/v1/b/")
        bucket, _, key = rest.partition("/o")
        if place.path.startswith("/download/"):
            self.path = f"/{bucket}{key}"
            super().serve()
        elif key.strip("/"):
            self.describe(bucket, key.strip("/"))
        else:
            self.list(bucket, dict(parse_qsl(place.query)).get("prefix", ""))

    def name_version(self, about: os.stat_result) -> dict[str, str]:
        return {"X-Goog-Generation": str(about.st_mtime_ns)}

    def describe(self, bucket: str, key: str) -> None:
        self.send(self.facts(bucket, key) if (self.site.folder / bucket / key).is_file() else None)

    def list(self, bucket: str, prefix: str) -> None:
        root = self.site.folder / bucket
        keys = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        items = [self.facts(bucket, key) for key in keys if key.startswith(prefix)]
        self.send({"kind": "storage#objects", "items": items} if root.is_dir() else None)

    def facts(self, bucket: str, key: str) -> dict[str, str]:
        about = (self.site.folder / bucket / key).stat()
        made = datetime.fromtimestamp(int(about.st_mtime), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "name": key, "bucket": bucket, "size": str(about.st_size),
            "generation": str(about.st_mtime_ns), "updated": made, "timeCreated": made,
        }  # fmt: skip

    def upload(self) -> None:
        """Store an object from a multipart message with its name and its content."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        place = urlsplit(self.path)
        bucket = place.path.partition("/b/")[2].partition("/")[0]
        _, about, content = body.split(b"\n\n", 2)
        key = json.loads(about.partition(b"\n--")[0])["name"]
        path = self.site.folder / bucket / key
        if "ifGenerationMatch=0" in place.query and path.exists():
            self.answer(412, {"Content-Length": "0"}, b"")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.rpartition(b"\n--")[0])
        self.send(self.facts(bucket, key))

    def delete(self) -> None:
        _, _, rest = unquote(urlsplit(self.path).path).partition("/storage/v1/b/")
        bucket, _, key = rest.partition("/o/")
        path = self.site.folder / bucket / key
        self.answer(204 if path.exists() else 404, {"Content-Length": "0"}, b"")
        path.unlink(missing_ok=True)

    def send(self, answer: dict[str, Any] | None) -> None:
        fault = self.traffic.begin(self.command, self.path)
        if fault:
            self.fail(fault)
            return
        body = json.dumps(answer or {"error": {"code": 404, "message": "Not Found"}}).encode()
        headers = {"Content-Length": str(len(body)), "Content-Type": "application/json"}
        self.answer(200 if answer else 404, headers, body)

    do_GET = do_HEAD = serve
    do_POST, do_DELETE = upload, delete


@contextmanager
def proxy_server(port: int) -> Iterator[tuple[int, Traffic]]:
    """Run a proxy of a server; yield its port and its traffic."""
    traffic = Traffic()
    with serving(partial(Proxy, traffic, port)) as own:
        yield own, traffic


@contextmanager
def web_server(folder: Path, kind: type[Web] = Web) -> Iterator[tuple[str, Site]]:
    """Serve a folder; yield the URL and the site."""
    site = Site(folder)
    with serving(partial(kind, site)) as port:
        yield f"http://127.0.0.1:{port}", site
