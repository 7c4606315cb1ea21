"""Tests that every image reader must pass."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnpipe.core.geometry import Box
from fcnpipe.images import Image

Truth = NDArray[np.float32]


def draw_boxes(shape: tuple[int, int], count: int, seed: int = 1) -> list[Box]:
    """Return random boxes inside an image, then the whole image, two corners, the last row and the last column.

    Examples
    --------
    >>> all(Box(0, 0, 9, 7).contains(box) and box.size for box in draw_boxes((9, 7), 20))
    True
    """
    height, width = shape
    rng = np.random.default_rng(seed)
    edges = [
        (*np.sort(rng.choice(height + 1, 2, False)), *np.sort(rng.choice(width + 1, 2, False)))
        for _ in range(count)
    ]
    boxes = [Box(int(y0), int(x0), int(y1), int(x1)) for y0, y1, x0, x1 in edges]
    last = Box(height - 1, width - 1, height, width)
    lines = [Box(height - 1, 0, height, width), Box(0, width - 1, height, width)]
    return [*boxes, Box(0, 0, height, width), Box(0, 0, 1, 1), last, *lines]


class ImageTests:
    """Tests of the contract of `fcnpipe.images.Image`.

    A subclass defines two fixtures:

    * ``image``, a reader of an image;
    * ``truth``, all pixels of that image, (bands, h, w) float32, NaN where there is no data, made or
      read without the reader under test.
    """

    def test_it_has_the_shape_of_the_truth(self, image: Image, truth: Truth) -> None:
        """Shape and number of bands are right, and band names are unique."""
        assert image.info.shape == truth.shape
        assert len(image.info.bands) == len(truth) == len(set(image.info.bands))

    def test_any_box_is_the_truth(self, image: Image, truth: Truth) -> None:
        """Random boxes, the whole image, corners and lines are right in every band."""
        for band, plane in enumerate(truth):
            for box in draw_boxes(image.info.shape[1:], 12):
                np.testing.assert_array_equal(image.read(box, band), plane[box.slices])

    def test_pixels_are_ready_for_use(self, image: Image, truth: Truth) -> None:
        """Arrays are native, contiguous, writeable float32, and not shared with the reader."""
        height, width = truth.shape[1:]
        box = Box(0, width // 2, (height + 1) // 2, width)
        values = image.read(box)
        assert values.dtype == np.float32
        assert values.dtype.isnative
        assert values.flags.c_contiguous
        assert values.flags.writeable
        values[:] = -77
        np.testing.assert_array_equal(image.read(box), truth[0][box.slices])

    def test_integers_agree_with_floats(self, image: Image, truth: Truth) -> None:
        """Integers are equal to whole float32 values, -1 where these are NaN, and 0 only where these are 0."""
        values = image.read_integer(Box(0, 0, *truth.shape[1:]))
        assert values.dtype == np.int64
        whole = truth[0] == np.round(truth[0])
        np.testing.assert_array_equal(values[whole], truth[0][whole].astype(np.int64))
        assert (values[np.isnan(truth[0])] == -1).all()
        np.testing.assert_array_equal(values == 0, truth[0] == 0)

    def test_an_empty_box_is_empty(self, image: Image) -> None:
        """A box without rows has no pixels."""
        assert image.read(Box(1, 0, 1, 2)).shape == (0, 2)

    def test_outside_is_refused(self, image: Image) -> None:
        """A box or a band outside the image raises IndexError."""
        bands, height, width = image.info.shape
        with pytest.raises(IndexError, match="not inside"):
            image.read(Box(0, 0, height + 1, width))
        with pytest.raises(IndexError, match="not inside"):
            image.read(Box(0, 0, 1, 1), bands)

    def test_it_travels(self, image: Image, truth: Truth) -> None:
        """A pickled copy is equal and small, and reads the same pixels."""
        image.read(Box(0, 0, 1, 1))
        data = pickle.dumps(image)
        copy = pickle.loads(data)
        assert copy == image
        assert hash(copy) == hash(image)
        assert len(data) < 100_000
        box = Box(0, 0, *truth.shape[1:])
        np.testing.assert_array_equal(copy.read(box), truth[0])

    def test_threads_do_not_disturb_each_other(self, image: Image, truth: Truth) -> None:
        """An image and its copy read many boxes in parallel."""
        copy = pickle.loads(pickle.dumps(image))
        boxes = draw_boxes(image.info.shape[1:], 24, seed=2)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(image.read, boxes)) + list(pool.map(copy.read, boxes))
        for box, values in zip(boxes * 2, found, strict=True):
            np.testing.assert_array_equal(values, truth[0][box.slices])

    def test_digest_is_of_the_content(self, image: Image) -> None:
        """The digest has 64 hexadecimal digits and is the same for a copy."""
        digest = image.digest()
        assert int(digest, 16) >= 0
        assert len(digest) == 64
        assert pickle.loads(pickle.dumps(image)).digest() == digest

    def test_memory_is_stated(self, image: Image) -> None:
        """The reader states its memory overhead."""
        assert image.overhead_bytes > 0
