"""Damaged and missing files of a store are found, named, and restored byte for byte."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import StoreError, VerificationError
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.session import open_session
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.stores import ZarrStore
from tests.integration.partial_runs import perform_until
from tests.integration.scenes import list_differences, read_all, write_field

SETTINGS = {"model": "none", "window": 128, "tile": 128, "quiet": True, "engine": "serial"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (300, 400))


@pytest.fixture(scope="module")
def published(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published") / "out.zarr"
    fcnpipe.segment(image, out, **SETTINGS)
    return out


@pytest.fixture
def out(published: Path, tmp_path: Path) -> Path:
    """A copy of the store, which the test may damage."""
    shutil.copy(published.with_suffix(".parquet"), tmp_path / "out.parquet")
    return Path(shutil.copytree(published, tmp_path / "out.zarr"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


@dataclass
class Predictions(SilentObserver):
    """Records the tiles on which the network runs."""

    names: list[str] = field(default_factory=list)

    def report(self, report: TaskReport) -> None:
        if report.stage == "predict":
            self.names.append(report.name)


@pytest.mark.parametrize(
    ("damage", "file", "message", "predicted"),
    [
        (truncate, "image/0/label/c/1/2", "image/0/label r001c002 is not what was written", []),
        (delete, "image/0/label/c/0/0", "image/0/label r000c000 is missing", []),
        (
            delete,
            "image/0/probability/c/0/1/1",
            "image/0/probability r001c001 is missing",
            ["r001c001"],
        ),
        (
            flip_a_bit,
            "image/0/elevation/c/2/3",
            "image/0/elevation r002c003 is not what",
            ["r002c003"],
        ),
        (delete, "image/1/science/c/0/1/1", "image/1/science r001c001 is missing", []),
        (flip_a_bit, "background/sky/c/0/0", "background/sky is not what was written", []),
        (delete, "sources/kron_flux/c/0", "sources/kron_flux is not what was written", []),
        (truncate, "sources/area/zarr.json", "sources/area has no readable metadata", []),
        (delete, "image/0/wcs/zarr.json", "image/0/wcs has no readable metadata", []),
        (delete, "ledger/c/1/2/0", "ledger ", []),
        (
            flip_a_bit,
            "checksums/0/probability/c/0/0",
            "checksums/0/probability is not what was",
            [],
        ),
        (delete, "checksums/0/flags/zarr.json", "checksums/0/flags has no readable metadata", []),
        (flip_a_bit, "../out.parquet", "parquet out.parquet", []),
        (delete, "../out.parquet", "parquet out.parquet cannot be read", []),
    ],
)
def test_damage_is_found_and_repaired(
    published: Path,
    out: Path,
    damage: Callable[[Path], None],
    file: str,
    message: str,
    predicted: list[str],
) -> None:
    damage(out / file)
    found = [*ZarrStore.open(out).find_damage()]
    assert message in str(found[0]), found
    predictions = Predictions()
    assert run.repair(str(out), predictions, engine="serial") == tuple(found)
    assert predictions.names == predicted
    assert list_differences(read_all(out), read_all(published)) == []
    names = ["out.parquet", "out.report.html", "out.report.json", "out.zarr"]
    assert sorted(p.name for p in out.parent.iterdir()) == names


def test_a_shard_that_is_lost_with_its_checksum_is_recomputed(published: Path, out: Path) -> None:
    """A shard without a file and checksum is missing or has the fill value only; it is recomputed in both cases."""
    delete(out / "checksums/0/elevation/c/0/0")
    delete(out / "image/0/elevation/c/1/1")
    damage = [str(d) for d in ZarrStore.open(out).find_damage()]
    assert damage[0].startswith("image/0/elevation r001c001 is empty or missing")
    predictions = Predictions()
    run.repair(str(out), predictions, engine="serial")
    assert predictions.names == ["r001c001"]
    assert read_all(out) == read_all(published)


def test_the_command_names_and_repairs_damage(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leave:
            commands.main(["verify", str(out), *arguments])
        captured = capsys.readouterr()
        assert isinstance(leave.value.code, int)
        return leave.value.code, captured.out, captured.err

    assert call("--deep")[0] == 0
    delete(out / "image/0/elevation/c/0/0")
    truncate(out / "image/0/elevation/c/1/1")
    code, _, stderr = call("--deep")
    assert (code, stderr.count("\n")) == (2, 1)
    assert "image/0/elevation r000c000 is missing; image/0/elevation r001c001 is not" in stderr
    assert f"'fcnpipe verify --repair {out}'" in stderr
    code, stdout, stderr = call("--repair", "--quiet")
    assert (code, stderr) == (0, "")
    assert "image/0/elevation r000c000" in stdout
    assert call("--deep")[0] == 0


def test_a_store_of_another_image_is_not_repaired(image: Path, out: Path) -> None:
    delete(out / "image/0/elevation/c/0/0")
    content, damaged = image.read_bytes(), read_all(out)
    try:
        image.write_bytes(content[:-100_000] + bytes(100_000))
        with pytest.raises(StoreError, match="differs in input digest"):
            run.repair(str(out), engine="serial")
    finally:
        image.write_bytes(content)
    assert read_all(out) == damaged


# --- resumed runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "file", "done"),
    [
        (truncate, "image/0/probability/c/0/1/1", "measure"),
        (delete, "image/0/elevation/c/1/2", "predict"),
        (delete, "image/0/wcs/zarr.json", "predict"),
        (delete, ".scratch/segments/c/0/0", "separate"),
        (truncate, "image/0/label/c/0/1", "check_sums"),
        (delete, "image/1/label/c/0/0", "check_tile"),
        (truncate, ".scratch/rows/r001c001.npz", "measure"),
        (truncate, ".scratch/facts-predict/r001c001.npz", "label"),
    ],
)
def test_tasks_whose_results_are_lost_are_repeated(
    image: Path,
    published: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    file: str,
    done: str,
) -> None:
    spec = make_spec(image=(str(image),), out=str(tmp_path / "out.zarr"), **SETTINGS)
    with open_session(spec) as session:
        perform_until(session, done)
    damage(tmp_path / "out.zarr.partial" / file)
    run.segment(spec)
    assert list_differences(read_all(tmp_path / "out.zarr"), read_all(published)) == []


def replace_shard(file: Path) -> None:
    """Replace a shard by an intact one with other values."""
    file.write_bytes((file.parent / "0").read_bytes())


@pytest.mark.parametrize("damage", [flip_a_bit, replace_shard])
def test_damage_that_stops_a_run_is_repaired_by_the_resumed_run(
    image: Path, published: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    out = tmp_path / "out.zarr"
    spec = make_spec(image=(str(image),), out=str(out), **SETTINGS)
    with open_session(spec) as session:
        perform_until(session, "measure")
    damage(tmp_path / "out.zarr.partial/image/0/label/c/1/1")
    with pytest.raises((StoreError, VerificationError), match=r"damaged|not what was written"):
        run.segment(spec)
    assert not out.exists()
    run.segment(spec)
    assert list_differences(read_all(out), read_all(published)) == []
