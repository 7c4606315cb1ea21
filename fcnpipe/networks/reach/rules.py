"""Receptive-field rules: for each torch operator, which input pixels an output pixel reads.

A rule takes an operation of the exported graph and returns its dependencies: for each input that
depends on the image, an index map along y and one along x
(:mod:`fcnpipe.networks.reach.index_maps`)::

    convolutions, poolings          sliding window
    transposed convolutions         sliding window, transposed
    max-unpooling                   as a transposed convolution with the geometry of its pooling
    interpolation, pixel shuffle    neighbouring pixels at another scale
    crop, padding                   shift
    sums, concatenation             the same pixel of each input: the union is read
    activations, BatchNorm          the same pixel

An operator that reads the whole image has no rule: normalisation with the image's own statistics,
global pooling, attention, interpolation with ``align_corners=True``. It is refused with the name of
its layer and a fix. An operator that is not in the table and that torch does not tag as pointwise
is refused too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import fx

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.reach.index_maps import (
    IDENTITY,
    IndexMap,
    convolution_map,
    crop_map,
    interpolation_map,
    transposed_convolution_map,
)
from fcnpipe.networks.reach.operations import (
    RESHAPES,
    Operation,
    arguments_of,
    operator_name,
    shape_of,
)

_FEED_POSITION = "feed the position as an extra input band"
_DECLARE_HALO = (
    "declare its halo (--halo and --stride, of a .pt2), or add a rule for the operator to "
    "fcnpipe/networks/reach/rules.py"
)
_FREEZE_STATISTICS = (
    "freeze its statistics (fcnpipe models freeze), or use BatchNorm in evaluation mode"
)
_MAX_INTERPOLATION_FACTOR = 64
"""A numerator or denominator above this means that the factor was computed from the image's size."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """An input of an operation, and the index maps of the pixels that are read along y and x."""

    source: fx.Node
    y: IndexMap
    x: IndexMap


class CircularPaddingError(ModelError):
    """The network pads with the opposite side of the image, so tiles are exact only away from the border."""


Rule = Callable[[Operation], list[Dependency]]


def rule_of(operation: Operation) -> Rule:
    """Return the rule of an operation. The rule of an unknown operator raises a `ModelError`."""
    if operation.name in _RULES:
        return _RULES[operation.name]
    return _pointwise if _is_tagged_pointwise(operation.node) else _unknown


def has_rule(node: fx.Node) -> bool:
    """Return whether the receptive field of a call is known."""
    return operator_name(node) in _RULES or _is_tagged_pointwise(node)


def _is_tagged_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


# --- the same pixel -------------------------------------------------------------------------------


def _same_pixel(operation: Operation) -> list[Dependency]:
    return [Dependency(source, IDENTITY, IDENTITY) for source in operation.inputs]


def _pointwise(operation: Operation) -> list[Dependency]:
    shape = shape_of(operation.node)
    axes = operation.axes[operation.inputs[0]]
    for source in operation.node.all_input_nodes:
        own = shape_of(source)
        sizes = [own[axis - len(shape)] for axis in axes if len(shape) - axis <= len(own)]
        if source not in operation.axes and any(size > 1 for size in sizes):
            raise operation.refusal("uses a constant that varies over the image", _FEED_POSITION)
        if source in operation.axes and sizes != [shape[axis] for axis in axes]:
            raise operation.refusal(
                "combines arrays of different sizes", "crop or pad them to one size"
            )
    return _same_pixel(operation)


# --- sliding windows ------------------------------------------------------------------------------


def _convolution(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    dilation = operation.pair("dilation", 1)
    kernel = shape_of(operation.arguments["weight"])[-2:]
    padding = operation.arguments.get("padding")
    if padding == "same":
        pads = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    else:
        pads = (0, 0) if padding == "valid" else operation.pair("padding")
    make_map = transposed_convolution_map if "transpose" in operation.name else convolution_map
    return _sliding_window(
        operation, make_map, kernel, operation.pair("stride", 1), (*pads, *dilation)
    )


def _pooling(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    kernel = operation.pair("kernel_size")
    stride = operation.pair("stride") if operation.arguments.get("stride") else kernel
    rest = (*operation.pair("padding"), *operation.pair("dilation", 1))
    return _sliding_window(operation, convolution_map, kernel, stride, rest)


def _max_unpooling(operation: Operation) -> list[Dependency]:
    """Return the windows of the pooling that made the indices: unpooling puts each value into its window."""
    pool = operation.arguments["indices"]
    while pool.all_input_nodes and "max_pool" not in operator_name(pool):
        pool = pool.all_input_nodes[0]
    if "max_pool" not in operator_name(pool):
        raise operation.refusal(
            "unpools with indices that no pooling of the network made", _DECLARE_HALO
        )
    pooling = Operation(pool, arguments_of(pool), operation.axes)
    kernel = pooling.pair("kernel_size")
    stride = pooling.pair("stride") if pooling.arguments.get("stride") else kernel
    rest = (*pooling.pair("padding"), *pooling.pair("dilation", 1))
    return [
        dependency
        for source in operation.inputs
        for dependency in _sliding_window(
            operation, transposed_convolution_map, kernel, stride, rest, source
        )
    ]


def _sliding_window(
    operation: Operation,
    make_map: Callable[[int, int, int, int], IndexMap],
    kernel: Sequence[int],
    stride: Sequence[int],
    rest: Sequence[int],
    source: fx.Node | None = None,
) -> list[Dependency]:
    """Return the dependency of a sliding window; ``rest`` is padding y, x and dilation y, x."""
    y, x = (make_map(kernel[i], stride[i], rest[i], rest[2 + i]) for i in (0, 1))
    return [Dependency(source or operation.image, y, x)]


def _check_last_axes(operation: Operation) -> None:
    rank = len(shape_of(operation.image))
    if operation.axes[operation.image] != (rank - 2, rank - 1):
        raise operation.refusal(
            "slides over other dimensions than height and width",
            "keep height and width as the last two dimensions",
        )


# --- changes of scale -----------------------------------------------------------------------------


def _interpolation(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    if operation.arguments.get("align_corners"):
        raise operation.refusal(
            "interpolates with align_corners=True, whose sampling positions depend on the image's size",
            "use align_corners=False",
        )
    kind = operation.name.removeprefix("_").removeprefix("upsample_").removesuffix("2d")
    before, after = shape_of(operation.image)[-2:], shape_of(operation.node)[-2:]
    ratios = [Fraction(b, a) for b, a in zip(before, after, strict=True)]
    if any(max(r.numerator, r.denominator) > _MAX_INTERPOLATION_FACTOR for r in ratios):
        raise operation.refusal(
            f"resizes {before} px to {after} px, which is not a fixed factor",
            "use an integer scale_factor, and pad inside the network so that the sizes match",
        )
    y, x = (interpolation_map(ratio, kind.rstrip("_")) for ratio in ratios)
    return [Dependency(operation.image, y, x)]


def _pixel_shuffle(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    factor = operation.arguments["upscale_factor"]
    index_map = interpolation_map(Fraction(1, factor), "nearest")
    return [Dependency(operation.image, index_map, index_map)]


def _pixel_unshuffle(operation: Operation) -> list[Dependency]:
    _check_last_axes(operation)
    factor = operation.arguments["downscale_factor"]
    index_map = convolution_map(factor, factor, 0, 1)
    return [Dependency(operation.image, index_map, index_map)]


# --- shifts ---------------------------------------------------------------------------------------


def _crop(operation: Operation) -> list[Dependency]:
    source, arguments = operation.image, operation.arguments
    dimension = arguments["dim"]
    if not operation.is_spatial(dimension, source):
        return _same_pixel(operation)
    start = arguments.get("start") or 0
    start = start if start >= 0 else max(start + shape_of(source)[dimension], 0)
    index_map = crop_map(start, arguments["step"])
    is_y = dimension % len(shape_of(source)) == operation.axes[source][0]
    return [Dependency(source, index_map if is_y else IDENTITY, IDENTITY if is_y else index_map)]


def _padding(operation: Operation) -> list[Dependency]:
    if operation.arguments.get("mode") == "circular" and not operation.interior_only:
        error = operation.refusal(
            "pads with the opposite side of the image", "use zeros, reflect or replicate"
        )
        raise CircularPaddingError(str(error))
    source = operation.image
    pads = operation.arguments.get("pad") or operation.arguments["padding"]
    y, x = (_pad_before(pads, axis - len(shape_of(source))) for axis in operation.axes[source])
    return [Dependency(source, crop_map(-y), crop_map(-x))]


def _pad_before(pads: Sequence[int], axis: int) -> int:
    """Return the padding before a dimension counted from the end; pads come in pairs, last first."""
    at = 2 * (-axis - 1)
    return pads[at] if at < len(pads) else 0


# --- the same pixel, unless the operation runs along height or width ------------------------------


def _reduction(operation: Operation) -> list[Dependency]:
    dims = operation.arguments.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or any(operation.is_spatial(dim, operation.image) for dim in dims):
        raise operation.refusal(
            f"applies {operation.name} over the whole image, as squeeze-excite does",
            "leave it out, or pool over a fixed window",
        )
    return _same_pixel(operation)


def _maximum(operation: Operation) -> list[Dependency]:
    """Return the rule of ``max`` and ``min``: of two arrays, or along a dimension."""
    return _pointwise(operation) if "other" in operation.arguments else _reduction(operation)


def _layer_norm(operation: Operation) -> list[Dependency]:
    rank = len(shape_of(operation.image))
    normalised = range(rank - len(operation.arguments["normalized_shape"]), rank)
    if any(axis in normalised for axis in operation.axes[operation.image]):
        raise operation.refusal(
            "normalises by statistics of the whole image", "use BatchNorm in evaluation mode"
        )
    return _same_pixel(operation)


def _linear(operation: Operation) -> list[Dependency]:
    if operation.is_spatial(-1, operation.image):
        raise operation.refusal("multiplies along the whole image", "use a 1x1 convolution")
    return _same_pixel(operation)


def _channel_split(operation: Operation) -> list[Dependency]:
    """Return the rule of splitting and concatenation, along dimensions other than y and x."""
    if operation.is_spatial(operation.arguments.get("dim") or 0, operation.inputs[0]):
        raise operation.refusal("splits or joins along the image", "do so along the channels")
    if any(source not in operation.axes for source in operation.node.all_input_nodes):
        raise operation.refusal("joins a constant of the image's size", _FEED_POSITION)
    return _same_pixel(operation)


def _stack(operation: Operation) -> list[Dependency]:
    if any(source not in operation.axes for source in operation.node.all_input_nodes):
        raise operation.refusal("stacks a constant of the image's size", _FEED_POSITION)
    return _same_pixel(operation)


def _selection(operation: Operation) -> list[Dependency]:
    if operation.is_spatial(operation.arguments["dim"], operation.image):
        raise operation.refusal("selects rows or columns of the image", "crop it with slices")
    return _same_pixel(operation)


def _repetition(operation: Operation) -> list[Dependency]:
    before, after = shape_of(operation.image), shape_of(operation.node)
    axes = operation.axes[operation.image]
    if len(before) != len(after) or any(before[axis] != after[axis] for axis in axes):
        raise operation.refusal("repeats the image", "interpolate it by an integer scale_factor")
    return _same_pixel(operation)


def _view(operation: Operation) -> list[Dependency]:
    before, after = shape_of(operation.image), shape_of(operation.node)
    last_two = (len(before) - 2, len(before) - 1)
    if before[-2:] != after[-2:] or operation.axes[operation.image] != last_two:
        raise operation.refusal(
            "reshapes the image (as attention does)",
            "keep height and width as the last two dimensions",
        )
    return _same_pixel(operation)


# --- operators that are refused, at least in some modes -------------------------------------------


def _image_statistics(operation: Operation) -> list[Dependency]:
    if operation.arguments.get("use_input_stats") is False:
        return _same_pixel(operation)
    raise operation.refusal("normalises by statistics of the whole image", _FREEZE_STATISTICS)


def _training_mode(operation: Operation) -> list[Dependency]:
    if False in (operation.arguments.get("training"), operation.arguments.get("train")):
        return _same_pixel(operation)
    raise operation.refusal("is in training mode", "call .eval() (and keep running statistics)")


def _global_pooling(operation: Operation) -> list[Dependency]:
    raise operation.refusal(
        "pools over the whole image, as squeeze-excite does",
        "leave it out, or pool over a fixed window",
    )


def _attention(operation: Operation) -> list[Dependency]:
    raise operation.refusal(
        "multiplies each pixel with all others, as attention does", "use convolutions"
    )


def _unknown(operation: Operation) -> list[Dependency]:
    raise operation.refusal(
        f"uses {operation.node.target}, whose reach is not known", _DECLARE_HALO
    )


_OPERATORS: dict[Rule, str] = {
    _convolution: "conv2d conv3d conv_transpose2d conv_transpose3d",
    _pooling: "max_pool2d max_pool2d_with_indices avg_pool2d max_pool3d avg_pool3d",
    _max_unpooling: "max_unpool2d",
    _interpolation: (
        "upsample_nearest2d _upsample_nearest_exact2d upsample_bilinear2d upsample_bicubic2d"
    ),
    _crop: "slice",
    _padding: "pad constant_pad_nd reflection_pad2d replication_pad2d",
    _pixel_shuffle: "pixel_shuffle",
    _pixel_unshuffle: "pixel_unshuffle",
    _reduction: (
        "mean sum amax amin var std softmax log_softmax _softmax _log_softmax linalg_vector_norm "
        "cumsum argmax argmin logsumexp prod sort topk var_mean std_mean"
    ),
    _maximum: "max min",
    _layer_norm: "layer_norm",
    _linear: "linear",
    _channel_split: "cat split split_with_sizes chunk glu",
    _selection: "select unbind index_select",
    _repetition: "expand repeat",
    _stack: "stack",
    _view: " ".join(RESHAPES),
    _same_pixel: (
        "permute transpose unsqueeze squeeze alias detach contiguous getitem "
        # Pointwise operators that torch does not tag as such.
        "hardswish hardtanh log_sigmoid channel_shuffle "
        "zeros_like ones_like full_like _assert_tensor_metadata "
        "prelu _prelu_kernel _to_copy _native_batch_norm_legit_no_training"
    ),
    _image_statistics: "group_norm native_group_norm instance_norm native_layer_norm",
    _training_mode: (
        "batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional native_batch_norm "
        "cudnn_batch_norm dropout native_dropout feature_dropout alpha_dropout bernoulli"
    ),
    _global_pooling: (
        "adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool2d global_avg_pool"
    ),
    _attention: ("matmul bmm mm einsum scaled_dot_product_attention _native_multi_head_attention"),
}
"""Names of torch operators, without overload, by their rule."""
_RULES = {name: rule for rule, names in _OPERATORS.items() for name in names.split()}
