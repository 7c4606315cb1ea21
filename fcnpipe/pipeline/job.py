"""The job that every task receives, and what each process opens once for it: image, model, network, sky."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from fcnpipe import networks
from fcnpipe.core.errors import ModelError
from fcnpipe.core.geometry import Box, Tile, parse_tile_name
from fcnpipe.core.spec import RunSpec
from fcnpipe.core.timeouts import raise_if_abandoned
from fcnpipe.images.fingerprints import InputFingerprint
from fcnpipe.images.masked_image import MaskedImage
from fcnpipe.images.sky import Sky, unpack_sky
from fcnpipe.pipeline.criteria import Criteria
from fcnpipe.pipeline.plan import Plan
from fcnpipe.stores import ZarrStore, check_owner

_T = TypeVar("_T")
ALL = "all"
"""Name of a task that runs once for the whole image."""

CRC = "crc-"
"""Prefix of a map's name: key of its checksum among the facts of a task."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Job:
    """All that a task needs to find its input and output; small and picklable.

    Attributes
    ----------
    spec : RunSpec
        The run.
    plan : Plan
        Tiles, windows and halo.
    criteria : Criteria
        What is foreground and what is a source, in integers.
    path : str
        Folder of the store during the run, OUT.zarr.partial.
    nonce : str
        Distinguishes this call from others in the same process, whose files may have changed since,
        and from other runs on the same store.
    inputs : tuple of InputFingerprint
        Fingerprints of the input files from before their digest was computed.
    model_digest : str
        Digest of the model of the run; any other model under its name is refused.
    """

    spec: RunSpec
    plan: Plan
    criteria: Criteria
    path: str
    nonce: str
    inputs: tuple[InputFingerprint, ...] = ()
    model_digest: str = ""

    @property
    def store(self) -> ZarrStore:
        """The store, for a task that was not abandoned, of a run that still owns the store.

        Raises
        ------
        StoreError
            If another run has taken over the store, or it has been published: a task that wakes up
            after a long time must not write to it.
        TimeoutError
            If the task was abandoned (``--tile-timeout``).
        """
        raise_if_abandoned()
        check_owner(Path(self.path), self.nonce)
        return ZarrStore(Path(self.path))

    def check_inputs(self, thorough: bool = False) -> None:
        """Raise an error if an input has changed since the run was opened.

        Parameters
        ----------
        thorough : bool
            Check folders and URLs too, which takes longer.

        Raises
        ------
        InputChanged
            If one has.
        """
        for fingerprint in self.inputs:
            fingerprint.check(thorough)

    @property
    def image(self) -> MaskedImage:
        """The image with its weight and mask."""
        return _recall(self.nonce, "image", lambda: MaskedImage(self.spec))

    @property
    def model(self) -> networks.Model:
        """The model, loaded once per process for all its runs.

        Raises
        ------
        ModelError
            If it is missing on this machine, or another file has its name.
        """
        with _LOADING:
            return _recall(self.model_digest or self.nonce, "model", self._load_model)

    @property
    def predictor(self) -> networks.Predictor:
        """The network, ready to run on one thread.

        Notes
        -----
        The number of threads may change the last bits of a convolution.
        """
        what = f"predictor {self.spec.device} {self.spec.precision}"
        with _LOADING:
            return _recall(self.model_digest or self.nonce, what, self._make_predictor)

    def load_network(self) -> None:
        """Load the network ahead of the first tile; raises an error if it is another one."""
        assert self.predictor

    @property
    def sky(self) -> Sky:
        """Sky and noise; available after the background stage."""
        return _recall(self.nonce, "sky", lambda: unpack_sky(self.store.get_arrays("sky", ALL)))

    def _load_model(self) -> networks.Model:
        found = networks.load_model(self.spec.model, self.spec.fwhm, self.spec.declared)
        if found.digest != (self.model_digest or found.digest):
            raise ModelError(
                f"model {self.spec.model} is another file on this machine (digest {found.digest}) than the run "
                f"was started with ({self.model_digest}): install the same file everywhere"
            )
        return found

    def _make_predictor(self) -> networks.Predictor:
        networks.tune_allocator()
        return self.model.predictor(self.spec.device, self.spec.precision, threads=1)

    def write_maps(self, core: Box, maps: Arrays) -> dict[str, float]:
        """Write maps of a tile; return their checksums as facts of the task."""
        return {CRC + what: self.store.write_tile(what, core, v) for what, v in maps.items()}

    def read_checksums(self, task: str, name: str) -> dict[str, int]:
        """Return the checksums that a task recorded; empty if it is not done."""
        if not self.store.has_arrays(f"facts-{task}", name):
            return {}
        facts = self.store.get_arrays(f"facts-{task}", name)
        return {k.removeprefix(CRC): int(v) for k, v in facts.items() if k.startswith(CRC)}

    def tile(self, name: str) -> Tile:
        """Return the tile with this name."""
        return self.plan.tiles.tile(*parse_tile_name(name))


_LOADING = threading.RLock()
"""Held by the one thread of a process that loads a model."""


@lru_cache(maxsize=4)
def _memory(key: str) -> dict[str, Any]:
    return {}


def _recall(key: str, what: str, make: Callable[[], _T]) -> _T:
    """Return what this process has opened for a job or a model; a harmless race may open it twice."""
    memory = _memory(key)
    if what not in memory:
        memory[what] = make()
    found: _T = memory[what]
    return found
