"""Export of a network to a graph of torch operators; size, memory, input and output of the graph."""

from __future__ import annotations

import io
import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import fx, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.reach.image_sizes import (
    choose_size,
    dtype_of,
    find_data_dependence,
    list_sizes,
)
from fcnpipe.networks.reach.operations import shape_of
from fcnpipe.networks.reach.rules import has_rule


def trace(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Return the graph of a network, traced at an image size that its output keeps if possible.

    Raises
    ------
    ModelError
        If torch.export cannot trace the network, for instance because its control flow depends on pixel
        values, or if the network does not map one image to one image.
    """
    size = choose_size(module, bands) or list_sizes(module)[0]
    program = _export(module, bands, size)
    _check_signature(module, program)
    return program


def is_same_size(program: torch.export.ExportedProgram) -> bool:
    """Return whether the output of a traced network has the height and width of its input."""
    return shape_of(input_node(program))[2:] == shape_of(output_node(program))[2:]


def activation_bytes(program: torch.export.ExportedProgram) -> int:
    """Return the peak memory of the activations of a forward pass, bytes for each input pixel.

    An array is counted from the call that makes it until its last use, in the precision of the
    program (float32). Weights are not counted.
    """
    last_use = {node: user for user in program.graph.nodes for node in user.all_input_nodes}
    alive: dict[fx.Node, int] = {}
    peak = 0
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem:
            alive[node] = _size_bytes(node)
        peak = max(peak, sum(alive.values()))
        alive = {held: size for held, size in alive.items() if last_use.get(held) is not node}
    height, width = shape_of(input_node(program))[-2:]
    return -(-peak // (height * width))


def input_node(program: torch.export.ExportedProgram) -> fx.Node:
    """Return the node of the network's input, the image."""
    return _find(program, program.graph_signature.user_inputs[0])


def output_node(program: torch.export.ExportedProgram) -> fx.Node:
    """Return the node of the network's output."""
    return _find(program, program.graph_signature.user_outputs[0])


def _find(program: torch.export.ExportedProgram, name: Any) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


def _size_bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))


# --- torch.export ---------------------------------------------------------------------------------


def _export(module: nn.Module, bands: int, size: tuple[int, int]) -> torch.export.ExportedProgram:
    example = (torch.zeros(1, bands, *size, dtype=dtype_of(module)),)
    # The graph of a program that was read from a file names its layers only if that graph is traced
    # itself, without the `ExportedNetwork` around it.
    network = getattr(module, "exported_graph", module)
    try:
        with _without_torch_messages(), torch.no_grad():
            program: torch.export.ExportedProgram = torch.export.export(
                network, example, strict=False
            )
            if not all(map(_needs_no_decomposition, program.graph.nodes)):
                program = program.run_decompositions({})
    except Exception as error:  # the user's forward and torch.export can raise any type
        if layer := find_data_dependence(module, bands, size):
            raise ModelError(
                f"{layer} branches on the values of pixels, so it cannot be tiled exactly: "
                "choose for each pixel on its own, with torch.where"
            ) from None
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"network {type(module).__name__} cannot be traced, torch.export reports '{first}': "
            "write it without control flow that depends on pixels, for any image size"
        ) from None
    return program


def _needs_no_decomposition(node: fx.Node) -> bool:
    """Return whether a call has a rule and overwrites no array that is read again.

    A graph with other calls is decomposed and made functional, which takes ten times as long as tracing
    it. An in-place ReLU does not need this.
    """
    if node.op != "call_function":
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return has_rule(node)
    overwritten = node.args[0]
    return (
        torch.Tag.pointwise in getattr(node.target, "tags", ())
        and isinstance(overwritten, fx.Node)
        and len(overwritten.users) == 1
        and not _is_view(overwritten)
    )


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(a.alias_info is not None for a in schema.arguments)


@contextmanager
def _without_torch_messages() -> Iterator[None]:
    """Suppress the warnings, log records and reports that torch.export writes."""
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
    if not single or len(shape_of(output_node(program))) != 4:
        raise ModelError(
            f"network {type(module).__name__} must take one (n, bands, h, w) tensor and return one "
            "(n, outputs, h, w) tensor: wrap it so that it does"
        )
