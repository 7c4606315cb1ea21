"""The demonstration: a real and a simulated image through the pipeline, with scores and pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from fcnpipe.core.errors import StoreError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.run import Result
from fcnpipe.reading import results
from fcnpipe.reporting.observers import Observer
from fcnpipe.science.scores import completeness, match, score_detection, select_sources
from fcnpipe.simulation import fits_fields
from fcnpipe.stores import ZarrStore

SHAPE = (1200, 1600)
"""Height and width of the simulated field, px."""
SEED = 7
KIND = "ground"
WINDOW = 512
"""Edge of the network's window, px."""
MIN_SNR = 5.0
"""Signal-to-noise from which a true source counts in the scores."""
SNR_EDGES = (5.0, 10.0, 30.0, np.inf)
"""Edges of the bins of signal-to-noise for the completeness."""
BRIGHTEST = 10
"""Number of sources in the table."""
COLUMNS = {
    "label": ("label", "d"),
    "x_centroid": ("x", ".1f"),
    "y_centroid": ("y", ".1f"),
    "ra": ("ra", ".5f"),
    "dec": ("dec", ".5f"),
    "kron_flux": ("flux", ".1f"),
    "snr": ("S/N", ".0f"),
    "area": ("area", "d"),
}
"""Head and number format of each column of the table of sources; ``snr`` is flux over error."""
UNITS = {"pix": "px", "pix2": "px"}
"""Units as the table shows them, where they differ from those of the catalogue."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of one image of the demonstration.

    Attributes
    ----------
    title : str
        Description of the image.
    facts : list of (str, str)
        Names and values: the files, and for a simulated image the scores.
    heads : list of str
        Heads of the table of sources, with units.
    brightest : list of tuple of str
        Rows of the table: the ten brightest sources, brightest first.
    """

    title: str
    facts: list[tuple[str, str]]
    heads: list[str]
    brightest: list[tuple[str, ...]]


def run_demo(folder: Path, model: str, progress: Observer) -> list[ImageResult]:
    """Segment the Hubble Deep Field of scikit-image and a simulated field with known sources.

    Parameters
    ----------
    folder : Path
        Folder for ``hubble`` and ``field``, each ``.zarr``, ``.parquet``, ``.ecsv`` and ``.png``.
    model : str
        Name of a bundled model, or a model file.
    progress : Observer
        Receives the progress of the runs.

    Returns
    -------
    list of ImageResult
        The results of the two images.

    Raises
    ------
    StoreError
        If the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} cannot be created: {error.strerror}; choose another folder"
        ) from None
    return [_segment_hubble(folder, model, progress), _segment_field(folder, model, progress)]


def _segment_hubble(folder: Path, model: str, progress: Observer) -> ImageResult:
    image, out = folder / "hubble.jpg", folder / "hubble.zarr"
    with as_file(files("skimage.data") / "hubble_deep_field.jpg") as shipped:
        shutil.copyfile(shipped, image)
    result = _segment(image, out, model, progress)
    return ImageResult(
        "Hubble Deep Field, three bands", _list_files(image, out, result), *tabulate_brightest(out)
    )


def _segment_field(folder: Path, model: str, progress: Observer) -> ImageResult:
    image, out = folder / "field.fits", folder / "field.zarr"
    fits_fields.simulate(KIND, SHAPE, SEED, image)
    result = _segment(image, out, model, progress)
    facts = [
        *_list_files(image, out, result),
        *list_scores(out, image),
        ("all scores", f"fcnpipe evaluate {out} {image}"),
    ]
    return ImageResult("Simulated field with a WCS", facts, *tabulate_brightest(out))


def _segment(image: Path, out: Path, model: str, progress: Observer) -> Result:
    spec = make_spec(
        image=(str(image),),
        out=str(out),
        model=model,
        window=WINDOW,
        keep_image=True,
        overwrite=True,
    )
    result = run.segment(spec, progress)
    segmentation = results.open(out)
    for suffix in (".png", ".ecsv"):
        segmentation.export(out.with_suffix(suffix))
    return result


def _list_files(image: Path, out: Path, result: Result) -> list[tuple[str, str]]:
    return [
        ("image", str(image)),
        ("store", f"{result.path}: {result.sources} sources in {result.seconds:.1f} s"),
        ("picture", str(out.with_suffix(".png"))),
        ("catalogue", f"{result.catalogue}, {out.with_suffix('.ecsv')}"),
    ]


def list_scores(out: Path, field: Path) -> list[tuple[str, str]]:
    """Return names and values of the scores of a store against the truth of its simulated field.

    Notes
    -----
    The truth contains every source that owns a pixel, most of which are too faint to be found. Only
    sources with a signal-to-noise of at least `MIN_SNR` count; see `fcnpipe.science.scores.score_detection`.
    """
    store = ZarrStore.open(out)
    label = store.read("label", store.layout.grid.frame)
    truth, _ = fits_fields.read_truth(field)
    scores = score_detection(label, truth, MIN_SNR)
    bright = select_sources(truth, truth.snr >= MIN_SNR)
    found, count = completeness(match(label, bright), bright, SNR_EDGES)
    bins = zip(SNR_EDGES[:-1], SNR_EDGES[1:], found, count, strict=True)
    faint = len(truth) - scores.sources
    return [
        ("truth", f"{scores.sources} sources with S/N >= {MIN_SNR:g}; {faint} fainter are ignored"),
        ("F score", f"{scores.f_score:.3f}"),
        ("purity", f"{scores.precision:.3f}: fraction of the detections that are true sources"),
        ("completeness", f"{scores.recall:.3f}: fraction of the true sources that are detected"),
        *(
            (_describe_bin(low, high), f"{fraction:.3f} of {number} sources")
            for low, high, fraction, number in bins
            if number
        ),
    ]


def _describe_bin(low: float, high: float) -> str:
    return f"at S/N {low:g} to {high:g}" if np.isfinite(high) else f"at S/N from {low:g}"


def tabulate_brightest(out: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the heads and rows of a table of the brightest sources of a store, without columns of only NaN."""
    sources = results.open(out).sources
    columns = {name: sources[name].values for name in COLUMNS if name in sources}
    columns["snr"] = columns["kron_flux"] / sources["kron_flux_err"].values
    order = np.argsort(-np.nan_to_num(columns["kron_flux"], nan=-np.inf), kind="stable")[:BRIGHTEST]
    names = [name for name in COLUMNS if name in columns and not np.isnan(columns[name]).all()]
    heads = [
        _head(name, str(sources[name].attrs.get("units", "")) if name in sources else "")
        for name in names
    ]
    rows = [tuple(f"{columns[name][i]:{COLUMNS[name][1]}}" for name in names) for i in order]
    return heads, rows


def _head(name: str, unit: str) -> str:
    title = COLUMNS[name][0]
    return f"{title} ({UNITS.get(unit, unit)})" if unit else title
