"""The proof that a network can be tiled exactly, run on the network itself.

The reach that was read off the graph is a claim. Two trials test it::

    probe     one column of NaN in a wide image, once for each phase: which outputs turn to NaN?
              none beyond the reach, and those on its edges on both sides
    tiles     | window 0 + halo |              float64, each axis, both interior edges:
              |       | halo + window 1 |      tiles must equal the whole image to 1e-12,
              and with a halo one stride shorter they must not

A probe alone misses operations that depend on the image's size (align_corners); tiles alone miss
weights that happen to be tiny. Both run on strips a few strides thick, so they take seconds.
"""

from __future__ import annotations

import copy
from dataclasses import astuple, replace
from math import inf

import numpy as np
import torch
from torch import Tensor, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import round_up
from fcnpipe.networks.base import Certificate, Reach
from fcnpipe.networks.reach.analysis import analyse, ensure_same_size

TOLERANCE = 1e-12
"""Largest difference between tiles and the whole in float64, of logits of order 1."""
_THICKNESS = (1, 2, 4, 8)
"""Repeats of a strip to try: some networks refuse thin images (reflection padding)."""
_STARTS = (1, 7)
"""Strides from the image's edge to the second window, to try in turn: odd, so that a stride that is too
small shows; the greater where reflection padding refuses short windows."""


def certify(module: nn.Module, bands: int = 1, reach: Reach | None = None) -> Certificate:
    """Prove that windows with the halo of ``reach`` give what the whole image gives.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode; it is not changed.
    bands : int
        Channels of the input.
    reach : Reach, optional
        The claim; read off the graph if None.

    Raises
    ------
    ModelError
        If the claim is wrong: NaNs show another reach, or tiles differ from the whole.

    Notes
    -----
    A network whose output has another size is brought to the size of its input (`reach.fit`).
    """
    reach = reach or analyse(module, bands)
    module = ensure_same_size(module, bands)
    tight = _check_probe(module, reach, probe(module, bands, reach))
    precise = copy.deepcopy(module).double()
    halo = reach.minimum_halo
    error = tiling_error(precise, bands, reach, halo)
    if not error <= TOLERANCE:
        raise ModelError(
            f"network {type(module).__name__}: tiles with halo {halo} px differ from the whole "
            f"by {error:.1e}, above {TOLERANCE:.0e}: take out what depends on the image's size"
        )
    short = halo - reach.stride
    error_short = tiling_error(precise, bands, reach, short) if short >= 0 else 0.0
    return Certificate("proven", reach, halo, error, error_short, tight, torch.__version__)


def declare(reach: Reach) -> Certificate:
    """Take somebody's word for the reach of a black box; nothing is proven."""
    return Certificate("declared", reach, reach.halo)


def probe(module: nn.Module, bands: int, reach: Reach) -> Reach:
    """Give the reach that NaNs show.

    Parameters
    ----------
    module : Module
        Network in evaluation mode.
    bands : int
        Channels of the input.
    reach : Reach
        How wide the probe must look; reaches up to 1.5 times larger are seen as such.

    Returns
    -------
    Reach
        With the strides of ``reach``.
    """
    seen = _probe(module, bands, reach, 3 * reach.furthest // 2)
    if _exceeds(seen, reach):
        # A reflecting border shows what lies twice as far: away from it.
        seen = _probe(module, bands, reach, 3 * reach.furthest)
    return seen


def tiling_error(module: nn.Module, bands: int, reach: Reach, halo: int) -> float:
    """Give the largest difference between windows and the whole image, along either axis.

    Parameters
    ----------
    module : Module
        Network in evaluation mode and float64.
    bands : int
        Channels of the input.
    reach : Reach
        Gives the strides.
    halo : int
        Pixels read beyond each core, a multiple of the stride.

    Returns
    -------
    float
        Of the outputs, over the largest output of the whole image if that is above 1.
    """
    return max(_tiling_error_along(module, bands, reach, halo, axis) for axis in (2, 3))


def _check_probe(module: nn.Module, reach: Reach, seen: Reach) -> bool:
    """Refuse a claim that is too small; tell whether it is exactly what was seen."""
    claim = replace(reach, cell=seen.cell) if reach.cell is None else reach
    if _exceeds(seen, claim):
        raise ModelError(
            f"network {type(module).__name__}: its reach is said to be {reach} but NaNs "
            f"in the image show {seen}: claim that"
        )
    return seen == claim


def _exceeds(seen: Reach, claim: Reach) -> bool:
    claim = replace(claim, cell=seen.cell) if claim.cell is None else claim
    return any(a > b for a, b in zip(astuple(seen), astuple(claim), strict=True))


def _probe(module: nn.Module, bands: int, reach: Reach, width: int) -> Reach:
    top, bottom, rows = _probe_axis(module, bands, reach, (2, width))
    left, right, columns = _probe_axis(module, bands, reach, (3, width))
    return Reach(top, bottom, left, right, reach.stride_y, reach.stride_x, max(rows, columns))


def _probe_axis(
    module: nn.Module, bands: int, reach: Reach, look: tuple[int, int]
) -> tuple[int, int, int]:
    """Give (before, after, beyond a cell): a column of NaN for each phase, all in one batch.

    ``look`` is the axis, and how far to look along it.
    """
    axis, width = look
    stride, thickness = _stride_and_thickness(reach, axis)
    margin = round_up(width + 2 * stride, stride)
    phases = torch.arange(stride)
    image = torch.zeros(stride, bands, thickness, 2 * margin + stride, dtype=_dtype(module))
    image[phases, :, :, margin + phases] = torch.nan
    touched = torch.isnan(_run(module, image, axis)).any(dim=2).any(dim=1)
    # Which NaN (phase) reached which output pixel.
    phase, output = torch.nonzero(touched, as_tuple=True)
    if not len(output):
        return 0, 0, 0
    source, first = margin + phase, output // stride * stride
    beyond = torch.maximum(first - source, source - (first + stride - 1))
    return (
        _largest_distance(output - source),
        _largest_distance(source - output),
        _largest_distance(beyond),
    )


def _largest_distance(distances: Tensor) -> int:
    return max(0, int(distances.max()))


def _stride_and_thickness(reach: Reach, axis: int) -> tuple[int, int]:
    """Give the stride along a strip, and a thickness that a shift across it does not empty."""
    across = (reach.left, reach.right) if axis == 2 else (reach.top, reach.bottom)
    along, step = (
        (reach.stride_y, reach.stride_x) if axis == 2 else (reach.stride_x, reach.stride_y)
    )
    return along, round_up(abs(across[0] - across[1]) + max(2 * step, 4), step)


def _tiling_error_along(module: nn.Module, bands: int, reach: Reach, halo: int, axis: int) -> float:
    """Cut a strip into two windows, as short as the network takes them."""
    for strides in _STARTS:
        try:
            return _cut_and_compare(
                module, bands, reach, (halo, halo + strides * reach.stride, axis)
            )
        except RuntimeError:
            if strides == _STARTS[-1]:
                raise
    raise AssertionError("unreachable")


def _cut_and_compare(
    module: nn.Module, bands: int, reach: Reach, cut: tuple[int, int, int]
) -> float:
    """Cut a strip by (halo, core, axis); both edges of a core fall inside the strip once."""
    halo, core, axis = cut
    thickness = _stride_and_thickness(reach, axis)[1]
    noise = np.random.default_rng(1).normal(0, 3, (1, bands, thickness, 2 * core))
    strip = torch.from_numpy(noise)
    whole = _run(module, strip, axis)
    low = _run(module, strip[..., : core + halo], axis)[..., :core]
    high = _run(module, strip[..., core - halo :], axis)[..., halo:]
    if whole.shape[-1] != 2 * core or high.shape[-1] != core:
        return inf
    scale = max(1.0, float(whole.abs().max()))
    return float((torch.cat([low, high], dim=3) - whole).abs().max()) / scale


def _run(module: nn.Module, strip: Tensor, axis: int) -> Tensor:
    """Run strips that are long in x, along ``axis``, as thin as the network takes them."""
    for times in _THICKNESS:
        thick = strip.repeat(1, 1, times, 1)
        try:
            with torch.no_grad():
                output: Tensor = module(thick.transpose(2, 3) if axis == 2 else thick)
        except RuntimeError:
            if times == _THICKNESS[-1]:
                raise
            continue
        return output.transpose(2, 3) if axis == 2 else output
    raise AssertionError("unreachable")


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)
