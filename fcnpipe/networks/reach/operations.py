"""Operations of an exported graph: name, arguments, shapes, and which dimensions are y and x.

An exported program (``torch.export``) is a graph of calls of torch operators. Reach analysis needs
four facts about each call: which operator it is, its arguments by name, which of its inputs depend on
the image, and which of their dimensions are height and width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fcnpipe.core.errors import ModelError

RESHAPES = ("view", "reshape", "_unsafe_view")
"""Operators that change the shape of an array and keep the order of its values."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A call of a torch operator in an exported graph.

    Attributes
    ----------
    node : Node
        The call.
    arguments : dict
        All arguments, by their names in the operator's schema.
    axes : mapping
        (y, x): which dimensions are height and width, for each node that depends on the image.
    interior_only : bool
        Whether tiles need to be exact only where the image's border is beyond the reach.
    """

    node: fx.Node
    arguments: dict[str, Any]
    axes: Mapping[fx.Node, tuple[int, int]]
    interior_only: bool = False

    @property
    def name(self) -> str:
        """Name of the operator without its overload, such as ``conv2d``."""
        return operator_name(self.node)

    @property
    def image(self) -> fx.Node:
        """The first argument if it is a node, else the first argument that depends on the image."""
        node = next(iter(self.arguments.values()))
        return node if isinstance(node, fx.Node) else next(n for n in self.inputs)

    @property
    def inputs(self) -> list[fx.Node]:
        """All arguments that depend on the image."""
        return [node for node in self.node.all_input_nodes if node in self.axes]

    def pair(self, name: str, default: int = 0) -> tuple[int, int]:
        """Return the (y, x) values of an argument such as ``stride``."""
        value = self.arguments.get(name)
        if value is None or value == []:
            return default, default
        values = [value] * 2 if isinstance(value, int) else list(value)
        return (values[-2], values[-1]) if len(values) > 1 else (values[0], values[0])

    def is_spatial(self, dimension: int, source: fx.Node) -> bool:
        """Return whether a dimension of ``source`` is height or width."""
        return dimension % len(shape_of(source)) in self.axes[source]

    def refusal(self, reason: str, fix: str) -> ModelError:
        """Return an error that names the layer of the operation, the reason and a fix."""
        return ModelError(f"{_layer(self.node)} {reason}, so it cannot be tiled exactly: {fix}")


def operator_name(node: fx.Node) -> str:
    """Return the name of a node's operator without its overload, such as ``conv2d``."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's tensor, or of the first if it has several; () if it has none."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) else value
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return all arguments of a call by name, in the order of the schema and with its defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {"self": node.args[0]}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    merged = {**defaults, **given, **node.kwargs}
    return {a.name: merged.get(a.name) for a in schema.arguments}


def axes_after(operation: Operation) -> tuple[int, int]:
    """Return which dimensions of the result are height and width."""
    source = operation.inputs[0]
    y, x = operation.axes[source]
    rank = len(shape_of(source))
    if operation.name == "permute":
        order = [dim % rank for dim in operation.arguments["dims"]]
        return order.index(y), order.index(x)
    if operation.name == "transpose":
        first, second = (operation.arguments[name] % rank for name in ("dim0", "dim1"))
        swap = {first: second, second: first}
        return swap.get(y, y), swap.get(x, x)
    if operation.name in RESHAPES:
        after = len(shape_of(operation.node))
        return after - 2, after - 1
    return _axes_after_rank_change(operation, (y, x), rank)


def _axes_after_rank_change(
    operation: Operation, axes: tuple[int, int], rank: int
) -> tuple[int, int]:
    """Return which dimensions are height and width after others were removed or inserted."""
    after = shape_of(operation.node)
    change = len(after) - rank if after else 0
    dim = operation.arguments.get("dim")
    if not change or dim is None:
        return axes
    dims = [d % (rank + max(change, 0)) for d in ([dim] if isinstance(dim, int) else dim)]
    y, x = (axis + (change // abs(change)) * sum(d <= axis for d in dims) for axis in axes)
    return y, x


def _layer(node: fx.Node) -> str:
    """Return the path and the class of the layer of a call, such as ``down.0.1 (GroupNorm)``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "network")
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'the network'} ({kind.rpartition('.')[2]})"
