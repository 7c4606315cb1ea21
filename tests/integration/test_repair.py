"""Damaged and missing files of a store are found, named, and restored byte for byte."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zarr

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


def fill_with_zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


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


def test_shards_that_nothing_proves_are_recomputed(published: Path, out: Path) -> None:
    """Without its table, a missing shard looks like one of fill values, and no other can be trusted."""
    delete(out / "checksums/0/elevation/c/0/0")
    delete(out / "image/0/elevation/c/1/1")
    damage = [str(d) for d in ZarrStore.open(out).find_damage()]
    assert "image/0/elevation r001c001 is empty or missing: its checksum is lost" in damage
    predictions = Predictions()
    run.repair(str(out), predictions, engine="serial")
    assert len(predictions.names) == 12
    assert list_differences(read_all(out), read_all(published)) == []


@pytest.mark.parametrize("name", ["elevation", "probability"])
def test_a_changed_shard_is_not_trusted_because_it_can_be_decoded(
    published: Path, out: Path, name: str
) -> None:
    """A shard and an entry of its table are damaged; the other entries prove their shards."""
    store = ZarrStore.open(out)
    core = store.layout.grid.tile(1, 2).core
    values = store.read(name, core)
    values[..., 7, 9] ^= 1
    store.write_tile(name, core, values)
    table = zarr.open_array(out / f"checksums/0/{name}", mode="r+")
    table[2, 1] = int(np.asarray(table[2, 1])) ^ 4
    predictions = Predictions()
    run.repair(str(out), predictions, engine="serial")
    assert sorted(predictions.names) == ["r001c002", "r002c001"]
    assert list_differences(read_all(out), read_all(published)) == []
    assert [*store.find_damage()] == []


@pytest.mark.parametrize("kind", [truncate, flip_a_bit, delete])
def test_a_lost_table_is_proven_by_intact_shards(
    published: Path, out: Path, kind: Callable[[Path], None]
) -> None:
    """The table of the shards on disk has the checksum of the lost table, so the network does not run."""
    for name in ("elevation", "probability", "label"):
        kind(out / f"checksums/0/{name}/c/0/0")
    predictions = Predictions()
    assert len(run.repair(str(out), predictions, engine="serial")) == 3
    assert predictions.names == []
    assert list_differences(read_all(out), read_all(published)) == []


def test_nothing_is_adopted_if_all_checksums_and_the_layout_are_lost(
    published: Path, out: Path
) -> None:
    shutil.rmtree(out / "checksums")
    root = (out / "zarr.json").read_text()
    (out / "zarr.json").write_text(
        root.replace('"crc32c"', '"crc32d"').replace("[128, 128]", "[128, 256]")
    )
    flip_a_bit(out / "image/0/elevation/c/1/1")
    run.repair(str(out), engine="serial")
    assert list_differences(read_all(out), read_all(published)) == []


@pytest.mark.parametrize(
    "file",
    [
        "sources/x_centroid/c/0", "sources/label/c/0", "tiles/n_sources/c/0/0", "tiles/seconds/c/0/0",
        "background/mesh_y/c/0", "image/0/y/c/0", "checksums/1/science/c/0/0", "ledger/c/3/1/2",
        "image/1/label/zarr.json", "image/0/flags/zarr.json", "sources/area/zarr.json", "../out.parquet",
    ],
)  # fmt: skip
def test_a_damaged_byte_gives_one_line_and_is_repaired(
    published: Path, out: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metadata stay valid JSON; of other files, the third byte changes, which zstd does not decode."""
    target = out / file
    content = target.read_bytes()
    place = content.index(b'"') + 1 if target.suffix == ".json" else min(2, len(content) - 1)
    target.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    place_name = file.removeprefix("../out.").split("/c/")[0].removesuffix("/zarr.json")
    assert place_name.split("/")[0] in call_verify(capsys, out, "--deep", code=2)
    call_verify(capsys, out, "--repair", "--quiet", code=0)
    assert list_differences(read_all(out), read_all(published)) == []


def call_verify(capsys: pytest.CaptureFixture[str], out: Path, *options: str, code: int) -> str:
    """Run the command, check its exit code and that errors are one line, and return that line."""
    with pytest.raises(SystemExit) as leave:
        commands.main(["verify", str(out), *options])
    stderr = capsys.readouterr().err
    assert (leave.value.code, stderr.count("\n")) == (code, int(code != 0)), stderr
    return stderr


def test_reading_a_damaged_store_states_the_repair(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fix = f"restore it with 'fcnpipe verify --repair {out}'"
    for file in ("sources/area/c/0", "sources/ra/c/0", "image/0/y/c/0"):
        (out / file).write_bytes(b"\0" + (out / file).read_bytes()[1:])
    for name in ("a.csv", "a.fits"):
        with pytest.raises(SystemExit) as leave:
            commands.main(["export", str(out), str(out.with_name(name))])
        stderr = capsys.readouterr().err
        assert leave.value.code == 2
        assert stderr.endswith(f"{fix}\n"), stderr
        assert stderr.count("\n") == 1
        assert not out.with_name(name).exists()
    opened = fcnpipe.open(out)
    for read in (lambda: opened.image, lambda: opened.sources):
        with pytest.raises(StoreError, match="--repair"):
            read()


def test_a_damaged_root_is_one_line(out: Path) -> None:
    intact = (out / "zarr.json").read_text()
    for old, new in (
        ('"layout"', '"lAyout"'), ('\\"mesh\\"', '\\"mexh\\"'), ('"status"', '"statue"'), ('"spec"', '"spek"'),
        ('"input"', '"inpux"'), ('\\"command\\"', '\\"commanx\\"'),
    ):  # fmt: skip
        assert intact.count(old) >= 1, old
        (out / "zarr.json").write_text(intact.replace(old, new))
        flip_a_bit(out / "image/0/elevation/c/2/3")
        with pytest.raises(StoreError, match=r"differs in|zarr.json of .* is damaged"):
            run.repair(str(out), engine="serial")


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
        (flip_a_bit, ".scratch/facts-predict/r001c001.npz", "predict"),
        (flip_a_bit, ".scratch/sky/all.npz", "predict"),
        (flip_a_bit, ".scratch/graph/r001c001.npz", "separate"),
        (flip_a_bit, ".scratch/rows/r001c001.npz", "measure"),
        (fill_with_zeros, ".scratch/done-join/n1r000c000.npz", "join"),
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
