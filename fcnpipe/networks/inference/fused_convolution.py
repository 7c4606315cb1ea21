"""Convolution with a fused ReLU: the same results up to the last bits, about 10 % faster on a CPU.

oneDNN applies the ReLU while the result of a convolution is still in a register; eager torch reads
and writes the whole array once more. In bfloat16 the bits are the same; in float32 the last bits of
some shapes differ. ``benchmarks/forward_pass.py`` prints both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class ConvolutionReLU(nn.Module):
    """A convolution and the ReLU after it in one operation, for inference on a CPU.

    Parameters
    ----------
    convolution : Conv2d
        It pads with zeros, and its padding is numeric, not "same". Its weights are shared, not copied.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``relu(convolution(x))``."""
        c = self.convolution
        shape = (c.padding, c.stride, c.dilation, c.groups)
        result: Tensor = _fused_operator()(x, c.weight, c.bias, *shape, "relu", [], "")
        return result


def fuse(module: nn.Module) -> nn.Module:
    """Fuse each convolution with the ReLU after it in a `Sequential`, in place; return the module.

    Nothing changes if this build of torch has no oneDNN.
    """
    if _fused_operator() is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return module
    for part in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        for (name, first), (after, second) in pairwise(list(part.named_children())):
            if isinstance(second, nn.ReLU) and _is_fusable(first):
                setattr(part, name, ConvolutionReLU(first))  # type: ignore[arg-type]
                setattr(part, after, nn.Identity())
    return module


def _is_fusable(layer: nn.Module) -> bool:
    is_convolution = type(layer) is nn.Conv2d
    return is_convolution and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _fused_operator() -> Any:
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
