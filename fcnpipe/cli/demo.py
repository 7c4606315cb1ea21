"""A real image and a simulated one through everything, with pictures to look at."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcnpipe.core.errors import StoreError
from fcnpipe.core.spec import make_spec
from fcnpipe.pipeline import run
from fcnpipe.pipeline.run import Result
from fcnpipe.reading import results
from fcnpipe.reporting.observers import Observer
from fcnpipe.simulation import fits_fields
from fcnpipe.stores import ZarrStore

SHAPE = (1200, 1600)
SEED = 7
KIND = "ground"
WINDOW = 512
SHOWN = (
    "label",
    "x_centroid",
    "y_centroid",
    "ra",
    "dec",
    "kron_flux",
    "kron_flux_err",
    "area",
    "flags",
)
BRIGHTEST = 10


@dataclass(frozen=True, slots=True)
class Shown:
    """What became of one image.

    Attributes
    ----------
    title : str
        What it is.
    facts : list of (str, str)
        What was made, and how good it is.
    brightest : dict of arrays
        The ten brightest sources, brightest first.
    """

    title: str
    facts: list[tuple[str, str]]
    brightest: dict[str, NDArray[Any]]


def show(folder: Path, model: str, progress: Observer) -> list[Shown]:
    """Segment the Hubble Deep Field that scikit-image ships, and a simulated field with a truth.

    Parameters
    ----------
    folder : Path
        Where everything goes: ``hubble`` and ``field``, each ``.zarr``, ``.parquet``, ``.ecsv`` and
        ``.png``.
    model : str
        Bundled name, or a model file.
    progress : Observer
        Is told how far the runs are.

    Raises
    ------
    StoreError
        If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} cannot be made: {error.strerror}; choose another"
        ) from None
    return [_show_hubble(folder, model, progress), _show_field(folder, model, progress)]


def _show_hubble(folder: Path, model: str, progress: Observer) -> Shown:
    image, out = folder / "hubble.jpg", folder / "hubble.zarr"
    with as_file(files("skimage.data") / "hubble_deep_field.jpg") as shipped:
        shutil.copyfile(shipped, image)
    result = _segment(image, out, model, progress)
    return Shown("Hubble Deep Field, three bands", _list_facts(image, out, result), _brightest(out))


def _show_field(folder: Path, model: str, progress: Observer) -> Shown:
    image, out = folder / "field.fits", folder / "field.zarr"
    true = fits_fields.simulate(KIND, SHAPE, SEED, image)
    result = _segment(image, out, model, progress)
    store = ZarrStore.open(out)
    scores = fits_fields.compare(store.read("label", store.layout.grid.frame), image)
    facts = [*_list_facts(image, out, result), ("truth", f"{true} sources"), *scores]
    return Shown("simulated field with a WCS", facts, _brightest(out))


def _segment(image: Path, out: Path, model: str, progress: Observer) -> Result:
    options: dict[str, Any] = {
        "model": model,
        "window": WINDOW,
        "keep_image": True,
        "overwrite": True,
    }
    result = run.segment(make_spec(image=(str(image),), out=str(out), **options), progress)
    found = results.open(out)
    for suffix in (".png", ".ecsv"):
        found.export(out.with_suffix(suffix))
    return result


def _list_facts(image: Path, out: Path, result: Result) -> list[tuple[str, str]]:
    return [
        ("image", str(image)),
        ("store", f"{result.path}: {result.sources} sources in {result.seconds:.1f} s"),
        ("picture", str(out.with_suffix(".png"))),
        ("catalogue", f"{result.catalogue}, {out.with_suffix('.ecsv')}"),
    ]


def _brightest(out: Path) -> dict[str, NDArray[Any]]:
    columns = ZarrStore.open(out).read_sources(SHOWN)
    order = np.argsort(-np.nan_to_num(columns["kron_flux"], nan=-np.inf), kind="stable")[:BRIGHTEST]
    known = {name: values for name, values in columns.items() if not np.isnan(values).all()}
    return {name: values[order] for name, values in known.items()}
