"""A simulated field through everything, in a minute, with a picture to look at."""

from __future__ import annotations

from pathlib import Path

from fcnpipe import access, fields, run
from fcnpipe.errors import StoreError
from fcnpipe.progress import Progress
from fcnpipe.spec import make_spec
from fcnpipe.stores import ZarrStore

SHAPE = (1200, 1600)
SEED = 7
KIND = "ground"
WINDOW = 512


def show(folder: Path, model: str, progress: Progress) -> list[tuple[str, str]]:
    """Simulate, segment, compare with the truth, and draw.

    Parameters
    ----------
    folder : Path
        Where everything goes: ``field.fits``, ``field.zarr``, ``field.parquet``, ``field.ecsv``,
        ``field.png``.
    model : str
        Bundled name, or a model file.
    progress : Progress
        Is told how far the run is.

    Returns
    -------
    list of (str, str)
        What was made, and how good it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"folder {folder} cannot be made: {error.strerror}; choose another"
        ) from None
    image, out = folder / "field.fits", folder / "field.zarr"
    true = fields.simulate(KIND, SHAPE, SEED, image)
    spec = make_spec(
        image=(str(image),),
        out=str(out),
        model=model,
        window=WINDOW,
        keep_image=True,
        overwrite=True,
    )
    result = run.segment(spec, progress)
    found = access.open(out)
    for suffix in (".png", ".ecsv"):
        found.export(out.with_suffix(suffix))
    store = ZarrStore.open(out)
    scores = fields.compare(store.read("label", store.layout.grid.frame), image)
    made = [("field", f"{image}: {SHAPE[0]} x {SHAPE[1]} px, {true} true sources")]
    made += [("store", f"{result.path}: {result.sources} sources in {result.seconds:.1f} s")]
    return [
        *made,
        ("picture", str(out.with_suffix(".png"))),
        ("catalogue", result.catalogue),
        *scores,
    ]
