"""How far a network looks: read off its graph, for any network that slides over the image.

The graph of the network (``torch.export``) is walked backwards from the pixels of one output cell,
along each axis on its own, in coordinates without bounds: at each operation the set of pixels that is
wanted becomes the set of pixels that it reads (:mod:`fcnpipe.networks.reach.rules`).

The pixels of a cell of ``stride`` outputs have different reaches, so all of them are followed, and
sets rather than intervals are kept, so that gaps of dilated and transposed kernels are exact.
"""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from fractions import Fraction
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import Reach
from fcnpipe.networks.reach.rules import (
    Indices,
    Look,
    Operation,
    arguments_of,
    axes_after,
    has_rule,
    rule_of,
    shape_of,
)
from fcnpipe.networks.reach.sizes import (
    SIZES,
    Fitted,
    SizeRule,
    choose_size,
    find_choice,
    keeps_size,
    measure_sizes,
)

__all__ = [
    "Reach",
    "activation_bytes",
    "analyse",
    "fit",
    "is_same_size",
    "keep_size",
    "reach_of",
    "trace",
    "trace_any",
]


def analyse(module: nn.Module, bands: int = 1, inside: bool = False) -> Reach:
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
    program = trace_any(module, bands)
    if not is_same_size(program):
        program = trace(fit(module, bands, inside)[0], bands)
    return reach_of(program, inside)


def fit(
    module: nn.Module, bands: int = 1, inside: bool = False
) -> tuple[nn.Module, tuple[SizeRule, SizeRule]]:
    """Give a network whose output has the size of the input, and the sizes of the one given (y, x).

    That is the network itself if it keeps sizes, else `Fitted`.

    Raises
    ------
    ModelError
        As `analyse` does.
    """
    program = trace_any(module, bands)
    looks = _follow(program, inside)
    scales = _scales(program, looks)
    rules = measure_sizes(module, bands, _strides(scales), scales[_output(program)])
    return module if is_same_size(program) else Fitted(module, rules), rules


def keep_size(module: nn.Module, bands: int = 1) -> nn.Module:
    """Give a network whose output has the size of the input, as `fit`; at once if it is so already."""
    return module if keeps_size(module, bands) else fit(module, bands)[0]


def reach_of(program: torch.export.ExportedProgram, inside: bool = False) -> Reach:
    """Give the reach that a traced network has; see `analyse`."""
    looks = _follow(program, inside)
    stride = _strides(_scales(program, looks))
    top, bottom, rows = _extent(program, looks, 0, stride[0])
    left, right, columns = _extent(program, looks, 1, stride[1])
    return Reach(top, bottom, left, right, *stride, cell=max(rows, columns))


def activation_bytes(program: torch.export.ExportedProgram) -> int:
    """Give the peak memory of a forward pass for each pixel looked at, bytes, weights not counted.

    The arrays alive at the same time are added up, each until its last use; float32.
    """
    last_use = {node: user for user in program.graph.nodes for node in user.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    peak = 0
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            alive[node] = _bytes(node)
        peak = max(peak, sum(alive.values()))
        alive = {held: size for held, size in alive.items() if last_use.get(held) is not node}
    height, width = shape_of(_input(program))[-2:]
    return -(-peak // (height * width))


def trace(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Give the graph of a network at the first size whose output has the size of the input.

    Raises
    ------
    ModelError
        If torch.export fails, for instance because the flow depends on the pixels, or the output
        never has the size of the input.
    """
    program = trace_any(module, bands)
    if is_same_size(program):
        return program
    _follow(program)
    before, after = shape_of(_input(program))[2:], shape_of(_output(program))[2:]
    raise ModelError(
        f"network {type(module).__name__} turns {before} px into {after} px: "
        "pad inside it, so that sizes stay"
    )


def trace_any(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Give the graph of a network, at a size that its output keeps if there is one.

    Raises
    ------
    ModelError
        If torch.export fails.
    """
    return _export(module, bands, choose_size(module, bands) or SIZES[0])


def is_same_size(program: torch.export.ExportedProgram) -> bool:
    """Whether the output of a traced network has the size of its input."""
    return shape_of(_input(program))[2:] == shape_of(_output(program))[2:]


def _export(module: nn.Module, bands: int, size: tuple[int, int]) -> torch.export.ExportedProgram:
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    example = (torch.zeros(1, bands, *size, dtype=dtype),)
    # Only when followed by itself does a program from a file name its layers.
    network = getattr(module, "exported_graph", module)
    try:
        with _quiet(), torch.no_grad():
            program: torch.export.ExportedProgram = torch.export.export(
                network, example, strict=False
            )
            if not all(map(_is_plain, program.graph.nodes)):
                program = program.run_decompositions({})
    except Exception as error:  # whatever the user's forward raises, or export says of it
        if place := find_choice(module, bands, size):
            raise ModelError(
                f"{place} chooses by the values of the pixels, so it cannot be tiled exactly: "
                "choose for each pixel, with torch.where"
            ) from None
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"network {type(module).__name__} cannot be followed, torch.export says '{first}': "
            "write it without choices that depend on the pixels, for any size"
        ) from None
    _check_signature(module, program)
    return program


def _is_plain(node: fx.Node) -> bool:
    """Whether a call has a rule, and writes into no array that is used again.

    Else the graph is broken up and made functional, which takes ten times as long as tracing it. An
    in-place ReLU does not matter.
    """
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return has_rule(node)
    written = node.args[0]
    return (
        torch.Tag.pointwise in getattr(node.target, "tags", ())
        and isinstance(written, fx.Node)
        and len(written.users) == 1
        and not _is_view(written)
    )


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(a.alias_info is not None for a in schema.arguments)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export's warnings about itself, and its essays on failures, from the user."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check_signature(module: nn.Module, program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    single = len(signature.user_outputs) == 1 and len(signature.user_inputs) == 1
    if not single or len(shape_of(_output(program))) != 4:
        raise ModelError(
            f"network {type(module).__name__} must take one (n, bands, h, w) tensor and give one "
            "(n, outputs, h, w): wrap it so that it does"
        )


def _follow(
    program: torch.export.ExportedProgram, inside: bool = False
) -> dict[fx.Node, list[Look]]:
    """Give, for each node that depends on the image, how it looks at its inputs."""
    axes: dict[fx.Node, tuple[int, int]] = {_input(program): (2, 3)}
    looks: dict[fx.Node, list[Look]] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and any(source in axes for source in node.all_input_nodes):
            operation = Operation(node, arguments_of(node), axes, inside)
            looks[node] = rule_of(operation)(operation)
            axes[node] = axes_after(operation)
    if _output(program) not in axes:
        raise ModelError(
            "the output does not depend on the image; return the result of the network"
        )
    return looks


def _scales(
    program: torch.export.ExportedProgram, looks: dict[fx.Node, list[Look]]
) -> dict[fx.Node, tuple[Fraction, Fraction]]:
    """Give the input pixels for each pixel of every array of the network (y, x)."""
    scales = {_input(program): (Fraction(1), Fraction(1))}
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
    program: torch.export.ExportedProgram, looks: dict[fx.Node, list[Look]], axis: int, stride: int
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
    pixel: int, program: torch.export.ExportedProgram, looks: dict[fx.Node, list[Look]], axis: int
) -> Indices:
    """Give the input pixels that an output pixel depends on, along one axis."""
    nothing = np.empty(0, np.int64)
    wanted = {_output(program): np.array([pixel], np.int64)}
    for node in reversed(looks):
        for look in looks[node]:
            step = look.x if axis else look.y
            read = step.back(wanted.get(node, nothing))
            wanted[look.source] = np.union1d(wanted.get(look.source, nothing), read)
    return wanted.get(_input(program), nothing)


def _input(program: torch.export.ExportedProgram) -> fx.Node:
    return _find(program, program.graph_signature.user_inputs[0])


def _output(program: torch.export.ExportedProgram) -> fx.Node:
    return _find(program, program.graph_signature.user_outputs[0])


def _find(program: torch.export.ExportedProgram, name: Any) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
