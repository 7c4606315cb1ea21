"""Thumbnails of a finished store as PNG data, for Prefect artifacts and other places that cannot link files."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnpipe.core.geometry import Box
from fcnpipe.export.preview import (
    Picture,
    PreviewStyle,
    choose_level,
    draw_preview,
    enlarge,
    shrink,
    stretch,
)
from fcnpipe.stores import ZarrStore

SIZE_PX = 384
"""Maximum length of the longer side, px. A PNG of noise of this size has 150 kB, acceptable for a data: URL."""


def draw_result_thumbnail(store: ZarrStore, size: int = SIZE_PX) -> bytes:
    """Return a PNG of the result of a run: the image with source outlines, or the first output of a prediction.

    Parameters
    ----------
    store : ZarrStore
        Finished store.
    size : int
        Maximum length of the longer side, px.
    """
    if store.has_sources:
        return _encode(draw_preview(store, None, PreviewStyle(size)))
    output = store.layout.maps[0]
    level = choose_level(store, size)
    height, width = store.layout.shape
    box = Box(0, 0, -(-height // 2**level), -(-width // 2**level))
    values = store.read(output.name, box, level).astype(np.float32)
    picture = shrink(stretch(values[np.newaxis], ("",)), size)
    return _encode(_upright(picture, store))


def draw_sky_thumbnail(store: ZarrStore, size: int = SIZE_PX) -> tuple[bytes, str]:
    """Return a PNG of the sky level in grey, and a description of its range and of the noise.

    Parameters
    ----------
    store : ZarrStore
        Finished store.
    size : int
        Maximum length of the longer side, px.

    Returns
    -------
    png : bytes
        Picture of the last band; the minimum of the sky is black, the maximum white.
    description : str
        Minimum, maximum and median of the sky, and median of the noise, with their unit.
    """
    levels = _last_plane(store, "sky")
    finite = levels[np.isfinite(levels)]
    low, middle, high = np.percentile(finite, (0, 50, 100)) if finite.size else (0.0, 0.0, 0.0)
    grey = np.nan_to_num((levels - low) / (high - low or 1.0))
    picture = np.rint(255 * grey).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    step = -(-max(levels.shape) // size)
    picture = enlarge(picture[::step, ::step], max(size // max(levels.shape), 1))
    noise = _last_plane(store, "noise")
    typical = float(np.median(noise[np.isfinite(noise)])) if np.isfinite(noise).any() else 0.0
    unit = f" {store.attrs.get('unit', '')}".rstrip()
    description = (
        f"sky {low:.5g} to {high:.5g}{unit}, median {middle:.5g}; "
        f"median noise of a pixel {typical:.4g}{unit}"
    )
    return _encode(_upright(picture, store)), description


def encode_data_url(png: bytes) -> str:
    """Return PNG data as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _last_plane(store: ZarrStore, name: str) -> NDArray[np.float32]:
    values = store.read_mesh(name)
    plane: NDArray[np.float32] = values.reshape(-1, *values.shape[-2:])[-1]
    return plane


def _upright(picture: Picture, store: ZarrStore) -> Picture:
    """Return a picture flipped for display if it is from a FITS image, whose first row is at the bottom."""
    return np.ascontiguousarray(picture[::-1] if store.cards else picture)


def _encode(picture: Picture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
