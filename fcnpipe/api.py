"""What Python users call: the same options as on the command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from fcnpipe import run
from fcnpipe.run import Observer, Result
from fcnpipe.spec import load_spec, make_spec

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
    paths = [image] if isinstance(image, str | os.PathLike) else list(image)
    given = {**options, "image": tuple(os.fspath(path) for path in paths), "out": os.fspath(out)}
    spec = load_spec(os.fspath(config), **given) if config else make_spec(**given)
    return run.segment(spec, observer)
