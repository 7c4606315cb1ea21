"""Opening a run: the plan, and the tile grid of an unfinished run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fcnpipe.core.errors import StoreError
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.pipeline import recovery, session, tasks
from fcnpipe.pipeline.job import ALL
from fcnpipe.pipeline.run import run_stage
from fcnpipe.pipeline.session import open_session
from fcnpipe.reporting.observers import SilentObserver


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.npy"
    np.save(path, np.random.default_rng(1).normal(0, 1, (300, 400)).astype(np.float32))
    return path


def spec(image: Path, tile: int, **options: object) -> RunSpec:
    settings = {"model": "none", "window": 128, "engine": "serial"} | options
    return make_spec(
        image=(str(image),), out=str(image.with_name("out.zarr")), tile=tile, **settings
    )


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Return the tiles that the plans were made for, filled as sessions are opened."""
    tiles: list[int | None] = []
    plan_run = session.plan_run

    def record(inputs: object, tile: int | None = None, host_bytes: int = 0) -> object:
        tiles.append(tile)
        return plan_run(inputs, tile, host_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "plan_run", record)
    return tiles


def tile_of(run: RunSpec) -> int:
    with open_session(run) as opened:
        assert opened is not None
        assert opened.job.store.layout.edge == (opened.job.plan.tile, opened.job.plan.tile)
        return opened.job.plan.tile


def test_a_resumed_run_keeps_its_tile_grid(image: Path, plans: list[int | None]) -> None:
    assert tile_of(spec(image, 256)) == 256
    assert tile_of(spec(image, 128)) == 256
    assert plans == [None, 256]


def test_overwriting_another_unfinished_run_uses_the_requested_tile(
    image: Path, plans: list[int | None]
) -> None:
    assert tile_of(spec(image, 256)) == 256
    assert tile_of(spec(image, 128, thresh=5.0, overwrite=True)) == 128
    assert plans == [None, 256, None]
    # Started with --overwrite, it is now resumed by the same command.
    assert tile_of(spec(image, 256, thresh=5.0, overwrite=True)) == 128


def test_another_unfinished_run_is_refused(image: Path) -> None:
    tile_of(spec(image, 256))
    with pytest.raises(StoreError, match="belongs to another run"):
        tile_of(spec(image, 256, thresh=5.0))


def test_scratch_records_of_another_format_are_computed_again(image: Path) -> None:
    run = spec(image, 128)
    with open_session(run) as opened:
        assert opened is not None
        for stage in opened.stages[:3]:  # background, predict, separate
            run_stage(opened, stage, SilentObserver())
        names = [tile.name for tile in opened.job.plan.tiles]
        assert not tasks.list_remaining(opened.job, "separate", names)
        opened.job.store.put_arrays("format", ALL, {"version": np.asarray(1)})
    with open_session(run) as opened:
        assert opened is not None
        assert tasks.list_remaining(opened.job, "separate", names) == names
        assert not tasks.list_remaining(opened.job, "predict", names)
        found = opened.job.store.get_arrays("format", ALL)["version"]
        assert found == recovery.SCRATCH_FORMAT
