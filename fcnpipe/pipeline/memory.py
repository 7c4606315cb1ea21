"""Projected peak memory of the processes of a run.

::

    process     interpreter, libraries, kernels, heap fragmentation, memory of the image reader
    each task   the greater of
                    predict   the pixels of a tile with its halo, and one window in the network
                    label     a tile's maps, labels, image and noise

The figures are measured, not derived: ``python -m benchmarks.memory`` compares them with real runs.
"""

from __future__ import annotations

from dataclasses import dataclass

PROCESS_BYTES = 330 * 2**20
"""Any process at the end of a run: 148 MiB of mapped files, and all imports up to the last one, pyarrow."""
TORCH_BYTES = 270 * 2**20
"""Memory added by torch and oneDNN."""
DASK_BYTES = 10 * 2**20
"""Memory added by distributed in a worker."""
DRIVER_BYTES = 230 * 2**20
"""The driver of Dask workers with their scheduler, without torch."""
DRIVER_TORCH_BYTES = 185 * 2**20
"""Memory added by torch in the driver."""
DRIVER_TILE_BYTES = 1000
"""Memory that the driver keeps per tile; measured by ``python -m benchmarks.scheduling_overhead``."""
FLOW_BYTES = 100 * 2**20
"""Memory added by Prefect in the process of a flow."""
SERVER_BYTES = 90 * 2**20
"""Memory added to a flow if no server is configured: Prefect then imports its own server to start it."""
COMPILER_BYTES = 220 * 2**20
"""Memory added by numba's compiler in a process that finds no cached kernels."""
MIN_TASK_BYTES = 62 * 2**20
"""Minimum memory of a task: lazy imports of the first task of its kind."""
LABEL_BYTES = 48
"""Bytes per pixel of a tile in the label stage, for one plane."""
PREDICT_BYTES = 24
"""Bytes per pixel of a tile with its halo in the predict stage, for one plane, outside the network."""
PLANE_BYTES = 20
"""Bytes per pixel, for each additional plane."""
WEIGHT_BYTES = 20
"""Bytes per pixel, for a weight map, which is converted to noise in double precision."""
MASK_BYTES = 7
"""Bytes per pixel, for a mask."""
WINDOW_BYTES = 40
"""Bytes per pixel of a window, outside the layers: input, outputs, maps."""
LAYER_FACTOR = {"fp32": 2.72, "bf16": 1.16, "int8": 0.57}
"""Memory of a window in the network, relative to the float32 arrays of its layers; includes oneDNN's copies."""
FRAGMENTATION_FACTOR = {"fp32": 0.99, "bf16": 0.75, "int8": 0.05}
"""Heap fragmentation relative to the same arrays, from windows of several shapes in a heap that never
shrinks. It varies by a quarter from run to run."""
ONE_SHAPE = 0.15
"""Fraction of the fragmentation that remains if all windows have the same shape."""


@dataclass(frozen=True, slots=True)
class PixelBytes:
    """Memory per pixel of a window in the network.

    Attributes
    ----------
    task : float
        Bytes in each task.
    once : float
        Bytes that the process keeps, independent of the number of tasks.
    """

    task: float
    once: float = 0.0


def weigh_pixel(bytes_per_pixel: int, precision: str, one_shape: bool) -> PixelBytes:
    """Return the memory per pixel of a window in the network.

    Parameters
    ----------
    bytes_per_pixel : int
        The model's figure, for float32.
    precision : {"fp32", "bf16", "int8"}
        Arithmetic of the network.
    one_shape : bool
        Whether all windows have the same shape.
    """
    layers = max(bytes_per_pixel - WINDOW_BYTES, 0)
    fragmentation = FRAGMENTATION_FACTOR[precision] * (ONE_SHAPE if one_shape else 1)
    return PixelBytes(WINDOW_BYTES + LAYER_FACTOR[precision] * layers, fragmentation * layers)


@dataclass(frozen=True, slots=True)
class Load:
    """The arrays of one task.

    Attributes
    ----------
    tile, read, window : int
        Pixels of a tile, of a tile with its halo, and of the largest window with its halo.
    planes : int
        Bands, extra channels and stored maps, at least 1.
    pixel_bytes : PixelBytes
        Memory per pixel of that window in the network.
    torch : bool
        Whether there is a network.
    weight, mask : bool
        Whether there is a weight map, or a mask.
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
        """Projected peak memory of a task."""
        planes = PLANE_BYTES * (self.planes - 1)
        maps = WEIGHT_BYTES * self.weight + MASK_BYTES * self.mask
        network = int(self.window * self.pixel_bytes.task)
        # Weight and mask are released before the network starts.
        predict = self.read * (PREDICT_BYTES + planes) + max(network, self.read * maps)
        return max(MIN_TASK_BYTES, predict, self.tile * (LABEL_BYTES + planes + maps))


@dataclass(frozen=True, slots=True)
class Projection:
    """Projected peak memory of a process.

    Attributes
    ----------
    once : int
        Bytes of the process itself.
    task : int
        Bytes of each task that runs at the same time.
    """

    once: int
    task: int

    def of(self, tasks: int) -> int:
        """Return the bytes of a process that runs this number of tasks at the same time."""
        return self.once + tasks * self.task


def project(load: Load, kept_bytes: int, *, dask: bool, compiles: bool) -> Projection:
    """Project the peak memory of a process that runs tasks.

    Parameters
    ----------
    load : Load
        The arrays of one task.
    kept_bytes : int
        Bytes that the image reader and the host program keep in the process.
    dask : bool
        Whether the process is a Dask worker.
    compiles : bool
        Whether kernels are yet to be compiled.

    Returns
    -------
    Projection
        Bytes of the process itself and of each task.
    """
    once = PROCESS_BYTES + TORCH_BYTES * load.torch + DASK_BYTES * dask
    once += COMPILER_BYTES * compiles + kept_bytes + int(load.window * load.pixel_bytes.once)
    return Projection(once, load.task_bytes)


def project_driver(tiles: int, torch: bool) -> int:
    """Project the peak memory, in bytes, of a driver that distributes tiles to Dask workers."""
    return DRIVER_BYTES + DRIVER_TORCH_BYTES * torch + DRIVER_TILE_BYTES * tiles
