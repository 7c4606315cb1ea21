"""Certificate of a network: the proof, run on the network itself, that it can be tiled exactly.

The reach that was computed from the graph is a claim. Two trials test it, along each axis::

    NaN probe     image    0  0  0  0  0 NaN 0  0  0  0  0     one NaN column among zeros, for
                  output   0  0  N  N  N  N  N  N  N  0  0     each phase of the stride: N where
                                 |<- 3 ->|<- 3 ->|             the receptive field contains it

    tile versus   whole    |      core 0      |      core 1      |
    whole         tile 0   |      core 0      | halo |
                  tile 1                | halo |     core 1      |

                  random image in float64: the tiles must equal the whole to 1e-12, and must differ
                  from it with a halo that is one stride shorter

Both trials are needed. The NaN probe misses operations that depend on the size of the image
(``align_corners``), because in an image of one size their receptive field is local too. The
comparison misses weights that happen to be tiny. The probe runs at all phases of the stride, because
one position alone can be off by a pixel. The images are strips a few strides thick, so a proof takes
seconds.
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
from fcnpipe.networks.reach.image_sizes import dtype_of, minimum_size

TOLERANCE = 1e-12
"""Maximum difference between tiles and the whole in float64; relative to the largest output if above 1."""
_THICKNESS_FACTORS = (1, 2, 4, 8)
"""Factors by which the thickness of a strip is multiplied, in turn: reflection padding refuses thin images."""
_CORE_STRIDES = (1, 7)
"""Edges of the core to try in turn, as the halo plus this many strides. The numbers are odd, so that a
stride that is too small is noticed. The larger one is needed where reflection padding refuses the
smaller tiles."""


def certify(module: nn.Module, bands: int = 1, reach: Reach | None = None) -> Certificate:
    """Prove that tiles with the halo of ``reach`` equal the whole image.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode; it is not changed.
    bands : int
        Channels of the input.
    reach : Reach, optional
        The claimed reach; the reach computed from the graph if None.

    Returns
    -------
    Certificate
        A certificate of kind ``proven``, with the measured errors.

    Raises
    ------
    ModelError
        If the claim is wrong: the NaN probe shows a larger reach, or tiles differ from the whole.

    Notes
    -----
    A network whose output differs in size from its input is adapted first (`ensure_same_size`).
    """
    reach = reach or analyse(module, bands)
    module = ensure_same_size(module, bands)
    is_probed = _check_probe(module, reach, probe(module, bands, reach))
    precise = copy.deepcopy(module).double()
    halo = reach.minimum_halo
    error = tiling_error(precise, bands, reach, halo)
    if not error <= TOLERANCE:
        raise ModelError(
            f"network {type(module).__name__}: tiles with halo {halo} px differ from the whole "
            f"by {error:.1e}, above {TOLERANCE:.0e}: remove each layer that depends on the image's size"
        )
    short = halo - reach.stride
    error_short = tiling_error(precise, bands, reach, short) if short >= 0 else 0.0
    return Certificate("proven", reach, halo, error, error_short, is_probed, torch.__version__)


def declare(reach: Reach) -> Certificate:
    """Return a certificate for a reach that the user declares; nothing is proven."""
    return Certificate("declared", reach, reach.halo)


# --- NaN probe ------------------------------------------------------------------------------------


def probe(module: nn.Module, bands: int, reach: Reach) -> Reach:
    """Measure the reach as the largest distance from a NaN pixel to a NaN in the output, over all phases.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode.
    bands : int
        Channels of the input.
    reach : Reach
        Expected reach, which sets the size of the image. A reach up to 1.5 times as large is
        measured in full.

    Returns
    -------
    Reach
        The measured reach, with the strides of ``reach``.
    """
    seen = _probe(module, bands, reach, 3 * reach.furthest // 2)
    if _exceeds(seen, reach):
        # Reflection padding mirrors a NaN that is within the reach of the border. A wider image
        # keeps the NaN away from the border.
        seen = _probe(module, bands, reach, 3 * reach.furthest)
    return seen


def _check_probe(module: nn.Module, reach: Reach, seen: Reach) -> bool:
    """Raise if the probe shows a larger reach than claimed; return whether it shows exactly that."""
    claim = replace(reach, cell=seen.cell) if reach.cell is None else reach
    if _exceeds(seen, claim):
        raise ModelError(
            f"network {type(module).__name__}: its claimed reach is {reach} but NaNs "
            f"in the image show {seen}: claim this larger reach"
        )
    return seen == claim


def _exceeds(seen: Reach, claim: Reach) -> bool:
    claim = replace(claim, cell=seen.cell) if claim.cell is None else claim
    return any(a > b for a, b in zip(astuple(seen), astuple(claim), strict=True))


def _probe(module: nn.Module, bands: int, reach: Reach, width: int) -> Reach:
    top, bottom, rows = _probe_axis(module, bands, reach, 2, width)
    left, right, columns = _probe_axis(module, bands, reach, 3, width)
    return Reach(top, bottom, left, right, reach.stride_y, reach.stride_x, max(rows, columns))


def _probe_axis(
    module: nn.Module, bands: int, reach: Reach, axis: int, width: int
) -> tuple[int, int, int]:
    """Return the reach before a pixel, after it, and beyond a whole cell, along an axis.

    Each image of a batch has one NaN column, at another phase of the stride, and at least ``width``
    zeros on both sides of it.
    """
    stride, thickness = _stride_and_thickness(module, reach, axis)
    shortest = minimum_size(module)[axis - 2] // 2
    margin = round_up(max(width + 2 * stride, shortest), stride)
    phases = torch.arange(stride)
    image = torch.zeros(stride, bands, thickness, 2 * margin + stride, dtype=dtype_of(module))
    image[phases, :, :, margin + phases] = torch.nan
    is_nan = torch.isnan(_run(module, image, axis)).any(dim=2).any(dim=1)
    phase, output = torch.nonzero(is_nan, as_tuple=True)
    if not len(output):
        return 0, 0, 0
    source, first = margin + phase, output // stride * stride
    beyond_cell = torch.maximum(first - source, source - (first + stride - 1))
    return _maximum(output - source), _maximum(source - output), _maximum(beyond_cell)


def _maximum(distances: Tensor) -> int:
    return max(0, int(distances.max()))


# --- tile versus whole ----------------------------------------------------------------------------


def tiling_error(module: nn.Module, bands: int, reach: Reach, halo: int) -> float:
    """Return the largest difference between tiles and the whole image, over both axes.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode and float64.
    bands : int
        Channels of the input.
    reach : Reach
        Reach of the network, which sets the core and the thickness of the strips.
    halo : int
        Pixels read beyond each core, px, a multiple of the stride.

    Returns
    -------
    float
        Largest absolute difference of the outputs, divided by the largest output of the whole image
        if that is above 1. Infinite if tiles and the whole have different sizes.
    """
    return max(_tiling_error_along(module, bands, reach, halo, axis) for axis in (2, 3))


def _tiling_error_along(module: nn.Module, bands: int, reach: Reach, halo: int, axis: int) -> float:
    for strides in _CORE_STRIDES:
        core = halo + strides * reach.stride
        missing = max(0, minimum_size(module)[axis - 2] - core - halo)
        core += round_up(missing, 2 * reach.stride)  # the number of strides stays odd
        try:
            return _compare_tiles(module, bands, reach, (halo, core, axis))
        except RuntimeError:
            if strides == _CORE_STRIDES[-1]:
                raise
    raise AssertionError("unreachable")


def _compare_tiles(module: nn.Module, bands: int, reach: Reach, cut: tuple[int, int, int]) -> float:
    """Compare two tiles with the strip that they are cut from; ``cut`` is (halo, core, axis)."""
    halo, core, axis = cut
    thickness = _stride_and_thickness(module, reach, axis)[1]
    noise = np.random.default_rng(1).normal(0, 3, (1, bands, thickness, 2 * core))
    strip = torch.from_numpy(noise)
    whole = _run(module, strip, axis)
    low = _run(module, strip[..., : core + halo], axis)[..., :core]
    high = _run(module, strip[..., core - halo :], axis)[..., halo:]
    if whole.shape[-1] != 2 * core or high.shape[-1] != core:
        return inf
    scale = max(1.0, float(whole.abs().max()))
    return float((torch.cat([low, high], dim=3) - whole).abs().max()) / scale


# --- strips ---------------------------------------------------------------------------------------


def _stride_and_thickness(module: nn.Module, reach: Reach, axis: int) -> tuple[int, int]:
    """Return the stride along a strip, and a thickness above any shift of the image across the strip.

    The thickness is at least the smallest size that the network states.
    """
    across = (reach.left, reach.right) if axis == 2 else (reach.top, reach.bottom)
    along, step = (
        (reach.stride_y, reach.stride_x) if axis == 2 else (reach.stride_x, reach.stride_y)
    )
    shifted = abs(across[0] - across[1]) + max(2 * step, 4)
    return along, round_up(max(shifted, minimum_size(module)[3 - axis]), step)


def _run(module: nn.Module, strip: Tensor, axis: int) -> Tensor:
    """Run a network on strips that are long in x, turned to ``axis``, as thin as it accepts them."""
    for factor in _THICKNESS_FACTORS:
        thick = strip.repeat(1, 1, factor, 1)
        try:
            with torch.no_grad():
                output: Tensor = module(thick.transpose(2, 3) if axis == 2 else thick)
        except RuntimeError:
            if factor == _THICKNESS_FACTORS[-1]:
                raise
            continue
        return output.transpose(2, 3) if axis == 2 else output
    raise AssertionError("unreachable")
