"""Predictor that runs a torch network on windows of S/N, and returns probability and elevation maps.

Equal windows have equal bits. Most of the time is spent in the convolutions, so it depends on their
arithmetic: float32, bfloat16 where the hardware has it, or int8
(:mod:`fcnpipe.networks.inference.int8`). In each arithmetic, eager mode with channels last is as fast,
within the noise, as inductor and OpenVINO, and faster than TorchScript with fused convolutions;
``benchmarks/forward_pass.py`` prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from math import copysign, log, sqrt

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnpipe.core.errors import ModelError, SpecError
from fcnpipe.core.geometry import Box
from fcnpipe.networks.base import Maps, ModelHeader, Output, Scaling, check_image_size
from fcnpipe.networks.inference import int8
from fcnpipe.networks.inference.fused_convolution import fuse

_INPUT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}
"""Data type of the input, by the arithmetic of the network."""


def choose_device(device: str) -> str:
    """Return the device that ``device`` selects on this machine, cpu or cuda.

    Raises
    ------
    SpecError
        If it is unknown, or is ``cuda`` on a machine without CUDA.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"device={device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device='cuda' but no CUDA device is visible: use device cpu or auto")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def choose_precision(precision: str, device: str, header: ModelHeader) -> str:
    """Return the arithmetic that ``precision`` selects on this machine; auto selects the fastest.

    Raises
    ------
    SpecError
        If the precision or the device is unknown, or the machine does not have it.
    ModelError
        If int8 is wanted and the model was saved without the ranges of its layers.
    """
    if precision not in ("auto", *_INPUT_DTYPES):
        raise SpecError(f"precision={precision!r}: choose auto, fp32, bf16 or int8")
    chosen = choose_device(device)
    if precision == "int8":
        _check_int8(chosen, header)
    if precision != "auto":
        return precision
    if header.has_image_outputs:
        return "fp32"
    if chosen == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if header.ranges and int8.is_available():
        return "int8"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _check_int8(device: str, header: ModelHeader) -> None:
    if device != "cpu" or not int8.is_available():
        raise SpecError(
            "precision='int8' needs a CPU with int8 instructions (VNNI): use auto, bf16 or fp32"
        )
    if not header.ranges:
        raise ModelError(
            f"model {header.name!r} was saved without the ranges of its layers, which int8 needs: "
            "use auto, bf16 or fp32"
        )


def _cpu_has_bf16() -> bool:
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, test, bool)() for test in tests)


class TorchPredictor:
    """A network on a device, in one arithmetic.

    Parameters
    ----------
    module : Module
        Maps (1, channels, h, w) to logits, (1, output, h, w).
    header : ModelHeader
        Scaling, outputs and their roles.
    device : {"cpu", "cuda"}
        Device that the network runs on.
    precision : {"auto", "fp32", "bf16", "int8"}
        Arithmetic of the network. The activations of the outputs and the maps are float32 in any case.
    threads : int
        Number of CPU threads of torch. It is set at each call, because torch stores it separately for
        each calling thread.

    Raises
    ------
    SpecError, ModelError
        If the precision is unknown or not available; see `choose_precision`.
    """

    def __init__(
        self,
        module: nn.Module,
        header: ModelHeader,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int = 1,
    ) -> None:
        precision = choose_precision(precision, device, header)
        self.header, self.device, self.precision, self.threads = header, device, precision, threads
        if device == "cuda":
            _make_deterministic()
        self.module = _prepare(module.eval().requires_grad_(False), header, device, precision)

    def __call__(self, snr: NDArray[np.float32], keep: Box | None = None) -> Maps:
        """Predict the maps of a window.

        Parameters
        ----------
        snr : ndarray
            (channels, h, w) float32 S/N without NaN: the bands, then the extra channels of the
            header; h and w multiples of the stride.
        keep : Box, optional
            The part of the window to return, in its pixels. The whole window if None.

        Returns
        -------
        Maps
            Equal windows have equal bits on one kind of device with one number of threads.

        Raises
        ------
        ModelError
            If the window has another number of channels, or its size is not a multiple of the stride.
        """
        return _make_maps(self._predict(snr, keep), self.header)

    def outputs(self, snr: NDArray[np.float32], keep: Box | None = None) -> NDArray[np.float32]:
        """Predict the outputs of the network, (output, h, w) float32, with the parameters of `__call__`.

        The activation of each output has been applied. Images have none by default.
        """
        return np.ascontiguousarray(self._predict(snr, keep).numpy())

    def _predict(self, snr: NDArray[np.float32], keep: Box | None) -> Tensor:
        _check_window(snr.shape, self.header)
        if self.device == "cpu" and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            logits = self._logits(self._input(snr), keep or Box(0, 0, *snr.shape[1:]))
            # In memory the channels are last. With the axes in that order the array is contiguous,
            # which makes the activation five times faster.
            outputs = activate(logits[0].permute(1, 2, 0).float(), self.header)
            return outputs.permute(2, 0, 1).cpu()

    def _logits(self, window: Tensor, keep: Box) -> Tensor:
        forward_crop = getattr(self.module, "forward_crop", None)
        if forward_crop is not None and keep.shape != window.shape[2:]:
            part: Tensor = forward_crop(window, keep)
            return part
        whole: Tensor = self.module(window)
        return whole[(..., *keep.slices)]

    def _input(self, snr: NDArray[np.float32]) -> Tensor:
        window = torch.from_numpy(self._scale_bands(snr)[np.newaxis])
        return window.to(
            self.device, _INPUT_DTYPES[self.precision], memory_format=torch.channels_last
        )

    def _scale_bands(self, snr: NDArray[np.float32]) -> NDArray[np.float32]:
        bands, scaling = len(snr) - len(self.header.extra), self.header.scaling
        if bands == len(snr):
            return scale_input(snr, scaling)
        return np.concatenate([scale_input(snr[:bands], scaling), snr[bands:]])


def _prepare(
    module: nn.Module, header: ModelHeader, device: str, precision: str
) -> Callable[[Tensor], Tensor]:
    if precision == "int8":
        return int8.Int8UNet(module, header.ranges)
    moved = module.to(device, _INPUT_DTYPES[precision])
    wide = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return fuse(wide) if device == "cpu" else wide


def scale_input(snr: NDArray[np.float32], scaling: Scaling) -> NDArray[np.float32]:
    """Return S/N scaled for a network: ``asinh(snr / softening)``, float32 of the same shape.

    With linear scaling the values are returned unchanged, because they were scaled when they were read,
    instead of being converted to S/N.

    Notes
    -----
    numpy.arcsinh is used where it is compiled for vectors of 512 bits (1,400 Mpix/s on a Zen 4
    core). Elsewhere a compiled loop is used, three times faster than numpy.arcsinh and torch.asinh
    (120 against 37 Mpix/s on a Zen 3 core). Its error is at most 1 unit in the last place for values
    from 1e-9 to the largest float32, and below 1e-16 for smaller ones.
    """
    if scaling.kind == "linear":
        return np.asarray(snr, np.float32)
    if _arcsinh_has_avx512():
        return np.asarray(np.arcsinh(snr * np.float32(1 / scaling.softening)), np.float32)
    out = np.empty(snr.shape, np.float32)
    _asinh(np.ascontiguousarray(snr).ravel(), 1.0 / scaling.softening, out.ravel())
    return out


@cache
def _arcsinh_has_avx512() -> bool:
    loops = np.lib.introspect.opt_func_info(func_name="^arcsinh$", signature="float32")
    targets = [loop["current"] for kind in loops.values() for loop in kind.values()]
    return any("AVX512" in name or "X86_V4" in name for name in targets)


@numba.njit(cache=True, nogil=True)
def _asinh(values, factor, out):  # type: ignore[no-untyped-def]  # pragma: no cover
    for i in range(values.size):
        value = values[i] * factor
        size = abs(value)
        out[i] = copysign(log(size + sqrt(size * size + 1.0)), value)


def activate(logits: Tensor, header: ModelHeader) -> Tensor:
    """Apply the activation of each output to logits (h, w, output), float32.

    Raises
    ------
    ModelError
        If the number of channels is not that of the header.
    """
    if logits.shape[-1] != len(header.outputs):
        raise ModelError(
            f"model {header.name!r} returns {logits.shape[-1]} channels but its header names "
            f"{len(header.outputs)}: name them all"
        )
    if all(output.activation == "sigmoid" for output in header.outputs):
        return torch.sigmoid(logits)
    outputs = logits.clone()
    for kind, function in _ACTIVATIONS.items():
        group = [i for i, output in enumerate(header.outputs) if _has_activation(output, kind)]
        if group:
            outputs[..., group] = function(logits[..., group])
    return outputs


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": partial(torch.softmax, dim=-1),
    "linear": partial(torch.clamp, min=0, max=1),
}
"""Function of each activation, applied to all channels that name it; linear images have none."""


def _has_activation(output: Output, kind: str) -> bool:
    return output.activation == kind and not (kind == "linear" and output.is_image)


def _check_window(shape: tuple[int, ...], header: ModelHeader) -> None:
    if shape[0] != header.channels:
        extra = f" and {', '.join(header.extra)}" if header.extra else ""
        raise ModelError(
            f"model {header.name!r} takes {header.bands} band(s){extra}, the window has {shape[0]} "
            "channel(s): pass one for each of them"
        )
    if shape[1] % header.reach.stride_y or shape[2] % header.reach.stride_x:
        raise ModelError(
            f"a window of {shape[1]} x {shape[2]} px is not a multiple of stride {header.stride} of "
            f"model {header.name!r}: pad the image at the high side"
        )
    check_image_size(header, (shape[1], shape[2]))


def _make_deterministic() -> None:
    """Restrict cuDNN to kernels that return the same bits each time, in full float32.

    The settings are not restored, because they belong to the process and several threads may predict
    at the same time.
    """
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False


def _make_maps(outputs: Tensor, header: ModelHeader) -> Maps:
    channel = {output.name: i for i, output in enumerate(header.outputs)}
    probability = np.stack([outputs[i].numpy() for i in header.class_channels])
    elevation = np.zeros(outputs.shape[1:], np.float32)
    for name, share in header.elevation.items():
        weight = np.float32(share.weight / (1 - share.floor))
        _add_share(elevation, outputs[channel[name]].numpy(), np.float32(share.floor), weight)
    return Maps(probability, np.clip(elevation, 0, 1, out=elevation))


@numba.njit(cache=True, nogil=True)
def _add_share(elevation, output, floor, weight):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the weighted part of an output above its floor, in one pass over the strided array ``output``."""
    for y in range(elevation.shape[0]):
        for x in range(elevation.shape[1]):
            elevation[y, x] += weight * max(output[y, x] - floor, np.float32(0))
