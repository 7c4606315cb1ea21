"""The Python interface, ``fcnpipe.segment`` and ``fcnpipe.predict``, with the options of the command line."""

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
        Image files (FITS, zarr, TIFF, PNG, ...) or URLs; several files are the bands of one image.
    out : path
        Output store, ``OUT.zarr``.
    config : path, optional
        YAML file of options; arguments take precedence.
    observer : Observer, optional
        Receives the progress of the run.
    **options
        The options of the command line: ``model``, ``window``, ``engine``, ``weight``, ``mask``, ...

    Returns
    -------
    Result
        Paths of the store and the catalogue, and the number of sources.

    Raises
    ------
    FcnpipeError
        If an option or an input is wrong, or tiles have failed. The message names the value, the limit
        and the fix in one line.
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
    """Store the outputs of a network for an image: restored images, components, probabilities.

    Parameters
    ----------
    image : path or sequence of paths
        Image files (FITS, zarr, TIFF, PNG, ...) or URLs; several files are the bands of one image.
    out : path
        Output store, ``OUT.zarr``; each output of the model becomes an array of its group ``image/0``.
    config : path, optional
        YAML file of options; arguments take precedence.
    observer : Observer, optional
        Receives the progress of the run.
    **options
        The options of the command line: ``model``, ``window``, ``engine``, ``mask``, ``prior``, ...

    Returns
    -------
    Prediction
        Path of the store and names of the outputs.

    Raises
    ------
    FcnpipeError
        If an option or an input is wrong, or tiles have failed. The message names the value, the limit
        and the fix in one line.
    """
    return remote_output.predict(_make_spec(image, out, config, options), observer)


def _make_spec(
    image: PathLike | Sequence[PathLike],
    out: PathLike,
    config: PathLike | None,
    options: Mapping[str, Any],
) -> RunSpec:
    paths = [image] if isinstance(image, str | os.PathLike) else list(image)
    options = {**options, "image": tuple(os.fspath(path) for path in paths), "out": os.fspath(out)}
    return load_spec(os.fspath(config), **options) if config else make_spec(**options)
