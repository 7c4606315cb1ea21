"""Labels that change on disk during a run are found before it is published."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fcnpipe.core.errors import VerificationError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run
from fcnpipe.pipeline import tasks as work
from fcnpipe.pipeline.session import open_session
from fcnpipe.pipeline.workflow import Stage
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.stores import ZarrStore
from tests.integration.scenes import read_all, write_field

SETTINGS = {"model": "none", "window": 256, "tile": 256, "quiet": True}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (500, 600))


def spec(field: Path, out: Path, engine: str = "serial"):
    return make_spec(image=(str(field),), out=str(out), engine=engine, workers=2, **SETTINGS)


@dataclass
class Spoiler(SilentObserver):
    """Clears some labelled pixels on disk when a stage begins."""

    out: Path
    stage: str

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        if stage == self.stage:
            store = ZarrStore.resume(self.out)
            core = store.layout.grid.tile(1, 1).core
            labels = store.read("label", core)
            ys, xs = np.nonzero(labels)
            labels[ys[::7], xs[::7]] = 0
            store.write_tile("label", core, labels)


@pytest.mark.parametrize("engine", ["serial", "threads", "dask"])
@pytest.mark.parametrize("stage", ["measure", "publish"])
def test_spoilt_labels_are_not_published(
    field: Path, tmp_path: Path, stage: str, engine: str
) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(VerificationError, match="is not published"):
        run.segment(spec(field, out, engine), Spoiler(out, stage))
    assert not out.exists()
    assert not out.with_suffix(".parquet").exists()
    assert ZarrStore.resume(out).attrs["status"] == "partial"


PUBLISH = (
    "create_pyramid", "write_catalogue", "build_level", "prepare_parquet", "check_tile",
    "check_sums",
)  # fmt: skip


def list_calls(stages: Iterable[Stage]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every task and its names, those that may run at the same time one after the other."""
    for stage in stages:
        for step in stage.steps:
            if step.beside:
                yield step.beside, run.ONE
            yield step.task, step.names


@pytest.mark.parametrize("last", PUBLISH)
def test_a_run_that_ends_after_any_step_is_taken_up(
    field: Path, tmp_path: Path, last: str, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out.zarr"
    with open_session(spec(field, out)) as session:
        for task, names in list_calls(session.stages):
            for name in names:
                assert not work.perform(session.job, task, name).error
            if task == last:
                break
    run.segment(spec(field, out))
    again = read_all(out)
    assert [n for n in whole.keys() | again.keys() if whole.get(n) != again.get(n)] == []


@pytest.fixture(scope="module")
def whole(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every file of the run that nothing befell."""
    out = tmp_path_factory.mktemp("whole") / "out.zarr"
    run.segment(spec(field, out))
    return read_all(out)
