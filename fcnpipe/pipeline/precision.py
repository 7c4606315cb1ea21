"""Resolve ``--precision auto`` on the machines that run the network."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from fcnpipe import engines, networks
from fcnpipe.core.errors import SpecError
from fcnpipe.core.spec import RunSpec


def resolve_precision(spec: RunSpec, model: networks.Model) -> str:
    """Return the arithmetic of the network: fp32, bf16 or int8.

    Raises
    ------
    SpecError, ModelError
        If the tiles run on this machine and it lacks the device or the precision, or if the workers of
        a scheduler differ.
    EngineError
        If the workers cannot be queried, or lack the device.

    Notes
    -----
    The workers of a running scheduler are queried, because they may have hardware that this machine
    lacks, above all a GPU. Workers that a cluster has yet to start cannot be queried; their GPUs are
    assumed to support bfloat16. Each worker checks an explicit precision before its first tile.
    """
    remote = bool(spec.scheduler or spec.cluster)
    if is_filter(model) or not remote:
        return model.precision(spec.precision, spec.device)
    if spec.precision != "auto":
        return spec.precision
    if spec.scheduler:
        return _require_one_answer(
            engines.query_workers(spec, partial(model.precision, "auto", spec.device))
        )
    if not _wants_gpus(spec):
        return model.precision("auto", spec.device)
    with suppress(SpecError):  # a local cluster: this machine may have the GPU
        return model.precision("auto", "cuda")
    return "fp32" if model.header.has_image_outputs else "bf16"


def _require_one_answer(answers: set[str]) -> str:
    if len(answers) > 1:
        raise SpecError(
            f"precision='auto' means {' or '.join(sorted(answers))}, depending on the Dask worker, and "
            "labels depend on the precision: choose one with --precision, or restrict the tasks with resources"
        )
    return answers.pop()


def _wants_gpus(spec: RunSpec) -> bool:
    resources = (spec.cluster or {}).get("resources") or {}
    return spec.device == "cuda" or (spec.device == "auto" and "GPU" in resources)


def is_filter(model: networks.Model) -> bool:
    """Return whether the model is the matched filter, which needs no torch."""
    return model.header.architecture == "matched"
