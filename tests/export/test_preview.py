"""Export of the image as a picture with the outlines of its sources."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fcnpipe import export
from fcnpipe.core.errors import SpecError
from fcnpipe.export import preview
from fcnpipe.reporting.thumbnails import draw_result_thumbnail
from fcnpipe.stores import ZarrStore
from fcnpipe.testing.small_run import make_labels, make_science


def test_a_small_image_is_enlarged_and_upright(rich: ZarrStore, tmp_path: Path) -> None:
    export.export(rich, tmp_path / "p.png", science=make_science())
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (1500, 2000, 3)
    # Row 149 is the top of the picture; its first ten columns have no data.
    assert (picture[50, 50] == preview.NO_DATA).all()
    # The right border of the first source, at (y, x) = (3, 4), is at x = 9.
    assert (picture[1500 - 35, 99] == preview.COLOURS[0]).all()
    assert (picture[1500 - 35, 101] != preview.COLOURS[0]).any()


def test_an_image_without_header_is_not_flipped(
    make_rich: Callable[..., ZarrStore], tmp_path: Path
) -> None:
    export.export(make_rich(cards=()), tmp_path / "p.png", science=make_science())
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert (picture[-50, 50] == preview.NO_DATA).all()


def test_the_pyramid_replaces_a_missing_image(rich: ZarrStore, tmp_path: Path) -> None:
    style = export.PreviewStyle(size=200, outlines=False)
    export.export_preview(rich, tmp_path / "p.png", style=style)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert picture.shape == (150, 200, 3)
    assert picture[150 - 64, 10].min() > 150 > 60 > picture[100:].mean()
    export.export_preview(rich, tmp_path / "q.png", style=export.PreviewStyle(size=100))
    assert np.asarray(Image.open(tmp_path / "q.png")).shape == (75, 100, 3)


def test_a_picture_may_be_smaller_than_the_last_level(rich: ZarrStore, tmp_path: Path) -> None:
    export.export_preview(rich, tmp_path / "p.png", style=export.PreviewStyle(size=60))
    assert np.asarray(Image.open(tmp_path / "p.png")).shape == (45, 60, 3)
    assert max(Image.open(io.BytesIO(draw_result_thumbnail(rich, 60))).size) == 60


@pytest.mark.parametrize(
    ("bands", "red"), [(("g", "r", "i"), 2), (("R", "G", "B"), 0), (("0", "1", "2"), 0)]
)
def test_longest_wavelength_is_red(bands: tuple[str, ...], red: int) -> None:
    science = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    science[red, 10:14, 10:14] += 100
    assert preview.stretch(science, bands)[12, 12].argmax() == 0


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_flat_image_is_drawn(value: float) -> None:
    picture = preview.stretch(np.full((1, 5, 6), value, np.float32), ("0",))
    assert picture.shape == (5, 6, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_touching_sources_have_different_colours() -> None:
    labels = make_labels()
    labels[30:40, 30:40], labels[30:40, 40:50], labels[40:50, 35:45] = 5, 6, 7
    colours = preview.colour_labels(labels)
    assert len({colours[5], colours[6], colours[7]}) == 3
    assert not colours[:5].any()


@given(arrays(np.int32, (7, 8), elements=st.integers(0, 3)))
@settings(max_examples=50, deadline=None)
def test_borders_agree_with_a_pixel_loop(labels: np.ndarray) -> None:
    found = preview.find_borders(labels)
    for y, x in np.ndindex(labels.shape):
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        around = [labels[p] for p in near if 0 <= p[0] < 7 and 0 <= p[1] < 8]
        assert found[y, x] == (labels[y, x] != 0 and any(v != labels[y, x] for v in around))


def test_a_store_without_image_is_refused(rich: ZarrStore, tmp_path: Path) -> None:
    class StoreWithoutImage:
        layout, cards, read = rich.layout, rich.cards, staticmethod(rich.read)

        def has(self, name: str) -> bool:
            return False

    with pytest.raises(SpecError, match="preview needs the image"):
        export.export_preview(StoreWithoutImage(), tmp_path / "p.png")  # type: ignore[arg-type]
