"""What a plan refuses, and that what it says instead works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fcnpipe.errors import PlanError
from fcnpipe.plan import make_plan
from fcnpipe.spec import make_spec


@pytest.mark.parametrize(
    ("model", "window", "tile", "said"),
    [
        ("none", 100, None, "window=100 and tile=300 leave chunks of 4 px, below 64"),
        ("default", 100, None, "window=100 is not a multiple of the network's stride 8"),
        ("none", 128, 200, "tile=200 is not a multiple of window=128"),
    ],
)
def test_what_is_said_instead_works(
    tmp_path: Path, model: str, window: int, tile: int | None, said: str
) -> None:
    image = str(tmp_path / "a.npy")
    np.save(image, np.zeros((300, 260), np.float32))
    options = {"image": (image,), "out": "out.zarr", "model": model, "engine": "serial"}
    with pytest.raises(PlanError, match=said) as caught:
        make_plan(make_spec(**options, window=window, tile=tile))
    mend = dict(re.findall(r"--(\w+) (\d+)", str(caught.value)))
    found = make_plan(make_spec(**{**options, "window": window, "tile": tile, **mend}))
    assert found.tile % found.window == 0
