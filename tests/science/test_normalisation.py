"""Flags, signal-to-noise and image units do not depend on the box that was read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcnpipe.core.records import PixelFlag
from fcnpipe.science import normalisation


def scene(seed: int, shape: tuple[int, int] = (60, 70)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, shape).astype(np.float32)
    image[rng.random(shape) < 0.1] = np.nan
    image[20:40, 30:55] = np.nan
    return image, normalisation.flag_pixels(image)


def test_each_reason_has_its_bit() -> None:
    image = np.array([[1, np.nan, np.inf, 9, 2, 3]], np.float32)
    mask = np.array([[0, 0, 0, 0, 1, 0]], bool)
    weight = np.array([[1, 1, 1, 1, 1, 0]], np.float32)
    flags = normalisation.flag_pixels(image, mask, weight, satur_level=9)
    expected = [0, PixelFlag.NO_DATA, PixelFlag.NO_DATA | PixelFlag.SATURATED, PixelFlag.SATURATED]
    assert flags[0].tolist() == [*map(int, expected), int(PixelFlag.MASKED), int(PixelFlag.MASKED)]


def test_fill_is_the_weighted_mean_of_good_neighbours() -> None:
    image, flags = scene(1)
    filled = normalisation.signal_to_noise(image, np.ones_like(image), flags)
    assert np.isfinite(filled).all()
    for y, x in np.argwhere(flags)[::37]:
        total = weight = 0.0
        for v in range(max(y - 4, 0), min(y + 5, 60)):
            for u in range(max(x - 4, 0), min(x + 5, 70)):
                w = np.exp(-((v - y) ** 2 + (u - x) ** 2) / 8) * (flags[v, u] == 0)
                total, weight = total + w * np.nan_to_num(image[v, u]), weight + w
        assert filled[y, x] == pytest.approx(total / weight if weight > 1e-6 else 0.0, abs=1e-5)
    assert filled[30, 42] == 0.0


@given(st.integers(0, 20), st.integers(0, 20), st.integers(30, 60), st.integers(30, 70))
def test_fill_does_not_depend_on_the_box(y0: int, x0: int, y1: int, x1: int) -> None:
    image, flags = scene(2)
    whole = normalisation.signal_to_noise(image, np.ones_like(image), flags)
    margin = normalisation.FILL_REACH
    ya, xa = max(y0 - margin, 0), max(x0 - margin, 0)
    cut = (slice(ya, y1 + margin), slice(xa, x1 + margin))
    part = normalisation.signal_to_noise(image[cut], np.ones_like(image[cut]), flags[cut])
    inner = part[y0 - ya : y0 - ya + y1 - y0, x0 - xa : x0 - xa + x1 - x0]
    np.testing.assert_array_equal(inner, whole[y0:y1, x0:x1])


@given(seed=st.integers(0, 99), unit=st.floats(0.1, 10), stretched=st.booleans())
def test_the_scaling_is_undone_in_double_precision(seed: int, unit: float, stretched: bool) -> None:
    rng = np.random.default_rng(seed)
    values, noise, zero = rng.normal(0, [[[3]], [[1]], [[100]]], (3, 5, 7)).astype(np.float32)
    noise = np.abs(noise) + np.float32(0.1)
    noise[2, 3] = np.inf
    image = normalisation.to_image_units(values, noise, zero, unit, stretched)
    exact = values.astype(float)
    exact = unit * (np.sinh(exact) if stretched else exact) * noise + zero
    assert image.dtype == np.float32
    assert np.isnan(image[2, 3])
    known = np.isfinite(noise)
    np.testing.assert_allclose(image[known], exact[known], rtol=1e-6, atol=1e-5)
    part = normalisation.to_image_units(
        values[1:3, 2:], noise[1:3, 2:], zero[1:3, 2:], unit, stretched
    )
    np.testing.assert_array_equal(part, image[1:3, 2:])


@given(st.integers(1, 5000), st.data())
def test_relative_position_is_that_in_the_image(size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    whole = normalisation.relative_position(0, size, size)
    np.testing.assert_array_equal(
        normalisation.relative_position(start, stop, size), whole[start:stop]
    )
    assert whole[0] == -1
    assert whole[-1] == (1 if size > 1 else -1)
    assert (np.diff(whole) > 0).all()


def test_padding_repeats_the_edge() -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    padded = normalisation.pad_high(array, (3, 4))
    np.testing.assert_array_equal(padded[0], [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5]])
