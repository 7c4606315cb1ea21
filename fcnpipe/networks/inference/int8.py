"""A U-Net in int8 arithmetic: twice as fast as bfloat16 on CPUs with VNNI instructions.

::

    activation   uint8    value = scale * (number - zero); ranges are measured once, see measure_ranges
    weight       int8     with a scale for each output channel
    sum          int32    exact, so a pixel does not depend on the shape of its window
    first layer  float32  its input is S/N, whose range is too large for 8 bits

0.1 % of the foreground pixels of the default model differ from those in float32 (0.02 % in bfloat16),
and no score of ``benchmarks/detection_quality.py`` changes by more than its noise (docs/decisions/0011).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box
from fcnpipe.networks.architectures.unet import UNet, bounds_of, double_box, list_decoder_boxes

Ranges = Mapping[str, tuple[float, float]]
"""Minimum and maximum output of each layer, by the layer's name."""
_UINT8_MAX = 255
_INT8_MAX = 127
_TYPICAL_EDGE = 1120
"""Edge of a typical window with its halo, px, for which the kernel's memory layout is chosen."""
_STRIP_ROWS = 64
"""Rows of the first layer that are computed at a time, so that their float32 values stay in the cache."""


def is_available() -> bool:
    """Return whether this CPU has VNNI instructions, which make int8 the fastest, and this torch can use them."""
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", bool)()
    return bool(has_vnni) and hasattr(torch.ops.onednn, "qconv2d_pointwise")


def is_supported(network: nn.Module) -> bool:
    """Return whether a network can run in int8: it is a U-Net of same padding and transposed upsampling."""
    needed = {"padding": "same", "upsampling": "transposed"}
    return isinstance(network, UNet) and needed.items() <= network.arguments.items()


@torch.no_grad()
def measure_ranges(network: UNet, inputs: Iterable[Tensor]) -> dict[str, tuple[float, float]]:
    """Measure the range of each layer's output over typical inputs.

    Parameters
    ----------
    network : UNet
        In float32, before its ReLUs are fused.
    inputs : iterable of Tensor
        (1, bands, h, w) float32 each, scaled as the network's input is, with bright sources among
        them.

    Returns
    -------
    dict
        (minimum, maximum) by the layer's name; each range includes 0.
    """
    ranges: dict[str, tuple[float, float]] = {}
    layers: dict[str, nn.Module] = {f"up.{i}": up_layer for i, up_layer in enumerate(network.up)}
    layers |= {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.ReLU)}

    def record(name: str, values: Tensor) -> None:
        low, high = ranges.get(name, (0.0, 0.0))
        ranges[name] = min(low, float(values.min())), max(high, float(values.max()))

    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: record(name, out))
        for name, layer in layers.items()
    ]
    for x in inputs:
        network(x)
    for hook in hooks:
        hook.remove()
    return ranges


class Int8UNet:
    """A U-Net of same padding and transposed upsampling that runs in int8 on a CPU.

    Parameters
    ----------
    network : Module
        In float32, before its ReLUs are fused.
    ranges : mapping
        Ranges of its layers, as `measure_ranges` returns them.

    Raises
    ------
    ModelError
        If the network is not such a U-Net, or a layer has no range.
    """

    def __init__(self, network: nn.Module, ranges: Ranges) -> None:
        if not isinstance(network, UNet) or not is_supported(network):
            raise ModelError(
                "only a U-Net of same padding and transposed upsampling runs in int8: use bf16 or fp32"
            )
        try:
            self._build(network, {name: _Quantisation(*ends) for name, ends in ranges.items()})
        except KeyError as missing:
            raise ModelError(
                f"layer {missing} has no range for int8: save the model again with ranges, or use bf16 or fp32"
            ) from None

    @torch.no_grad()
    def _build(self, network: UNet, scales: dict[str, _Quantisation]) -> None:
        first, *rest = (layer for pair in network.down for layer in _convolutions(pair))
        names = [f"down.{level}.{i}" for level in range(len(network.down)) for i in (1, 3)]
        self._first = _FirstConvolution(first, scales[names[0]])
        self._down = [
            _Int8Convolution(
                conv.weight * scales[before].scale, _bias(conv), scales[after], padding=1
            )
            for conv, before, after in zip(rest, names, names[1:], strict=False)
        ]
        self._up, self._join, self._zero = [], [], []
        below = names[-1]
        for i, (up_layer, join) in enumerate(zip(network.up, network.join, strict=True)):
            skip, up = scales[f"down.{len(network.up) - 1 - i}.3"], scales[f"up.{i}"]
            inner, outer = scales[f"join.{i}.1"], scales[f"join.{i}.3"]
            both, last = _convolutions(join)
            self._up.append(_make_up_convolution(up_layer, scales[below].scale, up))
            self._join.append(
                (
                    _make_joining_convolution(both, skip, up, inner),
                    _Int8Convolution(last.weight * inner.scale, _bias(last), outer, padding=1),
                )
            )
            self._zero.append(up.zero)
            below = f"join.{i}.3"
        head = network.head
        self._head = _Int8Convolution(head.weight * scales[below].scale, _bias(head))

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the logits of all pixels; see `forward_crop`."""
        return self.forward_crop(x, bounds_of(x))

    def forward_crop(self, x: Tensor, keep: Box) -> Tensor:
        """Compute the logits of some of the pixels.

        Parameters
        ----------
        x : Tensor
            (1, bands, h, w) float32, h and w multiples of the stride.
        keep : Box
            The pixels to return.

        Returns
        -------
        Tensor
            (1, outputs, height of keep, width of keep) float32.
        """
        skips = self._encode(x)
        x = skips.pop()
        have = bounds_of(x)
        boxes = list_decoder_boxes(keep, [bounds_of(skip) for skip in skips])
        for up_layer, join, zero, (source, read) in zip(
            self._up, self._join, self._zero, boxes, strict=True
        ):
            upsampled = up_layer(x[(..., *source.within(have))])
            x = join[1](
                join[0](_interleave(skips.pop(), upsampled, read, double_box(source), zero))
            )
            have = read
        return self._head(x[(..., *keep.within(have))])

    def _encode(self, x: Tensor) -> list[Tensor]:
        x = self._first(x)
        skips = [x := self._down[0](x)]
        for first, second in zip(self._down[1::2], self._down[2::2], strict=True):
            skips.append(x := second(first(_pool(x))))
        return skips


class _Quantisation:
    """Quantisation of a layer's output to uint8. The value 0 is exact, because padding adds it."""

    def __init__(self, low: float, high: float) -> None:
        self.scale = max(high - min(low, 0.0), 1e-6) / _UINT8_MAX
        self.zero = round(-min(low, 0.0) / self.scale)


class _FirstConvolution:
    """The first convolution, in float32, with ReLU and quantisation of its output."""

    def __init__(self, layer: nn.Conv2d, out: _Quantisation) -> None:
        self._shape = ([1, 1], [1, 1], [1, 1], 1)
        weight = (layer.weight / out.scale).detach()
        # The weight is stored in the memory layout of the kernel; otherwise each call would reorder it.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight, *self._shape, [1, weight.shape[1], _TYPICAL_EDGE, _TYPICAL_EDGE]
        )
        self._bias = _bias(layer) / out.scale + 0.5

    def __call__(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        whole = np.empty((height, width, len(self._bias)), np.uint8)
        for y0 in range(0, height, _STRIP_ROWS):
            y1 = min(y0 + _STRIP_ROWS, height)
            read = slice(max(y0 - 1, 0), min(y1 + 1, height))
            values = self._convolve(x[:, :, read]).permute(0, 2, 3, 1)[0].numpy()
            kept = values[y0 - read.start : y1 - read.start]
            np.copyto(whole[y0:y1], kept, casting="unsafe")  # three times faster than torch
        return torch.from_numpy(whole[np.newaxis]).permute(0, 3, 1, 2)

    def _convolve(self, x: Tensor) -> Tensor:
        clamp = ("hardtanh", [0.0, _UINT8_MAX + 0.5], "")
        values: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._weight, self._bias, *self._shape, *clamp
        )
        return values


class _Int8Convolution:
    """A convolution of uint8 values.

    It returns uint8 values, after a ReLU unless ``relu`` is False, or float32 logits if ``out`` is None.
    ``weight`` is multiplied by the scale of the input already. ``zeros`` are the quantised zeros of the
    input channels; 0 if None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        out: _Quantisation | None = None,
        *,
        padding: int = 0,
        zeros: Tensor | None = None,
        relu: bool = True,
    ) -> None:
        self._scale = weight.abs().amax((1, 2, 3)).clamp(min=1e-12) / _INT8_MAX
        rounded = torch.round(weight / self._scale[:, None, None, None])
        if zeros is not None:
            bias = bias - self._scale * (rounded.sum((2, 3)) @ zeros)
        self._shape = ([1, 1], [padding, padding], [1, 1], 1)
        self._weight = torch.ops.onednn.qconv_prepack(
            rounded.to(torch.int8), self._scale, 1.0, 0, *self._shape
        )
        self._weight_zeros, self._bias = torch.zeros(len(weight), dtype=torch.long), bias
        self._out = (out.scale, out.zero, torch.uint8) if out else (1.0, 0, torch.float32)
        self._activation = "relu" if relu and out else "none"

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = (self._weight, self._scale, self._weight_zeros, self._bias)
        activation: tuple[str, list[Any], str] = (self._activation, [], "")
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, 0, *weight, *self._shape, *self._out, *activation
        )
        return result


def _make_up_convolution(layer: nn.Module, scale: float, out: _Quantisation) -> _Int8Convolution:
    """Return a 2x2 transposed convolution as a 1x1 convolution to four times the channels.

    The channels of the four fine pixels of a coarse pixel follow each other; `_interleave` separates them.
    """
    weight: Any = layer.weight
    flat = weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0], 1, 1)
    return _Int8Convolution(flat * scale, _bias(layer).repeat(4), out, relu=False)


def _make_joining_convolution(
    layer: nn.Conv2d, skip: _Quantisation, up: _Quantisation, out: _Quantisation
) -> _Int8Convolution:
    """Return the convolution of the concatenated skip and upsampled channels.

    It has no padding, because its input has a frame of quantised zeros, which differ in the two halves.
    """
    half = layer.weight.shape[1] // 2
    scale, zeros = torch.full((2 * half,), skip.scale), torch.zeros(2 * half)
    scale[half:], zeros[half:] = up.scale, up.zero
    weight = layer.weight * scale[:, None, None]
    return _Int8Convolution(weight, _bias(layer), out, zeros=zeros)


def _bias(layer: nn.Module) -> Tensor:
    bias: Tensor = layer.bias  # type: ignore[assignment]
    return bias


def _convolutions(pair: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in pair.children() if isinstance(layer, nn.Conv2d)]


def _pool(x: Tensor) -> Tensor:
    """Return the maximum of each cell of 2 x 2 pixels, channel by channel."""
    rows = x.permute(0, 2, 3, 1)
    rows = torch.maximum(rows[:, 0::2], rows[:, 1::2])
    return torch.maximum(rows[:, :, 0::2], rows[:, :, 1::2]).permute(0, 3, 1, 2)


def _interleave(skip: Tensor, upsampled: Tensor, read: Box, fine: Box, zero: int) -> Tensor:
    """Concatenate the channels of a box of the skip connection and of the upsampled map, and pad them.

    The padding is a frame of one pixel with the quantised zero of each half. In ``upsampled`` the channels
    of one pixel hold four pixels of the box ``fine``.
    """
    channels = skip.shape[1]
    out = torch.empty((1, 2 * channels, read.shape[0] + 2, read.shape[1] + 2), dtype=torch.uint8,
                      memory_format=torch.channels_last)  # fmt: skip
    low, high, joined = (_view_as_words(part, channels) for part in (skip, upsampled, out))
    corner = (read.y0, read.x0, read.y0 - fine.y0, read.x0 - fine.x0)
    word = joined.dtype.type(int.from_bytes(bytes([zero] * joined.itemsize), "little"))
    _interleave_words(low, high, joined, corner, word, (0,) * low.shape[2])
    return out


def _view_as_words(x: Tensor, channels: int) -> NDArray[Any]:
    """Return a view as (h, w, words), in which a word of up to eight channels is copied at once."""
    size = next(n for n in (8, 4, 2, 1) if channels % n == 0)
    return x[0].permute(1, 2, 0).contiguous().numpy().view(f"u{size}")


@njit(cache=True, nogil=True)
def _interleave_words(skip, upsampled, out, corner, zero, words):  # type: ignore[no-untyped-def]
    """Fill ``out``.

    ``words`` is a tuple with the length of a pixel of ``skip``, so that the compiler knows this length.
    """
    height, width, _ = out.shape
    half = len(words)
    out[0, :, :half] = out[-1, :, :half] = out[:, 0, :half] = out[:, -1, :half] = 0
    out[0, :, half:] = out[-1, :, half:] = out[:, 0, half:] = out[:, -1, half:] = zero
    for y in range(1, height - 1):
        j, v = corner[0] + y - 1, corner[2] + y - 1
        for x in range(1, width - 1):
            i, u = corner[1] + x - 1, corner[3] + x - 1
            start = ((v & 1) * 2 + (u & 1)) * half
            for k in range(half):
                out[y, x, k] = skip[j, i, k]
                out[y, x, half + k] = upsampled[v >> 1, u >> 1, start + k]
