"""The images of a survey, from paths, globs, tables or YAML files, each with its options and its output store.

::

    options: {model: none}          # options of all images, optional
    images:
      - field.fits
      - "night-*/*.fits"            # a glob as in a shell; ** matches folders of any depth
      - {image: [g.fits, r.fits], out: two.zarr, thresh: 0.4}

In a table (CSV, ECSV, parquet) one column contains the image, and columns with names of options contain options. An
empty cell leaves an option at its default. A table sets only the options in
:data:`fcnpipe.survey.image_table.TABLE_OPTIONS`; other columns are ignored. Relative paths in a YAML file or table are
relative to its folder.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fcnpipe.core.errors import SpecError
from fcnpipe.core.paths import WEB_SCHEMES, can_list, check_url, is_remote, split_hdu
from fcnpipe.core.spec import RunSpec, describe_read_error, drop_unpaired, make_spec
from fcnpipe.remote import match_objects, read_whole
from fcnpipe.survey.image_table import TABLE_SUFFIXES, Options, read_rows

YAML_SUFFIXES = (".yaml", ".yml")
PATH_OPTIONS = ("image", "weight", "mask", "prior")
"""Options with paths, which are relative to the folder of the YAML file or table."""

_GLOB_CHARACTERS = re.compile(r"[*?\[]")
_WEB_GLOB_CHARACTERS = re.compile(r"[*\[]")
_SUFFIXES = re.compile(r"(\.(fits?|fts|fz|gz|bz2|ome|tiff?|png|jpe?g|npy|zarr))+$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ESCAPED_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")
MAX_STEM_LENGTH = 100
"""Maximum number of characters of a stem, without the digest."""


@dataclass(frozen=True, slots=True)
class SurveyImage:
    """One image of a survey.

    Attributes
    ----------
    name : str
        Path or URL of the image; the first one if the image has several files.
    out : str
        Path or URL of its store.
    options : dict
        Options of :class:`fcnpipe.core.spec.RunSpec`, including ``image`` and ``out``; not validated.
    """

    name: str
    out: str
    options: Options

    @property
    def spec(self) -> RunSpec:
        """The validated specification of the run; raises SpecError for an invalid option."""
        return make_spec(**self.options)


# --- images ---------------------------------------------------------------------------------------


def list_images(
    images: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]],
    folder: str,
    options: Mapping[str, Any] | None = None,
    column: str = "image",
) -> list[SurveyImage]:
    """Return the images of a survey, each with its options and its store.

    Parameters
    ----------
    images : str, mapping, or a sequence of them
        Paths, URLs, globs, tables, YAML files, or mappings of options.
    folder : str
        Folder of the stores.
    options : mapping, optional
        Options of all images; options of an image take precedence.
    column : str
        Name of the column of a table with the images.

    Raises
    ------
    SpecError
        If a file cannot be read or lists no images, a glob matches no file, an option of all images is invalid,
        or two images have the same store. Options of one image are validated when its run starts.
    RemoteError
        If a server does not answer.
    """
    common = dict(options or {})
    _check_common_options(common)
    items = [images] if isinstance(images, str | Mapping) else images
    found: list[Options] = []
    for image in (
        drop_unpaired(common | one) for item in items for one in _read_item(item, column)
    ):
        if image not in found:  # two globs may match the same file
            found.append(image)
    if not found:
        raise SpecError("the survey has no images: list files, a glob, a table or a YAML file")
    entries = _assign_stores(found, folder)
    _check_outputs(entries)
    return entries


def _check_common_options(options: Options) -> None:
    _check_option_names(options)
    for name in ("image", "out"):
        if name in options:
            raise SpecError(f"option {name} belongs to one image, not to all: remove it")
    own = {"mask": "mask", "weight": "weight", "halo": 0}  # options that an image may add
    make_spec(**{**own, **options, "image": ("image",), "out": "out"})


def _read_item(item: str | Mapping[str, Any], column: str) -> Iterator[Options]:
    if isinstance(item, Mapping):
        yield from _expand_glob({**item}, "")
    elif item.lower().endswith(YAML_SUFFIXES):
        yield from _read_yaml(item)
    elif item.lower().endswith(TABLE_SUFFIXES):
        for row in read_rows(item, _read_file(item), column):
            yield from _expand_glob(row, _parent_folder(item))
    else:
        yield from _expand_glob({"image": item}, "")


def _read_yaml(path: str) -> Iterator[Options]:
    found = _load_yaml(path)
    images = found.get("images") if isinstance(found, dict) else found
    if not isinstance(images, list) or not images:
        raise SpecError(f"{path} has no images: write 'images:' with a list below it")
    common = found.get("options") or {} if isinstance(found, dict) else {}
    if not isinstance(common, dict):
        raise SpecError(f"{path}: options is {common!r}, not a mapping: write 'option: value'")
    _check_common_options(common)
    for item in images:
        if not isinstance(item, str | dict):
            raise SpecError(f"{path}: {item!r} is neither a path nor a mapping with an image")
        own = {"image": item} if isinstance(item, str) else item
        yield from _expand_glob(common | own, _parent_folder(path))


def _load_yaml(path: str) -> Any:
    data = _read_file(path)
    try:
        return yaml.safe_load(data)
    except Exception as error:  # yaml raises errors of many types for wrong values of a tag
        raise SpecError(f"{path} cannot be read: {describe_read_error(error)}") from None


def _read_file(path: str) -> bytes:
    if is_remote(path):
        _check_image_url(path)
        return read_whole(path)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {describe_read_error(error)}") from None


def _expand_glob(options: Options, base: str) -> Iterator[Options]:
    """Yield the options of each image that matches the glob in ``options``, with paths relative to ``base``."""
    _check_option_names(options)
    if not options.get("image"):
        raise SpecError(f"{options!r} has no image: add 'image: PATH'")
    _check_image(options["image"])
    options = options | {
        name: _resolve(base, options[name]) for name in PATH_OPTIONS if options.get(name)
    }
    image = options["image"]
    if not isinstance(image, str):
        yield options | {"image": tuple(image)}
    else:
        yield from (options | {"image": (path,)} for path in match_files(image))


def _check_option_names(options: Options) -> None:
    if wrong := [name for name in options if not isinstance(name, str)]:
        raise SpecError(f"{wrong[0]!r} is not an option: write 'option: value'")


def _check_image(image: Any) -> None:
    paths = image if isinstance(image, list | tuple) else [image]
    if not all(isinstance(path, str) for path in paths):
        raise SpecError(f"image {image!r} is not a path: use a path, or a list of paths")
    for path in paths:
        _check_image_url(path)


def _check_image_url(path: str) -> None:
    try:
        check_url(path)
    except SpecError:
        raise
    except ValueError:  # the message of urllib may repeat a password
        scheme = path.partition("://")[0]
        raise SpecError(f"the URL of an image ({scheme}://...) is malformed: correct it") from None


def match_files(pattern: str) -> list[str]:
    """Return the sorted files that match a glob, on disk or behind a URL.

    Parameters
    ----------
    pattern : str
        A path or a glob; both may end with an HDU, ``FILE[HDU]``.

    Raises
    ------
    SpecError
        If no file matches.
    """
    pattern = restore_name(pattern)
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
    """Return whether a path contains glob characters; in a web address, ``?`` starts a query."""
    return bool(
        (_WEB_GLOB_CHARACTERS if path.startswith(WEB_SCHEMES) else _GLOB_CHARACTERS).search(path)
    )


def _glob(pattern: str) -> list[str]:
    """Return the files that match a glob; a web server has no listings, so brackets in its URLs are literal."""
    if "://" not in pattern:
        return glob.glob(pattern, recursive=True)
    if not (can_list(pattern) or "*" in pattern):
        return []
    return match_objects(pattern)


def _resolve(base: str, path: Any) -> Any:
    if isinstance(path, list | tuple):
        return [_resolve(base, one) for one in path]
    if not isinstance(path, str):
        return path  # refused when the run of this image starts
    complete = not base or "://" in path or os.path.isabs(path)
    return path if complete else f"{base}/{path}"


def _parent_folder(path: str) -> str:
    return path.rpartition("/")[0] if "://" in path else str(Path(path).absolute().parent)


# --- stores ---------------------------------------------------------------------------------------


def safe_stem(path: str) -> str:
    """Return the stem of output names for a file: letters, digits and ``. _ + -`` only, without folders.

    Notes
    -----
    Only the file name is used. If characters had to be replaced, a short digest of the name is appended, so that
    different names stay different. The query of a URL may contain a secret and is left out.

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
    safe = _UNSAFE.sub("_", stem)[:MAX_STEM_LENGTH].strip("._-")
    return safe if safe == stem else f"{safe or 'image'}-{short_digest(name)}"


def short_digest(text: str) -> str:
    """Return the 32-bit BLAKE2b digest of a text, eight hexadecimal digits."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=4).hexdigest()


def printable_name(text: str) -> str:
    r"""Return a text in one line and in UTF-8, with other characters as escapes.

    Examples
    --------
    >>> print(printable_name("b\udcff\n.fits"))
    b\udcff\n.fits
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_name(path: str) -> str:
    r"""Return a path in UTF-8, in which ``\udcNN`` stands for a byte that is not UTF-8; see `restore_name`."""
    return path.encode(errors="backslashreplace").decode()


def restore_name(path: str) -> str:
    """Return the path of an existing file whose name `escape_name` has changed; other paths are unchanged."""
    restored = _ESCAPED_BYTE.sub(lambda found: chr(int(found[1], 16)), path)
    changed = restored != path and not os.path.exists(path)
    return restored if changed and os.path.exists(split_hdu(restored)[0]) else path


def check_encoding(names: Iterable[Any]) -> None:
    """Check that names are UTF-8, which the parameters of a flow must be; values of other types are skipped.

    Raises
    ------
    SpecError
        If a name is not UTF-8.
    """
    for name in names:
        if isinstance(name, str) and name != escape_name(name):
            raise SpecError(f"{name!r} is not UTF-8: rename the file or folder")


def _assign_stores(found: Iterable[Options], folder: str) -> list[SurveyImage]:
    """Return the images with their stores; a short digest of the path distinguishes images of the same name."""
    entries = []
    for options in found:
        name = options["image"][0]
        out = str(options.get("out") or f"{safe_stem(name)}.zarr")
        entries.append(SurveyImage(name, out, options))
    count = Counter(entry.out for entry in entries)
    return [
        _assign_store(e, folder, unique=count[e.out] == 1 or bool(e.options.get("out")))
        for e in entries
    ]


def _assign_store(entry: SurveyImage, folder: str, unique: bool) -> SurveyImage:
    location = os.path.abspath(entry.name) if "://" not in entry.name else entry.name
    name = entry.out if unique else f"{safe_stem(entry.name)}-{short_digest(location)}.zarr"
    out = name if "://" in name or os.path.isabs(name) else f"{folder.rstrip('/')}/{name}"
    return replace(entry, out=out, options=entry.options | {"out": out})


def _check_outputs(entries: list[SurveyImage]) -> None:
    owners: dict[str, SurveyImage] = {}
    for entry in entries:
        place = normalise_store(entry.out)
        if place in owners:
            raise SpecError(
                f"{owners[place].name} and {entry.name} have the same store, {entry.out}: "
                "change or remove the 'out' of one of them"
            )
        owners[place] = entry
    for place, entry in owners.items():
        while (parent := os.path.dirname(place)) != place:
            place = parent
            if place in owners:
                raise SpecError(
                    f"{entry.out}, the store of {entry.name}, lies within {owners[place].out}, "
                    f"the store of {owners[place].name}: change the 'out' of one of them"
                )


def normalise_store(out: str) -> str:
    """Return the path or URL of a store in the form in which two spellings of the same place are equal."""
    return os.path.normpath(out) if "://" in out else os.path.abspath(out)
