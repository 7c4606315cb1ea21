"""The graph of a network, as torch.export gives it."""

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
from fcnpipe.networks.reach.image_sizes import SIZES, choose_size, find_data_dependence
from fcnpipe.networks.reach.rules import has_rule, shape_of


def trace(module: nn.Module, bands: int = 1) -> torch.export.ExportedProgram:
    """Give the graph of a network, at a size that its output keeps if there is one.

    Raises
    ------
    ModelError
        If torch.export fails.
    """
    return _export(module, bands, choose_size(module, bands) or SIZES[0])


def is_same_size(program: torch.export.ExportedProgram) -> bool:
    """Whether the output of a traced network has the size of its input."""
    return shape_of(input_node(program))[2:] == shape_of(output_node(program))[2:]


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
    height, width = shape_of(input_node(program))[-2:]
    return -(-peak // (height * width))


def input_node(program: torch.export.ExportedProgram) -> fx.Node:
    """Return the node of the image."""
    return _find(program, program.graph_signature.user_inputs[0])


def output_node(program: torch.export.ExportedProgram) -> fx.Node:
    """Return the node of the network's output."""
    return _find(program, program.graph_signature.user_outputs[0])


def _find(program: torch.export.ExportedProgram, name: Any) -> fx.Node:
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


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
        if place := find_data_dependence(module, bands, size):
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
    if not single or len(shape_of(output_node(program))) != 4:
        raise ModelError(
            f"network {type(module).__name__} must take one (n, bands, h, w) tensor and give one "
            "(n, outputs, h, w): wrap it so that it does"
        )


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else [value]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
