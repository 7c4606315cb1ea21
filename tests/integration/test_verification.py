"""Labels that change on disk during a run are found before publication; a run is resumed after any step."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fcnpipe.core.errors import VerificationError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.session import open_session
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.stores import ZarrStore
from tests.integration.partial_runs import perform_until
from tests.integration.scenes import list_differences, read_all, write_field

SETTINGS = {"model": "none", "window": 256, "tile": 256, "quiet": True}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_field(tmp_path_factory.mktemp("field") / "field.fits", (500, 600))


def make_run_spec(field: Path, out: Path, engine: str = "serial"):
    return make_spec(image=(str(field),), out=str(out), engine=engine, workers=2, **SETTINGS)


@dataclass
class LabelEraser(SilentObserver):
    """Sets some labelled pixels on disk to 0 when a stage starts."""

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
def test_changed_labels_are_not_published(
    field: Path, tmp_path: Path, stage: str, engine: str
) -> None:
    out = tmp_path / "out.zarr"
    with pytest.raises(VerificationError, match="is not published"):
        run.segment(make_run_spec(field, out, engine), LabelEraser(out, stage))
    assert not out.exists()
    assert not out.with_suffix(".parquet").exists()
    assert ZarrStore.resume(out).attrs["status"] == "partial"


PUBLISH = (
    "create_pyramid", "write_catalogue", "build_level", "prepare_parquet", "check_tile",
    "check_sums",
)  # fmt: skip


@pytest.mark.parametrize("last", PUBLISH)
def test_a_run_that_ends_after_any_step_is_resumed(
    field: Path, tmp_path: Path, last: str, reference: dict[str, bytes]
) -> None:
    out = tmp_path / "out.zarr"
    with open_session(make_run_spec(field, out)) as session:
        perform_until(session, last)
    run.segment(make_run_spec(field, out))
    assert list_differences(read_all(out), reference) == []


@pytest.fixture(scope="module")
def reference(field: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """All files of a run without interruption."""
    out = tmp_path_factory.mktemp("reference") / "out.zarr"
    run.segment(make_run_spec(field, out))
    return read_all(out)
