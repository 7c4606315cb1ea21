"""What is lost of a store is found, named, and made anew, byte for byte."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import StoreError, VerificationError
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run, tasks
from fcnpipe.pipeline.session import Session, open_session
from fcnpipe.pipeline.workflow import Stage
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.stores import ZarrStore
from tests.integration.scenes import read_all, write_field

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
    """A copy of the store, to be damaged."""
    shutil.copy(published.with_suffix(".parquet"), tmp_path / "out.parquet")
    return Path(shutil.copytree(published, tmp_path / "out.zarr"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)


def delete(file: Path) -> None:
    file.unlink()


@dataclass
class Predictions(SilentObserver):
    """The tiles that the network was run on."""

    names: list[str] = field(default_factory=list)

    def report(self, report: TaskReport) -> None:
        if report.stage == "predict":
            self.names.append(report.name)


@pytest.mark.parametrize(
    ("harm", "file", "told", "predicted"),
    [
        (truncate, "image/0/label/c/1/2", "image/0/label r001c002 is not what was written", []),
        (delete, "image/0/label/c/0/0", "image/0/label r000c000 is missing", []),
        (
            delete,
            "image/0/probability/c/0/1/1",
            "image/0/probability r001c001 is missing",
            ["r001c001"],
        ),
        (flip, "image/0/elevation/c/2/3", "image/0/elevation r002c003 is not what", ["r002c003"]),
        (delete, "image/1/science/c/0/1/1", "image/1/science r001c001 is missing", []),
        (flip, "background/sky/c/0/0", "background/sky is not what was written", []),
        (delete, "sources/kron_flux/c/0", "sources/kron_flux is not what was written", []),
        (truncate, "sources/area/zarr.json", "sources/area has no metadata that can", []),
        (delete, "image/0/wcs/zarr.json", "image/0/wcs has no metadata that can be read", []),
        (delete, "ledger/c/1/2/0", "ledger ", []),
        (flip, "checksums/0/probability/c/0/0", "checksums/0/probability is not what was", []),
        (delete, "checksums/0/flags/zarr.json", "checksums/0/flags has no metadata that can", []),
        (flip, "../out.parquet", "parquet out.parquet", []),
        (delete, "../out.parquet", "parquet out.parquet cannot be read", []),
    ],
)
def test_damage_is_found_and_mended(
    published: Path,
    out: Path,
    harm: Callable[[Path], None],
    file: str,
    told: str,
    predicted: list[str],
) -> None:
    harm(out / file)
    damage = [*ZarrStore.open(out).find_damage()]
    assert told in str(damage[0]), damage
    watched = Predictions()
    assert run.repair(str(out), watched, engine="serial") == tuple(damage)
    assert watched.names == predicted
    mended, before = read_all(out), read_all(published)
    assert [n for n in before.keys() | mended.keys() if mended.get(n) != before.get(n)] == []
    names = ["out.parquet", "out.report.html", "out.report.json", "out.zarr"]
    assert sorted(p.name for p in out.parent.iterdir()) == names


def test_a_shard_that_is_lost_with_its_checksum_is_made_anew(published: Path, out: Path) -> None:
    """What is not there may be one that is all fill value, or lost: nobody can tell any more."""
    delete(out / "checksums/0/elevation/c/0/0")
    delete(out / "image/0/elevation/c/1/1")
    damage = [str(d) for d in ZarrStore.open(out).find_damage()]
    assert damage[0].startswith("image/0/elevation r001c001 is not there, and may have been")
    watched = Predictions()
    run.repair(str(out), watched, engine="serial")
    assert watched.names == ["r001c001"]
    assert read_all(out) == read_all(published)


def test_the_command_says_what_is_damaged_and_mends_it(
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
    code, _, said = call("--deep")
    assert (code, said.count("\n")) == (2, 1)
    assert "image/0/elevation r000c000 is missing; image/0/elevation r001c001 is not" in said
    assert f"'fcnpipe verify --repair {out}' makes it anew" in said
    code, printed, said = call("--repair", "--quiet")
    assert (code, said) == (0, "")
    assert "mended image/0/elevation r000c000" in printed
    assert call("--deep")[0] == 0


def test_a_store_of_another_image_is_not_mended(image: Path, out: Path) -> None:
    delete(out / "image/0/elevation/c/0/0")
    before, damaged = image.read_bytes(), read_all(out)
    try:
        image.write_bytes(before[:-100_000] + bytes(100_000))
        with pytest.raises(StoreError, match="differs in input digest"):
            run.repair(str(out), engine="serial")
    finally:
        image.write_bytes(before)
    assert read_all(out) == damaged


# --- a run that is taken up -----------------------------------------------------------------------


def steps(stages: tuple[Stage, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for stage in stages:
        for step in stage.steps:
            if step.beside:
                yield step.beside, run.ONE
            yield step.task, step.names


def perform_until(session: Session | None, done: str) -> None:
    assert session is not None
    for task, names in steps(session.stages):
        for name in names:
            assert not tasks.perform(session.job, task, name).error
        if task == done:
            break


@pytest.mark.parametrize(
    ("harm", "file", "done"),
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
def test_what_a_ledger_vouches_for_and_is_gone_is_done_again(
    image: Path,
    published: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    file: str,
    done: str,
) -> None:
    spec = make_spec(image=(str(image),), out=str(tmp_path / "out.zarr"), **SETTINGS)
    with open_session(spec) as session:
        perform_until(session, done)
    harm(tmp_path / "out.zarr.partial" / file)
    run.segment(spec)
    again, before = read_all(tmp_path / "out.zarr"), read_all(published)
    assert [n for n in before.keys() | again.keys() if again.get(n) != before.get(n)] == []


def rot(file: Path) -> None:
    """Let a shard be a whole one with other values."""
    file.write_bytes((file.parent / "0").read_bytes())


@pytest.mark.parametrize("harm", [flip, rot])
def test_what_a_run_stumbles_over_is_done_again_when_it_is_taken_up(
    image: Path, published: Path, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    out = tmp_path / "out.zarr"
    spec = make_spec(image=(str(image),), out=str(out), **SETTINGS)
    with open_session(spec) as session:
        perform_until(session, "measure")
    harm(tmp_path / "out.zarr.partial/image/0/label/c/1/1")
    with pytest.raises((StoreError, VerificationError), match=r"damaged|not what was written"):
        run.segment(spec)
    assert not out.exists()
    run.segment(spec)
    again, before = read_all(out), read_all(published)
    assert [n for n in before.keys() | again.keys() if again.get(n) != before.get(n)] == []
