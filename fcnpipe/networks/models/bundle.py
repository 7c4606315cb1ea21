"""Model files of fcnpipe: safetensors weights with a JSON header, never a pickle.

::

    NAME.safetensors
      metadata["fcnpipe"]   JSON of ModelHeader: architecture, bands, outputs, reach, certificate
      tensors               state dict of the architecture's class

The class is found by name in fcnpipe/networks/architectures: architecture ``unet`` is class ``UNet``
of unet.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.architectures.registry import build
from fcnpipe.networks.base import ModelHeader, parse_header
from fcnpipe.networks.models.base import StoredModel

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = ".safetensors"
METADATA_KEY = "fcnpipe"
_SLACK = 8
"""Network that is still built, in multiples of the weights in the file, so that the wrong weight can be named."""


class Bundle(StoredModel):
    """A model in a safetensors file with a header."""

    __slots__ = ()

    def module(self) -> nn.Module:
        """Build the network with its weights, on the CPU, in evaluation mode.

        Raises
        ------
        ModelError
            If the weights do not match the architecture, or the file has changed since its header
            was read.
        """
        from safetensors.torch import load

        module, data = build(self.header), self.path.read_bytes()
        self.check_digest(_digest(data))
        weights = load(data)
        _check_weights(module, weights, self.path)
        module.load_state_dict(weights)
        return module.eval()


def load_bundle(path: Path) -> Bundle:
    """Read the header of a model file, and compare the weights' shapes with the architecture.

    Raises
    ------
    ModelError
        If it is not a safetensors file, has no valid header, or its weights do not match the
        architecture.
    """
    bundle = Bundle(path, read_header(path), _digest(path.read_bytes()))
    _check_shapes(bundle)
    return bundle


def save_model(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], header: ModelHeader
) -> Path:
    """Write a model file, atomically: an existing file of that name is replaced as a whole.

    Parameters
    ----------
    path : str or Path
        The file, whose name ends in ``.safetensors``.
    weights : Module or mapping of str to Tensor
        A network, or its state dict.
    header : ModelHeader
        The header, as `headers.make_header` returns it.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ModelError
        If the suffix is another one, or the weights do not match the header's architecture.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelError(f"model file {path} must end in {SUFFIX}: use {path.stem}{SUFFIX}")
    state = weights if isinstance(weights, Mapping) else weights.state_dict()
    _check_weights(build(header), state, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    scratch = path.with_name(path.name + ".partial")
    scratch.write_bytes(save(tensors, {METADATA_KEY: header.model_dump_json()}))
    os.replace(scratch, path)
    return path


def read_header(path: str | Path) -> ModelHeader:
    """Read the header of a model file, without its weights and without importing torch.

    Raises
    ------
    ModelError
        If the file is not a safetensors file or has no valid header.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model {path} is not a safetensors file ({error}): save it with save_model"
        ) from None
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"model {path} has no fcnpipe header (reach, outputs, scaling): save it with save_model"
        )
    return parse_header(metadata[METADATA_KEY], str(path))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _check_shapes(bundle: Bundle) -> None:
    """Compare the names and shapes of the weights with the architecture, without reading weights.

    The weights in the file are counted first: the header may ask for a network that is too large to build.
    """
    import torch

    from fcnpipe.networks.models.parameter_limit import ParameterLimit, TooManyParameters

    with safe_open(bundle.path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    count, path = sum(map(prod, shapes.values())), bundle.path
    _check_arguments(bundle.header, count, path)
    try:
        with torch.device("meta"), ParameterLimit(_SLACK * count):
            module = build(bundle.header)
    except (TooManyParameters, RuntimeError, MemoryError):  # torch refuses more than 2**63 bytes
        raise ModelError(
            f"model {path} holds {count} weights but architecture {bundle.header.architecture!r} with its "
            "arguments needs more: save it with the arguments it was trained with"
        ) from None
    _compare(_shapes(module.state_dict()), shapes, path)


def _check_arguments(header: ModelHeader, count: int, path: Path) -> None:
    """Raise if a number of layers, channels, ... is larger than the number of weights."""
    for name, value in header.arguments.items():
        if isinstance(value, int | float) and not value <= max(count, 1):
            is_long = isinstance(value, int) and value.bit_length() > 60
            shown = "more than 10**18" if is_long else value
            raise ModelError(
                f"model {path}: {name} = {shown} exceeds the {count} weights of the file: "
                "save it with the arguments it was trained with"
            )


def _check_weights(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    _compare(_shapes(module.state_dict()), _shapes(state), path)


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _compare(
    expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path
) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ModelError(
                f"model {path}: weight {name} is {found.get(name, 'missing')} but its architecture "
                f"has {expected.get(name, 'none')}: save it with the arguments it was trained with"
            )
