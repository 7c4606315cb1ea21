"""An image with its weight, mask and prior maps, read by box, with sky subtracted and noise computed.

The planes of a masked image are its bands and, if there are several, the detection plane as the last one:
the sum of the bands weighted by inverse variance. One-band networks find sources on the last plane, and
sources are measured on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe import images
from fcnpipe.core.errors import InputChanged, InputError, InputUnreachable
from fcnpipe.core.geometry import Box, TileGrid
from fcnpipe.core.paths import split_hdu
from fcnpipe.core.records import ImageInfo, PixelFlag
from fcnpipe.core.spec import RunSpec
from fcnpipe.images.scaling import Float
from fcnpipe.images.sky import FixedScale, Sky
from fcnpipe.science import normalisation
from fcnpipe.science.background import Background, noise_from_weight
from fcnpipe.science.mesh_statistics import CellStatistics, measure_cells, measure_weight

SAMPLES_PER_AXIS = 4
"""Sample boxes along each axis from which the noise of the bands is estimated."""
SAMPLE_EDGE = 192
"""Height and width of a sample box, px."""
WHOLE_INPUT_ERRORS = (InputChanged, InputUnreachable)
"""Errors that concern an input as a whole: no part of it is treated as missing, since a retry may read it."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Sky-subtracted pixels of a box, with noise and flags.

    Attributes
    ----------
    residual, noise : (planes, h, w) float32
        Image minus sky, and the noise (1 sigma) of each pixel, image units; NaN where there is no data.
    flags : (h, w) uint8
        Bits of :class:`fcnpipe.core.records.PixelFlag`.
    """

    residual: Float
    noise: Float
    flags: NDArray[np.uint8]

    def crop(self, place: tuple[slice, slice]) -> Patch:
        """Return a view of a part of the box."""
        return Patch(self.residual[(..., *place)], self.noise[(..., *place)], self.flags[place])

    def significance(self, bands: int) -> Float:
        """Return the signal-to-noise ratio that a network of this number of bands reads, (bands, h, w).

        A one-band network reads the last plane, any other network the bands.
        """
        planes = range(len(self.residual))[-1:] if bands <= 1 else range(bands)
        return np.stack(
            [
                normalisation.signal_to_noise(self.residual[p], self.noise[p], self.flags)
                for p in planes
            ]
        )


class MaskedImage:
    """The image, weight, mask and prior of a run.

    Parameters
    ----------
    spec : RunSpec
        Names of the files, and their options.

    Raises
    ------
    InputError
        If a file cannot be read, or a map does not have the shape of the image.
    """

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec
        self._image = images.open_image(spec.image, spec.hdu)
        self._weight = self._open_map(spec.weight, spec.weight_type)
        self._mask = self._open_map(spec.mask, "mask")
        self._prior = self._open_map(spec.prior, "prior")
        self.satur_level = (
            spec.satur_level if spec.satur_level is not None else self._image.satur_level
        )
        self.gain = spec.gain if spec.gain is not None else self._image.gain

    def _open_map(self, path: str | None, role: str) -> images.Image | None:
        if path is None:
            return None
        found = images.open_map(path, None, self.info.shape[1:], role)
        if role != "prior" and set(found.readers) & set(self._image.readers):
            file = split_hdu(path)[0]
            raise InputError(
                f"{role} {path} is the image itself: name another file, or its HDU as {file}[HDU]"
            )
        return found

    @property
    def info(self) -> ImageInfo:
        """Shape, dtype and header of the image."""
        return self._image.info

    @property
    def overhead_bytes(self) -> int:
        """Maximum memory that a process needs for reading the image, in addition to the box itself."""
        return self._image.overhead_bytes

    @property
    def digest(self) -> str:
        """Digest of the content of image, weight, mask and prior, all of which are read as streams."""
        parts = (self._image, self._weight, self._mask)
        digest = "-".join(part.digest() for part in parts if part is not None)
        return f"{digest}-prior-{self._prior.digest()}" if self._prior else digest

    @property
    def bands(self) -> int:
        """Number of bands."""
        return self.info.shape[0]

    @property
    def planes(self) -> int:
        """Number of planes: the bands, and the detection plane if there are several bands."""
        return self.bands + (self.bands > 1)

    @property
    def frame(self) -> Box:
        """The image as a box."""
        return Box(0, 0, *self.info.shape[1:])

    def weigh_bands(self) -> NDArray[np.float64]:
        """Return the weight of each band in the detection plane, from sample boxes on a fixed grid.

        Returns
        -------
        (bands,) float64
            Inverse variance of the band's noise, normalised to a sum of 1; equal weights if no noise is known.
        """
        if self.bands == 1:
            return np.ones(1)
        noise = np.array([self._sample_noise(band) for band in range(self.bands)])
        usable = np.isfinite(noise) & (noise > 0)
        if not usable.any():
            return np.full(self.bands, 1 / self.bands)
        weight = np.divide(1, noise**2, out=np.zeros(self.bands), where=usable)
        return np.asarray(weight / weight.sum(), np.float64)

    def read(self, box: Box, weights: NDArray[np.float64]) -> tuple[Float, NDArray[np.uint8]]:
        """Read all planes of a box, without subtracting the sky.

        Parameters
        ----------
        box : Box
            Inside the image.
        weights : (bands,) float64
            Weights of the bands in the detection plane, from :meth:`weigh_bands`.

        Returns
        -------
        (planes, h, w) float32
            Image units; NaN where there is no data.
        (h, w) uint8
            Bits of :class:`fcnpipe.core.records.PixelFlag`.
        """
        bands = [self._image.read(box, band) for band in range(self.bands)]
        brightest = bands[0] if self.bands == 1 else np.max(bands, axis=0)
        if self.bands > 1:
            bands.append(_sum_planes(bands, weights))
        flags = normalisation.flag_pixels(bands[-1], self._read_mask(box), self._read_weight(box))
        if self.satur_level is not None:
            flags |= normalisation.flag_pixels(brightest, satur_level=self.satur_level)
        planes = np.stack(bands) if len(bands) > 1 else bands[0][np.newaxis]
        return planes, flags

    def read_patch(self, box: Box, sky: Sky | FixedScale) -> Patch:
        """Read a box, subtract its sky (or a fixed offset), and compute its noise."""
        values, flags = self.read(box, sky.band_weights)
        if isinstance(sky, FixedScale):
            return Patch(values - np.float32(sky.offset), np.full_like(values, sky.scale), flags)
        noise = np.empty_like(values)
        weight = self._read_weight(box)
        for plane, mesh in enumerate(sky.planes):
            mesh.subtract_sky(values[plane], box.y0, box.x0)
            noise[plane] = self._compute_noise(mesh, box, weight, sky.weight_scales[plane])
        return Patch(values, noise, flags)

    def read_available_patch(
        self, box: Box, sky: Sky | FixedScale, grid: TileGrid
    ) -> tuple[Patch, list[Box]]:
        """Read a box as `read_patch` does, but leave out the parts that cannot be read.

        If the box cannot be read as a whole, its part in each tile core of ``grid`` is read on its own.

        Parameters
        ----------
        box : Box
            Inside the image.
        sky : Sky or FixedScale
            Sky and noise, or the fixed offset and scale that replace them.
        grid : TileGrid
            Grid of the tile cores.

        Returns
        -------
        Patch
            In missing parts the residual is NaN, the noise 1 and the flag NO_DATA.
        list of Box
            The missing parts, one for each tile core; empty if all was read.
        """
        try:
            return self.read_patch(box, sky), []
        except WHOLE_INPUT_ERRORS:
            raise
        except OSError:
            return self._read_pieces(box, sky, list(grid.cores_in(box)))

    def _read_pieces(
        self, box: Box, sky: Sky | FixedScale, pieces: list[Box]
    ) -> tuple[Patch, list[Box]]:
        planes = (self.planes, *box.shape)
        noise = np.ones(planes, np.float32)
        flags = np.full(box.shape, int(PixelFlag.NO_DATA), np.uint8)
        whole, missing = Patch(np.full(planes, np.nan, np.float32), noise, flags), []
        for piece in pieces:
            try:
                part = self.read_patch(piece, sky)
            except WHOLE_INPUT_ERRORS:
                raise
            except OSError:
                missing.append(piece)
                continue
            place = piece.within(box)
            whole.residual[(..., *place)] = part.residual
            whole.noise[(..., *place)] = part.noise
            whole.flags[place] = part.flags
        return whole, missing

    def read_bands(self, box: Box, grid: TileGrid) -> Float:
        """Read the bands, (bands, h, w) in image units; NaN where a part cannot be read."""
        try:
            return np.stack([self._image.read(box, band) for band in range(self.bands)])
        except WHOLE_INPUT_ERRORS:
            raise
        except OSError:
            pieces = list(grid.cores_in(box))
        bands = np.full((self.bands, *box.shape), np.nan, np.float32)
        if pieces != [box]:
            for piece in pieces:
                bands[(..., *piece.within(box))] = self.read_bands(piece, grid)
        return bands

    def read_prior(self, box: Box) -> Float:
        """Read the prior, (h, w); 0 where it is not finite."""
        assert self._prior is not None
        values = self._prior.read(box)
        return np.where(np.isfinite(values), values, np.float32(0))

    def measure_cells(
        self, box: Box, weights: NDArray[np.float64]
    ) -> tuple[list[CellStatistics], Float]:
        """Measure the mesh cells of a box that is aligned with the mesh, plane by plane.

        Parameters
        ----------
        box : Box
            Inside the image; it starts at the corner of a mesh cell.
        weights : (bands,) float64
            Weights of the bands in the detection plane, from :meth:`weigh_bands`.

        Returns
        -------
        list of CellStatistics
            One for each plane.
        (my, mx) float32
            Typical weight of each cell; NaN without a map of relative weights.
        """
        values, flags = self.read(box, weights)
        bad, cell = (flags & normalisation.BAD) != 0, self.spec.back_size
        cells = [measure_cells(plane, bad, cell) for plane in values]
        weight = self._read_weight(box)
        if weight is None or self.spec.weight_type != "weight":
            return cells, np.full(cells[0].shape, np.nan, np.float32)
        return cells, measure_weight(weight, bad, cell)

    def find_unrepresentable_value(self) -> tuple[str, float] | None:
        """Return a file and a value in it that float32 cannot represent; None if the sample boxes have none."""
        maps = [(", ".join(self.spec.image), self._image)]
        if self.spec.weight and self._weight and self.spec.weight_type != "variance":
            maps.append((self.spec.weight, self._weight))
        for path, image in maps:
            for band, box in product(range(image.info.shape[0]), _sample_boxes(self.frame)):
                exact, values = image.read_double(box, band), image.read(box, band)
                unfit = np.isfinite(exact) & ~(np.isfinite(values) & ((values != 0) | (exact == 0)))
                if unfit.any():
                    return path, float(exact[unfit][0])
        return None

    def _compute_noise(
        self, mesh: Background, box: Box, weight: NDArray[Any] | None, scale: float
    ) -> Float:
        if weight is None:
            return mesh.noise(box.y0, box.x0, box.shape)
        if self.spec.weight_type == "weight":
            return noise_from_weight(weight, scale)
        known = (weight > 0) & np.isfinite(weight)
        noise = np.where(known, weight, np.inf)
        return np.sqrt(noise).astype(np.float32) if self.spec.weight_type == "variance" else noise

    def _read_weight(self, box: Box) -> NDArray[Any] | None:
        """Read the weight map in its own units, variances as float64: those of tiny fluxes underflow in float32."""
        if self._weight is None:
            return None
        if self.spec.weight_type == "variance":
            return self._weight.read_double(box)
        return self._weight.read(box)

    def _read_mask(self, box: Box) -> NDArray[np.bool_] | None:
        """Read the bad pixels of a box, (h, w) bool; None without a mask."""
        if self._mask is None:
            return None
        values = self._mask.read_integer(box)
        bits = self.spec.mask_bits or -1
        return np.asarray(values & bits, bool)

    def _sample_noise(self, band: int) -> float:
        found = []
        for box in _sample_boxes(self.frame):
            try:
                values = self._image.read(box, band)
            except WHOLE_INPUT_ERRORS:
                raise
            except OSError:  # reported when its tile is read
                continue
            cells = measure_cells(values, ~np.isfinite(values), SAMPLE_EDGE)
            found.extend(cells.noise[np.isfinite(cells.noise)].tolist())
        return float(np.median(found)) if found else float("nan")


def _sum_planes(planes: list[Float], weights: NDArray[np.float64]) -> Float:
    """Return the weighted sum of planes, added in their order."""
    total = np.zeros_like(planes[0])
    for plane, weight in zip(planes, weights, strict=True):
        total += plane * np.float32(weight)
    return total


def _sample_boxes(frame: Box) -> list[Box]:
    """Return boxes spread evenly over the image; they depend on its shape alone."""
    height, width = frame.shape
    edge = (max(height // SAMPLES_PER_AXIS, 1), max(width // SAMPLES_PER_AXIS, 1))
    corners = [tile.core for tile in TileGrid((height, width), edge)]
    return [Box(b.y0, b.x0, b.y0 + SAMPLE_EDGE, b.x0 + SAMPLE_EDGE).clip(frame) for b in corners]
