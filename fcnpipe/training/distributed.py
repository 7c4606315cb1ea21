"""Distributed data-parallel training with processes started by ``torchrun``.

Each process computes its own micro-batches. The gradients are averaged over all processes, so every
process has the same network after each step. The process of rank 0 writes the files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """Rank of this process and number of processes."""

    rank: int = 0
    """Rank of this process, from 0."""
    world_size: int = 1
    """Number of processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average_gradients(self, network: nn.Module) -> None:
        """Replace the gradients of a network by their mean over the processes."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world_size
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def average(self, value: float, device: str) -> float:
        """Return the mean of a number over the processes."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total) / self.world_size

    def broadcast(self, value: float, device: str) -> float:
        """Return the number of the process of rank 0 in every process."""
        if self.world_size == 1:
            return value
        shared: Tensor = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return float(shared)


def is_first_process() -> bool:
    """Return whether this process has rank 0 or was not started by torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def count_processes() -> int:
    """Return the number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the process group of torchrun for the duration of the context; without torchrun, a group of one."""
    count = count_processes()
    if count == 1:
        yield ProcessGroup()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), count)
        distributed.barrier()  # no process may leave while another still needs the connection
    finally:
        distributed.destroy_process_group()
