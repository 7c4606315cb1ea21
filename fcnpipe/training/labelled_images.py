"""Labelled images: read, scale as the pipeline does, and convert to training targets.

========== ========================================= ==================================================
task       ground truth of an image                  outputs of the network
========== ========================================= ==================================================
membrane   label image: cells > 0, membranes 0       ``source``: inside a cell; ``relief``: distance to
                                                     the nearest membrane, 1 from ``reach_px`` on
instances  label image: a number for each object     the same; the line between two touching objects
                                                     counts as a border too
classes    label image: 0 to k - 1                   the k classes, softmax
image      image                                     the image, scaled like the input
========== ========================================= ==================================================

Pixels with a negative label, or without one (NaN), are unknown and are ignored in the loss.
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
"""Label of a pixel whose ground truth is unknown."""


@dataclass(frozen=True)
class PairsSpec:
    """Labelled images to train on and the task to learn: section ``pairs`` of a recipe."""

    images: str
    """Folder of images, sorted by the numbers in their names, each with all its bands; or one file
    whose planes are the images."""
    labels: str
    """Folder or file of the ground truth, in the same order."""
    train: str
    """Numbers of the training images, such as "0-15" or "0,2,5-7"."""
    choose: str
    """Numbers of the validation images, which select the best weights."""
    task: str = "membrane"
    """One of TASKS."""
    classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ... of task classes; "source" names the foreground that can be
    segmented."""
    reach_px: float = 12.0
    """Distance from the border at which the relief is 1, px."""
    border_peak: float = 0.0
    """Weight of a pixel in the narrowest gap between two cells, in addition to the weight of its
    class (U-Net: 10); 0: all pixels have the same weight. Tasks membrane and instances only."""
    border_px: float = 5.0
    """Width of the gaps with higher weight, px."""
    scaling: str = "linear"
    """linear: pixel values as stored, for micrographs; asinh: signal-to-noise ratio, for skies."""
    offset: float | None = None
    """Linear scaling: value that becomes 0. Default: the mean of the training images."""
    scale: float | None = None
    """Linear scaling: difference that becomes 1. Default: the standard deviation of the training
    images."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.task not in TASKS:
            raise SpecError(f"task {self.task!r}: choose one of {', '.join(TASKS)}")
        if self.scaling not in ("linear", "asinh"):
            raise SpecError(f"scaling {self.scaling!r}: choose linear or asinh")
        if (self.task == "classes") != bool(self.classes):
            raise SpecError(
                "classes: name the labels of task classes; leave it out for other tasks"
            )
        if self.border_peak and not self.has_objects:
            raise SpecError(f"border_peak: task {self.task} has no borders: leave it out")
        if not (self.border_peak >= 0 and self.border_px > 0):
            raise SpecError(
                f"border_peak {self.border_peak}, border_px {self.border_px}: the weight must be at "
                "least 0 and the width above 0"
            )
        shared = set(parse_numbers(self.train)) & set(parse_numbers(self.choose))
        if shared:
            raise SpecError(
                f"train and choose share images {sorted(shared)}: select the weights on images that "
                "are not used for training"
            )

    @property
    def has_objects(self) -> bool:
        """Whether the labels are those of cells or other objects."""
        return self.task in ("membrane", "instances")

    @property
    def margin(self) -> int:
        """Width of the border around a crop that its targets depend on, px."""
        return int(np.ceil(self.reach_px)) if self.has_objects else 0

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs of the network. For task image their number follows from the data."""
        if self.task == "classes":
            roles = ("source" if name == "source" else f"class:{name}" for name in self.classes)
            named = zip(self.classes, roles, strict=True)
            return tuple(Output(name=n, role=role, activation="softmax") for n, role in named)
        if self.task == "image":
            return (Output(name="restored", role="restored"),)
        return Output(name="source", role="source"), Output(name="relief", role="topography")


@dataclass(frozen=True)
class LabelledImage:
    """An image and its ground truth."""

    x: Floats
    """(bands, h, w), finite: (value - offset) / scale, or the signal-to-noise ratio before the
    asinh."""
    truth: Any
    """(h, w) int32 labels, or (k, h, w) float32 image in the same unit as x."""

    rarity: Floats | None = None
    """(h, w) float32, rarity of each pixel's kind of label; None if the ground truth is an image."""
    weight: Floats | None = None
    """(h, w) float32, weight of each pixel in the loss; None: all pixels have the same weight."""


def parse_numbers(text: str) -> list[int]:
    """Return the numbers of a list such as "0,2,5-7".

    Raises
    ------
    SpecError
        If the text is not such a list.

    Examples
    --------
    >>> parse_numbers("0,2,5-7")
    [0, 2, 5, 6, 7]
    """
    numbers: list[int] = []
    for part in str(text).replace(" ", "").split(","):
        ends = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not ends:
            raise SpecError(f"{text!r} is not a list of numbers: write it like 0-15 or 0,2,5-7")
        numbers.extend(range(int(ends[1]), int(ends[2] or ends[1]) + 1))
    return numbers


# --- reading --------------------------------------------------------------------------------------


def read_pairs(spec: PairsSpec, numbers: str, scaling: Scaling) -> list[LabelledImage]:
    """Read the images of these numbers with their ground truth.

    Raises
    ------
    InputError
        If a file cannot be read, a number has no image, or an image and its labels differ in shape.
    """
    images, labels = _ImageStack(spec.images), _ImageStack(spec.labels)
    if len(images) != len(labels):
        raise InputError(
            f"{spec.images} holds {len(images)} images but {spec.labels} {len(labels)}: "
            "provide one label image for each image"
        )
    return [_read_pair(spec, images, labels, n, scaling) for n in parse_numbers(numbers)]


def measure_scaling(spec: PairsSpec) -> Scaling:
    """Return the scaling of a recipe's images.

    Offset and scale that the recipe does not set are the mean and standard deviation of the
    training images, rounded to 3 decimals.
    """
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
        """Read an image, (bands, h, w) float32; NaN where there are no data."""
        image, bands = self._find(number)
        box = Box(0, 0, *image.info.shape[1:])
        return np.stack([image.read(box, band) for band in bands])

    def read_labels(self, number: int) -> Labels:
        """Read the labels of an image, (h, w) int32."""
        image, bands = self._find(number)
        if len(bands) > 1:
            raise InputError(
                f"{self.name}: labels {number} have {len(bands)} planes: use label images of one plane"
            )
        values = image.read_integer(Box(0, 0, *image.info.shape[1:]), bands[0])
        return np.asarray(np.maximum(values, UNKNOWN), np.int32)

    def _find(self, number: int) -> tuple[Image, Sequence[int]]:
        if number >= len(self):
            raise InputError(
                f"{self.name} has no image {number}: its images are numbered 0 to {len(self) - 1}"
            )
        if self._planes:
            return self._images[0], [number]
        image = self._images[number]
        return image, range(image.info.shape[0])


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder of images rather than a zarr store."""
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
    """Return a sort key that puts 2 before 10."""
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
            "use labels of the image's shape"
        )
    if spec.task == "image":
        return LabelledImage(x, truth)
    rarity = _compute_rarity(truth if spec.task == "classes" else truth > 0)
    return LabelledImage(
        x, truth, rarity, _border_weights(truth, spec) if spec.border_peak else None
    )


def _border_weights(truth: Labels, spec: PairsSpec) -> Floats:
    """Return the border weights of the whole image: within a crop, one cell can appear as two."""
    cells = np.maximum(truth, 0)
    if spec.task == "membrane":
        cells = label_components(cells)[0]
    return compute_border_weights(cells, spec.border_peak, spec.border_px)


def _compute_rarity(kind: NDArray[Any]) -> Floats:
    values, place, counts = np.unique(kind, return_inverse=True, return_counts=True)
    rarity = np.where(values < 0, 0, kind.size / counts / len(values))
    return np.asarray(rarity[place.reshape(kind.shape)], np.float32)


def _scale_plane(plane: Floats, scaling: Scaling) -> Floats:
    """Return a plane in the unit from which the network's input is computed, with bad pixels filled."""
    flags = flag_pixels(plane)
    if scaling.kind == "linear":
        unit = np.full_like(plane, scaling.scale)
        return signal_to_noise(plane - np.float32(scaling.offset), unit, flags)
    found = estimate_background(plane, ~np.isfinite(plane), 64)
    noise = found.noise(0, 0, plane.shape)
    return signal_to_noise(plane - found.sky(0, 0, plane.shape), noise, flags)


def compress_input(x: Floats, scaling: Scaling) -> Floats:
    """Return the input of the network for the pixels ``x`` of a labelled image."""
    if scaling.kind == "linear":
        return x
    return np.asarray(np.arcsinh(x / np.float32(scaling.softening)), np.float32)


# --- targets --------------------------------------------------------------------------------------


def make_targets(truth: Any, spec: PairsSpec, scaling: Scaling) -> tuple[Floats, Floats]:
    """Compute the desired output of the network and the pixels that count in the loss.

    Parameters
    ----------
    truth
        Ground truth of an image, see `LabelledImage`.
    spec
        The task.
    scaling
        Scaling of the input, which also applies to the targets of task image.

    Raises
    ------
    InputError
        If a label has no name.

    Returns
    -------
    ndarray
        (outputs, h, w) float32: in [0, 1], or an image.
    ndarray
        (1, h, w) float32: 1 where the ground truth is known, else 0.
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
            f"label {labels.max()} has no name: classes has names for labels 0 to {count - 1}: add the others"
        )
    for value in range(count):
        yield (labels == value).astype(np.float32)


def _interior(labels: Labels) -> NDArray[np.bool_]:
    """Return which pixels belong to an object and do not touch another object."""
    inner = labels > 0
    for axis in (0, 1):
        low = (slice(None), slice(None, -1)) if axis else (slice(None, -1),)
        high = (slice(None), slice(1, None)) if axis else (slice(1, None),)
        other = (labels[low] != labels[high]) & (labels[low] > 0) & (labels[high] > 0)
        inner[low] &= ~other
        inner[high] &= ~other
    return inner
