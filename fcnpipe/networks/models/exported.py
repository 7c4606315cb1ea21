"""Models in exported programs: networks of other software, saved by torch.export as ``.pt2``.

::

    NET.pt2     torch.export.save(torch.export.export(network, (image,), dynamic_shapes=...), ...)
    NET.json    optional sidecar file: outputs, roles, elevation, scaling, defaults, ... as in
                `ModelHeader`

Reach and certificate are computed from the program itself each time it is loaded. For a program that
cannot be analysed they are declared instead, and unproven: by ``declared_halo`` and
``declared_stride`` in NET.json, or by the options halo and stride of a run.
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
_EXPORT_DYNAMIC = (
    "export it with dynamic height and width: "
    'dynamic_shapes=({2: S * Dim("h"), 3: S * Dim("w")},), S its stride'
)
_DERIVED_FIELDS = frozenset(
    {
        *("architecture", "arguments", "bands", "bytes_per_pixel"),
        *("certificate", "minimum_size", "ranges"),
    }
)
"""Fields of the header that are computed from the program, and so cannot be in the sidecar file."""


_LARGEST_MINIMUM = 512
"""Largest minimum of the image size that is accepted, px: the proof runs on images of that size."""


class ExportedNetwork(nn.Module):
    """The network of an exported program, in the mode that it was saved in (evaluation).

    Parameters
    ----------
    program : ExportedProgram
        Maps one (1, bands, h, w) tensor to one (1, outputs, h, w) tensor.
    name : str
        Name of the program in messages.

    Raises
    ------
    ModelError
        If the program has other inputs or outputs, or accepts images of few sizes only.
    """

    def __init__(self, program: torch.export.ExportedProgram, name: str) -> None:
        super().__init__()
        shape, outputs = _shapes(program, name)
        self.minimum_size = _check_sizes(program, shape, name)
        self.bands, self.outputs = int(shape[1]), outputs
        # Guards are Python source in the file. They are left out; sizes are checked above.
        self.exported_graph = program.module(check_guards=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the (n, outputs, h, w) output for (n, bands, h, w), one image at a time."""
        if len(x) == 1:
            only: Tensor = self.exported_graph(x)
            return only
        return torch.cat([self.exported_graph(x[i : i + 1]) for i in range(len(x))])

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedNetwork:
        clone = ExportedNetwork.__new__(ExportedNetwork)
        nn.Module.__init__(clone)
        clone.bands, clone.outputs = self.bands, self.outputs
        clone.minimum_size = self.minimum_size
        with _without_torch_warnings():
            clone.exported_graph = copy.deepcopy(self.exported_graph, memo)
        return clone

    def train(self, mode: bool = True) -> ExportedNetwork:
        """Do nothing: a program has only the mode that it was saved in."""
        return self


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Content of NET.json: fields of the header, and a declared reach if there is one."""

    fields: dict[str, Any]
    declared: Certificate | None = None


class Exported(StoredModel):
    """A model in an exported program; the digest covers the program and its sidecar file."""

    __slots__ = ()

    def module(self) -> nn.Module:
        """Read the network, on the CPU.

        Raises
        ------
        ModelError
            If one of the files cannot be read, or has changed since the program was analysed.
        """
        network = read_network(self.path)
        self.check_digest(_digest(self.path))
        return network


def load_exported(path: Path, declared: tuple[int, int] | None = None) -> Exported:
    """Read an exported program, analyse it, and prove its reach.

    Parameters
    ----------
    path : Path
        The program.
    declared : (int, int), optional
        Halo and stride declared by the user, px. They take precedence over the sidecar file. With a
        declaration, from either, nothing is proven.

    Raises
    ------
    ModelError
        If the program cannot be read, holds code, accepts one image size only or cannot be tiled
        exactly, or if the sidecar file is wrong.

    Notes
    -----
    `torch.export.load` alone unpickles parts of such a file without limits, and evaluates text in it
    as Python. The archive is therefore inspected first
    (:mod:`fcnpipe.networks.models.archive_inspection`): it may contain only a graph of torch
    operators and plain arrays. Guards are never compiled.

    The loaded models are cached in the process, by the digest of their files.
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
        "minimum_size": network.minimum_size,
    }
    if "elevation" not in fields:
        fields["elevation"] = _default_elevation(fields["outputs"])
    return Exported(path, _make_header(fields, network, path), digest)


def read_network(path: Path) -> ExportedNetwork:
    """Read the network of an exported program, after an inspection of the archive.

    Raises
    ------
    ModelError
        If the file is missing or holds code, or if it is not a network that maps images of any
        size to images.
    """
    data = read_archive(path)
    try:
        with _without_torch_warnings():
            program = torch.export.load(io.BytesIO(data))
    except Exception as error:  # torch raises errors of many types for a file that it cannot read
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"model {path} cannot be read, torch.export reports '{first}': export it again with "
            f"torch {torch.__version__}"
        ) from None
    program._guards_code = []
    with _without_torch_warnings():
        return ExportedNetwork(program, path.name)


@contextmanager
def _without_torch_warnings() -> Iterator[None]:
    """Suppress the warnings that torch issues about its own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_sidecar(path: Path) -> Sidecar:
    """Read the sidecar file of an exported program.

    Parameters
    ----------
    path : Path
        The program, not the sidecar file.

    Returns
    -------
    Sidecar
        An empty record if the program has no sidecar file.

    Raises
    ------
    ModelError
        If the file is not a JSON object, has fields that are computed from the program, or declares an
        invalid halo or stride.
    """
    sidecar = path.with_suffix(".json")
    if not sidecar.is_file():
        return Sidecar({})
    try:
        fields = dict(json.loads(sidecar.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{sidecar} is not a JSON object ({error}): write one") from None
    if derived := sorted((_DERIVED_FIELDS | {"reach"}) & fields.keys()):
        raise ModelError(f"{sidecar}: {derived[0]} is computed from the program: leave it out")
    halo, stride = fields.pop("declared_halo", None), fields.pop("declared_stride", 1)
    return Sidecar(fields, None if halo is None else _declare(halo, stride, str(sidecar)))


def _digest(path: Path) -> str:
    """Return the digest of a program together with its sidecar file."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (path, path.with_suffix(".json")):
        if part.is_file():
            digest.update(part.read_bytes())
    return digest.hexdigest()


def _declare(halo: Any, stride: Any, where: str) -> Certificate:
    are_counts = all(isinstance(value, int) and value >= 0 for value in (halo, stride))
    if not are_counts or stride < 1 or halo % stride:
        raise ModelError(
            f"{where}: declared_halo={halo} is not a multiple of declared_stride={stride} px: "
            "declare whole numbers, the halo rounded up to the stride"
        )
    return declare(Reach(halo, halo, halo, halo, stride, stride))


def _default_outputs(number: int) -> list[dict[str, str]]:
    """Return the outputs of a program without a sidecar file: the source probability, then classes."""
    others = [{"name": f"output{i}", "role": f"class:output{i}"} for i in range(1, number)]
    return [{"name": "source", "role": "source"}, *others]


def _default_elevation(outputs: Any) -> dict[str, float]:
    """Return the shares of an elevation that equals the source probability."""
    named = [output for output in outputs if isinstance(output, dict)]
    return {str(o.get("name")): 1.0 for o in named if o.get("role") == "source"}


def _make_header(fields: dict[str, Any], network: ExportedNetwork, path: Path) -> ModelHeader:
    try:
        header = ModelHeader.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "header"
        raise ModelError(
            f"model {path}: {name}: {first['msg']}; correct {path.with_suffix('.json').name}"
        ) from None
    if len(header.outputs) != network.outputs:
        raise ModelError(
            f"model {path} returns {network.outputs} channels but {path.with_suffix('.json').name} "
            f"names {len(header.outputs)} outputs: name them all"
        )
    return header


def _shapes(program: torch.export.ExportedProgram, name: str) -> tuple[list[Any], int]:
    """Return the shape of the input, with symbols for dynamic sizes, and the number of outputs."""
    signature = program.graph_signature
    found = {node.name: node.meta.get("val") for node in program.graph.nodes}
    images = [found.get(str(key)) for key in (*signature.user_inputs, *signature.user_outputs)]
    tensors = [image for image in images if isinstance(image, Tensor) and image.ndim == 4]
    if len(images) != 2 or len(tensors) != 2:
        raise ModelError(
            f"model {name} must take one (1, bands, h, w) tensor and return one (1, outputs, h, w) "
            "tensor: wrap it so that it does, and export it again"
        )
    return list(tensors[0].shape), int(tensors[1].shape[1])


def _check_sizes(
    program: torch.export.ExportedProgram, shape: list[Any], name: str
) -> tuple[int, int]:
    """Return the smallest height and width that a program accepts, px.

    Raises
    ------
    ModelError
        If it accepts few sizes only.
    """
    fixed = [size for size in shape[2:] if isinstance(size, int)]
    if fixed:
        raise ModelError(f"model {name} accepts images of {fixed[0]} px only: {_EXPORT_DYNAMIC}")
    height, width = (size.node.expr for size in shape[2:])
    if height.free_symbols & width.free_symbols:
        raise ModelError(
            f"model {name} accepts images of related heights and widths only ({height} x {width}): "
            f"{_EXPORT_DYNAMIC}"
        )
    limits = [_limits(program, size) for size in shape]
    highest = [upper for _, upper in limits[2:] if upper is not None]
    if highest:
        raise ModelError(
            f"model {name} accepts images of at most {min(highest)} px: export it without a maximum"
        )
    if limits[0][0] > 1:
        raise ModelError(
            f"model {name} takes {limits[0][0]} images at once: export it with a batch of 1"
        )
    smallest = limits[2][0], limits[3][0]
    if max(smallest) > _LARGEST_MINIMUM:
        raise ModelError(
            f"model {name} accepts images of at least {max(smallest)} px, above {_LARGEST_MINIMUM}: "
            "export it without a minimum"
        )
    return smallest


def _limits(program: torch.export.ExportedProgram, size: Any) -> tuple[int, int | None]:
    """Return the smallest and the largest value of a size of the input; None if there is no largest.

    torch does not check a minimum of 2, which it sets itself.
    """
    if isinstance(size, int):
        return size, size
    limit = program.range_constraints.get(size.node.expr)
    if limit is None:
        return 1, None
    lower = int(limit.lower) if limit.lower > 2 else 1
    is_bounded = limit.upper.is_finite and limit.upper < 2**31
    return lower, int(limit.upper) if is_bounded else None
