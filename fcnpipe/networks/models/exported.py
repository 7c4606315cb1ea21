"""Third-party networks: a torch.export program in a ``.pt2`` file, with what is said of it beside it.

::

    NET.pt2     torch.export.save(torch.export.export(network, (image,), dynamic_shapes=...), ...)
    NET.json    optional: outputs, roles, elevation, scaling, defaults, ... as in `ModelHeader`

Reach and certificate come from the program itself each time it is loaded, or, for a black box, from
the words ``declared_halo`` and ``declared_stride`` of NET.json, or the options halo and stride of a
run, which prove nothing.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import Certificate, ModelHeader, Reach
from fcnpipe.networks.models.archive_inspection import read_archive
from fcnpipe.networks.models.base import PIPELINE_BYTES_PER_PIXEL, StoredModel
from fcnpipe.networks.reach.analysis import analyse_program, trace_same_size
from fcnpipe.networks.reach.certificate import certify, declare
from fcnpipe.networks.reach.tracing import activation_bytes

PROGRAM_SUFFIX = ".pt2"
ARCHITECTURE = "exported"
_DYNAMIC = (
    "export it with dynamic height and width: "
    'dynamic_shapes=({2: S * Dim("h"), 3: S * Dim("w")},), S its stride'
)
_DERIVED_FIELDS = frozenset(
    {"architecture", "arguments", "bands", "bytes_per_pixel", "certificate", "ranges"}
)


class ExportedNetwork(nn.Module):
    """A network that was read from a file, one image at a time, in the evaluation mode it was saved in.

    Parameters
    ----------
    program : ExportedProgram
        Takes one (1, bands, h, w) tensor and gives one (1, outputs, h, w).
    name : str
        What to call it in messages.

    Raises
    ------
    ModelError
        If it takes or gives anything else, or images of one size only.
    """

    def __init__(self, program: torch.export.ExportedProgram, name: str) -> None:
        super().__init__()
        shape, outputs = _shapes(program, name)
        _check_sizes(program, shape, name)
        self.bands, self.outputs = int(shape[1]), outputs
        # Guards are Python source in the file: left out, and sizes are checked here.
        self.exported_graph = program.module(check_guards=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give (n, outputs, h, w) of (n, bands, h, w)."""
        if len(x) == 1:
            only: Tensor = self.exported_graph(x)
            return only
        return torch.cat([self.exported_graph(x[i : i + 1]) for i in range(len(x))])

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedNetwork:
        twin = ExportedNetwork.__new__(ExportedNetwork)
        nn.Module.__init__(twin)
        twin.bands, twin.outputs = self.bands, self.outputs
        with _quiet():
            twin.exported_graph = copy.deepcopy(self.exported_graph, memo)
        return twin

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Leave it as it was saved: a program has one mode."""
        return self


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What NET.json says: fields of the header, and perhaps a declared reach."""

    fields: dict[str, Any]
    declared: Certificate | None = None


class Exported(StoredModel):
    """An exported program; the digest is that of its bytes and of what is said of it."""

    __slots__ = ()

    def module(self) -> nn.Module:
        """Read the network, on the CPU."""
        network = read_network(self.path)
        self.check_digest(_digest(self.path))
        return network


def load_exported(path: Path, declared: tuple[int, int] | None = None) -> Exported:
    """Read an exported program, analyse it and prove it; what a process has proven it remembers.

    Parameters
    ----------
    path : Path
        The program.
    declared : (int, int), optional
        Halo and stride on the user's word, px, which win over what is said beside the program.

    Raises
    ------
    ModelError
        If it cannot be read or holds code, has one size only, cannot be tiled exactly, or what is
        said beside it is wrong.

    Notes
    -----
    `torch.export.load` alone unpickles parts of such a file without limits and evaluates text in it
    as Python. So the archive is looked through first (:mod:`fcnpipe.networks.models.archive_inspection`): only a graph
    of torch's operations and plain arrays are let through, and the guards are never compiled.
    """
    return _load(path, _digest(path), declared)


@lru_cache(maxsize=8)
def _load(path: Path, digest: str, declared: tuple[int, int] | None) -> Exported:
    network, sidecar = read_network(path), read_sidecar(path)
    program = trace_same_size(network, network.bands)
    certificate = _declare(*declared, str(path)) if declared else sidecar.declared
    reach = certificate.reach if certificate else analyse_program(program)
    certificate = certificate or certify(network, network.bands, reach)
    fields: dict[str, Any] = {
        "name": path.stem,
        "outputs": _default_outputs(network.outputs),
        **sidecar.fields,
        "architecture": ARCHITECTURE,
        "bands": network.bands - len(sidecar.fields.get("extra", ())),
        "reach": reach,
        "bytes_per_pixel": activation_bytes(program) + PIPELINE_BYTES_PER_PIXEL,
        "certificate": certificate,
    }
    if "elevation" not in fields:
        fields["elevation"] = _default_elevation(fields["outputs"])
    return Exported(path, _make_header(fields, network, path), digest)


def read_network(path: Path) -> ExportedNetwork:
    """Read the network of an exported program, after a look at what else the file holds.

    Raises
    ------
    ModelError
        If the file is missing, holds code, or is no network from image to image of any size.
    """
    data = read_archive(path)
    try:
        with _quiet():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # whatever torch says of a file that it cannot read
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"model {path} cannot be read, torch.export says '{first}': export it again with "
            f"torch {torch.__version__}"
        ) from None
    program._guards_code = []
    with _quiet():
        return ExportedNetwork(program, path.name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's warnings about its own containers from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_sidecar(path: Path) -> Sidecar:
    """Read what is said beside an exported program; empty if nothing is.

    Raises
    ------
    ModelError
        If it is no JSON object, or names what is found out from the program.
    """
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return Sidecar({})
    try:
        fields = dict(json.loads(beside.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{beside} is not a JSON object ({error}): write one") from None
    if ours := sorted(_DERIVED_FIELDS & fields.keys() | {"reach"} & fields.keys()):
        raise ModelError(f"{beside}: {ours[0]} is read off the program: leave it out")
    return Sidecar(fields, _pop_declared(fields, beside))


def _digest(path: Path) -> str:
    """Give a digest of the program and of what is said beside it."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (path, path.with_suffix(".json")):
        if part.is_file():
            digest.update(part.read_bytes())
    return digest.hexdigest()


def _pop_declared(fields: dict[str, Any], beside: Path) -> Certificate | None:
    halo, stride = fields.pop("declared_halo", None), fields.pop("declared_stride", 1)
    return None if halo is None else _declare(halo, stride, str(beside))


def _declare(halo: Any, stride: Any, where: str) -> Certificate:
    whole = all(isinstance(value, int) and value >= 0 for value in (halo, stride))
    if not whole or stride < 1 or halo % stride:
        raise ModelError(
            f"{where}: declared_halo={halo} is not a multiple of declared_stride={stride} px: "
            "give whole numbers, the halo rounded up to the stride"
        )
    return declare(Reach(halo, halo, halo, halo, stride, stride))


def _default_outputs(number: int) -> list[dict[str, str]]:
    """Take the first output for the source probability, and others for classes."""
    others = [{"name": f"output{i}", "role": f"class:output{i}"} for i in range(1, number)]
    return [{"name": "source", "role": "source"}, *others]


def _default_elevation(outputs: Any) -> dict[str, float]:
    """Take the probability of a source for the elevation."""
    named = [output for output in outputs if isinstance(output, dict)]
    return {str(o.get("name")): 1.0 for o in named if o.get("role") == "source"}


def _make_header(fields: dict[str, Any], network: ExportedNetwork, path: Path) -> ModelHeader:
    try:
        header = ModelHeader.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "header"
        raise ModelError(
            f"model {path}: {name}: {first['msg']}; mend {path.with_suffix('.json').name}"
        ) from None
    if len(header.outputs) != network.outputs:
        raise ModelError(
            f"model {path} gives {network.outputs} channels but {path.with_suffix('.json').name} "
            f"names {len(header.outputs)} outputs: name them all"
        )
    return header


def _shapes(program: torch.export.ExportedProgram, name: str) -> tuple[list[Any], int]:
    """Give the shape of the input, with symbols where it is free, and the number of outputs."""
    signature = program.graph_signature
    found = {node.name: node.meta.get("val") for node in program.graph.nodes}
    images = [found.get(str(key)) for key in (*signature.user_inputs, *signature.user_outputs)]
    tensors = [image for image in images if isinstance(image, Tensor) and image.ndim == 4]
    if len(images) != 2 or len(tensors) != 2:
        raise ModelError(
            f"model {name} must take one (1, bands, h, w) tensor and give one (1, outputs, h, w): "
            "wrap it so that it does, and export it again"
        )
    return list(tensors[0].shape), int(tensors[1].shape[1])


def _check_sizes(program: torch.export.ExportedProgram, shape: list[Any], name: str) -> None:
    fixed = [size for size in shape[2:] if isinstance(size, int)]
    if fixed:
        raise ModelError(f"model {name} takes images of {fixed[0]} px only: {_DYNAMIC}")
    limits = [program.range_constraints.get(size.node.expr) for size in shape[2:]]
    highest = [limit.upper for limit in limits if limit is not None]
    if any(upper.is_finite and upper < 2**31 for upper in highest):
        raise ModelError(
            f"model {name} takes images of at most {min(highest)} px: export it without a maximum"
        )
    if isinstance(shape[0], int) and shape[0] != 1:
        raise ModelError(
            f"model {name} takes {shape[0]} images at once: export it with a batch of 1"
        )
