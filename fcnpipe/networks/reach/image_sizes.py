"""Image sizes that a network accepts, the sizes of its output, and adaptation to the input's size.

Convolutions without padding shrink the image; strided convolutions and poolings subsample it. Along
each axis the sizes follow a rule, which is found by running the network on tensors without data::

    n = step m + c   ->   output_step m + d        U-Net of depth 4 without padding:
                                                   16 m + 12  ->  16 m - 172,  so 572 -> 388

A pooling or a strided convolution drops the pixels at the high side that do not fill a window. The
network accepts such a size, but it does not see all pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
"""Image sizes (y, x) to try, px; multiples of common strides."""
_ODD_SIZES = (*range(64, 129), *range(320, 385))
"""Edges of square images to try for a network that accepts none of `SIZES`, px."""


@dataclass(frozen=True, slots=True)
class SizeRule:
    """Sizes that a network accepts along one axis: ``n = step m + c`` gives ``output_step m + d``.

    Attributes
    ----------
    step, output_step : int
        Difference between consecutive sizes of the input and of the output, px.
    complete : tuple of (int, int)
        (c, d) of the sizes at which the network sees all pixels; 0 <= c < step.
    truncated : tuple of (int, int)
        (c, d) of the sizes that are accepted, but at which pixels at the high side are lost.
    minimum : int
        Smallest of the complete sizes, px.

    Examples
    --------
    >>> print(SizeRule(16, 16, ((12, -172),), minimum=188))
    n = 16 m + 12 gives 16 m - 172, from 188 px
    >>> SizeRule(16, 16, ((12, -172),)).output(572)
    388
    """

    step: int
    output_step: int
    complete: tuple[Size, ...]
    truncated: tuple[Size, ...] = ()
    minimum: int = 1

    def __str__(self) -> str:
        differences = {d - c for c, d in self.complete}
        if len(self.complete) == self.step == self.output_step and len(differences) == 1:
            rules = [f"any n gives n{_signed(differences.pop())}"]
        elif self.step == 1:
            rules = [f"any n gives {self.output_step} n{_signed(d)}" for _, d in self.complete]
        else:
            rules = [
                f"n = {_times(self.step)}{_signed(c)} gives {_times(self.output_step)}{_signed(d)}"
                for c, d in self.complete
            ]
        shown = "; ".join(rules[:2]) + (f"; and {len(rules) - 2} more" if len(rules) > 2 else "")
        return shown + (f", from {self.minimum} px" if self.minimum > 1 else "")

    def output(self, size: int) -> int | None:
        """Return the output size for an input size, px; None if the network does not accept it."""
        m, c = divmod(size, self.step)
        d = dict(self.complete + self.truncated).get(c)
        return None if d is None or size < self.minimum else self.output_step * m + d


def _times(factor: int) -> str:
    return "m" if factor == 1 else f"{factor} m"


def _signed(number: int) -> str:
    return "" if not number else f" {'+' if number > 0 else '-'} {abs(number)}"


def minimum_size(module: nn.Module) -> Size:
    """Return the smallest image (y, x) that a network accepts, px, as far as it states one, else (1, 1)."""
    smallest: Size = getattr(module, "minimum_size", (1, 1))
    return smallest


def list_sizes(module: nn.Module) -> tuple[Size, ...]:
    """Return the image sizes (y, x) to try, px: those of `SIZES` that a network does not state to be too small.

    If all are too small, return multiples of them.
    """
    least = minimum_size(module)
    factor = max(1, *(-(-n // edge) for n, edge in zip(least, SIZES[-1], strict=True)))
    sizes = [(factor * y, factor * x) for y, x in SIZES]
    return tuple(size for size in sizes if size[0] >= least[0] and size[1] >= least[1])


def choose_size(module: nn.Module, bands: int) -> Size | None:
    """Return an image size (y, x) that a network accepts, px, preferably one that its output keeps.

    Return None if the network accepts none of the sizes tried.
    """
    sizes = list_sizes(module)
    accepted = [(size, run) for size in sizes if (run := _dry_run(module, bands, size))]
    if accepted:
        return next((size for size, run in accepted if run.size == size), accepted[0][0])
    if find_data_dependence(module, bands, sizes[0]):
        return None
    return next(((n, n) for n in _ODD_SIZES if _dry_run(module, bands, (n, n))), None)


def keeps_size(module: nn.Module, bands: int) -> bool:
    """Return whether the output has the size of the input, for one of `SIZES`.

    Notes
    -----
    The network runs on zeros. A run without data would load torch's compiler first, which takes
    1.1 s in each process.
    """
    return any(_output_size(module, bands, size) == size for size in list_sizes(module))


def _output_size(module: nn.Module, bands: int, size: Size) -> Size | None:
    """Return the size of the output; None if the network does not accept the size of the input."""
    try:
        with torch.inference_mode():
            output = module(torch.zeros(1, bands, *size, dtype=dtype_of(module)))
    except Exception:  # any error of the user's forward
        return None
    is_image = isinstance(output, Tensor) and output.ndim == 4
    return (output.shape[2], output.shape[3]) if is_image else None


def find_data_dependence(module: nn.Module, bands: int, size: Size) -> str:
    """Return the layer whose control flow depends on pixel values; empty if there is none."""
    entered: list[str] = []
    hooks = []
    for path, layer in module.named_modules():
        place = f"{path or 'the network'} ({type(layer).__name__})"
        hooks += [
            layer.register_forward_pre_hook(lambda *_, place=place: entered.append(place)),
            layer.register_forward_hook(lambda *_: (entered.pop(), None)[1]),
        ]
    try:
        with _without_torch_log(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            module(torch.empty(1, bands, *size, dtype=dtype_of(module)))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return entered[-1]
    except Exception:  # another fault, which torch.export reports
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    return ""


# --- size rules -----------------------------------------------------------------------------------


def measure_sizes(
    module: nn.Module, bands: int, steps: Size, scales: tuple[Fraction, Fraction]
) -> tuple[SizeRule, SizeRule]:
    """Return the size rules of the height and of the width.

    Parameters
    ----------
    module : Module
        The network, in evaluation mode.
    bands : int
        Channels of the input.
    steps : tuple of int
        Strides of the network (y, x), px.
    scales : tuple of Fraction
        Input pixels for each output pixel (y, x).

    Raises
    ------
    ModelError
        If the network accepts none of the sizes tried.
    """
    size = choose_size(module, bands)
    if size is None:
        raise ModelError(
            f"network {type(module).__name__} accepts no image of {list_sizes(module)[0]} to "
            f"{list_sizes(module)[-1]} px: "
            "write it for any image size"
        )

    def along(axis: int) -> Callable[[int], _DryRun | None]:
        return lambda n: _dry_run(module, bands, (n, size[1]) if axis == 0 else (size[0], n))

    y, x = (_measure_axis(along(i), i, size[i], steps[i], scales[i]) for i in (0, 1))
    return y, x


def _measure_axis(
    run: Callable[[int], _DryRun | None], axis: int, size: int, step: int, scale: Fraction
) -> SizeRule:
    output_step = int(step / scale)
    whole: list[Size] = []
    lossy: list[Size] = []
    for n in range(size, size + step):
        found = run(n)
        if found is not None:
            (lossy if found.unread[axis] else whole).append(
                (n % step, found.size[axis] - output_step * (n // step))
            )
    # If the output grows by the same number of pixels as the image, only padding was dropped.
    differences = {d - c for c, d in whole} if output_step == step else set()
    harmless = [(c, d) for c, d in lossy if not whole or d - c in differences]
    complete = tuple(sorted(whole + harmless))
    truncated = tuple(sorted(set(lossy) - set(harmless)))
    candidates = (n for n in range(1, size + 1) if n % step in dict(complete))
    rule = SizeRule(step, output_step, complete, truncated)
    return replace(rule, minimum=_find_minimum(run, axis, rule, candidates))


def _find_minimum(
    run: Callable[[int], _DryRun | None], axis: int, rule: SizeRule, sizes: Iterable[int]
) -> int:
    """Return the smallest of the sizes whose output has the size of the rule and at least one pixel."""
    for n in sizes:
        expected = rule.output(n) or 0
        found = run(n) if expected > 0 else None
        if found is not None and found.size[axis] == expected:
            return n
    return rule.step


# --- runs without data ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _DryRun:
    """Result of a run without data: size of the output, and whether pixels stayed unread (y, x)."""

    size: Size
    unread: tuple[bool, bool]


def _dry_run(module: nn.Module, bands: int, size: Size) -> _DryRun | None:
    """Run a network on a tensor without data; None if it does not accept the size."""
    watch = _UnreadPixels()
    try:
        with (
            _without_torch_log(),
            FakeTensorMode(allow_non_fake_inputs=True),
            watch,
            torch.no_grad(),
        ):
            output = module(torch.empty(1, bands, *size, dtype=dtype_of(module)))
    except Exception:  # any error of the user's forward at a size that it does not accept
        return None
    if not isinstance(output, Tensor) or output.ndim != 4 or min(output.shape) < 1:
        return None
    return _DryRun((output.shape[2], output.shape[3]), (watch.unread[0], watch.unread[1]))


@contextmanager
def _without_torch_log() -> Iterator[None]:
    """Suppress the tracebacks that torch logs for sizes that a network does not accept."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def dtype_of(module: nn.Module) -> torch.dtype:
    """Return the type of the weights of a network; float32 if it has none."""
    return next((p.dtype for p in module.parameters()), torch.float32)


class _UnreadPixels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record whether poolings and strided convolutions leave pixels at the high side unread."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.unread = [False, False]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("convolution", "max_pool2d_with_indices", "avg_pool2d"):
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
            self._record(given, result[0] if isinstance(result, tuple) else result)
        return result

    def _record(self, given: dict[str, Any], output: Tensor) -> None:
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
                self.unread[axis] = True


# --- adaptation -----------------------------------------------------------------------------------


class SameSizeNetwork(nn.Module):
    """Adapter for a network whose output differs in size from its input.

    If the network shrinks the image, zeros are put around the image; if it enlarges the image, the
    output is cropped. In both cases an output pixel stays centred on the input pixels that it
    describes. A coarser output is repeated up to the scale of the input; a finer output is folded into
    channels (pixel unshuffle).

    Parameters
    ----------
    module : Module
        The network.
    rules : tuple of SizeRule
        The sizes that the network accepts along y and x.

    Raises
    ------
    ModelError
        If the network scales height and width differently.
    """

    def __init__(self, module: nn.Module, rules: tuple[SizeRule, SizeRule]) -> None:
        super().__init__()
        scales = {Fraction(rule.step, rule.output_step) for rule in rules}
        if len(scales) > 1:
            raise ModelError(
                f"network {type(module).__name__} scales height and width differently: "
                "bring its output to the size of its input"
            )
        self.module, self.scale = module, scales.pop()
        self.minimum_size = minimum_size(module)
        (self.top, self.bottom, self.first_row), (self.left, self.right, self.first_column) = (
            _paddings(rule) for rule in rules
        )

    def forward(self, x: Tensor) -> Tensor:
        """Compute the (n, outputs, h, w) output for (n, bands, h, w)."""
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
    """Return the numbers of zeros before and after an image, and the first output row that is kept.

    They hold for images whose size is a multiple of ``rule.step``.
    """
    scale = Fraction(rule.step, rule.output_step)
    c, d = rule.complete[0]
    shrink = c - scale * d
    more = max(0, -(d // rule.output_step))
    low = max(0, int(shrink) // 2)
    return low, rule.step * more + c - low, max(0, int(-shrink / scale) // 2)
