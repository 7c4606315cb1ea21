"""Registry of architectures, which finds the class of an architecture by the name of its module.

Each module of this folder, except this one and construction.py, holds one architecture: ``unet`` is
class ``UNet`` of unet.py, and ``bulge_disk`` is class ``BulgeDisk`` of bulge_disk.py. A new
architecture is one new module.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import ModelHeader

if TYPE_CHECKING:
    from torch import nn

_NOT_ARCHITECTURES = frozenset({"construction", "registry"})


def list_architectures() -> tuple[str, ...]:
    """Return the names of all architectures."""
    names = {info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return tuple(sorted(names - _NOT_ARCHITECTURES))


def architecture(name: str) -> type[nn.Module]:
    """Return the class of an architecture.

    Raises
    ------
    ModelError
        If there is no architecture of this name, or its module has no class of that name.
    """
    if name not in list_architectures():
        raise ModelError(
            f"architecture {name!r} is not one of {', '.join(list_architectures())}: "
            "choose one of these, or update fcnpipe"
        )
    module = import_module(f"{__package__}.{name}")
    class_name = name.replace("_", "")
    classes = [value for key, value in vars(module).items() if key.lower() == class_name]
    if not classes:
        raise ModelError(
            f"{module.__file__} has no class {class_name!r} (in any capitals): name it after the module"
        )
    found: type[nn.Module] = classes[0]
    return found


def architecture_name(module: nn.Module) -> str:
    """Return the name under which `architecture` finds the class of a network.

    Raises
    ------
    ModelError
        If its class is not one of the architectures.
    """
    name = type(module).__module__.rpartition(".")[2]
    if name not in list_architectures() or architecture(name) is not type(module):
        raise ModelError(
            f"network {type(module).__name__} is not in fcnpipe/networks/architectures: add a module for it there"
        )
    return name


def build(header: ModelHeader) -> nn.Module:
    """Build the network of a header, with initial weights.

    Raises
    ------
    ModelError
        If the architecture is unknown or refuses the arguments.
    """
    try:
        return architecture(header.architecture)(**header.arguments)
    except (TypeError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"architecture {header.architecture!r} refuses its arguments: {error}"
        ) from None
