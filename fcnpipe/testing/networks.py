"""Tests that every network must pass, including the matched filter."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box, TileGrid, round_up
from fcnpipe.networks.base import Maps, Model, Predictor, parse_header

TOLERANCE = 2e-5
"""Maximum difference in float32 between windows and the whole image."""


def starry(bands: int, shape: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Return white noise with some bright pixels, (bands, h, w) float32 S/N."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(bands, *shape))
    return (image + 50 * (rng.random(image.shape) > 0.99)).astype(np.float32)


def pad_to_stride(image: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Repeat the last row and column up to a multiple of the stride, as in the canvas of an image."""
    pads = [(0, round_up(size, stride) - size) for size in image.shape[1:]]
    return np.pad(image, [(0, 0), *pads], mode="edge")


def predict_in_windows(
    predictor: Predictor, canvas: NDArray[np.float32], edge: int, halo: int
) -> Maps:
    """Return the maps of a canvas, assembled from windows with cores of ``edge`` px."""
    height, width = canvas.shape[1:]
    frame = Box(0, 0, height, width)
    probability, elevation = [], np.empty((height, width), np.float32)
    for tile in TileGrid((height, width), (edge, edge)):
        read = tile.core.grow(halo).clip(frame)
        seen = np.ascontiguousarray(canvas[(..., *read.slices)])
        maps = predictor(seen, tile.core.relative_to(read))
        elevation[tile.core.slices] = maps.elevation
        probability.append((tile.core, maps.probability))
    whole = np.empty((len(probability[0][1]), height, width), np.float32)
    for core, part in probability:
        whole[(..., *core.slices)] = part
    return Maps(whole, elevation)


def difference(first: Maps, second: Maps) -> float:
    """Return the maximum absolute difference of two maps."""
    return max(
        float(np.abs(first.probability - second.probability).max()),
        float(np.abs(first.elevation - second.elevation).max()),
    )


class NetworkTests:
    """Tests of the contract of `fcnpipe.networks.base.Model`.

    A subclass defines a fixture ``model``. With a small network the tests take seconds.
    """

    @pytest.fixture
    def predictor(self, model: Model) -> Predictor:
        """Return a predictor on one thread of the CPU."""
        return model.predictor(device="cpu", threads=1)

    @pytest.fixture
    def bands(self, model: Model) -> int:
        """Return a number of channels that the model accepts."""
        return model.header.channels or 1

    def test_the_header_says_what_the_model_says(self, model: Model) -> None:
        """Header and model agree, and the header is the same after a round trip through JSON."""
        header = model.header
        assert parse_header(header.model_dump_json(), "memory") == header
        assert (model.halo, model.stride, model.classes) == (
            header.halo,
            header.stride,
            header.classes,
        )
        assert model.halo % model.stride == 0
        assert model.halo + model.stride > header.reach.furthest
        assert header.certificate is not None
        assert model.halo == header.certificate.halo
        assert model.classes[0] == "source"
        assert model.bytes_per_pixel > 0

    def test_it_can_be_sent_to_a_worker(self, model: Model) -> None:
        """A pickled model is a small record without its weights."""
        copy = pickle.loads(pickle.dumps(model))
        assert copy.digest == model.digest
        assert len(pickle.dumps(model)) < 10_000

    def test_maps_are_float32_between_0_and_1(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """Maps have the shapes, dtypes and ranges of `Maps`."""
        edge = round_up(24, model.stride)
        maps = predictor(starry(bands, (edge, 2 * edge)))
        assert maps.elevation.shape == (edge, 2 * edge)
        assert maps.probability.shape == (len(model.classes), edge, 2 * edge)
        for values in (maps.probability, maps.elevation):
            assert values.dtype == np.float32
            assert 0 <= values.min() <= values.max() <= 1

    def test_each_output_is_given_by_itself(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """Outputs are float32, one for each output of the header, and cropped to ``keep``."""
        edge = round_up(24, model.stride)
        image, keep = starry(bands, (edge, 2 * edge)), Box(3, 5, 20, 21)
        outputs = predictor.outputs(image)
        assert outputs.dtype == np.float32
        assert outputs.shape == (len(model.header.outputs), edge, 2 * edge)
        part = predictor.outputs(image, keep)
        np.testing.assert_allclose(part, outputs[(..., *keep.slices)], atol=TOLERANCE)

    def test_the_same_window_gives_the_same_bits_in_any_thread(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """The bits of the maps depend on the window only."""
        image = starry(bands, (round_up(40, model.stride),) * 2)
        first = predictor(image)
        with ThreadPoolExecutor(2) as pool:
            again = list(pool.map(predictor, [image] * 4))
        assert all(difference(first, maps) == 0 for maps in again)
        fresh = model.predictor(device="cpu", threads=1)
        assert difference(first, fresh(image)) == 0

    def test_the_input_is_left_alone(self, model: Model, predictor: Predictor, bands: int) -> None:
        """A predictor does not write to its input."""
        image = starry(bands, (round_up(16, model.stride),) * 2)
        before = image.copy()
        predictor(image)
        np.testing.assert_array_equal(image, before)

    def test_pixels_beyond_the_reach_do_not_matter(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """Changes of the input beyond the reach change no bit."""
        reach, stride = model.header.reach, model.stride
        size = round_up(2 * reach.furthest + 8, stride)
        image = starry(bands, (round_up(8, stride), size))
        changed = image.copy()
        changed[..., : size // 2 - reach.left] += 1000
        changed[..., size // 2 + reach.right + 1 :] -= 1000
        first, second = predictor(image), predictor(changed)
        np.testing.assert_array_equal(first.elevation[:, size // 2], second.elevation[:, size // 2])
        assert difference(first, second) > 0

    def test_shifts_by_the_stride_commute(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """Away from the border, the maps of a shifted image are shifted maps."""
        halo, stride = model.halo, model.stride
        edge = 2 * halo + 4 * stride
        image = starry(bands, (edge + stride, edge + stride))
        here = predictor(np.ascontiguousarray(image[:, :edge, :edge]))
        there = predictor(np.ascontiguousarray(image[:, stride:, stride:]))
        inner, moved = slice(halo + stride, edge - halo), slice(halo, edge - halo - stride)
        first = Maps(here.probability[:, inner, inner], here.elevation[inner, inner])
        second = Maps(there.probability[:, moved, moved], there.elevation[moved, moved])
        assert difference(first, second) <= TOLERANCE

    def test_windows_equal_the_whole(self, model: Model, predictor: Predictor, bands: int) -> None:
        """Windows with a halo have the same maps as the whole image in one pass."""
        edge = model.halo + 2 * model.stride
        canvas = starry(bands, (2 * edge, 2 * edge))
        tiled = predict_in_windows(predictor, canvas, edge, model.halo)
        assert difference(tiled, predictor(canvas)) <= TOLERANCE

    def test_every_size_gives_the_crop_of_its_canvas(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """Images of 1 to 3 * stride + 1 px, padded to the stride, have the same maps in windows."""
        stride = model.stride
        for size in range(1, 3 * stride + 2):
            image = starry(bands, (size, 2 * size), seed=size)
            canvas = pad_to_stride(image, stride)
            whole = predictor(canvas)
            tiled = predict_in_windows(predictor, canvas, stride, model.halo)
            assert whole.elevation[:size, : 2 * size].shape == image.shape[1:]
            assert difference(tiled, whole) <= TOLERANCE

    def test_a_window_out_of_step_is_refused(
        self, model: Model, predictor: Predictor, bands: int
    ) -> None:
        """A window that is not a multiple of the stride is refused, as it would shift the grid."""
        if model.stride == 1:
            pytest.skip("every size is a multiple of a stride of 1")
        with pytest.raises(ModelError, match="multiple of stride"):
            predictor(starry(bands, (model.stride, 2 * model.stride + 1)))
