"""Outputs behind URLs: complete or absent, one run at a time, with the same bytes as a store on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
from astropy.io import fits

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import FcnpipeError, StoreError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import remote_output, run
from fcnpipe.pipeline.remote_output import locate_report, read_report
from fcnpipe.remote import uploads
from fcnpipe.stores import ZarrStore
from fcnpipe.survey import cleanup
from tests.conftest import Bucket
from tests.integration.scenes import read_all, write_field
from tests.remote.servers import SECRET, TOKEN, Site, intermittent_faults

OPTIONS = {"model": "none", "window": 128, "tile": 128, "quiet": True}
SETTINGS = ["--model", "none", "--window", "128", "--tile", "128", "--quiet"]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (200, 320))


@pytest.fixture(scope="module")
def reference(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out.zarr"
    fcnpipe.segment(field, out, **OPTIONS)
    return out


@pytest.fixture
def out(bucket: Bucket, tmp_path: Path) -> str:
    return f"{bucket.url}/{tmp_path.name}/out.zarr"


def segment(field: Path, out: str, scratch: Path, **options: object) -> fcnpipe.Result:
    return fcnpipe.segment(field, out, scratch=str(scratch), **(OPTIONS | options))


def command(field: Path | str, out: str, scratch: Path, *more: str) -> list[str]:
    given = ["segment", str(field), out, "--scratch", str(scratch), *SETTINGS, *more]
    return [sys.executable, "-m", "fcnpipe", *given]


def download(out: str, folder: Path) -> dict[str, bytes]:
    """Download the store and its parquet file; return them as `read_all` does."""
    system, name = fsspec.core.url_to_fs(out)
    system.invalidate_cache()
    for path in system.find(name):
        target = folder / "downloaded.zarr" / path.removeprefix(f"{name}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(system.cat_file(path))
    (folder / "downloaded.parquet").write_bytes(system.cat_file(name.replace(".zarr", ".parquet")))
    return read_all(folder / "downloaded.zarr")


def assert_same_store(found: dict[str, bytes], reference: Path) -> None:
    """Compare all but the ledger, which is one object instead of many, and the root metadata, which describe it."""
    wanted = read_all(reference)

    def without_ledger(files: dict[str, bytes]) -> dict[str, bytes]:
        return {
            n: data for n, data in files.items() if not n.startswith("ledger/") and n != "zarr.json"
        }

    assert without_ledger(found).keys() == without_ledger(wanted).keys()
    assert [name for name in without_ledger(found) if found[name] != wanted[name]] == []
    ours, theirs = (json.loads(files["zarr.json"]) for files in (found, wanted))
    assert ours["attributes"] == theirs["attributes"]
    assert ours["attributes"]["status"] == "complete"


@pytest.mark.usefixtures("short_retry_pauses")
def test_a_store_is_uploaded_despite_server_faults(
    field: Path,
    reference: Path,
    bucket: Bucket,
    out: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket.traffic.fault = intermittent_faults("503", "drop", "500")
    result = segment(field, out, tmp_path / "scratch")
    assert bucket.traffic.faults > 20
    written = [path for method, path in bucket.traffic.requests if method == "PUT"]
    bucket.traffic.clear()
    assert (result.path, result.catalogue) == (out, out.replace(".zarr", ".parquet"))
    assert_same_store(download(out, tmp_path), reference)
    check_repair_of_a_copy(tmp_path / "downloaded.zarr", reference)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert written[-1].endswith("out.zarr/zarr.json")
    check_reading(out, reference, tmp_path)
    ended = check_report(out)
    spec = make_spec(image=(str(field),), out=out, **OPTIONS)
    assert remote_output.was_finished(spec, "segment", ended)
    assert not remote_output.was_finished(spec, "segment", f"{ended}1")
    assert not remote_output.was_finished(spec.model_copy(update={"thresh": 7.0}), "segment")
    for option in ("--deep", "--repair"):
        message = get_error_line(capsys, "verify", option, out)
        assert "copy it and its .parquet to a local disk" in message
    again = segment(field, out, tmp_path / "elsewhere")
    assert (again.resumed, again.sources) == (True, result.sources)


def get_error_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Return the one line of error of a command that ends with exit code 2."""
    code = commands.run_command(lambda: commands.app(args=words, standalone_mode=False))
    message = capsys.readouterr().err
    assert (code, message.count("\n")) == (2, 1), message
    return message


def check_repair_of_a_copy(copy: Path, reference: Path) -> None:
    """Damage and repair a local copy of the store."""
    assert [*ZarrStore.open(copy).find_damage()] == []
    (copy / "image/0/label/c/0/1").unlink()
    (damage,) = run.repair(str(copy), engine="serial")
    assert str(damage) == "image/0/label r000c001 is missing"
    repaired, whole = read_all(copy), read_all(reference)
    assert [n for n in repaired.keys() | whole.keys() if repaired.get(n) != whole.get(n)] == []


def check_report(out: str) -> str:
    """Check the run report next to the store, which names the store's URL; return when the run ended."""
    report = read_report(out)
    assert report is not None
    assert (report.status, report.out) == ("complete", out)
    page = fsspec.filesystem("s3").cat_file(locate_report(out, "html")).decode()
    assert report.run_key in page
    return report.ended


def check_reading(out: str, reference: Path, tmp_path: Path) -> None:
    found, wanted = fcnpipe.open(out), fcnpipe.open(reference)
    xr.testing.assert_identical(found.sources.load(), wanted.sources.load())
    xr.testing.assert_identical(found.cutout(label=3).load(), wanted.cutout(label=3).load())
    plain = xr.open_zarr(out, group="image/0", storage_options={"use_listings_cache": False})
    np.testing.assert_array_equal(plain.label, wanted.image.label)
    assert found.store.verify().ok
    found.export(tmp_path / "labels.fits", "labels")
    wanted.export(tmp_path / "wanted.fits", "labels")
    same = fits.FITSDiff(tmp_path / "labels.fits", tmp_path / "wanted.fits", ignore_keywords=["*"])
    assert same.identical
    done = subprocess.run(
        [sys.executable, "-m", "fcnpipe", "info", out], capture_output=True, text=True, check=False
    )
    assert (done.returncode, "complete" in done.stdout) == (0, True), done.stderr


def test_another_run_is_refused_and_overwrite_removes_the_old_store(
    field: Path, bucket: Bucket, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overwriting also removes foreign objects below the URL, even if names are listed folder by folder."""
    segment(field, out, tmp_path / "scratch", tile=256)
    place = out.removeprefix(f"{bucket.url}/")
    for name in ("image/0/label/c/7/7", "image/7/label/zarr.json", "image/old", "old"):
        bucket.put(f"{place}/{name}", b"old")
    monkeypatch.setattr(remote_output, "MAX_NAMES", 40)
    with pytest.raises(StoreError, match=r"belongs to another run, it differs in option thresh"):
        segment(field, out, tmp_path / "scratch", thresh=7.0)
    assert list((tmp_path / "scratch").iterdir()) == []
    segment(field, out, tmp_path / "scratch", thresh=7.0, overwrite=True)
    segment(field, str(tmp_path / "local.zarr"), tmp_path, thresh=7.0)
    assert_same_store(download(out, tmp_path), tmp_path / "local.zarr")


@pytest.mark.usefixtures("short_retry_pauses")
def test_an_object_that_another_process_replaces_is_uploaded_again(
    field: Path, bucket: Bucket, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_output, "MAX_NAMES", 40)
    lost = f"{tmp_path.name}/out.zarr/image/0/label/c/0/1"

    def lose(method: str, path: str) -> str:
        if "list-type" in path and ("PUT", f"/sky/{lost}") in bucket.traffic.requests:
            bucket.put_behind(lost, b"")
        return ""

    bucket.traffic.fault = lose
    with pytest.raises(StoreError, match=f"{bucket.url}/{lost} is missing or has another size"):
        segment(field, out, tmp_path / "scratch", tile=256)
    bucket.traffic.clear()
    segment(field, out, tmp_path / "scratch", tile=256)
    assert fcnpipe.open(out).store.verify().ok


def test_foreign_objects_are_never_overwritten(
    field: Path, bucket: Bucket, out: str, tmp_path: Path
) -> None:
    place = out.removeprefix(f"{bucket.url}/")
    for name in ("zarr.json", "notes.txt"):
        bucket.put(f"{place}/{name}", b"{}")
        for overwrite in (False, True):
            with pytest.raises(StoreError, match="is not an fcnpipe store: choose another output"):
                segment(field, out, tmp_path / "scratch", overwrite=overwrite)
        fsspec.filesystem("s3").rm_file(f"{bucket.name}/{place}/{name}")


def test_a_killed_run_is_resumed_and_its_partial_store_is_invisible(
    field: Path, reference: Path, bucket: Bucket, out: str, tmp_path: Path
) -> None:
    """The run is killed while it uploads. No secret is in its output, its scratch folder or the store."""
    scratch, log = tmp_path / "scratch", tmp_path / "log"
    words = [word for word in command(field, out, scratch) if word != "--quiet"]
    with log.open("wb") as sink:
        process = subprocess.Popen(words, stdout=sink, stderr=sink)
        while sum(method == "PUT" for method, _ in bucket.traffic.requests) < 30:
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert_no_secret(tmp_path)
    with pytest.raises(StoreError, match="is not an fcnpipe store"):
        fcnpipe.open(out)
    with pytest.raises(StoreError, match=r"is being written by another run .*scratch on"):
        segment(field, out, tmp_path / "elsewhere")
    bucket.traffic.clear()
    segment(field, out, scratch, overwrite=True)  # --overwrite keeps the run's own work
    sent = sum(method == "PUT" for method, _ in bucket.traffic.requests)
    assert_same_store(download(out, tmp_path), reference)
    assert sent < len(read_all(reference)) - 5 * 6 - 15  # uploaded objects are not sent again
    assert list(scratch.iterdir()) == []
    assert_no_secret(tmp_path)


def test_a_claim_without_a_run_is_removed(bucket: Bucket, out: str, tmp_path: Path) -> None:
    """Clean-up removes the claim behind the URL only if its token is that of the local claim file."""
    mine, other = tmp_path / "mine.zarr.claim", tmp_path / "other.zarr.claim"
    place = out.removeprefix(f"{bucket.url}/")
    for file, token in ((mine, "a"), (other, "b")):
        file.write_text(f"a\n{bucket.put(f'{place}-{token}', b'')}")
        bucket.put(f"{place}-{token}.partial", json.dumps({"token": token}).encode())
    for leftover in cleanup.find_leftovers(str(tmp_path), 0):
        cleanup.clean_up(leftover)
    assert list(tmp_path.iterdir()) == []
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    assert not system.exists(f"{bucket.name}/{place}-a.partial")
    assert system.exists(f"{bucket.name}/{place}-b.partial")


def assert_no_secret(folder: Path) -> None:
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(kept) > 50
    for secret in (SECRET, TOKEN):
        assert [path for path, data in kept.items() if secret.encode() in data] == []


@pytest.mark.usefixtures("short_retry_pauses")
def test_a_run_that_loses_its_claim_publishes_nothing(
    field: Path, bucket: Bucket, out: str, tmp_path: Path
) -> None:
    """Another run takes over the claim during the upload."""

    def take_over(method: str, path: str) -> str:
        if len(bucket.traffic.requests) == 60:
            claim = f"{out.removeprefix(bucket.url + '/')}.partial"
            bucket.put_behind(claim, b'{"token": "x", "host": "far", "folder": "/away"}')
        return ""

    bucket.traffic.fault = take_over
    with pytest.raises(StoreError, match=r"is being written by another run \(/away on far\)"):
        segment(field, out, tmp_path / "scratch")
    with pytest.raises(StoreError, match="is not an fcnpipe store"):
        fcnpipe.open(out)


def test_a_refused_run_leaves_no_claim(bucket: Bucket, out: str, tmp_path: Path) -> None:
    with pytest.raises(FcnpipeError, match=r"nope\.fits does not exist"):
        segment(tmp_path / "nope.fits", out, tmp_path / "scratch")
    assert fsspec.filesystem("s3").find(out.rpartition("/")[0]) == []


def test_a_store_is_uploaded_to_google_cloud_storage(
    field: Path, reference: Path, cloud: tuple[str, Site], tmp_path: Path
) -> None:
    out = f"{cloud[0]}/out.zarr"
    (cloud[1].folder / "sky" / "out.zarr.partial").write_text('{"host": "far", "folder": "/away"}')
    with pytest.raises(StoreError, match=r"is being written by another run \(/away on far\)"):
        segment(field, out, tmp_path / "scratch")
    segment(field, out, tmp_path / "scratch", overwrite=True)
    assert_same_store(download(out, tmp_path), reference)


def test_a_web_server_is_refused_as_output(
    field: Path, web: tuple[str, Site], tmp_path: Path
) -> None:
    with pytest.raises(FcnpipeError, match="cannot be written: choose an output on disk, s3:// or"):
        segment(field, f"{web[0]}/out.zarr", tmp_path)


@pytest.mark.usefixtures("short_retry_pauses")
@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("fault", ["drop", "503"])
def test_a_multipart_upload_survives_faults(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, fault: str
) -> None:
    """A part, or the answer to the completion, is lost; afterwards the server no longer knows the upload."""
    monkeypatch.setattr(uploads, "PART_BYTES", PART)
    data, file = os.urandom(2 * PART + 5), tmp_path / "large"
    file.write_bytes(data)
    asked: list[str] = []

    def fail(kind: str, path: str) -> str:
        if kind != method or "uploadId" not in path:
            return ""
        asked.append(path)
        return [fault, "404", ""][min(len(asked) - 1, 2)]

    bucket.traffic.fault = fail
    uploads.put_files(f"{bucket.url}/{tmp_path.name}", [("large", file)], lambda name: None)
    assert bucket.traffic.faults == 2
    starts = [path for kind, path in bucket.traffic.requests if path.endswith("?uploads")]
    assert len(starts) > 1
    bucket.traffic.clear()
    assert list(bucket.read_all(tmp_path.name).values()) == [data]


PART = 5 << 20
"""Minimum size of a part on S3."""
