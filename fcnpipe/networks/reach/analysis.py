"""How far a network looks: read off its graph, for any network that slides over the image.

The graph of the network (``torch.export``) is walked backwards from the pixels of one output cell,
along each axis on its own, in coordinates without bounds: at each operation the set of pixels that is
wanted becomes the set of pixels that it reads (:mod:`fcnpipe.networks.reach.rules`).

The pixels of a cell of ``stride`` outputs have different reaches, so all of them are followed, and
sets rather than intervals are kept, so that gaps of dilated and transposed kernels are exact.
"""

from __future__ import annotations

from fractions import Fraction
from math import lcm

import numpy as np
import torch
from torch import fx, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import Reach
from fcnpipe.networks.reach.image_sizes import (
    SameSizeNetwork,
    SizeRule,
    keeps_size,
    measure_sizes,
)
from fcnpipe.networks.reach.rules import (
    Dependency,
    Indices,
    Operation,
    arguments_of,
    axes_after,
    rule_of,
    shape_of,
)
from fcnpipe.networks.reach.tracing import input_node, is_same_size, output_node, trace


def analyse(module: nn.Module, bands: int = 1, interior_only: bool = False) -> Reach:
    """Give how far a network looks on each side of an output pixel, and its strides.

    Parameters
    ----------
    module : Module
        Takes (n, bands, h, w), gives (n, outputs, h, w); in evaluation mode.
    bands : int
        Channels of the input.
    inside : bool
        Whether it is enough to be exact away from the image's border.

    Returns
    -------
    Reach
        The worst of all output pixels of a cell of ``stride_y x stride_x``. An output of another
        size than the input lies centred on it, and at its own scale a pixel covers several.

    Raises
    ------
    ModelError
        Names the part of the network that sees the whole image, that torch.export cannot follow, or
        that is not known here.
    """
    program = trace(module, bands)
    if not is_same_size(program):
        program = trace_same_size(make_same_size(module, bands, interior_only)[0], bands)
    return analyse_program(program, interior_only)


def make_same_size(
    module: nn.Module, bands: int = 1, interior_only: bool = False
) -> tuple[nn.Module, tuple[SizeRule, SizeRule]]:
    """Give a network whose output has the size of the input, and the sizes of the one given (y, x).

    That is the network itself if it keeps sizes, else `Fitted`.

    Raises
    ------
    ModelError
        As `analyse` does.
    """
    program = trace(module, bands)
    looks = _follow(program, interior_only)
    scales = _scales(program, looks)
    rules = measure_sizes(module, bands, _strides(scales), scales[output_node(program)])
    return module if is_same_size(program) else SameSizeNetwork(module, rules), rules


def ensure_same_size(module: nn.Module, bands: int = 1) -> nn.Module:
    """Give a network whose output has the size of the input, as `fit`; at once if it is so already."""
    return module if keeps_size(module, bands) else make_same_size(module, bands)[0]


def analyse_program(program: torch.export.ExportedProgram, interior_only: bool = False) -> Reach:
    """Give the reach that a traced network has; see `analyse`."""
    looks = _follow(program, interior_only)
    stride = _strides(_scales(program, looks))
    top, bottom, rows = _extent(program, looks, 0, stride[0])
    left, right, columns = _extent(program, looks, 1, stride[1])
    return Reach(top, bottom, left, right, *stride, cell=max(rows, columns))


def trace_same_size(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Give the graph of a network at the first size whose output has the size of the input.

    Raises
    ------
    ModelError
        If torch.export fails, for instance because the flow depends on the pixels, or the output
        never has the size of the input.
    """
    program = trace(module, bands)
    if is_same_size(program):
        return program
    _follow(program)
    before, after = shape_of(input_node(program))[2:], shape_of(output_node(program))[2:]
    raise ModelError(
        f"network {type(module).__name__} turns {before} px into {after} px: "
        "pad inside it, so that sizes stay"
    )


def _follow(
    program: torch.export.ExportedProgram, interior_only: bool = False
) -> dict[fx.Node, list[Dependency]]:
    """Give, for each node that depends on the image, how it looks at its inputs."""
    axes: dict[fx.Node, tuple[int, int]] = {input_node(program): (2, 3)}
    looks: dict[fx.Node, list[Dependency]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in axes for source in node.all_input_nodes):
            operation = Operation(node, arguments_of(node), axes, interior_only)
            looks[node] = rule_of(operation)(operation)
            axes[node] = axes_after(operation)
    if output_node(program) not in axes:
        raise ModelError(
            "the output does not depend on the image; return the result of the network"
        )
    return looks


def _scales(
    program: torch.export.ExportedProgram, looks: dict[fx.Node, list[Dependency]]
) -> dict[fx.Node, tuple[Fraction, Fraction]]:
    """Give the input pixels for each pixel of every array of the network (y, x)."""
    scales = {input_node(program): (Fraction(1), Fraction(1))}
    for node, inputs in looks.items():
        first = inputs[0]
        y, x = scales[first.source]
        scales[node] = y * first.y.scale, x * first.x.scale
    return scales


def _strides(scales: dict[fx.Node, tuple[Fraction, Fraction]]) -> tuple[int, int]:
    """Give the least shifts of the input that shift every array of the network by whole pixels."""
    return (
        lcm(*(y.numerator for y, _ in scales.values())),
        lcm(*(x.numerator for _, x in scales.values())),
    )


def _extent(
    program: torch.export.ExportedProgram,
    looks: dict[fx.Node, list[Dependency]],
    axis: int,
    stride: int,
) -> tuple[int, int, int]:
    """Give the reach (before a pixel, after it, beyond a whole cell) along one axis."""
    before = after = cell = 0
    for pixel in range(stride):
        read = _read_by(pixel, program, looks, axis)
        if read.size:
            low, high = int(read[0]), int(read[-1])
            before, after = max(before, pixel - low), max(after, high - pixel)
            cell = max(cell, -low, high - (stride - 1))
    return before, after, cell


def _read_by(
    pixel: int,
    program: torch.export.ExportedProgram,
    looks: dict[fx.Node, list[Dependency]],
    axis: int,
) -> Indices:
    """Give the input pixels that an output pixel depends on, along one axis."""
    nothing = np.empty(0, np.int64)
    wanted = {output_node(program): np.array([pixel], np.int64)}
    for node in reversed(looks):
        for look in looks[node]:
            step = look.x if axis else look.y
            read = step.to_input(wanted.get(node, nothing))
            wanted[look.source] = np.union1d(wanted.get(look.source, nothing), read)
    return wanted.get(input_node(program), nothing)
