"""Simulated scenes of stars and galaxies with exact ground truth.

Every source is drawn as a stamp of its own, convolved with the PSF and integrated over pixels, so
the truth contains the contribution of each source to every pixel. Lengths are in px. Fluxes are in
units of the sky noise of one pixel until the last step, when the scene receives a sky level and a
scale. The kinds of scene differ in densities, sizes, PSFs and artefacts. Kind ``wide`` mixes all
others; the default model is trained on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fcnpipe.core.errors import SpecError
from fcnpipe.simulation.profiles import (
    DiskStructure,
    SersicComponent,
    draw_stamp,
    extent_px,
    stamp_size,
)
from fcnpipe.simulation.psfs import PHASES, RADIUS_PX, Psf, bin_psf, draw_shape
from fcnpipe.simulation.skies import SkySpec, add_sky, asinh_stretch

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Labels = NDArray[np.int32]
Range = tuple[float, float]

STAR, GALAXY, STRUCTURED, CENTRAL = 0, 1, 2, 3
STAMP_LEVEL = 0.03
"""Level at which a stamp ends, in sky noises."""

TABLE = np.dtype(
    [
        ("y", "f4"),
        ("x", "f4"),
        ("flux", "f4"),
        ("snr", "f4"),
        ("r50", "f4"),
        ("kind", "i2"),
        ("peak_y", "i4"),
        ("peak_x", "i4"),
        ("peak", "f4"),
        ("crest", "f4"),
        ("area", "i4"),
    ]
)
"""Columns of the table of sources: positions and half-light radius ``r50`` in px; ``flux`` and ``peak`` in sky
noises; ``crest``, the maximum of the smooth light, in sky noises; ``area``, the number of pixels owned."""


@dataclass(frozen=True)
class SceneSpec:
    """Populations, PSFs and artefacts of a kind of scene; each scene draws from the ranges."""

    name: str = "ground"
    """Name of the kind."""
    fwhm_px: Range = (2.5, 5.5)
    """FWHM of the PSF, px, log-uniform."""
    psfs: tuple[str, ...] = ("moffat", "gaussian", "winged", "coma")
    """Kinds of PSF, see psfs.draw_shape."""
    stars_per_mpix: Range = (50.0, 2000.0)
    """Number density of stars, log-uniform."""
    galaxies_per_mpix: Range = (100.0, 3000.0)
    """Number density of galaxies, log-uniform."""
    slope: Range = (0.4, 1.1)
    """Exponent a of the number counts dN / dlog S ~ S**-a of the signal-to-noise ratio S."""
    snr: Range = (2.0, 3e4)
    """Minimum and maximum signal-to-noise ratio."""
    radius_px: Range = (0.4, 50.0)
    """Minimum and maximum half-light radius of galaxies, px."""
    radius_slope: Range = (0.8, 2.2)
    """Exponent b of the size distribution dN / dlog r ~ r**-b."""
    companion_fraction: Range = (0.0, 0.4)
    """Fraction of the sources that have a companion at 0.7 to 3.5 FWHM."""
    clustering_probability: float = 0.3
    """Probability that positions are clustered."""
    cluster_probability: float = 0.1
    """Probability of a cluster of galaxies with a central galaxy and a halo."""
    globular_probability: float = 0.0
    """Probability of a globular cluster."""
    large_galaxies: Range = (0.0, 14.0)
    """Number of large structured galaxies in a scene of 0.4 Mpix."""
    edge_on_galaxies: Range = (0.0, 30.0)
    """Number of bright, nearly edge-on galaxies in a scene of 0.4 Mpix."""
    sky: SkySpec = field(default_factory=SkySpec)
    """Sky, noise and artefacts."""


_HST = ("airy", "airy", "winged", "moffat")
_ALL = ("moffat", "moffat", "gaussian", "winged", "coma", "airy", "airy")

KINDS: dict[str, SceneSpec] = {
    "ground": SceneSpec(),
    "crowded": SceneSpec(
        name="crowded",
        fwhm_px=(2.0, 3.5),
        psfs=_HST,
        stars_per_mpix=(3000.0, 30000.0),
        galaxies_per_mpix=(30.0, 600.0),
        slope=(0.3, 0.9),
        snr=(2.0, 1e4),
        companion_fraction=(0.0, 0.2),
    ),
    "cluster": SceneSpec(
        name="cluster",
        cluster_probability=1.0,
        galaxies_per_mpix=(1000.0, 5000.0),
        companion_fraction=(0.1, 0.5),
    ),
    "globular": SceneSpec(
        name="globular",
        globular_probability=1.0,
        psfs=_ALL,
        fwhm_px=(2.0, 5.0),
        galaxies_per_mpix=(10, 300),
    ),
    "sparse": SceneSpec(
        name="sparse",
        fwhm_px=(2.0, 8.0),
        psfs=_ALL,
        stars_per_mpix=(1.0, 60.0),
        galaxies_per_mpix=(1.0, 200.0),
        slope=(0.1, 0.8),
    ),
    "empty": SceneSpec(
        name="empty",
        stars_per_mpix=(0.01, 0.3),
        galaxies_per_mpix=(0.01, 0.3),
        large_galaxies=(0, 0),
        edge_on_galaxies=(0, 0),
        cluster_probability=0.0,
    ),
    "wide": SceneSpec(name="wide"),
}
"""Kinds of scene by name."""
# Kinds that are mixed in ``wide``, with their fractions.
_WIDE_MIX = (
    ("ground", 0.28),
    ("crowded", 0.26),
    ("cluster", 0.18),
    ("globular", 0.08),
    ("sparse", 0.15),
    ("empty", 0.05),
)


@dataclass(frozen=True)
class Source:
    """Parameters of a source."""

    y: float
    """Row of the centre, px."""
    x: float
    """Column of the centre, px."""
    flux: float
    """Total flux, sky noises."""
    kind: int
    """STAR, GALAXY, STRUCTURED or CENTRAL."""
    components: tuple[SersicComponent, ...] = ()
    """Light profiles; empty for a star."""
    structure: DiskStructure | None = None
    """Structure of the first profile."""


@dataclass(frozen=True)
class Scene:
    """A simulated image with its ground truth."""

    image: Floats
    """(h, w) float32, image units; NaN where the data of flagged pixels are lost."""
    bad: Bools
    """(h, w) bool, pixels flagged as unusable."""
    noise: Floats
    """(h, w) float32, true rms of the sky noise, image units."""
    light: Floats
    """(h, w) float32, noise-free light of all sources, image units."""
    label: Labels
    """(h, w) int32, owner of each pixel (row of the table + 1); 0 where no source exceeds the
    threshold of the truth."""
    strongest: Floats
    """(h, w) float32, light of the strongest source, image units."""
    second_strongest: Floats
    """(h, w) float32, light of the second strongest source, image units."""
    smooth: Floats
    """(h, w) float32, like ``strongest`` but without arms, clumps, lanes, rings and spikes: one
    maximum for each source."""
    table: NDArray[np.void]
    """(n,) of TABLE: every source drawn, detectable or not; the signal-to-noise ratio is that of a
    matched filter."""
    fwhm_px: float
    """FWHM of the PSF, px."""
    truth_sigma: float
    """Threshold of the truth, sky noises."""


def draw(
    spec: SceneSpec | str, shape: tuple[int, int], seed: int, truth_sigma: float = 0.7
) -> Scene:
    """Draw a scene of a kind; equal arguments return equal scenes.

    Parameters
    ----------
    spec
        A kind, or the name of one of KINDS.
    shape
        (h, w), px.
    seed
        Any non-negative integer.
    truth_sigma
        Light, in sky noises, above which a pixel belongs to its strongest source.

    Returns
    -------
    Scene
        The image with its truth.

    Raises
    ------
    SpecError
        If the kind is unknown.
    """
    rng = np.random.default_rng([seed, 0xFC])
    spec = _resolve_spec(spec, rng)
    psf = bin_psf(draw_shape(rng, _log_uniform(rng, spec.fwhm_px), spec.psfs))
    return compose(draw_sources(spec, shape, psf, rng), psf, shape, spec.sky, rng, truth_sigma)


def compose(
    sources: list[Source],
    psf: Psf,
    shape: tuple[int, int],
    sky: SkySpec,
    rng: np.random.Generator,
    truth_sigma: float = 0.7,
) -> Scene:
    """Return the scene of a list of sources that are observed with a PSF and under a sky."""
    planes = [np.zeros(shape, np.float32) for _ in range(4)]
    owner = np.zeros(shape, np.int32)
    table = np.zeros(len(sources), TABLE)
    for number, source in enumerate(sources):
        _add_source(source, psf, (planes, owner), table[number : number + 1], number + 1)
    exposure = add_sky(planes[0], psf.shape.fwhm_px, sky, rng)
    owner[planes[1] <= truth_sigma * exposure.relative_noise] = 0
    table["area"] = np.bincount(owner.ravel(), minlength=len(table) + 1)[1:]
    light, first, second, form = (asinh_stretch(plane, exposure.softening) for plane in planes)
    scale = np.float32(exposure.scale)
    return Scene(
        image=exposure.image,
        bad=exposure.bad,
        noise=exposure.relative_noise * scale,
        light=light * scale,
        label=owner,
        strongest=first * scale,
        second_strongest=second * scale,
        smooth=form * scale,
        table=table,
        fwhm_px=psf.shape.fwhm_px,
        truth_sigma=truth_sigma,
    )


def detectable(table: NDArray[np.void], min_snr: float = 3.0, min_area: int = 3) -> Bools:
    """Return which rows of a scene's table are detectable, (n,) bool."""
    return np.asarray((table["snr"] >= min_snr) & (table["area"] >= min_area), np.bool_)


def draw_sources(
    spec: SceneSpec, shape: tuple[int, int], psf: Psf, rng: np.random.Generator
) -> list[Source]:
    """Draw the sources of a scene of a kind, in the order of their populations."""
    mpix = shape[0] * shape[1] / 1e6
    places = _Positions(shape, rng, rng.random() < spec.clustering_probability)
    slope, radius_slope = rng.uniform(*spec.slope), rng.uniform(*spec.radius_slope)
    sources: list[Source] = []
    for _ in range(rng.poisson(_log_uniform(rng, spec.stars_per_mpix) * mpix)):
        sources.append(_star(places.next(), _power_law(rng, slope, spec.snr), psf))
    for _ in range(rng.poisson(_log_uniform(rng, spec.galaxies_per_mpix) * mpix)):
        radius = _power_law(rng, radius_slope, spec.radius_px)
        snr = _power_law(rng, slope, spec.snr) * min(max(1.0, radius / 5.0), 4.0)
        sources.append(_galaxy(rng, places.next(), snr, radius, psf))
    for _ in range(rng.poisson(rng.uniform(*spec.large_galaxies) * mpix / 0.4)):
        radius, snr = _log_uniform(rng, (4.0, 60.0)), _log_uniform(rng, (60.0, 5000.0))
        sources.append(_structured_galaxy(rng, places.next(), snr, radius, psf))
    for _ in range(rng.poisson(rng.uniform(*spec.edge_on_galaxies) * mpix / 0.4)):
        radius, snr = _log_uniform(rng, (2.0, 9.0)), _log_uniform(rng, (20.0, 2000.0))
        sources.append(_edge_on_galaxy(rng, places.next(), snr, radius, psf))
    if rng.random() < spec.cluster_probability:
        sources += _galaxy_cluster(rng, shape, psf)
    if rng.random() < spec.globular_probability:
        sources += _globular_cluster(rng, shape, psf)
    sources += _satellites(rng, sources, psf)
    return sources + _companions(rng, sources, rng.uniform(*spec.companion_fraction), psf)


class _Positions:
    """Random positions, uniform or clustered."""

    def __init__(self, shape: tuple[int, int], rng: np.random.Generator, clustered: bool) -> None:
        self.shape, self.rng = shape, rng
        count = int(rng.integers(2, 40)) if clustered else 0
        self.parents = rng.uniform((0, 0), shape, (count, 2))
        self.spread = _log_uniform(rng, (8.0, 150.0))
        self.fraction = rng.uniform(0.2, 0.9)

    def next(self) -> tuple[float, float]:
        if len(self.parents) and self.rng.random() < self.fraction:
            parent = self.parents[self.rng.integers(len(self.parents))]
            y, x = parent + self.spread * self.rng.standard_normal(2)
        else:
            y, x = self.rng.uniform((-8, -8), np.add(self.shape, 8))
        return float(y), float(x)


def _resolve_spec(spec: SceneSpec | str, rng: np.random.Generator) -> SceneSpec:
    if isinstance(spec, str):
        if spec not in KINDS:
            raise SpecError(f"kind {spec!r}: choose one of {', '.join(KINDS)}")
        spec = KINDS[spec]
    if spec.name != "wide":
        return spec
    names, weights = zip(*_WIDE_MIX, strict=True)
    kind = KINDS[str(rng.choice(names, p=np.array(weights) / sum(weights)))]
    # Half of the scenes combine the population with a PSF of any kind.
    return kind if rng.random() < 0.5 else replace(kind, psfs=_ALL, fwhm_px=(2.0, 7.0))


def _log_uniform(rng: np.random.Generator, ends: Range) -> float:
    return float(np.exp(rng.uniform(np.log(max(ends[0], 1e-6)), np.log(max(ends[1], 1e-6)))))


def _power_law(rng: np.random.Generator, slope: float, ends: Range) -> float:
    low, high = ends[0] ** -slope, ends[1] ** -slope
    return float((low + (high - low) * rng.random()) ** (-1.0 / slope))


def _star(place: tuple[float, float], snr: float, psf: Psf) -> Source:
    return Source(*place, flux=snr * np.sqrt(psf.area_px), kind=STAR)


def _flux_of_snr(snr: float, radius: float, ratio: float, psf: Psf) -> float:
    # An approximate noise-equivalent area of the convolved profile suffices to choose a flux.
    return float(snr * np.sqrt(psf.area_px + 4 * np.pi * (0.6 * radius) ** 2 * ratio))


def _galaxy(
    rng: np.random.Generator, place: tuple[float, float], snr: float, radius: float, psf: Psf
) -> Source:
    ratio, angle = float(np.clip(rng.beta(2.5, 1.5), 0.12, 1.0)), float(rng.uniform(0, np.pi))
    flux = _flux_of_snr(snr, radius, ratio, psf)
    if rng.random() < 0.6:
        parts = (SersicComponent(flux, _log_uniform(rng, (0.5, 6.0)), radius, ratio, angle),)
        return Source(*place, flux, GALAXY, parts)
    bulge = float(rng.beta(1.2, 2.0))
    disk = SersicComponent(
        flux * (1 - bulge), float(rng.choice([0.7, 1.0, 1.0])), radius, ratio, angle
    )
    centre = SersicComponent(
        flux * bulge,
        rng.uniform(1, 4.5),
        radius * rng.uniform(0.1, 0.5),
        max(ratio, rng.uniform(0.5, 1)),
        angle,
    )
    return Source(*place, flux, GALAXY, (disk, centre))


def _structured_galaxy(
    rng: np.random.Generator, place: tuple[float, float], snr: float, radius: float, psf: Psf
) -> Source:
    plain = _galaxy(rng, place, snr * radius / 5, radius, psf)
    structure = DiskStructure(
        count=int(rng.choice([0, 1, 2, 2, 3, 4])),
        strength=rng.uniform(0.2, 0.95),
        pitch=rng.uniform(0.15, 0.7),
        phase=rng.uniform(0, np.pi),
        clumps=float(rng.choice([0.0, rng.uniform(0.1, 0.9), rng.uniform(0.3, 0.9)])),
        grain=_log_uniform(rng, (0.06, 0.25)),
        knots=float(rng.choice([0.0, 0.0, _log_uniform(rng, (0.01, 0.25))])),
        lane=rng.choice([0.0, 0.0, rng.uniform(0.2, 0.9)]),
        seed=int(rng.integers(2**31)),
    )
    first = replace(plain.components[0], index=float(rng.choice([0.7, 1.0, 1.0, 1.4])))
    return replace(
        plain, kind=STRUCTURED, components=(first, *plain.components[1:]), structure=structure
    )


def _edge_on_galaxy(
    rng: np.random.Generator, place: tuple[float, float], snr: float, radius: float, psf: Psf
) -> Source:
    """Return a nearly edge-on disk: a bar of even light, which is a single source."""
    ratio, angle = float(rng.uniform(0.1, 0.5)), float(rng.uniform(0, np.pi))
    flux = _flux_of_snr(snr, radius, ratio, psf)
    disk = SersicComponent(flux, float(rng.choice([0.5, 0.5, 0.7, 1.0])), radius, ratio, angle)
    if rng.random() < 0.4:
        return Source(*place, flux, GALAXY, (disk,))
    structure = DiskStructure(
        count=0,
        clumps=float(rng.uniform(0.05, 0.4)),
        grain=_log_uniform(rng, (0.15, 0.5)),
        lane=float(rng.choice([0.0, 0.0, rng.uniform(0.1, 0.5)])),
        seed=int(rng.integers(2**31)),
    )
    return Source(*place, flux, STRUCTURED, (disk,), structure)


def _galaxy_cluster(rng: np.random.Generator, shape: tuple[int, int], psf: Psf) -> list[Source]:
    cluster_centre = rng.uniform(0.15, 0.85, 2) * shape
    radius, ratio, angle = (
        _log_uniform(rng, (6.0, 30.0)),
        rng.uniform(0.5, 1.0),
        rng.uniform(0, np.pi),
    )
    flux = _flux_of_snr(_log_uniform(rng, (200.0, 3000.0)) * radius / 6, radius, ratio, psf)
    halo = flux * rng.uniform(0.0, 0.6)
    central = (
        SersicComponent(flux, rng.uniform(1.5, 5), radius, ratio, angle),
        SersicComponent(halo, rng.uniform(0.7, 1.5), radius * rng.uniform(2, 4), ratio, angle),
    )
    members = [
        Source(float(cluster_centre[0]), float(cluster_centre[1]), flux + halo, CENTRAL, central)
    ]
    core = _log_uniform(rng, (15.0, 150.0))
    for _ in range(int(_log_uniform(rng, (15.0, 300.0)))):
        distance = core * np.sqrt(rng.random() ** -rng.uniform(0.8, 1.3) - 1)
        azimuth = rng.uniform(0, 2 * np.pi)
        place = (
            cluster_centre[0] + distance * np.sin(azimuth),
            cluster_centre[1] + distance * np.cos(azimuth),
        )
        size = _power_law(rng, 1.2, (0.6, 20.0))
        members.append(
            _galaxy(rng, place, _power_law(rng, 0.6, (4.0, 5000.0)) * max(1, size / 4), size, psf)
        )
    return [m for m in members if -60 < m.y < shape[0] + 60 and -60 < m.x < shape[1] + 60]


def _globular_cluster(rng: np.random.Generator, shape: tuple[int, int], psf: Psf) -> list[Source]:
    cluster_centre = rng.uniform(0.1, 0.9, 2) * shape
    core, slope = _log_uniform(rng, (15.0, 200.0)), rng.uniform(0.3, 0.9)
    count = int(_log_uniform(rng, (300.0, 6000.0)) * shape[0] * shape[1] / 4.1e5)
    radius = core / np.sqrt(rng.random(count) ** (-2 / 3) - 1 + 1e-9)
    azimuth = rng.uniform(0, 2 * np.pi, count)
    y, x = (
        cluster_centre[0] + radius * np.sin(azimuth),
        cluster_centre[1] + radius * np.cos(azimuth),
    )
    inside = (y > -8) & (y < shape[0] + 8) & (x > -8) & (x < shape[1] + 8)
    top = _log_uniform(rng, (300.0, 3e4))
    return [
        _star((float(a), float(b)), _power_law(rng, slope, (2.0, top)), psf)
        for a, b in zip(y[inside], x[inside], strict=True)
    ]


def _satellites(rng: np.random.Generator, sources: list[Source], psf: Psf) -> list[Source]:
    found = []
    for host in [
        s
        for s in sources
        if s.components and s.flux > _flux_of_snr(400, s.components[0].radius_px, 0.7, psf)
    ]:
        if rng.random() < 0.5:
            continue
        radius = max(host.components[0].radius_px, psf.shape.fwhm_px)
        for _ in range(int(rng.integers(1, 6))):
            distance, azimuth = radius * rng.uniform(0.4, 3.0), rng.uniform(0, 2 * np.pi)
            place = (host.y + distance * np.sin(azimuth), host.x + distance * np.cos(azimuth))
            snr = _log_uniform(rng, (8.0, 500.0))
            size = _log_uniform(rng, (0.4, max(0.5, 0.4 * radius)))
            star = rng.random() < 0.4
            found.append(_star(place, snr, psf) if star else _galaxy(rng, place, snr, size, psf))
    return found


def _companions(
    rng: np.random.Generator, sources: list[Source], fraction: float, psf: Psf
) -> list[Source]:
    found = []
    for first in sources:
        if first.kind > GALAXY or rng.random() > fraction:
            continue
        distance, azimuth = psf.shape.fwhm_px * rng.uniform(0.7, 3.5), rng.uniform(0, 2 * np.pi)
        ratio = _log_uniform(rng, (0.1, 1.0))
        flux = first.flux * ratio
        parts = tuple(replace(c, flux=c.flux * ratio) for c in first.components)
        place = {
            "y": first.y + distance * np.sin(azimuth),
            "x": first.x + distance * np.cos(azimuth),
        }
        found.append(replace(first, **place, flux=flux, components=parts))
    return found


_Canvas = tuple[list[Floats], Labels]


def _add_source(
    source: Source, psf: Psf, canvas: _Canvas, row: NDArray[np.void], number: int
) -> None:
    y, x = round(source.y * PHASES) / PHASES, round(source.x * PHASES) / PHASES
    base_y, base_x = int(np.floor(y)), int(np.floor(x))
    stamp, half = _draw_source(source, psf, (y - base_y, x - base_x))
    smooth = stamp
    if source.structure is not None:
        smooth, _ = _draw_source(replace(source, structure=None), psf, (y - base_y, x - base_x))
    elif not source.components:
        smooth = _cut_psf(psf.monotone_stamps, source.flux, (y - base_y, x - base_x), half)
    (light, first, second, form), owner = canvas
    corner = (base_y - half, base_x - half)
    sums = _add_stamp(stamp, smooth, corner, (light, first, second, form, owner), number)
    total, squares, peak, peak_y, peak_x = sums
    row["y"], row["x"], row["flux"], row["kind"] = y, x, source.flux, source.kind
    row["snr"], row["peak"], row["peak_y"], row["peak_x"] = np.sqrt(squares), peak, peak_y, peak_x
    row["crest"] = smooth.max()
    row["r50"] = _half_light_radius(stamp, half, total)


def _draw_source(source: Source, psf: Psf, phase: tuple[float, float]) -> tuple[Floats, int]:
    if not source.components:
        radius = psf.radius_px(source.flux, STAMP_LEVEL)
        return _cut_psf(psf.stamps, source.flux, phase, radius), radius
    extent = max(extent_px(c, STAMP_LEVEL) for c in source.components)
    wings = psf.radius_px(source.flux, STAMP_LEVEL) if extent < RADIUS_PX else 0
    size = stamp_size(max(extent, wings))
    return draw_stamp(source.components, psf, phase, size, source.structure), size // 2


def _cut_psf(bank: Floats, flux: float, phase: tuple[float, float], radius: int) -> Floats:
    stamp = bank[round(phase[0] * PHASES), round(phase[1] * PHASES)]
    inner = slice(RADIUS_PX - radius, RADIUS_PX + radius + 1)
    return np.asarray(stamp[inner, inner] * np.float32(flux), np.float32)


def _half_light_radius(stamp: Floats, half: int, total: float) -> float:
    rings = _ring_sums(stamp, half)
    if total <= 0 or rings.sum() <= 0:
        return 0.0
    grown = np.cumsum(rings) / rings.sum()
    return float(np.interp(0.5, np.r_[0.0, grown], np.arange(len(grown) + 1)))


@njit(cache=True, nogil=True)
def _ring_sums(stamp, half):  # type: ignore[no-untyped-def]
    sums = np.zeros(half + 2, np.float64)
    for j in range(stamp.shape[0]):
        for i in range(stamp.shape[1]):
            radius = int(np.sqrt((j - half) ** 2.0 + (i - half) ** 2.0) + 0.5)
            if radius <= half:
                sums[radius] += stamp[j, i]
    return sums


@njit(cache=True, nogil=True)
def _add_stamp(stamp, smooth, corner, planes, number):  # type: ignore[no-untyped-def]
    light, first, second, form, owner = planes
    total, squares, peak, peak_y, peak_x = 0.0, 0.0, -1.0, -1, -1
    height, width = light.shape
    for j in range(stamp.shape[0]):
        y = corner[0] + j
        for i in range(stamp.shape[1]):
            value = stamp[j, i]
            total += value
            squares += value * value
            x = corner[1] + i
            if y < 0 or x < 0 or y >= height or x >= width or value <= 0:
                continue
            if value > peak:
                peak, peak_y, peak_x = value, y, x
            light[y, x] += value
            if value > first[y, x]:
                second[y, x] = first[y, x]
                first[y, x] = value
                form[y, x] = smooth[j, i]
                owner[y, x] = number
            elif value > second[y, x]:
                second[y, x] = value
    return total, squares, peak, peak_y, peak_x


__all__ = [
    "KINDS",
    "TABLE",
    "Scene",
    "SceneSpec",
    "Source",
    "compose",
    "detectable",
    "draw",
    "draw_sources",
]
