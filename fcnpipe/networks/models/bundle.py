"""A model is one file: safetensors weights with a JSON header. Never a pickle.

::

    NAME.safetensors
      metadata["fcnpipe"]   JSON of ModelHeader: architecture, bands, outputs, reach, certificate
      tensors               the state dict of the architecture's class

The class is looked up in the folder fcnpipe/networks: architecture ``unet`` is class ``UNet`` of
unet.py.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fcnpipe.core.errors import ModelError
from fcnpipe.networks import architectures
from fcnpipe.networks.base import Model, ModelHeader, parse_header
from fcnpipe.networks.matched_filter import MatchedFilter
from fcnpipe.networks.models.stored import StoredModel

if TYPE_CHECKING:
    from torch import Tensor, nn


WEIGHTS = Path(__file__).parents[1] / "weights"
"""Folder of the bundled models."""
METADATA_KEY = "fcnpipe"
SUFFIX = ".safetensors"
_PICKLES = frozenset({".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".t7", ".joblib"})
_NOT_ARCHITECTURES = frozenset({"layers"})


class Bundle(StoredModel):
    """A model in a file of weights with a header."""

    __slots__ = ()

    def module(self) -> nn.Module:
        """Build the network with its weights, on the CPU, in evaluation mode.

        Raises
        ------
        ModelError
            If the weights are not those of the architecture, or of another file than the header.
        """
        from safetensors.torch import load

        module, data = build(self.header), self.path.read_bytes()
        self.check_digest(_hash(data))
        weights = load(data)
        _check_weights(module, weights, self.path)
        module.load_state_dict(weights)
        return module.eval()


def load_model(
    name_or_path: str | Path, fwhm: float = 3.0, declared: tuple[int, int] | None = None
) -> Model:
    """Give a model by name or file.

    Parameters
    ----------
    name_or_path : str or Path
        ``none`` for a matched filter, a bundled name (see `list_models`), a model file, or an
        exported program (``.pt2``; see `exported.load_exported`).
    fwhm : float
        Width of the matched filter, px; nothing else reads it.
    declared : (int, int), optional
        Halo and stride of an exported program, px, on the user's word: nothing is proven.

    Raises
    ------
    ModelError
        If it is unknown, a pickle, no safetensors file, has no header, or its weights do not fit; of
        a program, if it cannot be tiled; if a halo is declared of something that is proven.
    """
    if Path(name_or_path).suffix == ".pt2":
        from fcnpipe.networks.models.exported import load_exported

        return load_exported(Path(name_or_path), declared)
    if declared is not None:
        raise ModelError(
            f"halo={declared[0]} is declared, but the halo of model {name_or_path} is known: leave it "
            "out, it is for exported programs (.pt2) that cannot be analysed"
        )
    if str(name_or_path) == "none":
        return MatchedFilter(fwhm)
    path = _locate(str(name_or_path))
    bundle = Bundle(path, read_header(path), _digest(path))
    _check_shapes(bundle)
    return bundle


def list_models() -> tuple[str, ...]:
    """Give the names that `load_model` knows without a path."""
    return (*sorted(path.stem for path in WEIGHTS.glob(f"*{SUFFIX}")), "none")


def list_architectures() -> tuple[str, ...]:
    """Give the architectures: the files of this folder that hold one."""
    names = {info.name for info in pkgutil.iter_modules(architectures.__path__)}
    return tuple(sorted(names - _NOT_ARCHITECTURES))


def architecture(name: str) -> type[nn.Module]:
    """Give the class of an architecture.

    Raises
    ------
    ModelError
        If the folder has none of this name.
    """
    if name not in list_architectures():
        raise ModelError(
            f"architecture {name!r} is not one of {', '.join(list_architectures())}: update fcnpipe"
        )
    module = import_module(f"{architectures.__name__}.{name}")
    wanted = name.replace("_", "")
    found: type[nn.Module] = next(
        value for key, value in vars(module).items() if key.lower() == wanted
    )
    return found


def architecture_name(module: nn.Module) -> str:
    """Give the name under which `architecture` finds the module's class.

    Raises
    ------
    ModelError
        If the class is not in the folder.
    """
    name = type(module).__module__.rpartition(".")[2]
    if name not in list_architectures() or architecture(name) is not type(module):
        raise ModelError(
            f"network {type(module).__name__} is not in fcnpipe/networks: give it a file there"
        )
    return name


def build(header: ModelHeader) -> nn.Module:
    """Make the network of a header, with fresh weights.

    Raises
    ------
    ModelError
        If the architecture is unknown or does not take the arguments.
    """
    try:
        return architecture(header.architecture)(**header.arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"architecture {header.architecture!r} refuses its arguments: {error}"
        ) from None


def save_model(
    path: str | Path, weights: nn.Module | Mapping[str, Tensor], header: ModelHeader
) -> Path:
    """Write a model file; another file of that name is replaced at once, never half-way.

    Parameters
    ----------
    path : str or Path
        Ends in ``.safetensors``.
    weights : Module or mapping of str to Tensor
        A network, or its state dict.
    header : ModelHeader
        What to say of it; `certificate.describe` makes one.

    Raises
    ------
    ModelError
        If the suffix is another one or the weights are not those of the header's architecture.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != SUFFIX:
        raise ModelError(f"model file {path} must end in {SUFFIX}")
    state = weights if isinstance(weights, Mapping) else weights.state_dict()
    _check_weights(build(header), state, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    scratch = path.with_name(path.name + ".partial")
    scratch.write_bytes(save(tensors, {METADATA_KEY: header.model_dump_json()}))
    os.replace(scratch, path)
    return path


def read_header(path: str | Path) -> ModelHeader:
    """Read only the header of a model file; torch is not imported.

    Raises
    ------
    ModelError
        If the file is no safetensors file or has no valid header.
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


def _locate(name: str) -> Path:
    path = Path(name)
    if path.suffix in _PICKLES:
        raise ModelError(
            f"model {name} is a pickle, which can run any code: save its weights with save_model"
        )
    if path.suffix == ".onnx":
        raise ModelError(
            f"model {name} is ONNX, which is not read here: convert it to .pt2 (load it into torch, "
            "torch.export.export with dynamic height and width, torch.export.save)"
        )
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise ModelError(f"model {name} does not exist: check the path")
        return path
    bundled = WEIGHTS / f"{name}{SUFFIX}"
    if path.name == name and bundled.is_file():
        return bundled
    raise ModelError(
        f"model {name!r} is neither a {SUFFIX} file nor one of {', '.join(list_models())}: "
        "choose one of these, or give the path of a file"
    )


def _digest(path: Path) -> str:
    return _hash(path.read_bytes())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _check_shapes(bundle: Bundle) -> None:
    """Compare names and shapes with the architecture, without reading the weights."""
    import torch

    with torch.device("meta"):
        module = build(bundle.header)
    with safe_open(bundle.path, framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    _compare(_shapes(module.state_dict()), shapes, bundle.path)


def _check_weights(module: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    _compare(_shapes(module.state_dict()), _shapes(state), path)


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _compare(
    wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]], path: Path
) -> None:
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise ModelError(
                f"model {path}: weight {name} is {given.get(name, 'missing')} but its architecture "
                f"has {wanted.get(name, 'none')}: save it with the arguments it was trained with"
            )
