"""Images with their labels: read, scaled as the pipeline scales them, and turned into targets.

========== ========================================= ==================================================
task       truth to an image                        outputs
========== ========================================= ==================================================
membrane   label image: cells > 0, membranes 0       ``source``: inside a cell; ``relief``: distance to
                                                     the nearest membrane, 1 from ``reach_px`` on
instances  label image: each object its own number   the same; where two objects touch is a border too
classes    label image: 0 to k - 1                   the k classes, softmax
image      image                                     the image, scaled as the input is
========== ========================================= ==================================================

A negative label, or none (NaN), is not known and does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as label_components

from fcnpipe.core.errors import InputError, SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.images import Image, open_image
from fcnpipe.networks.base import Output, Scaling
from fcnpipe.science.background import estimate_background
from fcnpipe.science.normalisation import flag_pixels, signal_to_noise
from fcnpipe.training.shape_losses import compute_border_weights

Floats = NDArray[np.float32]
Labels = NDArray[np.int32]

TASKS = ("membrane", "instances", "classes", "image")
UNKNOWN = -1
"""Label of a pixel of which nothing is known."""


@dataclass(frozen=True)
class PairsSpec:
    """Where images and their labels are, and what is to be learned of them."""

    images: str
    """Folder of images in the order of their numbers, each with all its bands; or one file, each of
    whose planes is an image."""
    labels: str
    """The same for what the network shall say of them."""
    train: str
    """Numbers of the images to train on, such as "0-15" or "0,2,5-7"."""
    choose: str
    """Numbers of the images by which the best weights are chosen."""
    task: str = "membrane"
    """One of TASKS."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ... of task classes; "source" is what can be segmented."""
    reach_px: float = 12.0
    """Distance from the border at which the relief is 1, px."""
    border_peak: float = 0.0
    """Weight of a pixel in the narrowest gap between two cells, beside that of its class (U-Net: 10); 0:
    all pixels count the same. Tasks membrane and instances."""
    border_px: float = 5.0
    """Width of the gaps that count more, px."""
    scaling: str = "linear"
    """linear: pixels as stored, for micrographs; asinh: signal-to-noise, for skies."""
    offset: float | None = None
    """Linear: value that becomes 0; the mean of the training images if not given."""
    scale: float | None = None
    """Linear: difference that becomes 1; their standard deviation if not given."""

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.task not in TASKS:
            raise SpecError(f"task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.scaling not in ("linear", "asinh"):
            raise SpecError(f"scaling {self.scaling!r}: choose linear or asinh")
        if (self.task == "classes") != bool(self.classes):
            raise SpecError("classes: name the labels of task classes, and of no other task")
        if self.border_peak and not self.has_objects:
            raise SpecError(f"border_peak: task {self.task} has no borders: leave it out")
        if not (self.border_peak >= 0 and self.border_px > 0):
            raise SpecError(
                f"border_peak {self.border_peak}, border_px {self.border_px}: give a weight of at "
                "least 0 and a width above 0"
            )
        shared = set(parse_numbers(self.train)) & set(parse_numbers(self.choose))
        if shared:
            raise SpecError(
                f"train and choose share images {sorted(shared)}: what was trained on cannot choose"
            )

    @property
    def has_objects(self) -> bool:
        """Whether the labels are those of cells or other objects."""
        return self.task in ("membrane", "instances")

    @property
    def margin(self) -> int:
        """Pixels beyond a crop that its targets depend on."""
        return int(np.ceil(self.reach_px)) if self.has_objects else 0

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs of the network; those of task image follow from the data."""
        if self.task == "classes":
            return tuple(_class_output(name) for name in self.classes)
        if self.task == "image":
            return (Output(name="restored", role="restored"),)
        return Output(name="source", role="source"), Output(name="relief", role="topography")


def _class_output(name: str) -> Output:
    role = "source" if name == "source" else f"class:{name}"
    return Output(name=name, role=role, activation="softmax")


@dataclass(frozen=True)
class LabelledImage:
    """An image and the truth to it."""

    x: Floats
    """(bands, h, w): (value - offset) / scale, or signal-to-noise before the asinh; finite."""
    truth: Any
    """(h, w) int32 labels, or (k, h, w) float32 image in the same unit as x."""

    rarity: Floats | None = None
    """(h, w) float32, how rare the kind of label is that stands here; None of an image."""
    weight: Floats | None = None
    """(h, w) float32, what each pixel counts; None: all alike."""


def parse_numbers(text: str) -> list[int]:
    """The numbers of a list such as "0,2,5-7".

    Raises
    ------
    SpecError
        When it is no such list.

    Examples
    --------
    >>> parse_numbers("0,2,5-7")
    [0, 2, 5, 6, 7]
    """
    numbers: list[int] = []
    for part in str(text).replace(" ", "").split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not ends:
            raise SpecError(f"{text!r} is no list of numbers: write it like 0-15 or 0,2,5-7")
        numbers.extend(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return numbers


# --- reading --------------------------------------------------------------------------------------


def read_pairs(spec: PairsSpec, numbers: str, scaling: Scaling) -> list[LabelledImage]:
    """The pairs of these numbers.

    Raises
    ------
    InputError
        When a file cannot be read, a number has none, or image and labels differ in shape.
    """
    images, labels = _ImageStack(spec.images), _ImageStack(spec.labels)
    if len(images) != len(labels):
        raise InputError(
            f"{spec.images} holds {len(images)} images but {spec.labels} {len(labels)}: "
            "give as many labels as images"
        )
    return [_read_pair(spec, images, labels, n, scaling) for n in parse_numbers(numbers)]


def measure_scaling(spec: PairsSpec) -> Scaling:
    """The scaling of a recipe's images: what it says, or mean and spread of those to train on."""
    if spec.scaling == "asinh":
        return Scaling()
    if spec.offset is not None and spec.scale is not None:
        return Scaling(kind="linear", offset=spec.offset, scale=spec.scale)
    images = _ImageStack(spec.images)
    values = [images.read(n).astype(np.float64).ravel() for n in parse_numbers(spec.train)]
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    offset = float(known.mean()) if spec.offset is None else spec.offset
    scale = float(known.std()) if spec.scale is None else spec.scale
    return Scaling(kind="linear", offset=round(offset, 3), scale=round(scale, 3) or 1.0)


class _ImageStack:
    """The images of a folder, or the planes of a file, by number."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._images = [open_image(path) for path in _list_files(Path(name))]
        self._planes = len(self._images) == 1 and not _is_folder(Path(name))

    def __len__(self) -> int:
        return self._images[0].info.shape[0] if self._planes else len(self._images)

    def read(self, number: int) -> Floats:
        """Give an image, (bands, h, w) float32; NaN where there is no data."""
        image, bands = self._find(number)
        box = Box(0, 0, *image.info.shape[1:])
        return np.stack([image.read(box, band) for band in bands])

    def read_labels(self, number: int) -> Labels:
        """Give the labels of an image, (h, w) int32."""
        image, bands = self._find(number)
        if len(bands) > 1:
            raise InputError(
                f"{self.name}: labels {number} have {len(bands)} planes: give one plane of numbers"
            )
        values = image.read_integer(Box(0, 0, *image.info.shape[1:]), bands[0])
        return np.asarray(np.maximum(values, UNKNOWN), np.int32)

    def _find(self, number: int) -> tuple[Image, Sequence[int]]:
        if number >= len(self):
            raise InputError(
                f"{self.name} has no image {number}: they are numbered 0 to {len(self) - 1}"
            )
        if self._planes:
            return self._images[0], [number]
        image = self._images[number]
        return image, range(image.info.shape[0])


def _is_folder(path: Path) -> bool:
    """Whether this is a folder of images, and not a zarr store."""
    marks = ("zarr.json", ".zgroup", ".zarray")
    return path.is_dir() and not any((path / mark).exists() for mark in marks)


def _list_files(path: Path) -> list[Path]:
    if not _is_folder(path):
        return [path]
    found = sorted((p for p in path.iterdir() if not p.name.startswith(".")), key=_natural_order)
    if not found:
        raise InputError(f"{path} is empty: name a folder of images")
    return found


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Order in which 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _read_pair(
    spec: PairsSpec, images: _ImageStack, labels: _ImageStack, number: int, scaling: Scaling
) -> LabelledImage:
    x = np.stack([_scale_plane(plane, scaling) for plane in images.read(number)])
    truth: Any
    if spec.task == "image":
        truth = np.stack([_scale_plane(plane, scaling) for plane in labels.read(number)])
    else:
        truth = labels.read_labels(number)
    if truth.shape[-2:] != x.shape[-2:]:
        raise InputError(
            f"image {number} is {x.shape[-2:]} px but its labels are {truth.shape[-2:]} px: "
            "give labels of the image's shape"
        )
    if spec.task == "image":
        return LabelledImage(x, truth)
    rarity = _compute_rarity(truth if spec.task == "classes" else truth > 0)
    return LabelledImage(
        x, truth, rarity, _border_weights(truth, spec) if spec.border_peak else None
    )


def _border_weights(truth: Labels, spec: PairsSpec) -> Floats:
    """Give the border weights of the whole image: in a crop, a cell could be in two pieces."""
    cells = np.maximum(truth, 0)
    if spec.task == "membrane":
        cells = label_components(cells)[0]
    return compute_border_weights(cells, spec.border_peak, spec.border_px)


def _compute_rarity(kind: NDArray[Any]) -> Floats:
    values, place, counts = np.unique(kind, return_inverse=True, return_counts=True)
    rarity = np.where(values < 0, 0, kind.size / counts / len(values))
    return np.asarray(rarity[place.reshape(kind.shape)], np.float32)


def _scale_plane(plane: Floats, scaling: Scaling) -> Floats:
    """Give the plane in the unit that the network's input is made from; bad pixels filled."""
    flags = flag_pixels(plane)
    if scaling.kind == "linear":
        unit = np.full_like(plane, scaling.scale)
        return signal_to_noise(plane - np.float32(scaling.offset), unit, flags)
    found = estimate_background(plane, ~np.isfinite(plane), 64)
    noise = found.noise(0, 0, plane.shape)
    return signal_to_noise(plane - found.sky(0, 0, plane.shape), noise, flags)


def compress_input(x: Floats, scaling: Scaling) -> Floats:
    """The input of the network, of a pair's x."""
    if scaling.kind == "linear":
        return x
    return np.asarray(np.arcsinh(x / np.float32(scaling.softening)), np.float32)


# --- targets --------------------------------------------------------------------------------------


def make_targets(truth: Any, spec: PairsSpec, scaling: Scaling) -> tuple[Floats, Floats]:
    """What the network is to say, and where it counts.

    Returns
    -------
    ndarray
        (outputs, h, w) float32: in [0, 1], or an image.
    ndarray
        (1, h, w) float32, 1 where the truth is known, else 0.
    """
    if spec.task == "image":
        return compress_input(truth, scaling), np.ones((1, *truth.shape[1:]), np.float32)
    known = (truth != UNKNOWN).astype(np.float32)[None]
    if spec.task == "classes":
        return np.stack(list(_one_hot(truth, len(spec.classes)))), known
    relief = np.clip(distance_transform_edt(_interior(truth)) / spec.reach_px, 0, 1)
    return np.stack([truth > 0, relief]).astype(np.float32), known


def _one_hot(labels: Labels, count: int) -> Iterator[Floats]:
    if labels.max() >= count:
        raise InputError(
            f"label {labels.max()} has no name: classes names {count}, from label 0 on"
        )
    for value in range(count):
        yield (labels == value).astype(np.float32)


def _interior(labels: Labels) -> NDArray[np.bool_]:
    """Whether a pixel belongs to an object and touches no other one."""
    inner = labels > 0
    for axis in (0, 1):
        low = (slice(None), slice(None, -1)) if axis else (slice(None, -1),)
        high = (slice(None), slice(1, None)) if axis else (slice(1, None),)
        other = (labels[low] != labels[high]) & (labels[low] > 0) & (labels[high] > 0)
        inner[low] &= ~other
        inner[high] &= ~other
    return inner
