"""Images of any format, read by box.

Each module of this folder reads one family of formats; the folder is the registry. A new format is
a new module with ``recognises(path) -> bool`` and ``open_reader(path, hdu) -> Reader`` (see
:mod:`fcnpipe.images.base`).
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.core.paths import split_part
from fcnpipe.images import file_access, formats
from fcnpipe.images.axes import say_shape
from fcnpipe.images.base import Image, Reader, stack_readers
from fcnpipe.images.file_access import PathLike, peek, stamp
from fcnpipe.images.fingerprints import trace
from fcnpipe.images.headers import header_value

__all__ = [
    "Image",
    "digest",
    "header_value",
    "locate",
    "open_image",
    "open_plane",
    "split_name",
    "trace",
]


def open_image(paths: PathLike | Sequence[PathLike], hdu: int | str | None = None) -> Image:
    """Open an image without reading it.

    Parameters
    ----------
    paths : path or URL, or a sequence of them
        Several files are the bands of one image, in this order. ``FILE[HDU]`` names one HDU of a
        file and wins over ``hdu``.
    hdu : int or str, optional
        FITS: HDU number from 0 or name (``SCI`` or ``SCI,2``); the first image if not given. zarr:
        path of the array in the group. TIFF: number of the series.

    Returns
    -------
    Image
        Picklable; opens its files when it reads, in whatever process it is.

    Raises
    ------
    InputError
        If a file is missing, is no image, is truncated, has no such HDU, or the shapes differ.
    """
    chosen = [split_name(path, hdu) for path in _listed(paths)]
    if not chosen:
        raise InputError("no image was given: name at least one file")
    names = [file_access.locate(path) for path, _ in chosen]
    readers = [_open_reader(name, own) for name, (_, own) in zip(names, chosen, strict=True)]
    told = [
        f"{name}[{own}]" if own != hdu else name
        for name, (_, own) in zip(names, chosen, strict=True)
    ]
    image = stack_readers(readers, told)
    _try_first_pixel(image)
    return image


def open_plane(path: PathLike, hdu: int | str | None, shape: tuple[int, ...], what: str) -> Image:
    """Open a weight, variance, rms or mask map that belongs to an image.

    Parameters
    ----------
    path : path or URL
        The map; ``FILE[HDU]`` for one of several in a file.
    hdu : int or str, optional
        As for :func:`open_image`.
    shape : (int, int) or (int, int, int)
        Height and width of the image, with its bands in front if the map may have as many.
    what : str
        Name of the map in messages.

    Returns
    -------
    Image
        Read a mask with ``read_integer``.

    Raises
    ------
    InputError
        As for :func:`open_image`, or if the map does not have the image's shape.
    """
    image = open_image(path, hdu)
    bands, fits = image.info.shape[0], image.info.shape[1:] == tuple(shape[-2:])
    if not fits or bands not in (1, *shape[:-2]):
        raise InputError(
            f"{what} {os.fspath(path)} is {say_shape(image.info.shape)} px but the image is "
            f"{say_shape(shape)} px: give a {what} map of the image's shape"
        )
    return image


def digest(image: Image) -> str:
    """Hexadecimal SHA-256 of an image's content; reads all of it, as a stream."""
    return image.digest()


def split_name(path: PathLike, hdu: int | str | None = None) -> tuple[str, int | str | None]:
    """Give file and HDU of ``FILE[HDU]``, which wins over ``hdu``."""
    file, part = split_part(os.fspath(path))
    return file, part or hdu


def locate(path: PathLike) -> str:
    """Give the absolute local path, or the URL, of the file of ``FILE`` or ``FILE[HDU]``.

    Raises
    ------
    InputError
        If a local file does not exist or cannot be read.
    """
    return file_access.locate(split_name(path)[0])


def _listed(paths: PathLike | Sequence[PathLike]) -> Sequence[PathLike]:
    return [paths] if isinstance(paths, str | os.PathLike) else paths


def _open_reader(path: str, hdu: int | str | None) -> Reader:
    for module in _formats():
        if module.recognises(path):
            reader: Reader = module.open_reader(path, hdu)
            return reader
    stamp(path)  # says it better of an object that is missing or closed to us
    raise InputError(
        f"{path} is no image that can be read ({_say_start(path)}): "
        "give FITS, zarr, TIFF, PNG, JPEG or npy"
    )


def _say_start(path: str) -> str:
    if os.path.isdir(path):
        return "it is a folder, without zarr metadata"
    start = peek(path, 8)
    return f"it starts with {start!r}" if start else "it is empty"


@cache
def _formats() -> tuple[ModuleType, ...]:
    return tuple(import_module(f"{formats.__name__}.{name}") for name in _module_names())


def _module_names() -> Iterator[str]:
    return (module.name for module in pkgutil.iter_modules(formats.__path__))


def _try_first_pixel(image: Image) -> None:
    """Meet a missing codec now and not on a worker."""
    bands = [0]
    for reader in image.readers[:-1]:
        bands.append(bands[-1] + reader.info.shape[0])
    for band in bands:
        image.read(Box(0, 0, 1, 1), band)
