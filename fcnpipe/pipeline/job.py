"""The job that every task receives, and the image, model, network and sky that each process opens once for it."""

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
"""Prefix of the keys of checksums in the facts of a task; the name of the map follows."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that a task needs to find its input and output; small and picklable.

    Attributes
    ----------
    spec : RunSpec
        The run.
    plan : Plan
        Tiles, windows and halo.
    criteria : Criteria
        Thresholds that define foreground and sources, in integers.
    path : str
        Folder of the store during the run, OUT.zarr.partial.
    nonce : str
        Random identifier of this call. It distinguishes the call from earlier ones in the same
        process, since files may have changed in between, and from other runs on the same store.
    inputs : tuple of InputFingerprint
        Fingerprints of the input files from before their digest was computed.
    model_digest : str
        Digest of the model of the run; a process refuses any other model under its name.
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
        """The store. Reading this property checks that the task and the run may still write to it.

        Raises
        ------
        StoreError
            If another run has taken over the store, or the store has been published: a task that
            continues after a long pause must not write to it.
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
            If an input has changed.
        """
        for fingerprint in self.inputs:
            fingerprint.check(thorough)

    @property
    def image(self) -> MaskedImage:
        """The image with its weight and mask."""
        return _open_once(self.nonce, "image", lambda: MaskedImage(self.spec))

    @property
    def model(self) -> networks.Model:
        """The model, loaded once per process for all its runs.

        Raises
        ------
        ModelError
            If the model is missing on this machine, or another file has its name.
        """
        with _LOADING:
            return _open_once(self.model_digest or self.nonce, "model", self._load_model)

    @property
    def predictor(self) -> networks.Predictor:
        """The network, ready to run on one thread.

        Notes
        -----
        The number of threads may change the last bits of a convolution.
        """
        what = f"predictor {self.spec.device} {self.spec.precision}"
        with _LOADING:
            return _open_once(self.model_digest or self.nonce, what, self._make_predictor)

    def load_network(self) -> None:
        """Load the network before the first tile.

        Raises
        ------
        ModelError
            If the model is missing on this machine, or another file has its name.
        """
        assert self.predictor

    @property
    def sky(self) -> Sky:
        """Sky and noise; available after the background stage."""
        return _open_once(self.nonce, "sky", lambda: unpack_sky(self.store.get_arrays("sky", ALL)))

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
"""Lock that lets only one thread of a process load a model at a time."""


@lru_cache(maxsize=4)
def _opened_objects(key: str) -> dict[str, Any]:
    """Return the objects that this process has opened for a job or a model, by name."""
    return {}


def _open_once(key: str, what: str, make: Callable[[], _T]) -> _T:
    """Return an object of a job or a model; open it if this process has not opened it yet.

    Two threads may both open it, which is harmless.
    """
    opened = _opened_objects(key)
    if what not in opened:
        opened[what] = make()
    found: _T = opened[what]
    return found
