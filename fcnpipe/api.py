"""What Python users call: the same options as on the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from fcnpipe.core.spec import RunSpec, load_spec, make_spec
from fcnpipe.pipeline import remote_output
from fcnpipe.pipeline.run import Prediction, Result
from fcnpipe.reporting.observers import Observer

PathLike = str | os.PathLike[str]


def segment(
    image: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Result:
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    image : path or sequence of paths
        FITS, zarr, TIFF, PNG, ...; several files are the bands of one image.
    out : path
        The output store, ``OUT.zarr``.
    config : path, optional
        YAML file of options; those given here win.
    observer : Observer, optional
        Is told how far the run is.
    **options
        As on the command line: ``model``, ``window``, ``engine``, ``weight``, ``mask``, ...

    Returns
    -------
    Result

    Raises
    ------
    FcnpipeError
        One line: value, limit, mend.
    """
    return remote_output.segment(_make_spec(image, out, config, options), observer)


def predict(
    image: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    config: PathLike | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> Prediction:
    """Store what a network gives of an image: restored images, components, probabilities.

    Parameters
    ----------
    image : path or sequence of paths
        FITS, zarr, TIFF, PNG, ...; several files are the bands of one image.
    out : path
        The output store, ``OUT.zarr``; each output of the model is an array of ``image/0``.
    config : path, optional
        YAML file of options; those given here win.
    observer : Observer, optional
        Is told how far the run is.
    **options
        As on the command line: ``model``, ``window``, ``engine``, ``mask``, ``prior``, ...

    Returns
    -------
    Prediction

    Raises
    ------
    FcnpipeError
        One line: value, limit, mend.
    """
    return remote_output.predict(_make_spec(image, out, config, options), observer)


def _make_spec(
    image: PathLike | Sequence[PathLike],
    out: PathLike,
    config: PathLike | None,
    options: Mapping[str, Any],
) -> RunSpec:
    paths = [image] if isinstance(image, str | os.PathLike) else list(image)
    given = {**options, "image": tuple(os.fspath(path) for path in paths), "out": os.fspath(out)}
    return load_spec(os.fspath(config), **given) if config else make_spec(**given)
