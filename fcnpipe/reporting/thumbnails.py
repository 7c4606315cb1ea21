"""Small pictures of a finished store, for places that take a PNG and no file: reports, artifacts."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcnpipe.core.geometry import Box
from fcnpipe.export.preview import (
    Bytes,
    Style,
    choose_level,
    draw_preview,
    enlarge,
    shrink,
    stretch,
)
from fcnpipe.stores import ZarrStore

SIZE_PX = 384
"""Longest side: a PNG of noise is then 150 kB, which a data: URL may well be."""


def draw_result_thumbnail(store: ZarrStore, size: int = SIZE_PX) -> bytes:
    """Give a PNG of what a run gave: the image with outlines, or the first output of a network.

    Parameters
    ----------
    store : ZarrStore
        Finished.
    size : int
        Longest side at most, px.
    """
    if store.has_sources:
        return _encode(draw_preview(store, None, Style(size)))
    output = store.layout.maps[0]
    level = choose_level(store, size)
    height, width = store.layout.shape
    box = Box(0, 0, -(-height // 2**level), -(-width // 2**level))
    values = store.read(output.name, box, level).astype(np.float32)
    picture = shrink(stretch(values[np.newaxis], ("",)), size)
    return _encode(_upright(picture, store))


def draw_sky_thumbnail(store: ZarrStore, size: int = SIZE_PX) -> tuple[bytes, str]:
    """Give a PNG of the sky level, dark to bright, and what it goes from and to in words."""
    levels = _last_plane(store, "sky")
    known = levels[np.isfinite(levels)]
    low, middle, high = np.percentile(known, (0, 50, 100)) if known.size else (0.0, 0.0, 0.0)
    grey = np.nan_to_num((levels - low) / (high - low or 1.0))
    picture = np.rint(255 * grey).astype(np.uint8)[..., np.newaxis].repeat(3, axis=2)
    thin = -(-max(levels.shape) // size)
    picture = enlarge(picture[::thin, ::thin], max(size // max(levels.shape), 1))
    noise = _last_plane(store, "noise")
    typical = float(np.median(noise[np.isfinite(noise)])) if np.isfinite(noise).any() else 0.0
    unit = f" {store.attrs.get('unit', '')}".rstrip()
    words = (
        f"sky {low:.5g} to {high:.5g}{unit}, median {middle:.5g}; "
        f"median noise of a pixel {typical:.4g}{unit}"
    )
    return _encode(_upright(picture, store)), words


def encode_data_url(png: bytes) -> str:
    """Give a PNG as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _last_plane(store: ZarrStore, name: str) -> NDArray[np.float32]:
    values = store.read_mesh(name)
    plane: NDArray[np.float32] = values.reshape(-1, *values.shape[-2:])[-1]
    return plane


def _upright(picture: Bytes, store: ZarrStore) -> Bytes:
    """Give a picture with its first row at the top; that of FITS is at the bottom."""
    return np.ascontiguousarray(picture[::-1] if store.cards else picture)


def _encode(picture: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
