"""Which image sizes a network takes, what size it gives for each, and how it is brought to one size.

A network without padding shrinks the image, an encoder subsamples it::

    n = step m + c   ->   gain m + d          U-Net of depth 4, valid: 16 m + 12 -> 16 m - 172

The sizes are found by running the network on tensors without data. Poolings and strided
convolutions drop the pixels that fill no window; a size fits if none does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fcnpipe.core.errors import ModelError

Size = tuple[int, int]

SIZES: tuple[Size, ...] = ((96, 192), (144, 288), (320, 640))
"""Image sizes to try, px: multiples of the usual strides."""
_ODD_SIZES = (*range(64, 129), *range(320, 385))
"""Squares to try for a network that takes none of these."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Sizes along one axis: ``n = step m + c`` gives ``gain m + d``.

    Attributes
    ----------
    step, gain : int
        Input pixels, and output pixels, between one such size and the next.
    fits : tuple of (int, int)
        (c, d) of the sizes of which the network sees all pixels; 0 <= c < step.
    drops : tuple of (int, int)
        (c, d) of those that run but lose pixels at the high side.
    least : int
        Smallest size that fits, px.

    Examples
    --------
    >>> print(SizeRule(16, 16, ((12, -172),), least=188))
    n = 16 m + 12 gives 16 m - 172, from 188 px
    >>> SizeRule(16, 16, ((12, -172),)).output(572)
    388
    """

    step: int
    gain: int
    fits: tuple[Size, ...]
    drops: tuple[Size, ...] = ()
    least: int = 1

    def __str__(self) -> str:
        shrinks = {d - c for c, d in self.fits}
        if len(self.fits) == self.step == self.gain and len(shrinks) == 1:
            rules = [f"any n gives n{_signed(shrinks.pop())}"]
        elif self.step == 1:
            rules = [f"any n gives {self.gain} n{_signed(d)}" for _, d in self.fits]
        else:
            rules = [
                f"n = {_times(self.step)}{_signed(c)} gives {_times(self.gain)}{_signed(d)}"
                for c, d in self.fits
            ]
        shown = "; ".join(rules[:2]) + (f"; and {len(rules) - 2} more" if len(rules) > 2 else "")
        return shown + (f", from {self.least} px" if self.least > 1 else "")

    def output(self, size: int) -> int | None:
        """Give the size of the output for an input size; None if the network does not take it."""
        m, c = divmod(size, self.step)
        d = dict(self.fits + self.drops).get(c)
        return None if d is None or size < self.least else self.gain * m + d


def _times(factor: int) -> str:
    return "m" if factor == 1 else f"{factor} m"


def _signed(number: int) -> str:
    return "" if not number else f" {'+' if number > 0 else '-'} {abs(number)}"


def choose_size(module: nn.Module, bands: int) -> Size | None:
    """Give an image size that a network takes, px, one that it keeps if there is one.

    None if it takes none of those tried.
    """
    taken = [(size, found) for size in SIZES if (found := _run(module, bands, size))]
    if taken:
        return next((size for size, found in taken if found.size == size), taken[0][0])
    if find_data_dependence(module, bands, SIZES[0]):
        return None
    return next(((n, n) for n in _ODD_SIZES if _run(module, bands, (n, n))), None)


def keeps_size(module: nn.Module, bands: int) -> bool:
    """Whether the output has the size of the input, for one of the sizes tried first.

    Notes
    -----
    Tried on zeros: a run without data would first load torch's compiler, 1.1 s in each process.
    """
    return any(_output_size(module, bands, size) == size for size in SIZES)


def _output_size(module: nn.Module, bands: int, size: Size) -> Size | None:
    """Give the size of the output; None if the network does not take this one."""
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, bands, *size, dtype=_dtype(module)))
    except Exception:  # whatever the user's forward raises
        return None
    fits = isinstance(output, Tensor) and output.ndim == 4
    return (output.shape[2], output.shape[3]) if fits else None


def find_data_dependence(module: nn.Module, bands: int, size: Size) -> str:
    """Name the layer whose flow depends on the values of the pixels; empty if there is none."""
    entered: list[str] = []
    hooks = []
    for path, layer in module.named_modules():
        place = f"{path or 'the network'} ({type(layer).__name__})"
        hooks += [
            layer.register_forward_pre_hook(lambda *_, place=place: entered.append(place)),
            layer.register_forward_hook(lambda *_: (entered.pop(), None)[1]),
        ]
    try:
        with _silent(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            module(torch.empty(1, bands, *size, dtype=_dtype(module)))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return entered[-1]
    except Exception:  # something else is wrong, which torch.export has told
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


def measure_sizes(
    module: nn.Module, bands: int, steps: Size, scales: tuple[Fraction, Fraction]
) -> tuple[SizeRule, SizeRule]:
    """Give the rule for the height and for the width.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode.
    bands : int
        Channels of the input.
    steps : tuple of int
        Its strides (y, x).
    scales : tuple of Fraction
        Input pixels for each output pixel (y, x).

    Raises
    ------
    ModelError
        If it takes no size.
    """
    size = choose_size(module, bands)
    if size is None:
        raise ModelError(
            f"network {type(module).__name__} takes no image of {SIZES[0]} to {SIZES[-1]} px: "
            "write it for any size"
        )

    def along(axis: int) -> Callable[[int], _Run | None]:
        return lambda n: _run(module, bands, (n, size[1]) if axis == 0 else (size[0], n))

    y, x = (_measure_axis(along(i), i, size[i], steps[i], scales[i]) for i in (0, 1))
    return y, x


def _measure_axis(
    run: Callable[[int], _Run | None], axis: int, size: int, step: int, scale: Fraction
) -> SizeRule:
    gain = int(step / scale)
    whole: list[Size] = []
    lossy: list[Size] = []
    for n in range(size, size + step):
        found = run(n)
        if found is not None:
            (lossy if found.dropped[axis] else whole).append(
                (n % step, found.size[axis] - gain * (n // step))
            )
    # What is dropped was padding if the output grows with the image nevertheless.
    shrinks = {d - c for c, d in whole} if gain == step else set()
    harmless = [(c, d) for c, d in lossy if not whole or d - c in shrinks]
    fits = tuple(sorted(whole + harmless))
    drops = tuple(sorted(set(lossy) - set(harmless)))
    wanted = (n for n in range(1, size + 1) if n % step in dict(fits))
    rule = SizeRule(step, gain, fits, drops)
    return SizeRule(step, gain, fits, drops, _least(run, axis, rule, wanted))


def _least(
    run: Callable[[int], _Run | None], axis: int, rule: SizeRule, sizes: Iterable[int]
) -> int:
    """Give the smallest size that runs and gives what the rule says, at least one pixel."""
    for n in sizes:
        expected = rule.output(n) or 0
        found = run(n) if expected > 0 else None
        if found is not None and found.size[axis] == expected:
            return n
    return rule.step


@dataclass(frozen=True, slots=True)
class _Run:
    """What a run without data shows: size of the output, and whether pixels were dropped (y, x)."""

    size: Size
    dropped: tuple[bool, bool]


def _run(module: nn.Module, bands: int, size: Size) -> _Run | None:
    """Run a network on a tensor without data; None if it does not take this size."""
    watch = _UnreadPixels()
    try:
        with _silent(), FakeTensorMode(allow_non_fake_inputs=True), watch, torch.no_grad():
            output = module(torch.empty(1, bands, *size, dtype=_dtype(module)))
    except Exception:  # whatever the user's forward raises at a size that it does not take
        return None
    if not isinstance(output, Tensor) or output.ndim != 4 or min(output.shape) < 1:
        return None
    return _Run((output.shape[2], output.shape[3]), (watch.dropped[0], watch.dropped[1]))


@contextmanager
def _silent() -> Iterator[None]:
    """Keep torch's tracebacks of sizes that a network does not take from the user."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters()), torch.float32)


class _UnreadPixels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes whether poolings and strided convolutions leave pixels at the high side unread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dropped = [False, False]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "max_pool2d_with_indices", "avg_pool2d"):
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            self._note(given, result[0] if isinstance(result, tuple) else result)
        return result

    def _note(self, given: dict[str, Any], output: Tensor) -> None:
        image = given.get("input", given.get("self"))
        if given.get("transposed") or not isinstance(image, Tensor) or image.ndim != 4:
            return
        kernel = given["weight"].shape[2:] if "weight" in given else given["kernel_size"]
        stride = given.get("stride") or kernel
        rest = (given.get("padding") or [0], given.get("dilation") or [1])
        for axis in (0, 1):
            k, s, p, d = (values[axis % len(values)] for values in (kernel, stride, *rest))
            last = (output.shape[2 + axis] - 1) * s - p + d * (k - 1)
            if image.shape[2 + axis] - 1 - last > max(0, s - d * (k - 1) - 1):
                self.dropped[axis] = True


class SameSizeNetwork(nn.Module):
    """A network of another output size, brought to the size of its input.

    Where it shrinks the image, zeros are put around it; where it grows it, the output is cropped, so
    that what it says of a pixel lies on the pixel. A smaller scale is repeated up to the input's, a
    finer one is folded into channels.

    Parameters
    ----------
    module : Module
        The network.
    rules : tuple of SizeRule
        Its sizes along y and x.

    Raises
    ------
    ModelError
        If it scales height and width differently.
    """

    def __init__(self, module: nn.Module, rules: tuple[SizeRule, SizeRule]) -> None:
        super().__init__()
        scales = {Fraction(rule.step, rule.gain) for rule in rules}
        if len(scales) > 1:
            raise ModelError(
                f"network {type(module).__name__} scales height and width differently: "
                "bring its output to the size of its input"
            )
        self.module, self.scale = module, scales.pop()
        (self.top, self.bottom, self.first_row), (self.left, self.right, self.first_column) = (
            _paddings(rule) for rule in rules
        )

    def forward(self, x: Tensor) -> Tensor:
        """Give (n, outputs, h, w) of (n, bands, h, w)."""
        pads = (self.left, self.right, self.top, self.bottom)
        y: Tensor = self.module(functional.pad(x, pads) if any(pads) else x)
        height, width = (int(length / self.scale) for length in x.shape[2:])
        rows = slice(self.first_row, self.first_row + height)
        y = y[:, :, rows, self.first_column : self.first_column + width]
        if self.scale.denominator > 1:
            y = functional.pixel_unshuffle(y, self.scale.denominator)
        if self.scale.numerator > 1:
            y = functional.interpolate(y, scale_factor=float(self.scale.numerator))
        return y


def _paddings(rule: SizeRule) -> tuple[int, int, int]:
    """Give zeros before and after an image of whole steps, and the first row of the output kept."""
    scale = Fraction(rule.step, rule.gain)
    c, d = rule.fits[0]
    shrink = c - scale * d
    more = max(0, -(d // rule.gain))
    low = max(0, int(shrink) // 2)
    return low, rule.step * more + c - low, max(0, int(-shrink / scale) // 2)
