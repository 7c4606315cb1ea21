"""Plans that are refused, and the fixes that their messages suggest."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fcnpipe.core.errors import PlanError, StoreError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline.plan import check_disk, make_plan


@pytest.mark.parametrize(
    ("model", "window", "tile", "message"),
    [
        ("none", 100, None, "window=100 and tile=300 leave chunks of 4 px, below 64"),
        ("default", 100, None, "window=100 is not a multiple of the network's stride 8"),
        ("none", 128, 200, "tile=200 is not a multiple of window=128"),
    ],
)
def test_the_suggested_fix_works(
    tmp_path: Path, model: str, window: int, tile: int | None, message: str
) -> None:
    image = str(tmp_path / "a.npy")
    np.save(image, np.zeros((300, 260), np.float32))
    options = {"image": (image,), "out": "out.zarr", "model": model, "engine": "serial"}
    with pytest.raises(PlanError, match=message) as caught:
        make_plan(make_spec(**options, window=window, tile=tile))
    fix = dict(re.findall(r"--(\w+) (\d+)", str(caught.value)))
    plan = make_plan(make_spec(**{**options, "window": window, "tile": tile, **fix}))
    assert plan.tile % plan.window == 0


def test_an_output_folder_must_exist(tmp_path: Path) -> None:
    image = str(tmp_path / "a.npy")
    np.save(image, np.zeros((300, 260), np.float32))
    plan = make_plan(make_spec(image=(image,), out="out.zarr", model="none"))
    check_disk(plan, str(tmp_path / "out.zarr"))
    with pytest.raises(StoreError, match="does not exist or is not writable"):
        check_disk(plan, str(tmp_path / "absent" / "out.zarr"))
