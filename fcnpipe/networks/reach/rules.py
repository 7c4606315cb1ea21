"""How each operation of a network looks back: from the pixels it gives to the pixels it reads.

Along one axis, in coordinates without bounds::

    convolution, pooling     o  ->  o s - p + d {0 .. k-1}
    transposed, unpooling    o  ->  all i with  i s - p + d t = o,  0 <= t < k
    nearest, bilinear        o  ->  floor(o r);  floor((o + .5) r - .5) + {0, 1}      r = in / out
    crop, padding            o  ->  o + start;  o - pad
    sums, concatenation      the union

What sees the whole image (normalisation by its statistics, global pooling, attention) is refused by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from fcnpipe.core.errors import ModelError

Indices = NDArray[np.int64]

_POSITIONS = "feed the position as an extra input band"
_DECLARE = "declare its halo (--halo and --stride, of a .pt2), or teach fcnpipe/networks/reach/rules.py the operation"

_FREEZE = "freeze its statistics (fcnpipe models freeze), or use BatchNorm in evaluation mode"
_LARGEST_FACTOR = 64
"""Beyond this a factor of an interpolation comes from the image's size."""


@dataclass(frozen=True, slots=True)
class IndexMap:
    """How an operation looks back along one axis.

    Attributes
    ----------
    scale : Fraction
        Input pixels for each output pixel.
    back : callable
        Sorted output pixels -> sorted input pixels that they read.
    """

    scale: Fraction
    to_input: Callable[[Indices], Indices]


@dataclass(frozen=True, slots=True)
class Dependency:
    """One input of an operation, and how it is read along y and x."""

    source: fx.Node
    y: IndexMap
    x: IndexMap


@dataclass(frozen=True, slots=True)
class Operation:
    """A node of the graph with what its rule needs.

    Attributes
    ----------
    node : Node
        The call.
    arguments : dict
        All arguments by the names of the operator's schema.
    axes : mapping
        For each node that depends on the image, which of its dimensions are y and x.
    inside : bool
        Whether it is enough to be exact away from the image's border.
    """

    node: fx.Node
    arguments: dict[str, Any]
    axes: Mapping[fx.Node, tuple[int, int]]
    interior_only: bool = False

    @property
    def image(self) -> fx.Node:
        """The first argument, which depends on the image."""
        node = next(iter(self.arguments.values()))
        return node if isinstance(node, fx.Node) else next(n for n in self.inputs)

    @property
    def inputs(self) -> list[fx.Node]:
        """All arguments that depend on the image."""
        return [node for node in self.node.all_input_nodes if node in self.axes]

    def pair(self, name: str, default: int = 0) -> tuple[int, int]:
        """Give the (y, x) values of an argument such as ``stride``."""
        value = self.arguments.get(name)
        if value is None or value == []:
            return default, default
        values = [value] * 2 if isinstance(value, int) else list(value)
        return (values[-2], values[-1]) if len(values) > 1 else (values[0], values[0])

    def is_spatial(self, dimension: int, source: fx.Node) -> bool:
        """Whether a dimension of ``source`` is y or x."""
        return dimension % len(shape_of(source)) in self.axes[source]

    def refuse(self, reason: str, mend: str) -> ModelError:
        """Make the error that names where in the network the operation is."""
        return ModelError(f"{_where(self.node)} {reason}, so it cannot be tiled exactly: {mend}")


class CircularPaddingError(ModelError):
    """A network that is exact away from the image's border only: it looks at the other side."""


Rule = Callable[[Operation], list[Dependency]]


# --- steps along one axis -------------------------------------------------------------------------


def _same(pixels: Indices) -> Indices:
    return pixels


IDENTITY = IndexMap(Fraction(1), _same)


def convolution_map(kernel: int, stride: int, padding: int, dilation: int) -> IndexMap:
    """Look back as a convolution or a pooling does."""
    taps = dilation * np.arange(kernel) - padding
    return IndexMap(Fraction(stride), lambda o: np.unique(o[:, np.newaxis] * stride + taps))


def transposed_convolution_map(kernel: int, stride: int, padding: int, dilation: int) -> IndexMap:
    """Look back as a transposed convolution or an unpooling does."""
    taps = padding - dilation * np.arange(kernel)

    def to_input(pixels: Indices) -> Indices:
        sums = pixels[:, np.newaxis] + taps
        return np.unique(sums[sums % stride == 0] // stride)

    return IndexMap(Fraction(1, stride), to_input)


def crop_map(start: int, step: int = 1) -> IndexMap:
    """Look back as a crop does (``start`` > 0), or a padding (< 0)."""
    return IndexMap(Fraction(step), lambda o: o * step + start)


def interpolation_map(ratio: Fraction, kind: str) -> IndexMap:
    """Look back as an interpolation does; ``ratio`` is input pixels for each output pixel."""
    p, q = ratio.numerator, ratio.denominator
    if kind == "nearest":
        return IndexMap(ratio, lambda o: np.unique(o * p // q))
    if kind == "nearest_exact":
        return IndexMap(ratio, lambda o: np.unique((2 * o + 1) * p // (2 * q)))
    taps = np.arange(2) if kind == "bilinear" else np.arange(-1, 3)
    return IndexMap(
        ratio, lambda o: np.unique(((2 * o + 1) * p - q)[:, np.newaxis] // (2 * q) + taps)
    )


# --- rules: operation -> how it looks at its inputs -----------------------------------------------


def _keep(operation: Operation) -> list[Dependency]:
    return [Dependency(source, IDENTITY, IDENTITY) for source in operation.inputs]


def _pointwise(operation: Operation) -> list[Dependency]:
    shape = shape_of(operation.node)
    axes = operation.axes[operation.inputs[0]]
    for source in operation.node.all_input_nodes:
        own = shape_of(source)
        sizes = [own[axis - len(shape)] for axis in axes if len(shape) - axis <= len(own)]
        if source not in operation.axes and any(size > 1 for size in sizes):
            raise operation.refuse("uses a constant that varies over the image", _POSITIONS)
        if source in operation.axes and sizes != [shape[axis] for axis in axes]:
            raise operation.refuse(
                "combines arrays of different sizes", "crop or pad them to one size"
            )
    return _keep(operation)


def _convolution(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    dilation = operation.pair("dilation", 1)
    kernel = shape_of(operation.arguments["weight"])[-2:]
    padding = operation.arguments.get("padding")
    if padding == "same":
        pads = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        pads = (0, 0) if padding == "valid" else operation.pair("padding")
    rule = transposed_convolution_map if "transpose" in _name(operation.node) else convolution_map
    return _windows(operation, rule, kernel, operation.pair("stride", 1), (*pads, *dilation))


def _pooling(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    kernel = operation.pair("kernel_size")
    stride = operation.pair("stride") if operation.arguments.get("stride") else kernel
    rest = (*operation.pair("padding"), *operation.pair("dilation", 1))
    return _windows(operation, convolution_map, kernel, stride, rest)


def _unpooling(operation: Operation) -> list[Dependency]:
    """Look where the pooling that gave the indices put them."""
    pool = operation.arguments["indices"]
    while pool.all_input_nodes and "max_pool" not in _name(pool):
        pool = pool.all_input_nodes[0]
    if "max_pool" not in _name(pool):
        raise operation.refuse("unpools with indices of no pooling", _DECLARE)
    made = Operation(pool, arguments_of(pool), operation.axes)
    kernel = made.pair("kernel_size")
    stride = made.pair("stride") if made.arguments.get("stride") else kernel
    rest = (*made.pair("padding"), *made.pair("dilation", 1))
    return [
        look
        for source in operation.inputs
        for look in _windows(operation, transposed_convolution_map, kernel, stride, rest, source)
    ]


def _windows(
    operation: Operation,
    rule: Callable[[int, int, int, int], IndexMap],
    kernel: Sequence[int],
    stride: Sequence[int],
    rest: Sequence[int],
    source: fx.Node | None = None,
) -> list[Dependency]:
    """Make the look of a sliding window; ``rest`` is padding y, x and dilation y, x."""
    y, x = (rule(kernel[i], stride[i], rest[i], rest[2 + i]) for i in (0, 1))
    return [Dependency(source or operation.image, y, x)]


def _interpolation(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    if operation.arguments.get("align_corners"):
        raise operation.refuse(
            "interpolates with align_corners=True, which stretches the whole image", "use False"
        )
    kind = _name(operation.node).removeprefix("_").removeprefix("upsample_").removesuffix("2d")
    before, after = shape_of(operation.image)[-2:], shape_of(operation.node)[-2:]
    ratios = [Fraction(b, a) for b, a in zip(before, after, strict=True)]
    if any(max(r.numerator, r.denominator) > _LARGEST_FACTOR for r in ratios):
        raise operation.refuse(
            f"stretches {before} px to {after} px, by no simple factor",
            "give a whole scale_factor, and pad inside the network so that it fits",
        )
    y, x = (interpolation_map(ratio, kind.rstrip("_")) for ratio in ratios)
    return [Dependency(operation.image, y, x)]


def _crop(operation: Operation) -> list[Dependency]:
    source, arguments = operation.image, operation.arguments
    if not operation.is_spatial(arguments["dim"], source):
        return _keep(operation)
    length = shape_of(source)[arguments["dim"]]
    start = arguments.get("start") or 0
    return _along(
        operation,
        arguments["dim"],
        crop_map(start if start >= 0 else max(start + length, 0), arguments["step"]),
    )


def _along(operation: Operation, dimension: int, step: IndexMap) -> list[Dependency]:
    source = operation.image
    is_y = dimension % len(shape_of(source)) == operation.axes[source][0]
    return [Dependency(source, step if is_y else IDENTITY, IDENTITY if is_y else step)]


def _padding(operation: Operation) -> list[Dependency]:
    if operation.arguments.get("mode") == "circular" and not operation.interior_only:
        error = operation.refuse(
            "pads with the other side of the image", "use zeros, reflect or replicate"
        )
        raise CircularPaddingError(str(error))
    source = operation.image
    pads = operation.arguments.get("pad") or operation.arguments["padding"]
    y, x = (_pad_before(pads, axis - len(shape_of(source))) for axis in operation.axes[source])
    return [Dependency(source, crop_map(-y), crop_map(-x))]


def _pad_before(pads: Sequence[int], axis: int) -> int:
    """Give the padding before a dimension counted from the end; pads come in pairs, last first."""
    at = 2 * (-axis - 1)
    return pads[at] if at < len(pads) else 0


def _shuffle(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    factor = operation.arguments["upscale_factor"]
    step = interpolation_map(Fraction(1, factor), "nearest")
    return [Dependency(operation.image, step, step)]


def _unshuffle(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    factor = operation.arguments["downscale_factor"]
    step = convolution_map(factor, factor, 0, 1)
    return [Dependency(operation.image, step, step)]


def _reduction(operation: Operation) -> list[Dependency]:
    dims = operation.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or any(operation.is_spatial(dim, operation.image) for dim in dims):
        raise operation.refuse(
            f"takes {_name(operation.node)} over the whole image, as squeeze-excite does",
            "leave it out, or pool over a fixed window",
        )
    return _keep(operation)


def _greatest(operation: Operation) -> list[Dependency]:
    """Take the greater of two arrays, or the greatest along a dimension."""
    return _pointwise(operation) if "other" in operation.arguments else _reduction(operation)


def _layer_norm(operation: Operation) -> list[Dependency]:
    rank = len(shape_of(operation.image))
    normalised = range(rank - len(operation.arguments["normalized_shape"]), rank)
    if any(axis in normalised for axis in operation.axes[operation.image]):
        raise operation.refuse(
            "normalises by statistics of the whole image", "use BatchNorm in evaluation mode"
        )
    return _keep(operation)


def _linear(operation: Operation) -> list[Dependency]:
    if operation.is_spatial(-1, operation.image):
        raise operation.refuse("multiplies along the whole image", "use a 1x1 convolution")
    return _keep(operation)


def _channels(operation: Operation) -> list[Dependency]:
    """Cut, join or select along a dimension that is not y or x."""
    if operation.is_spatial(operation.arguments.get("dim") or 0, operation.inputs[0]):
        raise operation.refuse("cuts or joins along the image", "do so along the channels")
    if any(source not in operation.axes for source in operation.node.all_input_nodes):
        raise operation.refuse("joins a constant of the image's size", _POSITIONS)
    return _keep(operation)


def _stack(operation: Operation) -> list[Dependency]:
    """Lay arrays of one size on each other."""
    if any(source not in operation.axes for source in operation.node.all_input_nodes):
        raise operation.refuse("stacks a constant of the image's size", _POSITIONS)
    return _keep(operation)


def _pick(operation: Operation) -> list[Dependency]:
    """Take some along a dimension that is not y or x."""
    if operation.is_spatial(operation.arguments["dim"], operation.image):
        raise operation.refuse("picks rows or columns of the image", "crop it with slices")
    return _keep(operation)


def _repetition(operation: Operation) -> list[Dependency]:
    """Repeat along other dimensions than y and x."""
    before, after = shape_of(operation.image), shape_of(operation.node)
    axes = operation.axes[operation.image]
    if len(before) != len(after) or any(before[axis] != after[axis] for axis in axes):
        raise operation.refuse("repeats the image", "interpolate it by a whole scale_factor")
    return _keep(operation)


def _view(operation: Operation) -> list[Dependency]:
    before, after = shape_of(operation.image), shape_of(operation.node)
    if before[-2:] != after[-2:] or operation.axes[operation.image] != (
        len(before) - 2,
        len(before) - 1,
    ):
        raise operation.refuse(
            "reshapes the image (as attention does)",
            "keep height and width as the last two dimensions",
        )
    return _keep(operation)


def _statistics(operation: Operation) -> list[Dependency]:
    if operation.arguments.get("use_input_stats") is False:
        return _keep(operation)
    raise operation.refuse("normalises by statistics of the whole image", _FREEZE)


def _training(operation: Operation) -> list[Dependency]:
    if False in (operation.arguments.get("training"), operation.arguments.get("train")):
        return _keep(operation)
    raise operation.refuse("is in training mode", "call .eval() (and keep running statistics)")


def _global_pooling(operation: Operation) -> list[Dependency]:
    raise operation.refuse(
        "pools over the whole image, as squeeze-excite does",
        "leave it out, or pool over a fixed window",
    )


def _attention(operation: Operation) -> list[Dependency]:
    raise operation.refuse(
        "multiplies pixels with all others, as attention does", "use convolutions"
    )


def _unknown(operation: Operation) -> list[Dependency]:
    raise operation.refuse(f"uses {operation.node.target}, whose reach is not known", _DECLARE)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(
        ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "max_pool3d", "avg_pool3d"),
        _pooling,
    ),
    "max_unpool2d": _unpooling,
    **dict.fromkeys(
        (
            "upsample_nearest2d",
            "_upsample_nearest_exact2d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
        ),
        _interpolation,
    ),
    "slice": _crop,
    **dict.fromkeys(("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"), _padding),
    "pixel_shuffle": _shuffle,
    "pixel_unshuffle": _unshuffle,
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "var", "std", "softmax", "log_softmax"), _reduction
    ),
    **dict.fromkeys(("_softmax", "_log_softmax", "linalg_vector_norm", "cumsum"), _reduction),
    **dict.fromkeys(
        ("argmax", "argmin", "logsumexp", "prod", "sort", "topk", "var_mean", "std_mean"),
        _reduction,
    ),
    **dict.fromkeys(("max", "min"), _greatest),
    "layer_norm": _layer_norm,
    "linear": _linear,
    **dict.fromkeys(("cat", "split", "split_with_sizes", "chunk", "glu"), _channels),
    **dict.fromkeys(("select", "unbind", "index_select"), _pick),
    **dict.fromkeys(("expand", "repeat"), _repetition),
    "stack": _stack,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _view),
    **dict.fromkeys(
        (
            "permute",
            "transpose",
            "unsqueeze",
            "squeeze",
            "alias",
            "detach",
            "contiguous",
            "getitem",
        ),
        _keep,
    ),
    # Of each pixel alone, though torch does not tag them as pointwise.
    **dict.fromkeys(("hardswish", "hardtanh", "log_sigmoid", "channel_shuffle"), _keep),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "_assert_tensor_metadata"), _keep),
    **dict.fromkeys(
        ("prelu", "_prelu_kernel", "_to_copy", "_native_batch_norm_legit_no_training"), _keep
    ),
    **dict.fromkeys(
        ("group_norm", "native_group_norm", "instance_norm", "native_layer_norm"), _statistics
    ),
    **dict.fromkeys(
        ("batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"), _training
    ),
    **dict.fromkeys(
        ("native_batch_norm", "cudnn_batch_norm", "dropout", "native_dropout"), _training
    ),
    **dict.fromkeys(("feature_dropout", "alpha_dropout", "bernoulli"), _training),
    **dict.fromkeys(
        ("adaptive_avg_pool2d", "adaptive_max_pool2d", "_adaptive_avg_pool2d", "global_avg_pool"),
        _global_pooling,
    ),
    **dict.fromkeys(
        (
            "matmul",
            "bmm",
            "mm",
            "einsum",
            "scaled_dot_product_attention",
            "_native_multi_head_attention",
        ),
        _attention,
    ),
}


def rule_of(operation: Operation) -> Rule:
    """Give the rule of an operation; pointwise by its tag, unknown if it has none."""
    name = _name(operation.node)
    if name in _RULES:
        return _RULES[name]
    tags = getattr(operation.node.target, "tags", ())
    return _pointwise if torch.Tag.pointwise in tags else _unknown


def has_rule(node: fx.Node) -> bool:
    """Whether `rule_of` knows the operation."""
    tags = getattr(node.target, "tags", ())
    return _name(node) in _RULES or torch.Tag.pointwise in tags


# --- the graph ------------------------------------------------------------------------------------


def axes_after(operation: Operation) -> tuple[int, int]:
    """Give which dimensions of the result are y and x."""
    source = operation.inputs[0]
    y, x = operation.axes[source]
    name, rank = _name(operation.node), len(shape_of(source))
    if name == "permute":
        order = [dim % rank for dim in operation.arguments["dims"]]
        return order.index(y), order.index(x)
    if name == "transpose":
        swap = _swap(operation.arguments["dim0"] % rank, operation.arguments["dim1"] % rank)
        return swap.get(y, y), swap.get(x, x)
    if name in ("view", "reshape", "_unsafe_view"):
        after = len(shape_of(operation.node))
        return after - 2, after - 1
    return _after_rank_change(operation, (y, x), rank)


def _swap(first: int, second: int) -> dict[int, int]:
    return {first: second, second: first}


def _after_rank_change(operation: Operation, axes: tuple[int, int], rank: int) -> tuple[int, int]:
    """Count the dimensions before y and x anew where one was taken out or put in."""
    after = shape_of(operation.node)
    change = len(after) - rank if after else 0
    dim = operation.arguments.get("dim")
    if not change or dim is None:
        return axes
    dims = [d % (rank + max(change, 0)) for d in ([dim] if isinstance(dim, int) else dim)]
    y, x = (axis + (change // abs(change)) * sum(d <= axis for d in dims) for axis in axes)
    return y, x


def _check_last_axes(operation: Operation) -> None:
    rank = len(shape_of(operation.image))
    if operation.axes[operation.image] != (rank - 2, rank - 1):
        raise operation.refuse(
            "slides over other dimensions than height and width", "keep them the last two"
        )


def _name(node: fx.Node) -> str:
    """Give the operator's name without overload: ``conv2d``."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet or node.target, "__name__", node.target))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Give the shape of a node's (first) tensor."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) else value
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Give all arguments by name, with the schema's defaults."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {"self": node.args[0]}
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    merged = {**defaults, **given, **node.kwargs}
    return {a.name: merged.get(a.name) for a in schema.arguments}


def _where(node: fx.Node) -> str:
    """Give the place in the network, such as ``down.0.1 (GroupNorm)``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "network")
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{path or 'the network'} ({kind.rpartition('.')[2]})"
