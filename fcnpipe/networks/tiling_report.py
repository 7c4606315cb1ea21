"""Report of how a network can be tiled: exactness, reach, halo, image sizes and proof.

:func:`fcnpipe.reach` returns the report, and ``fcnpipe models check`` prints it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import Certificate, Model, Reach
from fcnpipe.networks.models.bundle import SUFFIX, Bundle
from fcnpipe.networks.models.certified_headers import check_model
from fcnpipe.networks.models.exported import PROGRAM_SUFFIX, read_network, read_sidecar
from fcnpipe.networks.models.loading import load_model
from fcnpipe.networks.reach.analysis import analyse, make_same_size
from fcnpipe.networks.reach.certificate import certify
from fcnpipe.networks.reach.image_sizes import SizeRule, measure_sizes
from fcnpipe.networks.reach.rules import CircularPaddingError

WINDOWS = (256, 512, 1024, 2048)
"""Edges of the windows for which the overhead of the halo is reported, px."""

Exactness = Literal["exact", "inside", "never", "declared"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """Report of how a network can be tiled.

    Attributes
    ----------
    name : str
        Name of the network.
    exactness : str
        ``exact``: tiles equal the whole image. ``inside``: tiles equal the whole image only where
        the image's border is beyond the reach, because the network pads with the opposite side of
        the image, which a tile does not contain. ``never``: a layer reads the whole image, or its
        receptive field is not known. ``declared``: the reach is declared by the user and unproven.
        A run accepts ``exact`` and ``declared``.
    reason : str
        Unless exact: the layer, the cause and the fix, in one line.
    reach : Reach, optional
        None if the reach is unbounded or not known.
    sizes : tuple of SizeRule, optional
        Heights and widths that the network accepts, and the sizes of its output. A run needs a
        network that keeps sizes.
    certificate : Certificate, optional
        The proof; None unless exact or declared.
    """

    name: str
    exactness: Exactness
    reason: str = ""
    reach: Reach | None = None
    sizes: tuple[SizeRule, SizeRule] | None = None
    certificate: Certificate | None = None

    @property
    def halo(self) -> int | None:
        """Width of the halo around a core, px, a multiple of the stride; None if there is no reach."""
        return self.reach.minimum_halo if self.reach else None

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the size of the input, as a run needs."""
        return self.sizes is not None and all(
            rule.step == rule.output_step and all(c == d for c, d in rule.complete)
            for rule in self.sizes
        )

    @property
    def overhead(self) -> dict[int, float]:
        """Pixels read for each pixel written, by the edge T of the window (px): ``((T + 2 halo) / T)**2``."""
        if self.halo is None:
            return {}
        return {window: ((window + 2 * self.halo) / window) ** 2 for window in WINDOWS}

    def facts(self) -> list[tuple[str, str]]:
        """Return the report as human-readable (property, value) rows."""
        rows = [("tiling", f"{self.exactness}{': ' if self.reason else ''}{self.reason}")]
        if self.reach is None:
            return rows
        r = self.reach
        rows += [
            ("reach", f"left {r.left}, right {r.right}, top {r.top}, bottom {r.bottom} px"),
            ("stride", f"{r.stride_y} x {r.stride_x} px"),
            ("halo", f"{self.halo} px"),
            ("overhead", ", ".join(f"{f:.2f} at window {w}" for w, f in self.overhead.items())),
        ]
        if self.sizes:
            fix = " (a run needs an output as large as the input: pad inside the network)"
            height = f"{self.sizes[0]}{'' if self.keeps_size else fix}"
            rows += [("height", height), ("width", str(self.sizes[1]))]
        if self.certificate:
            rows.append(("certificate", _summarise(self.certificate)))
        return rows


def _summarise(proof: Certificate) -> str:
    if proof.error is None:
        return f"{proof.kind}, unproven"
    seen = "NaNs show this reach" if proof.probed else "NaNs show no more than this reach"
    return (
        f"{proof.kind}: tiles differ from the whole by {proof.error:.1e} in float64, by "
        f"{proof.error_short:.1e} with a halo one stride shorter; {seen}"
    )


def reach(network: nn.Module | str | Path, bands: int = 1) -> Tiling:
    """Return the reach, stride and image sizes of a network, and the proof that it tiles exactly.

    Parameters
    ----------
    network : Module, str or Path
        A network that maps (n, bands, h, w) to (n, outputs, h, w), the name of a bundled model, a
        model file, or an exported program (``.pt2``). A module in training mode is analysed in
        evaluation mode; it is not changed.
    bands : int
        Channels of the input of a module. It has no effect on a file, which states its own.

    Returns
    -------
    Tiling
        The report. If the network cannot be tiled, its ``reason`` names the layer, the cause and the fix.

    Raises
    ------
    ModelError
        If a file cannot be read, or the reach in its header is not that of its network.
    """
    if isinstance(network, nn.Module):
        module = copy.deepcopy(network).eval() if network.training else network
        return _report_module(module, type(network).__name__, bands)
    if Path(network).suffix == PROGRAM_SUFFIX:
        return _report_program(Path(network))
    model = load_model(network)
    return _report_bundle(model) if isinstance(model, Bundle) else _report_header(model)


def _report_module(module: nn.Module, name: str, bands: int) -> Tiling:
    try:
        fitted, sizes = make_same_size(module, bands)
        found = analyse(fitted, bands)
        return Tiling(name, "exact", "", found, sizes, certify(fitted, bands, found))
    except CircularPaddingError as error:
        fitted, sizes = make_same_size(module, bands, interior_only=True)
        found = analyse(fitted, bands, interior_only=True)
        return Tiling(name, "inside", str(error), found, sizes)
    except ModelError as error:
        return Tiling(name, "never", str(error))


def _report_program(path: Path) -> Tiling:
    network, declared = read_network(path), read_sidecar(path).declared
    if declared is None:
        return _report_module(network, path.name, network.bands)
    step = declared.reach.stride
    sizes = measure_sizes(network, network.bands, (step, step), (Fraction(1), Fraction(1)))
    reason = "its halo is declared and not proven: remove the declaration from the sidecar file"
    return Tiling(path.name, "declared", reason, declared.reach, sizes, declared)


def _report_bundle(bundle: Bundle) -> Tiling:
    proof = check_model(bundle.path)
    sizes = make_same_size(bundle.module(), bundle.header.channels)[1]
    name = bundle.path.name.removesuffix(SUFFIX)
    return Tiling(name, "exact", "", proof.reach, sizes, proof)


def _report_header(model: Model) -> Tiling:
    """Return the report of the matched filter, which has no network, from its header."""
    any_size = SizeRule(1, 1, ((0, 0),))
    header = model.header
    return Tiling(header.name, "exact", "", header.reach, (any_size, any_size), header.certificate)
