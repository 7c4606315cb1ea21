"""A Dask cluster with one worker process for each GPU of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import distributed

from fcnpipe.core.errors import SpecError

Nanny: Any = distributed.Nanny
LocalCluster: Any = distributed.LocalCluster
DEVICES = "CUDA_VISIBLE_DEVICES"
_DEFAULTS = {"dashboard_address": "127.0.0.1:0", "memory_limit": None}


class GpuNanny(Nanny):  # type: ignore[misc]
    """Nanny of a worker that sees one GPU, ``devices[name]``, where ``name`` is the number of the worker."""

    def __init__(
        self,
        *args: Any,
        name: int,
        devices: Sequence[str],
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        own = {**(env or {}), DEVICES: devices[name % len(devices)]}
        super().__init__(*args, name=name, env=own, **options)


class GpuCluster(LocalCluster):  # type: ignore[misc]
    """Local Dask cluster with one worker process for each GPU; each worker offers the resource GPU.

    Parameters
    ----------
    devices : sequence of str, optional
        Numbers or names of GPUs, as in CUDA_VISIBLE_DEVICES. The default is the value of this variable, or all
        GPUs if it is not set.
    threads_per_worker : int
        Number of tiles processed at the same time on a GPU: while the network runs on one tile, the next is read.
    **options
        Arguments of ``distributed.LocalCluster``.

    Raises
    ------
    SpecError
        If there is no GPU.
    """

    def __init__(
        self, devices: Sequence[Any] | None = None, threads_per_worker: int = 2, **options: Any
    ) -> None:
        chosen = list_devices() if devices is None else [str(device) for device in devices]
        if not chosen:
            raise SpecError("no GPU is visible: check CUDA_VISIBLE_DEVICES, or set devices")
        fixed = {
            "n_workers": len(chosen),
            "threads_per_worker": threads_per_worker,
            "worker_class": GpuNanny,
            "devices": chosen,
            "resources": {"GPU": threads_per_worker},
        }
        super().__init__(**{**_DEFAULTS, **options, **fixed})


def list_devices() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get(DEVICES)
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    import torch  # slow to import, and not needed if the variable is set

    return [str(number) for number in range(torch.cuda.device_count())]
