"""All that a network says of how it can be tiled, in one record; ``fcnpipe.reach`` makes it."""

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
from fcnpipe.networks.models.exported import PROGRAM_SUFFIX, read_network, read_sidecar
from fcnpipe.networks.models.headers import check_model
from fcnpipe.networks.models.loading import load_model
from fcnpipe.networks.reach.analysis import analyse, make_same_size
from fcnpipe.networks.reach.certificate import certify
from fcnpipe.networks.reach.image_sizes import SizeRule, measure_sizes
from fcnpipe.networks.reach.rules import CircularPaddingError

WINDOWS = (256, 512, 1024, 2048)
"""Windows to show the halo's overhead for, px."""

Exactness = Literal["exact", "inside", "never", "declared"]


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a network can be tiled.

    Attributes
    ----------
    name : str
        The network.
    exactness : str
        ``exact``: tiles give what the whole image gives. ``inside``: they do where the image's
        border is beyond the reach, and not nearer: the network pads with the other side of the
        image, which a tile does not have. ``never``: some part sees the whole image, or is not
        known. ``declared``: somebody's word for it. A run takes the first and the last only.
    reason : str
        Unless exact: the layer, why, and the mend, in one line.
    reach : Reach, optional
        None: without bounds.
    sizes : tuple of SizeRule, optional
        Heights and widths that it takes and gives. A run needs a network that keeps sizes.
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
        """Pixels to read beyond each core, a multiple of the stride; None: there is no such halo."""
        return self.reach.minimum_halo if self.reach else None

    @property
    def keeps_size(self) -> bool:
        """Whether the output has the size of the input, as a run needs."""
        return self.sizes is not None and all(
            rule.step == rule.gain and all(c == d for c, d in rule.fits) for rule in self.sizes
        )

    @property
    def overhead(self) -> dict[int, float]:
        """Pixels looked at for each pixel written, for each window: ``((T + 2 h) / T)**2``."""
        if self.halo is None:
            return {}
        return {window: ((window + 2 * self.halo) / window) ** 2 for window in WINDOWS}

    def facts(self) -> list[tuple[str, str]]:
        """Give (what, how much) rows for people."""
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
            same = "" if self.keeps_size else " (a run needs the size kept: pad inside the network)"
            rows += [("height", f"{self.sizes[0]}{same}"), ("width", str(self.sizes[1]))]
        return rows + (
            [("certificate", _describe_certificate(self.certificate))] if self.certificate else []
        )


def _describe_certificate(proof: Certificate) -> str:
    if proof.error is None:
        return f"{proof.kind}, unproven"
    seen = "NaNs show this reach" if proof.probed else "NaNs show no more than this reach"
    return (
        f"{proof.kind}: tiles differ from the whole by {proof.error:.1e} in float64, by "
        f"{proof.error_short:.1e} with a halo one stride shorter; {seen}"
    )


def reach(network: nn.Module | str | Path, bands: int = 1) -> Tiling:
    """Give how far a network looks, its stride, the sizes it takes, and the proof that it tiles.

    Parameters
    ----------
    network : Module, str or Path
        A network that takes (n, bands, h, w) and gives (n, outputs, h, w), a bundled name, a model
        file, or an exported program (``.pt2``). A module in training mode is looked at as it will
        run, in evaluation mode; it is not changed.
    bands : int
        Channels of a module's input; a file knows its own.

    Returns
    -------
    Tiling
        Also for a network that cannot be tiled, with the layer and the mend.

    Raises
    ------
    ModelError
        If a file cannot be read, or its header says another reach than its network has.
    """
    if isinstance(network, nn.Module):
        still = copy.deepcopy(network).eval() if network.training else network
        return _look_at(still, type(network).__name__, bands)
    if Path(network).suffix == PROGRAM_SUFFIX:
        return _look_at_program(Path(network))
    model = load_model(network)
    return _look_at_bundle(model) if isinstance(model, Bundle) else _read_header(model)


def _look_at(module: nn.Module, name: str, bands: int) -> Tiling:
    try:
        fitted, sizes = make_same_size(module, bands)
        found = analyse(fitted, bands)
        return Tiling(name, "exact", "", found, sizes, certify(fitted, bands, found))
    except CircularPaddingError as error:
        fitted, sizes = make_same_size(module, bands, interior_only=True)
        return Tiling(name, "inside", str(error), analyse(fitted, bands, interior_only=True), sizes)
    except ModelError as error:
        return Tiling(name, "never", str(error))


def _look_at_program(path: Path) -> Tiling:
    network, declared = read_network(path), read_sidecar(path).declared
    if declared is None:
        return _look_at(network, path.name, network.bands)
    step = declared.reach.stride
    sizes = measure_sizes(network, network.bands, (step, step), (Fraction(1), Fraction(1)))
    reason = "its halo is declared and not proven: take the declaration out of the sidecar"
    return Tiling(path.name, "declared", reason, declared.reach, sizes, declared)


def _look_at_bundle(bundle: Bundle) -> Tiling:
    header = bundle.header
    proof = check_model(bundle.path)
    sizes = make_same_size(bundle.module(), header.channels)[1]
    return Tiling(bundle.path.name.removesuffix(SUFFIX), "exact", "", proof.reach, sizes, proof)


def _read_header(model: Model) -> Tiling:
    """Give what the header of a model says that is no network."""
    sizes = SizeRule(1, 1, ((0, 0),))
    header = model.header
    return Tiling(header.name, "exact", "", header.reach, (sizes, sizes), header.certificate)
