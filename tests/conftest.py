"""Fixtures of all tests: an S3 bucket, a web server and Google Cloud Storage on this machine."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fsspec
import pytest
from zarr.core.sync import _get_loop

from fcnpipe.remote import retries
from tests.remote.servers import (
    CREDENTIALS,
    KEY,
    Cloud,
    Site,
    Traffic,
    proxy_server,
    s3_server,
    web_server,
)


@dataclass
class Bucket:
    """An S3 bucket behind a proxy that records the traffic and injects faults."""

    name: str
    port: int
    behind: int
    traffic: Traffic
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def put(self, name: str, data: bytes) -> str:
        fsspec.filesystem("s3").pipe_file(f"{self.name}/{name}", data)
        return f"{self.url}/{name}"

    def put_folder(self, folder: Path, name: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def read_all(self, path: str) -> dict[str, bytes]:
        """Return the content of all objects below a path."""
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        return dict(system.cat(system.find(f"{self.name}/{path}")))

    def put_behind(self, name: str, data: bytes) -> None:
        """Put an object without the proxy, so that the proxy's fault function can do it during a request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=60)
        signature = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request"
        connection.request("PUT", f"/{self.name}/{name}", data, {"Authorization": signature})
        assert connection.getresponse().status == 200
        connection.close()


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """An S3 server with one bucket; the environment does not point to it."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with s3_server(log) as port, proxy_server(port) as (front, traffic):
        bucket = Bucket("sky", front, port, traffic)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in bucket.environment.items():
                patch.setenv(name, value)
            fsspec.filesystem("s3").mkdir(bucket.name)
        yield bucket
    close_connections("s3")


def close_connections(protocol: str) -> None:
    """Close the connections that fsspec and zarr would keep until the process ends."""
    kind = fsspec.get_filesystem_class(protocol)
    for system in kind._cache.values():
        session = getattr(system, "_s3" if protocol == "s3" else "_session", None)
        if session is not None:
            finish = session.__aexit__(None, None, None)
            loop = _get_loop() if system.asynchronous else system.loop
            asyncio.run_coroutine_threadsafe(finish, loop).result(60)
    kind.clear_instance_cache()


@pytest.fixture
def bucket(s3_service: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """The bucket, with access by environment variables and without faults."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    s3_service.traffic.clear()
    yield s3_service
    s3_service.traffic.clear()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Site]]:
    """URL of a web server, and its site."""
    (tmp_path / "site").mkdir()
    with web_server(tmp_path / "site") as found:
        yield found
    close_connections("http")


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Site]]:
    """URL of a bucket behind gs://, and the site that holds it."""
    (tmp_path / "cloud" / "sky").mkdir(parents=True)
    with web_server(tmp_path / "cloud", Cloud) as (url, site):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv(
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false"
        )  # it would need a gRPC server
        monkeypatch.setattr(fsspec.config, "conf", {"gs": {"token": "anon"}})
        yield "gs://sky", site
    close_connections("gs")


@pytest.fixture
def short_retry_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the number of retries, but make the pauses between them short."""
    monkeypatch.setattr(retries, "PAUSES_SECONDS", (0.01, 0.02, 0.03, 0.04))
