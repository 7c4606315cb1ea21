"""A Dask cluster of one process for each GPU of this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import distributed

from fcnpipe.core.errors import SpecError

Nanny: Any = distributed.Nanny
LocalCluster: Any = distributed.LocalCluster
DEVICES = "CUDA_VISIBLE_DEVICES"
_USUAL = {"dashboard_address": "127.0.0.1:0", "memory_limit": None}


class GpuNanny(Nanny):  # type: ignore[misc]
    """Starts a worker that sees one GPU, the one at its number in ``devices``."""

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
    """One worker process for each GPU of this machine, which offers the resource GPU.

    Parameters
    ----------
    devices : sequence of str, optional
        As in CUDA_VISIBLE_DEVICES: numbers or names. What that variable says if not given, else all.
    threads_per_worker : int
        Tiles that a GPU works on at a time: while the network runs on one, the next is read.
    **options
        As of ``distributed.LocalCluster``.

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
            raise SpecError("no GPU is to be seen: check CUDA_VISIBLE_DEVICES, or name devices")
        fixed = {
            "n_workers": len(chosen),
            "threads_per_worker": threads_per_worker,
            "worker_class": GpuNanny,
            "devices": chosen,
            "resources": {"GPU": threads_per_worker},
        }
        super().__init__(**{**_USUAL, **options, **fixed})


def list_devices() -> list[str]:
    """Give the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get(DEVICES)
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip()]
    import torch  # heavy, and of no use where the variable is set

    return [str(number) for number in range(torch.cuda.device_count())]
