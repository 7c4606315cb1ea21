"""The opened inputs of a run, image and model, and the identity of its result (the run key)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fcnpipe import networks
from fcnpipe.core.records import OutputMap
from fcnpipe.core.spec import RunSpec
from fcnpipe.core.version import __version__
from fcnpipe.images.masked_image import MaskedImage
from fcnpipe.pipeline.precision import resolve_precision
from fcnpipe.stores import RunIdentity

Command = Literal["segment", "predict"]
"""``segment`` finds sources; ``predict`` stores the outputs of the network as they are."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Image and model of a run, opened and checked; no pixel has been read.

    Attributes
    ----------
    spec : RunSpec
        The run.
    command : {"segment", "predict"}
        What the run produces.
    image : MaskedImage
        The image with its weight, mask and prior.
    model : Model
        The network, or the matched filter.
    maps : tuple of OutputMap
        Outputs of the network to be stored as they are; empty for ``segment``.
    """

    spec: RunSpec
    command: Command
    image: MaskedImage
    model: networks.Model
    maps: tuple[OutputMap, ...]


def open_inputs(spec: RunSpec, command: Command = "segment") -> Inputs:
    """Open the image and the model of a run and check that they fit each other.

    Raises
    ------
    InputError, ModelError, SpecError
        If the image or the model cannot be used, or the model does not suit the command.
    """
    image = MaskedImage(spec)
    model = networks.load_model(spec.model, spec.fwhm, spec.declared)
    networks.check_inputs(model.header, image.bands, spec.prior)
    networks.check_image_size(model.header, image.frame.shape)
    if command == "predict":
        maps = networks.list_maps(model.header, image.info.unit)
    else:
        networks.check_separates(model.header)
        maps = ()
    return Inputs(spec, command, image, model, maps)


def identify(spec: RunSpec, command: Command) -> RunIdentity:
    """Return the identity of the result of a run; reads all pixels of its inputs for the digest."""
    inputs = open_inputs(spec, command)
    return identify_inputs(inputs, resolve_precision(spec, inputs.model))


def identify_inputs(inputs: Inputs, precision: str) -> RunIdentity:
    """Return the identity of a result: everything that its bytes depend on.

    Parameters
    ----------
    inputs : Inputs
        Image and model.
    precision : {"fp32", "bf16", "int8"}
        The resolved arithmetic of the network. ``auto`` never enters the run key: a resume on another
        machine must not change the result.
    """
    spec = inputs.spec.model_copy(update={"precision": precision})
    options = spec.result_options() | {"command": inputs.command}
    return RunIdentity(inputs.image.digest, inputs.model.digest, __version__, options)
