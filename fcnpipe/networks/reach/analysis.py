"""Receptive-field analysis: the reach and the stride of a network, computed from its exported graph.

The graph is followed backwards from an output pixel to the input pixels that it depends on,
separately along each axis. At each operation the set of output indices becomes the set of input
indices that it reads (:mod:`fcnpipe.networks.reach.rules`). Indices are unbounded: the border of the
image has no effect. This is a network of four layers, the last layer first, for both output pixels of
a cell of its stride, 2::

    output pixel             0                         1
    upsampling x 2, nearest  0                         0               floor(o / 2)
    convolution of 3        -1, 0, 1                  -1, 0, 1         o - 1 + {0, 1, 2}
    pooling of 2            -2 ... 3                  -2 ... 3         2 o + {0, 1}
    convolution of 3        -3 ... 4                  -3 ... 4         o - 1 + {0, 1, 2}
    reads, px                3 before, 4 after         4 before, 3 after

The reach is 4 px on both sides. Beyond the cell {0, 1} as a whole, 3 px are read on both sides: a
core that is made of whole cells needs that much (`Reach.cell`).

**Stride.** Each array of the network has a scale: the input pixels for each of its pixels. The stride is
the least common multiple of the scales; a shift of the input by it shifts every array by whole
pixels, so it commutes with the network.

**Phases.** The output pixels of one cell of stride x stride pixels have different receptive fields,
as above. All of them are followed, and the reach is the maximum over them.

**Sets, not intervals.** The closed formula for a chain of convolutions (Araujo et al. 2019,
"Computing receptive fields of convolutional neural networks", Distill) follows only the first and the
last index. Sets are followed here, because the gaps of dilated and transposed kernels can change
which pixels the next operation reads.
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
from fcnpipe.networks.reach.index_maps import Indices
from fcnpipe.networks.reach.operations import Operation, arguments_of, axes_after, shape_of
from fcnpipe.networks.reach.rules import Dependency, rule_of
from fcnpipe.networks.reach.tracing import input_node, is_same_size, output_node, trace

_Dependencies = dict[fx.Node, list[Dependency]]
"""The dependencies of each node that depends on the image, in the order of execution."""


def analyse(module: nn.Module, bands: int = 1, interior_only: bool = False) -> Reach:
    """Return the reach of a network on each side of an output pixel, and its strides.

    Parameters
    ----------
    module : Module
        Maps (n, bands, h, w) to (n, outputs, h, w); in evaluation mode.
    bands : int
        Channels of the input.
    interior_only : bool
        Whether tiles need to be exact only where the image's border is beyond the reach. Circular
        padding is accepted then.

    Returns
    -------
    Reach
        Maximum over the output pixels of a cell of ``stride_y x stride_x``. If the output differs in
        size from the input, it is centred on the input and brought to its scale first
        (`SameSizeNetwork`).

    Raises
    ------
    ModelError
        If a layer reads the whole image, torch.export cannot trace the network, or an operator has
        no rule. The message names the layer.

    Examples
    --------
    >>> analyse(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 5, padding=2))).furthest
    3
    """
    program = trace(module, bands)
    if not is_same_size(program):
        program = trace_same_size(make_same_size(module, bands, interior_only)[0], bands)
    return analyse_program(program, interior_only)


def analyse_program(program: torch.export.ExportedProgram, interior_only: bool = False) -> Reach:
    """Return the reach of a traced network whose output has the size of its input; see `analyse`."""
    dependencies = _list_dependencies(program, interior_only)
    stride = _strides(_scales(program, dependencies))
    top, bottom, rows = _reach_along(program, dependencies, 0, stride[0])
    left, right, columns = _reach_along(program, dependencies, 1, stride[1])
    return Reach(top, bottom, left, right, *stride, cell=max(rows, columns))


def make_same_size(
    module: nn.Module, bands: int = 1, interior_only: bool = False
) -> tuple[nn.Module, tuple[SizeRule, SizeRule]]:
    """Return a network whose output has the size of its input, and the sizes that ``module`` accepts.

    Returns
    -------
    module : Module
        ``module`` itself if it keeps sizes, else a `SameSizeNetwork` around it.
    sizes : tuple of SizeRule
        Heights and widths that ``module`` accepts, and the sizes of its output.

    Raises
    ------
    ModelError
        As `analyse` does.
    """
    program = trace(module, bands)
    scales = _scales(program, _list_dependencies(program, interior_only))
    rules = measure_sizes(module, bands, _strides(scales), scales[output_node(program)])
    return module if is_same_size(program) else SameSizeNetwork(module, rules), rules


def ensure_same_size(module: nn.Module, bands: int = 1) -> nn.Module:
    """Return ``module`` if it keeps sizes, without analysing it, else a `SameSizeNetwork` around it."""
    return module if keeps_size(module, bands) else make_same_size(module, bands)[0]


def trace_same_size(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Return the graph of a network whose output has the size of its input.

    Raises
    ------
    ModelError
        If torch.export cannot trace the network, a layer reads the whole image, or the output has
        another size for all sizes tried.
    """
    program = trace(module, bands)
    if is_same_size(program):
        return program
    # If a layer reads the whole image, the error that names it is more helpful than the one below.
    _list_dependencies(program)
    before, after = shape_of(input_node(program))[2:], shape_of(output_node(program))[2:]
    raise ModelError(
        f"network {type(module).__name__} turns {before} px into {after} px: "
        "pad inside it, so that the output has the size of the input"
    )


def _list_dependencies(
    program: torch.export.ExportedProgram, interior_only: bool = False
) -> _Dependencies:
    axes: dict[fx.Node, tuple[int, int]] = {input_node(program): (2, 3)}
    dependencies: _Dependencies = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in axes for source in node.all_input_nodes):
            operation = Operation(node, arguments_of(node), axes, interior_only)
            dependencies[node] = rule_of(operation)(operation)
            axes[node] = axes_after(operation)
    if output_node(program) not in axes:
        raise ModelError(
            "the output does not depend on the image: return the result of the network"
        )
    return dependencies


def _scales(
    program: torch.export.ExportedProgram, dependencies: _Dependencies
) -> dict[fx.Node, tuple[Fraction, Fraction]]:
    """Return the number of input pixels for each pixel of every array of the network, (y, x)."""
    scales = {input_node(program): (Fraction(1), Fraction(1))}
    for node, inputs in dependencies.items():
        first = inputs[0]
        y, x = scales[first.source]
        scales[node] = y * first.y.scale, x * first.x.scale
    return scales


def _strides(scales: dict[fx.Node, tuple[Fraction, Fraction]]) -> tuple[int, int]:
    """Return the smallest shifts of the input that shift every array by whole pixels, (y, x)."""
    return (
        lcm(*(y.numerator for y, _ in scales.values())),
        lcm(*(x.numerator for _, x in scales.values())),
    )


def _reach_along(
    program: torch.export.ExportedProgram, dependencies: _Dependencies, axis: int, stride: int
) -> tuple[int, int, int]:
    """Return the reach before a pixel, after it, and beyond a whole cell, along y (0) or x (1)."""
    before = after = cell = 0
    for phase in range(stride):
        read = _receptive_field(phase, program, dependencies, axis)
        if read.size:
            low, high = int(read[0]), int(read[-1])
            before, after = max(before, phase - low), max(after, high - phase)
            cell = max(cell, -low, high - (stride - 1))
    return before, after, cell


def _receptive_field(
    pixel: int, program: torch.export.ExportedProgram, dependencies: _Dependencies, axis: int
) -> Indices:
    """Return the input pixels that an output pixel depends on, along y (0) or x (1)."""
    nothing = np.empty(0, np.int64)
    needed = {output_node(program): np.array([pixel], np.int64)}
    for node in reversed(dependencies):
        for dependency in dependencies[node]:
            index_map = dependency.x if axis else dependency.y
            read = index_map.to_input(needed.get(node, nothing))
            needed[dependency.source] = np.union1d(needed.get(dependency.source, nothing), read)
    return needed.get(input_node(program), nothing)
