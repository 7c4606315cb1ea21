"""Freeze GroupNorm and InstanceNorm of an exported network to the statistics of an image."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box, round_up
from fcnpipe.core.spec import RunSpec
from fcnpipe.export.base import atomic_write
from fcnpipe.images.masked_image import MaskedImage, Patch
from fcnpipe.images.scaling import Float
from fcnpipe.networks import Model, load_model
from fcnpipe.networks.base import Scaling
from fcnpipe.networks.inference.predictor import scale_input
from fcnpipe.networks.models.exported import PROGRAM_SUFFIX, read_network, read_sidecar
from fcnpipe.networks.models.frozen_normalisation import find_stride, freeze_program
from fcnpipe.science.background import estimate_background
from fcnpipe.science.normalisation import BAD, pad_high


def freeze(model: str | Path, out: str | Path, spec: RunSpec, side: int = 2048) -> Model:
    """Freeze the GroupNorm and InstanceNorm of an exported program to the statistics of an image.

    Parameters
    ----------
    model, out : path
        The exported program and the one to write, ``.pt2``; the JSON file next to it is copied.
    spec : RunSpec
        Names the image, its mask and its weight map.
    side : int
        Maximum height and width of the sample, px; it is taken from the middle of a larger image.

    Returns
    -------
    Model
        The frozen network, proven to tile exactly.

    Raises
    ------
    ModelError
        If ``model`` is not an exported program, has nothing to freeze, or cannot be tiled for another
        reason.

    Notes
    -----
    On an image that is not larger than ``side``, the output of the frozen network equals that of the
    original network on the whole image, scaled as the pipeline scales it.
    """
    source, target = Path(model), Path(out)
    if {source.suffix, target.suffix} != {PROGRAM_SUFFIX}:
        raise ModelError(
            f"{source} to {target}: only exported programs ({PROGRAM_SUFFIX}) can be frozen, since no bundled network "
            "has a normalisation that depends on the image: name two .pt2 files"
        )
    network, fields = read_network(source), read_sidecar(source).fields
    if extra := fields.get("extra"):
        raise ModelError(
            f"model {source} has the extra inputs {', '.join(extra)}: freeze it in torch"
        )
    scaling = Scaling.model_validate(fields.get("scaling", {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from torch, about its own containers
        stride = find_stride(network.exported_graph, network.bands)
        sample = read_sample(spec, network.bands, scaling, (side, stride))
        _save(freeze_program(network.exported_graph, sample), target, sample, stride)
    if fields:
        target.with_suffix(".json").write_text(json.dumps(fields, indent=1))
    return load_model(target)


def read_sample(spec: RunSpec, bands: int, scaling: Scaling, sizes: tuple[int, int]) -> Tensor:
    """Return an image as a network sees it, (1, bands, h, w) float32.

    ``sizes`` are the maximum length of a side and the stride of the network, px; both sides are padded
    to multiples of the stride. Raises ModelError if the network does not accept the bands of the image.
    """
    image, (side, stride) = MaskedImage(spec), sizes
    if bands not in (1, image.bands):
        raise ModelError(
            f"the network takes {bands} bands, but the image has {image.bands}: choose another image"
        )
    (height, width), weights = image.frame.shape, image.weigh_bands()
    top, left = (max(0, (n - side) // 2) // stride * stride for n in (height, width))
    box = Box(top, left, min(top + side, height), min(left + side, width))
    values, flags = image.read(box, weights)
    planes = [_measure(plane, (flags & BAD) != 0, scaling, spec.back_size) for plane in values]
    residual, noise = (np.stack(part) for part in zip(*planes, strict=True))
    patch = Patch(residual, noise, flags)
    shape = round_up(values.shape[1], stride), round_up(values.shape[2], stride)
    return torch.from_numpy(scale_input(pad_high(patch.significance(bands), shape), scaling))[None]


def _measure(
    plane: Float, bad: NDArray[np.bool_], scaling: Scaling, cell: int
) -> tuple[Float, Float]:
    """Return a plane with the sky subtracted, and its noise."""
    if scaling.kind == "linear":
        return plane - np.float32(scaling.offset), np.full_like(plane, scaling.scale)
    found = estimate_background(plane, bad, cell)
    return plane - found.sky(0, 0, plane.shape), found.noise(0, 0, plane.shape)


def _save(graph: fx.GraphModule, path: Path, sample: Tensor, stride: int) -> None:
    sizes = {2 + i: stride * torch.export.Dim(name, min=2) for i, name in enumerate("yx")}
    program = torch.export.export(graph, (sample,), dynamic_shapes=(sizes,), strict=False)
    content = io.BytesIO()
    torch.export.save(program, content)
    with atomic_write(path) as draft:
        draft.write_bytes(content.getvalue())
