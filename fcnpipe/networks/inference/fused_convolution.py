"""Convolution and ReLU in one pass over memory: the same answer, about a tenth sooner on a CPU.

oneDNN applies a ReLU while the result of a convolution is still in a register; eager torch reads
and writes all of it once more. In bfloat16 the bits are the same, in float32 all but the last
ones of some shapes. ``benchmarks/forward_pass.py`` prints both.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class ConvolutionReLU(nn.Module):
    """A convolution with the ReLU that follows it, for inference on a CPU.

    Parameters
    ----------
    convolution : Conv2d
        With zero padding given in numbers; its weights are shared, not copied.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Give ``relu(convolution(x))``."""
        c = self.convolution
        shape = (c.padding, c.stride, c.dilation, c.groups)
        result: Tensor = _pointwise()(x, c.weight, c.bias, *shape, "relu", [], "")
        return result


def fuse(module: nn.Module) -> nn.Module:
    """Replace each convolution that a ReLU follows in a `Sequential`, in place; gives the module.

    Where this build of torch has no oneDNN, nothing changes.
    """
    if _pointwise() is None or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return module
    for part in [m for m in module.modules() if isinstance(m, nn.Sequential)]:
        for (name, first), (after, second) in pairwise(list(part.named_children())):
            if isinstance(second, nn.ReLU) and _is_plain(first):
                setattr(part, name, ConvolutionReLU(first))  # type: ignore[arg-type]
                setattr(part, after, nn.Identity())
    return module


def _is_plain(layer: nn.Module) -> bool:
    plain = type(layer) is nn.Conv2d
    return plain and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _pointwise() -> Any:
    return getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
