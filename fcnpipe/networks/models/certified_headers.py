"""Headers of models: construction by analysis and proof of a network, and check of a model file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.architectures.registry import architecture_name
from fcnpipe.networks.base import Certificate, ModelHeader, Output, Share
from fcnpipe.networks.models.base import PIPELINE_BYTES_PER_PIXEL
from fcnpipe.networks.models.bundle import Bundle
from fcnpipe.networks.models.loading import load_model
from fcnpipe.networks.reach.analysis import (
    analyse,
    analyse_program,
    ensure_same_size,
    trace_same_size,
)
from fcnpipe.networks.reach.certificate import certify
from fcnpipe.networks.reach.tracing import activation_bytes


def make_header(
    module: nn.Module,
    name: str,
    outputs: Sequence[Output],
    elevation: Mapping[str, float | Share],
    **rest: Any,
) -> ModelHeader:
    """Analyse a network of a known architecture, prove its reach, and return its header for `save_model`.

    Parameters
    ----------
    module : Module
        A network whose class is in fcnpipe/networks/architectures; ``module.arguments`` are the
        arguments that it was made with. It is analysed in evaluation mode, and not changed.
    name : str
        Name of the model.
    outputs : sequence of Output
        Channels in order.
    elevation : mapping of str to float or Share
        Share of each output in the elevation map; a number is its weight.
    **rest
        Other fields of `ModelHeader`: extra, version, scaling, detect_on, defaults, recipe, scores, ...

    Raises
    ------
    ModelError
        If the architecture is unknown, the network has no arguments, or it cannot be tiled exactly.
    pydantic.ValidationError
        If a field is wrong.
    """
    if not hasattr(module, "arguments"):
        raise ModelError(
            f"network {type(module).__name__} has no attribute 'arguments': set it to a dict of the "
            "arguments that its constructor received"
        )
    arguments: dict[str, Any] = dict(module.arguments)  # type: ignore[arg-type]
    bands = int(arguments.get("bands", 1))
    evaluated = ensure_same_size(copy.deepcopy(module).eval(), bands)
    program = trace_same_size(evaluated, bands)
    reach = analyse_program(program)
    return ModelHeader(
        name=name,
        architecture=architecture_name(module),
        arguments=arguments,
        bands=bands - len(rest.get("extra", ())),
        outputs=tuple(outputs),
        elevation={k: v if isinstance(v, Share) else Share(weight=v) for k, v in elevation.items()},
        reach=reach,
        bytes_per_pixel=activation_bytes(program) + PIPELINE_BYTES_PER_PIXEL,
        certificate=certify(evaluated, bands, reach),
        **rest,
    )


def check_model(name_or_path: str | Path) -> Certificate:
    """Analyse the network of a model file and prove its reach again, and compare it with the file's header.

    Returns
    -------
    Certificate
        The new proof. The certificate of the header for the matched filter, and for an exported
        program, which is analysed each time it is loaded.

    Raises
    ------
    ModelError
        If the file cannot be used, its network cannot be tiled, or its header states another reach.
    """
    model = load_model(name_or_path)
    if not isinstance(model, Bundle):
        assert model.header.certificate is not None
        return model.header.certificate
    module = model.module()
    reach = analyse(module, model.header.channels)
    if reach != model.header.reach:
        raise ModelError(
            f"model {name_or_path}: its header states {model.header.reach} but its network has "
            f"{reach}: save it again with save_model"
        )
    return certify(module, model.header.channels, reach)
