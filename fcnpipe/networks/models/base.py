"""Base class of the models that are stored in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.base import ModelHeader

if TYPE_CHECKING:
    from torch import nn

    from fcnpipe.networks.inference.predictor import TorchPredictor

MEMORY_FACTOR = 2
"""Growth of the process in units of the network's activations, because oneDNN copies arrays and the heap
becomes fragmented. Measured for a U-Net of base 16 and depth 3 on windows of 1024 + 2 x 56 px: 512 bytes
for each pixel, of which 296 bytes are activations."""
PIPELINE_BYTES_PER_PIXEL = 40
"""Memory of a window in addition to the activations, bytes for each pixel: input, scaled input, outputs, maps."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a file, whose network is read only when a predictor is made.

    Attributes
    ----------
    path : Path
        The file.
    header : ModelHeader
        Header of the model.
    digest : str
        Hexadecimal BLAKE2b digest of the file's bytes, and of its sidecar file if it has one.
    """

    path: Path
    header: ModelHeader
    digest: str

    @property
    def halo(self) -> int:
        """Width of the halo around a core, px; a multiple of the stride."""
        return self.header.halo

    @property
    def stride(self) -> int:
        """Total subsampling, px."""
        return self.header.stride

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the probability map."""
        return self.header.classes

    @property
    def bytes_per_pixel(self) -> int:
        """Growth of the process in a forward pass, bytes for each pixel read."""
        return MEMORY_FACTOR * self.header.bytes_per_pixel

    def check_digest(self, found: str) -> None:
        """Check that a digest is that of the file when its header was read.

        Raises
        ------
        ModelError
            If the file has changed since its header was read.
        """
        if found != self.digest:
            raise ModelError(
                f"model {self.path} changed while it was read: run the same command again"
            )

    def module(self) -> nn.Module:
        """Read the network with its weights, on the CPU, in evaluation mode."""
        raise NotImplementedError

    def precision(self, wanted: str, device: str = "auto") -> str:
        """Return the arithmetic that ``wanted`` selects on this machine: fp32, bf16 or int8."""
        from fcnpipe.networks.inference.predictor import choose_precision

        return choose_precision(wanted, device, self.header)

    def predictor(
        self, device: str = "auto", precision: str = "fp32", threads: int = 1
    ) -> TorchPredictor:
        """Read the network and return a predictor that runs it.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}
            ``auto`` uses a GPU if there is one.
        precision : {"auto", "fp32", "bf16", "int8"}
            Arithmetic of the network. The maps are float32 in any case.
        threads : int
            Number of CPU threads. Another number can change the last bits of the maps.

        Raises
        ------
        SpecError
            If the device or the precision is unknown, or the machine does not have it.
        ModelError
            If the file cannot be used, or has changed since its header was read; if int8 is wanted and
            the header has no ranges.
        """
        from fcnpipe.networks.inference.predictor import TorchPredictor, choose_device
        from fcnpipe.networks.reach.analysis import ensure_same_size

        module = ensure_same_size(self.module(), self.header.channels)
        return TorchPredictor(module, self.header, choose_device(device), precision, threads)
