"""The images of a survey: named, by a glob, by a table, or by a YAML file with options for each.

::

    options: {model: none}          # of all images; optional
    images:
      - field.fits
      - "night-*/*.fits"            # as in a shell; ** is any depth
      - {image: [g.fits, r.fits], out: two.zarr, thresh: 0.4}

In a table (CSV, ECSV, parquet) a column names the image, and columns that are named as options are
options; an empty cell is an option not given. Paths in a file start from the folder of the file.
"""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from astropy.table import Table

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import WEB_SCHEMES, can_list, check_url, is_remote, split_hdu
from fcnpipe.core.spec import RunSpec, describe_read_error, drop_unpaired, make_spec
from fcnpipe.remote import match_objects, read_whole

Options = dict[str, Any]
TABLE_SUFFIXES = (".csv", ".ecsv", ".parquet")
YAML_SUFFIXES = (".yaml", ".yml")
PATHS = ("image", "weight", "mask", "prior")
"""Options that name a file beside the file that they stand in."""

_NOT_OF_TABLES = {"cluster", "scheduler", "scratch"}
"""Options that start programs or choose machines; catalogues have columns of such names."""
_MAGIC = re.compile(r"[*?\[]")
_MAGIC_OF_WEB = re.compile(r"[*\[]")
_SUFFIXES = re.compile(r"(\.(fits?|fts|fz|gz|bz2|ome|tiff?|png|jpe?g|npy|zarr))+$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
LONGEST_STEM = 100


@dataclass(frozen=True, slots=True)
class SurveyImage:
    """One image of a survey.

    Attributes
    ----------
    name : str
        Path or URL of the image, the first if it has several files.
    out : str
        Its store.
    options : dict
        Of :class:`fcnpipe.core.spec.RunSpec`, ``image`` and ``out`` among them; not checked yet.
    """

    name: str
    out: str
    options: Options

    @property
    def spec(self) -> RunSpec:
        """The run; SpecError if an option is wrong."""
        return make_spec(**self.options)


# --- images in ------------------------------------------------------------------------------------


def list_images(
    images: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    folder: str,
    options: Mapping[str, Any] | None = None,
    column: str = "image",
) -> list[SurveyImage]:
    """Give the images of a survey, each with its options and its store.

    Parameters
    ----------
    images : str, mapping, or a sequence of them
        Path, URL, glob, table, YAML file, or a mapping of options.
    folder : str
        Where stores go that are not named by ``out``.
    options : mapping, optional
        Of all images; an image's own win.
    column : str
        Of a table, with the images.

    Raises
    ------
    SpecError
        If a file cannot be read or has no images, a glob matches none, an option of all images is
        wrong, or two images have one store. An option of one image is checked when it is its turn.
    RemoteError
        If a server does not answer.
    """
    shared = dict(options or {})
    _check_shared(shared)
    given = [images] if isinstance(images, str | Mapping) else images
    found: list[Options] = []
    for one in (drop_unpaired(shared | one) for item in given for one in _expand(item, column)):
        if one not in found:  # two globs may well match one file
            found.append(one)
    if not found:
        raise SpecError("no images were given: name files, a glob, a table or a YAML file")
    entries = _place(found, folder)
    _check_outputs(entries)
    return entries


def _check_shared(options: Options) -> None:
    for name in ("image", "out"):
        if name in options:
            raise SpecError(f"option {name} is of one image, not of all: leave it out")
    own = {"mask": "mask", "weight": "weight", "halo": 0}  # an image may have its own
    make_spec(**{**own, **options, "image": ("image",), "out": "out"})


def _expand(item: str | Mapping[str, Any], column: str) -> Iterator[Options]:
    if isinstance(item, Mapping):
        yield from _match({**item}, "")
    elif item.lower().endswith(YAML_SUFFIXES):
        yield from _read_yaml(item)
    elif item.lower().endswith(TABLE_SUFFIXES):
        yield from _read_table(item, column)
    else:
        yield from _match({"image": item}, "")


def _read_yaml(path: str) -> Iterator[Options]:
    found = _load_yaml(path)
    images = found.get("images") if isinstance(found, dict) else found
    if not isinstance(images, list) or not images:
        raise SpecError(f"{path} has no images: write 'images:' and a list below it")
    shared = found.get("options") or {} if isinstance(found, dict) else {}
    if not isinstance(shared, dict):
        raise SpecError(f"{path}: options holds {shared!r}, not a mapping: write 'option: value'")
    _check_shared(shared)
    for item in images:
        if not isinstance(item, str | dict):
            raise SpecError(f"{path}: {item!r} is neither a path nor a mapping with an image")
        own = {"image": item} if isinstance(item, str) else item
        yield from _match(shared | own, _parent(path))


def _load_yaml(path: str) -> Any:
    data = _read(path)
    try:
        return yaml.safe_load(data)
    except (ValueError, yaml.YAMLError) as error:
        raise SpecError(f"{path} cannot be read: {describe_read_error(error)}") from None


def _read(path: str) -> bytes:
    if is_remote(path):
        return read_whole(check_url(path))
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {describe_read_error(error)}") from None


def _read_table(path: str, column: str) -> Iterator[Options]:
    rows = _load_rows(path)
    if rows and column not in rows[0]:
        raise SpecError(f"{path} has no column {column!r}, only {', '.join(rows[0])}: name one")
    known = set(RunSpec.model_fields) - {"image"} - _NOT_OF_TABLES
    for number, row in enumerate(rows, 1):
        image = row[column]
        if not isinstance(image, str) or not image:
            raise SpecError(f"{path}: row {number} has no image in column {column!r}")
        own = {name: value for name, value in row.items() if name in known and not _is_empty(value)}
        _check_inside(own.get("out", ""), f"{path}: row {number}")
        yield from _match({"image": image, **own}, _parent(path))


def _check_inside(out: Any, where: str) -> None:
    """Refuse a store outside the folder of the results: a table may come from anywhere."""
    if "://" in str(out) or os.path.isabs(str(out)) or ".." in Path(str(out)).parts:
        raise SpecError(
            f"{where}: out {out!r} leaves the folder of the results: give a name in it, "
            "or name the store in a YAML file"
        )


def _load_rows(path: str) -> list[Options]:
    data = _read(path)
    try:
        if path.lower().endswith(".parquet"):
            rows: list[Options] = pq.read_table(pa.BufferReader(data)).to_pylist()
            return rows
        kind = "ascii.ecsv" if path.lower().endswith(".ecsv") else "ascii.csv"
        table = Table.read(data.decode(), format=kind)
    except (ValueError, pa.ArrowException) as error:
        raise SpecError(f"{path} cannot be read as a table: {describe_read_error(error)}") from None
    return [{name: _plain(row[name]) for name in table.colnames} for row in table]


def _plain(value: Any) -> Any:
    if value is np.ma.masked:
        return None
    return value.item() if isinstance(value, np.generic) else value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _match(options: Options, base: str) -> Iterator[Options]:
    """Give the images that a glob stands for; paths start from ``base``."""
    if not options.get("image"):
        raise SpecError(f"{options!r} names no image: add 'image: PATH'")
    options = options | {name: _join(base, options[name]) for name in PATHS if options.get(name)}
    image = options["image"]
    for path in [image] if isinstance(image, str) else image:
        check_url(str(path))
    if not isinstance(image, str):
        yield options | {"image": tuple(image)}
    else:
        yield from (options | {"image": (path,)} for path in match_files(image))


def match_files(pattern: str) -> list[str]:
    """Give the files, sorted, that a glob stands for, here or behind a URL.

    Parameters
    ----------
    pattern : str
        A path, or a glob; either may end with an HDU, ``FILE[HDU]``.

    Raises
    ------
    SpecError
        If there are none.
    """
    file, hdu = split_hdu(pattern)
    if os.path.exists(file) or not _is_glob(pattern):
        return [pattern]
    found = _glob(pattern)
    if not found and hdu:
        found = [f"{path}[{hdu}]" for path in _glob(file)] if _is_glob(file) else [pattern]
    if not found:
        raise SpecError(f"{pattern} matches no file: check the pattern")
    return sorted(found)


def _is_glob(path: str) -> bool:
    """Whether a path has signs of a glob; in an address of the web ``?`` begins a query."""
    return bool((_MAGIC_OF_WEB if path.startswith(WEB_SCHEMES) else _MAGIC).search(path))


def _glob(pattern: str) -> list[str]:
    """Give what a glob stands for; the web has no lists, so brackets there are not looked up."""
    if "://" not in pattern:
        return glob.glob(pattern, recursive=True)
    if not (can_list(pattern) or "*" in pattern):
        return []
    return match_objects(pattern)


def _join(base: str, path: Any) -> Any:
    if not isinstance(path, str):
        return [_join(base, one) for one in path]
    whole = not base or "://" in path or os.path.isabs(path)
    return path if whole else f"{base}/{path}"


def _parent(path: str) -> str:
    return path.rpartition("/")[0] if "://" in path else str(Path(path).absolute().parent)


# --- stores out -----------------------------------------------------------------------------------


def safe_stem(path: str) -> str:
    """Give a name for what is made of a file: letters, digits and ``. _ + -``, no folder in it.

    Notes
    -----
    From the name of the file alone. A name that had to be changed gets a part of its digest, so
    that two names do not become one. What follows ``?`` in a URL may be a secret, and is left out.

    Examples
    --------
    >>> safe_stem("/data/night 1/field.fits.fz"), safe_stem("s3://a/b.fits?key=1")
    ('field', 'b')
    >>> safe_stem("../../etc/x;rm -rf.fits")
    'x_rm_-rf-5f94b880'
    """
    path = path.partition("?")[0] if "://" in path else path
    name = path.rstrip("/").rpartition("/")[2]
    stem = _SUFFIXES.sub("", name) or name
    safe = _UNSAFE.sub("_", stem)[:LONGEST_STEM].strip("._-")
    return safe if safe == stem else f"{safe or 'image'}-{short_digest(name)}"


def short_digest(text: str) -> str:
    """Give eight hexadecimal digits that tell texts apart."""
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _place(found: Iterable[Options], folder: str) -> list[SurveyImage]:
    """Give each image its store; images of one name get a part of the digest of their path."""
    entries = []
    for options in found:
        name = options["image"][0]
        out = str(options.get("out") or f"{safe_stem(name)}.zarr")
        entries.append(SurveyImage(name, out, options))
    count = Counter(entry.out for entry in entries)
    return [_put(e, folder, alone=count[e.out] == 1 or bool(e.options.get("out"))) for e in entries]


def _put(entry: SurveyImage, folder: str, alone: bool) -> SurveyImage:
    place = os.path.abspath(entry.name) if "://" not in entry.name else entry.name
    name = entry.out if alone else f"{safe_stem(entry.name)}-{short_digest(place)}.zarr"
    out = name if "://" in name or os.path.isabs(name) else f"{folder.rstrip('/')}/{name}"
    return replace(entry, out=out, options=entry.options | {"out": out})


def _check_outputs(entries: list[SurveyImage]) -> None:
    owners: dict[str, str] = {}
    for entry in entries:
        if entry.out in owners:
            raise SpecError(
                f"{owners[entry.out]} and {entry.name} have one store, {entry.out}: "
                "give one of them another 'out', or leave it out"
            )
        owners[entry.out] = entry.name
