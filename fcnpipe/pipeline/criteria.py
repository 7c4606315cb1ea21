"""Detection and deblending thresholds of a run, in the integers of the stored maps."""

from __future__ import annotations

from dataclasses import dataclass

from fcnpipe import networks
from fcnpipe.core.spec import RunSpec
from fcnpipe.science import quantisation
from fcnpipe.science.merge_tree import MILLION, Criterion


@dataclass(frozen=True, slots=True)
class Criteria:
    """Thresholds that define foreground and sources, in the integers of the stored maps.

    Attributes
    ----------
    on_elevation : bool
        Whether ``level`` applies to the elevation; else it applies to the probability.
    level : int
        Minimum value of a foreground pixel.
    branch : Criterion
        Minimum values of a branch of the merge tree that stays a source.
    minarea, minpeak : int
        Minimum number of pixels of a source, and minimum elevation of its peak.
    broad : int or None
        Number of pixels from which ``minpeak`` is not required; None: it is always required.
    """

    on_elevation: bool
    level: int
    branch: Criterion
    minarea: int
    minpeak: int
    broad: int | None = None


def resolve_criteria(spec: RunSpec, header: networks.ModelHeader) -> Criteria:
    """Return the criteria of a run: the user's options, else the model's defaults.

    Raises
    ------
    ModelError
        If the threshold is outside the range of the model's output.

    Notes
    -----
    A user's ``dynamics`` applies to all branches. The model's separate value for extended branches is
    then ignored.
    """
    defaults = header.defaults
    on_elevation = header.detect_on == "elevation"
    top = quantisation.ELEVATION_MAX if on_elevation else quantisation.PROBABILITY_MAX
    minarea = defaults.minarea if spec.minarea is None else spec.minarea
    mincont = defaults.mincont if spec.mincont is None else spec.mincont
    dynamics, extended = defaults.dynamics, defaults.extended or 0
    if spec.dynamics is not None:
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
                defaults.extended_dynamics, quantisation.ELEVATION_MAX
            ),
        ),
        minarea,
        quantisation.quantise_threshold(defaults.minpeak, quantisation.ELEVATION_MAX),
        defaults.broad,
    )
