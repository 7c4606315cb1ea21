"""Header cards of a tangent-plane projection."""

from __future__ import annotations

from astropy.io import fits


def make_cards(**changes: object) -> tuple[str, ...]:
    header = fits.Header(
        {
            "NAXIS": 2, "NAXIS1": 1000, "NAXIS2": 800, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN",
            "CRPIX1": 500.0, "CRPIX2": 400.0, "CRVAL1": 0.05, "CRVAL2": 60.0,
            "CD1_1": -7e-5, "CD1_2": 1e-6, "CD2_1": 1e-6, "CD2_2": 7e-5, "RADESYS": "ICRS",
        }
        | changes
    )  # fmt: skip
    return tuple(str(card) for card in header.cards)
