"""Base class of models that are stored in files."""

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
"""Growth of the process in units of the network's activations: oneDNN copies arrays, and the heap
fragments. Measured: 512 bytes a pixel for activations of 296; U-Net of base 16, depth 3, window 1024 + 2 x 56."""
PIPELINE_BYTES_PER_PIXEL = 40
"""Memory of a window besides the activations: input, scaled input, outputs and maps."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in a file; its network is read when a predictor is made.

    Attributes
    ----------
    path : Path
        The file.
    header : ModelHeader
        Its header.
    digest : str
        BLAKE2b of the file's bytes, hexadecimal.
    """

    path: Path
    header: ModelHeader
    digest: str

    @property
    def halo(self) -> int:
        """Pixels to read beyond a core, px, a multiple of the stride."""
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
        """Check that weights come from the file that the header was read from.

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
            Threads of the CPU. Another number can change the last bits of the maps.

        Raises
        ------
        SpecError
            If the machine has no such device or precision.
        """
        from fcnpipe.networks.inference.predictor import TorchPredictor, choose_device
        from fcnpipe.networks.reach.analysis import ensure_same_size

        module = ensure_same_size(self.module(), self.header.channels)
        return TorchPredictor(module, self.header, choose_device(device), precision, threads)
