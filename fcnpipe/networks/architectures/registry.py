"""Registry of architectures: the modules of this folder, by name.

Architecture ``unet`` is class ``UNet`` of unet.py.
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
    """Give the architectures: the files of this folder that hold one."""
    names = {info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)])}
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
    module = import_module(f"{__package__}.{name}")
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
            f"network {type(module).__name__} is not in fcnpipe/networks/architectures: give it a file there"
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
