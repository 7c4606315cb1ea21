"""Reading of images in any supported format, box by box.

Each module of :mod:`fcnpipe.images.formats` reads one family of file formats; that folder is the
registry. A new format is one new module there, with ``recognises(path) -> bool`` and
``open_reader(path, hdu) -> Reader`` (see :mod:`fcnpipe.images.base`).
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType

from fcnpipe.core.errors import InputError
from fcnpipe.core.geometry import Box
from fcnpipe.core.paths import split_hdu
from fcnpipe.images import file_access, formats
from fcnpipe.images.axes import format_shape
from fcnpipe.images.base import Image, Reader, stack_readers
from fcnpipe.images.file_access import PathLike, file_version, peek
from fcnpipe.images.headers import header_value

__all__ = [
    "Image",
    "header_value",
    "locate",
    "open_image",
    "open_map",
]


def open_image(paths: PathLike | Sequence[PathLike], hdu: int | str | None = None) -> Image:
    """Open an image. Only its first pixels are read.

    Parameters
    ----------
    paths : path or URL, or a sequence of them
        Several files are the bands of one image, in this order. ``FILE[HDU]`` selects one HDU of a
        file and takes precedence over ``hdu``.
    hdu : int or str, optional
        FITS: HDU number from 0, or its name (``SCI`` or ``SCI,2``); default is the first image. zarr:
        path of the array in the group. TIFF: number of the series.

    Returns
    -------
    Image
        Picklable. It opens its files on the first read in each process.

    Raises
    ------
    InputError
        If a file is missing or truncated, is not an image, has no such HDU, or if the shapes differ.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else paths
    split = [split_hdu(os.fspath(path)) for path in listed]
    chosen = [(file, own or hdu) for file, own in split]
    if not chosen:
        raise InputError("no image was given: name at least one file")
    files = [file_access.locate(path) for path, _ in chosen]
    readers = [_open_reader(file, own) for file, (_, own) in zip(files, chosen, strict=True)]
    names = [
        f"{file}[{own}]" if own != hdu else file
        for file, (_, own) in zip(files, chosen, strict=True)
    ]
    image = stack_readers(readers, names)
    _read_first_pixels(image)
    return image


def open_map(path: PathLike, hdu: int | str | None, shape: tuple[int, ...], role: str) -> Image:
    """Open a weight, variance, rms, mask or prior map that belongs to an image.

    Parameters
    ----------
    path : path or URL
        The map; ``FILE[HDU]`` selects one of several in a file.
    hdu : int or str, optional
        As for :func:`open_image`.
    shape : (int, int) or (int, int, int)
        Height and width of the image, preceded by its number of bands if the map may have as many.
    role : str
        Role of the map, for messages: ``weight``, ``mask``, ...

    Returns
    -------
    Image
        The map. Its method ``read_integer`` keeps every bit of a mask.

    Raises
    ------
    InputError
        As for :func:`open_image`, or if the map does not have the image's shape.
    """
    image = open_image(path, hdu)
    bands, same_size = image.info.shape[0], image.info.shape[1:] == tuple(shape[-2:])
    if not same_size or bands not in (1, *shape[:-2]):
        raise InputError(
            f"{role} {os.fspath(path)} is {format_shape(image.info.shape)} px but the image is "
            f"{format_shape(shape)} px: use a {role} map of the image's shape"
        )
    return image


def locate(path: PathLike) -> str:
    """Return the absolute local path, or the URL, of the file of ``FILE`` or ``FILE[HDU]``.

    Raises
    ------
    InputError
        If a local file does not exist or cannot be read.
    """
    return file_access.locate(split_hdu(os.fspath(path))[0])


def _open_reader(path: str, hdu: int | str | None) -> Reader:
    for module in _formats():
        if module.recognises(path):
            reader: Reader = module.open_reader(path, hdu)
            return reader
    # For a missing or forbidden object, which no format recognises either, this raises a clearer error.
    file_version(path)
    raise InputError(
        f"{path} is not a readable image ({_describe_start(path)}): "
        "use FITS, zarr, TIFF, PNG, JPEG or npy"
    )


def _describe_start(path: str) -> str:
    if os.path.isdir(path):
        return "it is a folder, without zarr metadata"
    start = peek(path, 8)
    return f"it starts with {start!r}" if start else "it is empty"


@cache
def _formats() -> tuple[ModuleType, ...]:
    modules = pkgutil.iter_modules(formats.__path__)
    return tuple(import_module(f"{formats.__name__}.{module.name}") for module in modules)


def _read_first_pixels(image: Image) -> None:
    """Read one pixel of each file, so that a missing codec is an error here and not on a worker."""
    bands = [0]
    for reader in image.readers[:-1]:
        bands.append(bands[-1] + reader.info.shape[0])
    for band in bands:
        image.read(Box(0, 0, 1, 1), band)
