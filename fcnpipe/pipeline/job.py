"""The job that every task is given, and what a process opens once for it."""

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
from fcnpipe.pipeline.plan import Plan
from fcnpipe.science import quantisation
from fcnpipe.science.merge_tree import MILLION, Criterion
from fcnpipe.stores import ZarrStore, check_owner

_T = TypeVar("_T")
ALL = "all"
"""Name of the one task of a step that is not done tile by tile."""

CRC = "crc-"
"""Before the name of a map: its checksum among the facts of a task."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Criteria:
    """What is foreground and what is a source, in the integers of the stored maps.

    Attributes
    ----------
    on_elevation : bool
        Whether ``level`` applies to the elevation; else to the probability.
    level : int
        Least value of a foreground pixel.
    branch : stitch.Criterion
        What a branch needs to stay a source of its own.
    minarea, minpeak : int
        What a source needs: pixels, and elevation of its peak.
    broad : int or None
        Pixels from which it needs no ``minpeak``.
    """

    on_elevation: bool
    level: int
    branch: Criterion
    minarea: int
    minpeak: int
    broad: int | None = None


def resolve_criteria(spec: RunSpec, header: networks.ModelHeader) -> Criteria:
    """Give the user's choices, and the model's where the user made none.

    Raises
    ------
    ModelError
        If the threshold is outside what the model can give.
    """
    usual = header.defaults
    on_elevation = header.detect_on == "elevation"
    top = quantisation.ELEVATION_MAX if on_elevation else quantisation.PROBABILITY_MAX
    minarea = usual.minarea if spec.minarea is None else spec.minarea
    mincont = usual.mincont if spec.mincont is None else spec.mincont
    if spec.dynamics is None:
        dynamics, extended = usual.dynamics, usual.extended or 0
    else:  # whoever says it means all branches
        dynamics, extended = spec.dynamics, 0
    return Criteria(
        on_elevation,
        quantisation.quantise_threshold(networks.threshold_of(header, spec.thresh), top),
        Criterion(
            quantisation.quantise_threshold(dynamics, quantisation.ELEVATION_MAX),
            minarea,
            round(mincont * MILLION),
            extended=extended,
            extended_dynamics=quantisation.quantise_threshold(
                usual.extended_dynamics, quantisation.ELEVATION_MAX
            ),
        ),
        minarea,
        quantisation.quantise_threshold(usual.minpeak, quantisation.ELEVATION_MAX),
        usual.broad,
    )


@dataclass(frozen=True, eq=False)
class Job:
    """All that a task needs to find its input and its output; small, picklable.

    Attributes
    ----------
    spec : RunSpec
        The run.
    plan : Plan
        Its tiles.
    criteria : Criteria
        What is foreground, and what is a source, in integers.
    path : str
        Folder of the store while the run lasts.
    nonce : str
        Tells this call from others of the same process, whose files may have changed since, and
        from others on the same store.
    inputs : tuple of InputFingerprint
        The input files as they were when their digest was taken.
    model_digest : str
        Digest of the model that the run is of; whatever else lies under its name is refused.
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
        """The store, for a task that is still wanted in a run that still owns it.

        Raises
        ------
        StoreError
            If another run has taken the store over, or it has been published: a task that comes
            back after a long time must not touch it.
        TimeoutError
            If the task was abandoned.
        """
        raise_if_abandoned()
        check_owner(Path(self.path), self.nonce)
        return ZarrStore(Path(self.path))

    def check_inputs(self, thorough: bool = False) -> None:
        """Make sure that the inputs are still those that the run began with.

        Parameters
        ----------
        thorough : bool
            Look at folders and URLs too, which takes longer.

        Raises
        ------
        InputChanged
            If not.
        """
        for fingerprint in self.inputs:
            fingerprint.check(thorough)

    @property
    def image(self) -> MaskedImage:
        """The image with its weight and mask."""
        return _recall(self.nonce, "image", lambda: MaskedImage(self.spec))

    @property
    def model(self) -> networks.Model:
        """The model, loaded once in a process for all runs of it.

        Raises
        ------
        ModelError
            If it is not here, or another one is.
        """
        with _LOADING:
            return _recall(self.model_digest or self.nonce, "model", self._load_model)

    @property
    def predictor(self) -> networks.Predictor:
        """The network, ready to run.

        Notes
        -----
        One thread for each: the number of threads may change the last bits of a convolution.
        """
        what = f"predictor {self.spec.device} {self.spec.precision}"
        with _LOADING:
            return _recall(self.model_digest or self.nonce, what, self._make_predictor)

    def load_network(self) -> None:
        """Load the network before there is anything to do, and refuse another one."""
        assert self.predictor

    @property
    def sky(self) -> Sky:
        """Sky and noise, once the background stage is through."""
        return _recall(self.nonce, "sky", lambda: unpack_sky(self.store.get_arrays("sky", ALL)))

    def _load_model(self) -> networks.Model:
        found = networks.load_model(self.spec.model, self.spec.fwhm, self.spec.declared)
        if found.digest != (self.model_digest or found.digest):
            raise ModelError(
                f"model {self.spec.model} is another file here (digest {found.digest}) than "
                f"the run began with ({self.model_digest}): put the same file everywhere, and leave it alone"
            )
        return found

    def _make_predictor(self) -> networks.Predictor:
        networks.tune_allocator()
        return self.model.predictor(self.spec.device, self.spec.precision, threads=1)

    def write_maps(self, core: Box, maps: Arrays) -> dict[str, float]:
        """Write maps of a tile; give their checksums as facts of the task."""
        return {CRC + what: self.store.write_tile(what, core, v) for what, v in maps.items()}

    def read_checksums(self, task: str, name: str) -> dict[str, int]:
        """Give the checksums that a task left; none if it has not been done."""
        if not self.store.has_arrays(f"facts-{task}", name):
            return {}
        facts = self.store.get_arrays(f"facts-{task}", name)
        return {k.removeprefix(CRC): int(v) for k, v in facts.items() if k.startswith(CRC)}

    def tile(self, name: str) -> Tile:
        """Give the tile of this name."""
        return self.plan.tiles.tile(*parse_tile_name(name))


_LOADING = threading.RLock()
"""One thread of a process loads a model, the others wait for it."""


@lru_cache(maxsize=4)
def _memory(key: str) -> dict[str, Any]:
    return {}


def _recall(key: str, what: str, make: Callable[[], _T]) -> _T:
    """Give what this process has opened for a job or a model; two threads may open it twice, harmlessly."""
    memory = _memory(key)
    if what not in memory:
        memory[what] = make()
    found: _T = memory[what]
    return found
