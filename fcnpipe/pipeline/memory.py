"""The most that a process takes, from what it works on.

::

    once        interpreter, libraries, kernels, holes in the heap, what the image's reader keeps
    each task   the greater of
                    predict   the pixels of a tile with its halo, and a window in the network
                    label     a tile's maps, labels, image and noise

The figures are measured, not derived: ``python -m benchmarks.memory`` holds them against real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

PROCESS_BYTES = 330 * 2**20
"""Any process at its end: 148 MiB of files mapped, the rest imported by the way, pyarrow's last."""
TORCH_BYTES = 270 * 2**20
"""What torch and oneDNN add."""
DASK_BYTES = 10 * 2**20
"""What distributed adds to a worker."""
DRIVER_BYTES = 230 * 2**20
"""The process that hands the tiles out to workers of Dask, their scheduler in it, without torch."""
DRIVER_TORCH_BYTES = 185 * 2**20
DRIVER_TILE_BYTES = 1000
"""What the driver keeps of each tile; ``python -m benchmarks.scheduling_overhead`` measures it."""
FLOW_BYTES = 100 * 2**20
"""What Prefect takes in the process of a flow."""
SERVER_BYTES = 90 * 2**20
"""What it takes more there if no server is named: it then imports its own, to start that."""
COMPILER_BYTES = 220 * 2**20
"""numba's compiler, in a process that finds no kernels of an earlier run."""
LEAST_TASK_BYTES = 62 * 2**20
"""A task on the smallest tile: what is imported for the first of its kind."""
LABEL = 48
"""Bytes for each pixel of a tile, one plane."""
PREDICT = 24
"""Bytes for each pixel of a tile and its halo, one plane, outside the network."""
PLANE = 20
"""The same for each plane more."""
WEIGHT = 20
"""The same for a weight map, turned into noise in double precision."""
MASK = 7
PIPELINE = 40
"""Bytes for each pixel of a window outside the layers: input, outputs, maps."""
LAYERS = {"fp32": 2.72, "bf16": 1.16, "int8": 0.57}
"""Times the arrays of the layers (float32) that a window takes in the network, oneDNN's copies included."""
HOLES = {"fp32": 0.99, "bf16": 0.75, "int8": 0.05}
"""Times them that a process has in holes: windows of several shapes in a heap that is never given back.
From one run to the next they differ by a quarter."""
ALIKE = 0.15
"""Part of that where all windows have one shape."""


@dataclass(frozen=True, slots=True)
class PixelBytes:
    """What a pixel takes on its way through a network.

    Attributes
    ----------
    task, once : float
        In each task, and what the process keeps.
    """

    task: float
    once: float = 0.0


def weigh_pixel(bytes_per_pixel: int, precision: str, alike: bool) -> PixelBytes:
    """Give what a pixel takes on its way through a network.

    Parameters
    ----------
    bytes_per_pixel : int
        What the model says of it, for float32.
    precision : {"fp32", "bf16", "int8"}
        Arithmetic of the network.
    alike : bool
        Whether all windows have one shape.
    """
    layers = max(bytes_per_pixel - PIPELINE, 0)
    holes = HOLES[precision] * (ALIKE if alike else 1)
    return PixelBytes(PIPELINE + LAYERS[precision] * layers, holes * layers)


@dataclass(frozen=True, slots=True)
class Load:
    """What one task works on.

    Attributes
    ----------
    tile, read, window : int
        Pixels of a tile, of a tile with its halo, and of the largest window with its halo.
    planes : int
        Bands, extra channels and maps that are stored, at least 1.
    pixel_bytes : PixelBytes
        What each pixel of that window takes in the network.
    torch : bool
        Whether there is a network.
    weight, mask : bool
        Whether there are such maps.
    """

    tile: int
    read: int
    window: int
    planes: int
    pixel_bytes: PixelBytes
    torch: bool
    weight: bool = False
    mask: bool = False

    @property
    def task_bytes(self) -> int:
        """The most that a task takes."""
        planes, maps = PLANE * (self.planes - 1), WEIGHT * self.weight + MASK * self.mask
        network = int(self.window * self.pixel_bytes.task)
        # What is read of the maps has gone when the network begins.
        predict = self.read * (PREDICT + planes) + max(network, self.read * maps)
        return max(LEAST_TASK_BYTES, predict, self.tile * (LABEL + planes + maps))


@dataclass(frozen=True, slots=True)
class Projection:
    """The most that a process takes.

    Attributes
    ----------
    once, task : int
        Bytes, whatever it does, and for each task at the same time.
    """

    once: int
    task: int

    def of(self, tasks: int) -> int:
        """Give the bytes of a process that does so many tasks at the same time."""
        return self.once + tasks * self.task


def project(load: Load, kept_bytes: int, *, dask: bool, compiles: bool) -> Projection:
    """Project what a process takes that works on tiles.

    Parameters
    ----------
    load : Load
        What one task works on.
    kept_bytes : int
        What the reader of the image keeps, and what else is in the process.
    dask : bool
        Whether the process is a worker of Dask.
    compiles : bool
        Whether kernels are still to be compiled.
    """
    once = PROCESS_BYTES + TORCH_BYTES * load.torch + DASK_BYTES * dask
    once += COMPILER_BYTES * compiles + kept_bytes + int(load.window * load.pixel_bytes.once)
    return Projection(once, load.task_bytes)


def project_driver(tiles: int, torch: bool) -> int:
    """Project what the process takes that hands so many tiles out to workers of Dask, bytes."""
    return DRIVER_BYTES + DRIVER_TORCH_BYTES * torch + DRIVER_TILE_BYTES * tiles
