"""Flux, position and width of PSFs."""

import numpy as np
import pytest

from fcnpipe.simulation import psfs
from fcnpipe.simulation.psfs import PHASES, RADIUS_PX, PsfShape, bin_psf


@pytest.fixture(scope="module")
def moffat():
    return bin_psf(PsfShape(fwhm_px=3.0, beta=3.0))


@pytest.mark.parametrize("j", range(PHASES))
@pytest.mark.parametrize("i", [0, PHASES - 1])
def test_each_phase_is_centred_at_its_displacement(moffat, j, i):
    stamp = moffat.stamps[j, i].astype(float)
    y, x = np.indices(stamp.shape) - RADIUS_PX
    assert stamp.sum() == pytest.approx(1.0, abs=1e-5)
    assert (stamp * y).sum() == pytest.approx(j / PHASES, abs=1e-3)
    assert (stamp * x).sum() == pytest.approx(i / PHASES, abs=1e-3)


def test_a_gaussian_has_its_noise_equivalent_area():
    sigma = 6.0 / 2.3548
    psf = bin_psf(PsfShape(fwhm_px=6.0, beta=100.0))
    # The pixel adds a variance of 1/12 on each axis.
    assert psf.area_px == pytest.approx(4 * np.pi * (sigma**2 + 1 / 12), rel=2e-3)


def test_monotone_stamps_decrease_everywhere_and_rings_do_not():
    ringed = bin_psf(PsfShape(fwhm_px=3.0, obscuration=0.3))
    row, hill = (
        ringed.stamps[0, 0][RADIUS_PX, RADIUS_PX:],
        ringed.monotone_stamps[0, 0][RADIUS_PX, RADIUS_PX:],
    )
    assert (np.diff(row) > 0).any()
    assert (np.diff(hill) <= 0).all()


def test_the_radius_contains_all_light_above_the_level(moffat):
    radius = moffat.radius_px(flux=1e4, level=0.1)
    y, x = np.indices(moffat.stamps[0, 0].shape) - RADIUS_PX
    outside = np.hypot(y, x) >= radius + 1
    assert (1e4 * moffat.stamps[0, 0][outside]).max() <= 0.1
    assert moffat.radius_px(flux=1e6, level=0.1) > radius


def test_transfer_is_one_at_zero_and_real_for_an_even_psf(moffat):
    transfer = moffat.transfer(64)
    assert transfer[0, 0] == pytest.approx(1.0, abs=1e-5)
    assert np.abs(transfer.imag).max() < 1e-5


@pytest.mark.parametrize("kind", ["moffat", "gaussian", "winged", "airy", "coma"])
def test_every_kind_can_be_drawn(kind):
    shape = psfs.draw_shape(np.random.default_rng(3), 3.0, (kind,))
    psf = bin_psf(shape)
    assert psf.stamps.min() >= 0
    assert psf.stamps[0, 0].sum() == pytest.approx(1.0, abs=1e-4)
