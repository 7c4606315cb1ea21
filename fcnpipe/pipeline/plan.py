"""The plan of a run: tiles, windows, halo, projected memory and disk; made before the first pixel is read."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import gcd, lcm
from pathlib import Path

import numpy as np

from fcnpipe import engines
from fcnpipe.core.errors import PlanError, StoreError
from fcnpipe.core.geometry import Box, TileGrid, round_up
from fcnpipe.core.records import OutputMap
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline.inputs import Command, Inputs, open_inputs
from fcnpipe.pipeline.memory import (
    Load,
    PixelBytes,
    Projection,
    project,
    project_driver,
    weigh_pixel,
)
from fcnpipe.pipeline.precision import is_filter, resolve_precision
from fcnpipe.science.apertures import LAST_KERNEL
from fcnpipe.science.normalisation import FILL_REACH

CHUNK = 512
"""Edge of an inner chunk of the store, px; if the tile is not a multiple, their greatest common divisor is used."""
MIN_CHUNK = 64
"""Minimum edge of an inner chunk, px."""
DEFAULT_TILE = 2048
"""Maximum edge of a tile by default, px; larger windows are allowed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, and the resources that it needs.

    Attributes
    ----------
    shape : (int, int)
        Image height and width, px.
    bands : int
        Bands of the image.
    tile, window : int
        Core edges, px; the tile is a multiple of the window.
    halo, stride : int
        Halo and stride of the network, px.
    chunk : int
        Edge of an inner chunk of the store, px.
    cell : int
        Edge of a cell of the background mesh, px.
    workers : int
        Number of tasks that run at the same time.
    threads : int
        Number of tasks that run at the same time in one process.
    memory : Projection
        Projected peak memory of a process.
    driver_bytes : int
        Projected peak memory of the driver where Dask workers process the tiles, else 0.
    disk_bytes : int
        Upper limit of the output's size, before compression.
    precision : str
        Arithmetic of the network: fp32, bf16 or int8.
    maps : tuple of OutputMap
        Outputs of the network to be stored as they are; empty if sources are to be found.
    """

    shape: tuple[int, int]
    bands: int
    tile: int
    window: int
    halo: int
    stride: int
    chunk: int
    cell: int
    workers: int
    threads: int
    memory: Projection
    driver_bytes: int
    disk_bytes: int
    precision: str
    maps: tuple[OutputMap, ...] = ()

    @property
    def frame(self) -> Box:
        """The image as a box."""
        return Box(0, 0, *self.shape)

    @property
    def canvas(self) -> Box:
        """The image padded at the high side to a multiple of the stride, as the network sees it."""
        return Box(0, 0, round_up(self.shape[0], self.stride), round_up(self.shape[1], self.stride))

    @property
    def tiles(self) -> TileGrid:
        """The grid of tiles."""
        return TileGrid(self.shape, (self.tile, self.tile))

    @property
    def windows(self) -> TileGrid:
        """The grid of windows on the canvas."""
        return TileGrid(self.canvas.shape, (self.window, self.window))

    @property
    def mesh(self) -> tuple[int, int]:
        """Rows and columns of the background mesh."""
        return TileGrid(self.shape, (self.cell, self.cell)).counts

    @property
    def memory_bytes(self) -> int:
        """Projected peak memory of a process that runs all its tasks at the same time."""
        return self.memory.of(self.threads)

    @property
    def overhead(self) -> float:
        """Pixels read by the network for each pixel written."""
        read = sum(w.core.grow(self.halo).clip(self.canvas).size for w in self.windows)
        return read / self.frame.size

    def lines(self) -> list[tuple[str, str]]:
        """Return (item, value) rows for display."""
        (height, width), (rows, columns) = self.shape, self.tiles.counts
        memory = f"{self.memory_bytes / 2**30:.2f} GiB for each process (projected peak)"
        if self.driver_bytes:
            memory += f", {self.driver_bytes / 2**30:.2f} GiB for the driver"
        return [
            ("image", f"{self.bands} x {height} x {width} ({self.frame.size / 1e6:.1f} Mpix)"),
            ("tiles", f"{rows} x {columns} = {len(self.tiles)} of {self.tile} px"),
            (
                "windows",
                f"{len(self.windows)} of {self.window} px + halo {self.halo} px, stride {self.stride}",
            ),
            ("overhead", f"{self.overhead:.3f} px read for each px written"),
            ("precision", self.precision),
            ("storage", f"shards of {self.tile} px, chunks of {self.chunk} px"),
            ("background", f"mesh of {self.mesh[0]} x {self.mesh[1]} cells of {self.cell} px"),
            ("workers", f"{self.workers}, {self.threads} in a process"),
            ("memory", memory),
            ("disk", f"{self.disk_bytes / 2**30:.2f} GiB at most, before compression"),
        ]


def make_plan(
    spec: RunSpec, tile: int | None = None, command: Command = "segment", host_bytes: int = 0
) -> Plan:
    """Plan a run without starting it; parameters and errors are those of `plan_run` and `open_inputs`."""
    return plan_run(open_inputs(spec, command), tile, host_bytes)


def plan_run(inputs: Inputs, tile: int | None = None, host_bytes: int = 0) -> Plan:
    """Return the plan of a run; no pixel is read.

    Parameters
    ----------
    inputs : Inputs
        The opened image and model, and the spec.
    tile : int, optional
        Tile edge of the run that is resumed, px; takes precedence over the spec's.
    host_bytes : int
        Bytes that the host program (such as Prefect) uses in this process.

    Raises
    ------
    SpecError, ModelError, EngineError
        If the precision cannot be used.
    PlanError
        If the tile does not fit the window or the store, or the run does not fit into memory.
    """
    model, info = inputs.model, inputs.image.info
    bands, height, width = info.shape
    edge = _tile_edge(inputs.spec.window, tile or inputs.spec.tile, (height, width))
    _check_window(inputs.spec.window, model.stride)
    spec = inputs.spec.model_copy(update={"precision": resolve_precision(inputs.spec, model)})
    cores = engines.count_cores() if spec.on_dask or spec.engine != "serial" else 1
    workers = spec.workers or cores
    kept_bytes = inputs.image.overhead_bytes + host_bytes * (not spec.on_dask)
    load = _task_load(spec, inputs, edge)
    tiles = len(TileGrid((height, width), (edge, edge)))
    plan = Plan(
        shape=(height, width),
        bands=bands,
        tile=edge,
        window=spec.window,
        halo=_halo(inputs),
        stride=model.stride,
        chunk=_chunk(edge, spec.window),
        cell=spec.back_size,
        workers=workers,
        threads=min(_count_threads(spec, workers), tiles),
        memory=project(load, kept_bytes, dask=spec.on_dask, compiles=_must_compile()),
        driver_bytes=project_driver(tiles, load.torch) + host_bytes if spec.on_dask else 0,
        disk_bytes=height * width * _stored_bytes(inputs),
        precision=spec.precision,
        maps=inputs.maps,
    )
    _check_memory(plan, spec)
    return plan


def check_disk(plan: Plan, out: str) -> None:
    """Raise an error if the output folder cannot be written or is clearly too small.

    Raises
    ------
    StoreError
        If the folder is missing or not writable, or its free space is below 10 % of the output's
        maximum size (labels and probabilities compress at least that well).
    """
    folder = Path(out).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"output folder {folder} does not exist or is not writable: create it, or choose another OUT"
        )
    free = shutil.disk_usage(folder).free
    if free < plan.disk_bytes // 10:
        raise StoreError(
            f"output needs at least {plan.disk_bytes / 1e10:.2f} GB but {folder} has {free / 1e9:.2f} GB free: "
            "free some space, or choose another OUT"
        )


def _stored_bytes(inputs: Inputs) -> int:
    """Return the bytes of a pixel of the store, before compression."""
    image = 4 * inputs.image.bands * inputs.spec.keep_image
    if inputs.maps:
        flags = 1
        return image + flags + sum(np.dtype(output.dtype).itemsize for output in inputs.maps)
    label, elevation, flags, segments = 4, 2, 1, 4
    return image + label + elevation + flags + segments + len(inputs.model.classes)


def _tile_edge(window: int, tile: int | None, shape: tuple[int, int]) -> int:
    if tile is None:
        largest = max(window, DEFAULT_TILE // window * window)
        return min(largest, round_up(max(shape), window))
    if tile % window:
        raise PlanError(
            f"tile={tile} is not a multiple of window={window}: "
            f"use --tile {round_up(tile, window)}, or another --window"
        )
    return tile


def _check_window(window: int, stride: int) -> None:
    if window % stride:
        raise PlanError(
            f"window={window} is not a multiple of the network's stride {stride}: "
            f"use --window {round_up(window, lcm(stride, MIN_CHUNK))}"
        )


def _chunk(tile: int, window: int) -> int:
    chunk = gcd(tile, CHUNK)
    if chunk < MIN_CHUNK:  # then the window is not a multiple of MIN_CHUNK either
        raise PlanError(
            f"window={window} and tile={tile} leave chunks of {chunk} px, below {MIN_CHUNK}: "
            f"use --window {round_up(window, MIN_CHUNK)}, and a multiple of it as --tile"
        )
    return chunk


def _count_threads(spec: RunSpec, workers: int) -> int:
    """Return the number of tasks in one process, as far as it is known before the process runs."""
    if not spec.on_dask:
        return 1 if spec.engine == "serial" else workers
    options = (spec.cluster or {}).get("cluster_kwargs") or {}
    return int(options.get("threads_per_worker") or options.get("nthreads") or 1)


def _task_load(spec: RunSpec, inputs: Inputs, tile: int) -> Load:
    """Return the size of the arrays of one task."""
    model, shape = inputs.model, inputs.image.info.shape
    halo = _halo(inputs)
    rows, columns = (_read_lengths(n, spec.window, halo, model.stride) for n in shape[1:])
    per_pixel = PixelBytes(model.header.bytes_per_pixel)
    if not is_filter(model):
        one_shape = len(rows) == len(columns) == 1
        per_pixel = weigh_pixel(model.header.bytes_per_pixel, spec.precision, one_shape)
    return Load(
        tile=_area(tile, 0, shape),
        read=_area(tile, halo + FILL_REACH, shape),
        window=max(rows) * max(columns),
        planes=inputs.image.bands + len(model.header.extra) + len(inputs.maps),
        pixel_bytes=per_pixel,
        torch=not is_filter(model),
        weight=spec.weight is not None,
        mask=spec.mask is not None,
    )


def _halo(inputs: Inputs) -> int:
    """Return the halo of the windows, px: the model's, or more if a window were smaller than the network accepts.

    With the larger halo, a core of one stride at the border of the image suffices.
    """
    model, window, shape = inputs.model, inputs.spec.window, inputs.image.info.shape[1:]
    least = model.header.minimum_size
    lengths = (min(_read_lengths(n, window, model.halo, model.stride)) for n in shape)
    if all(length >= n for length, n in zip(lengths, least, strict=True)):
        return model.halo
    return max(model.halo, round_up(max(least) - model.stride, model.stride))


def _read_lengths(length: int, window: int, halo: int, stride: int) -> set[int]:
    """Return the lengths along an axis of all windows with their halo; windows at the ends are shorter."""
    end = round_up(length, stride)
    cores = ((start, min(start + window, end)) for start in range(0, end, window))
    return {min(stop + halo, end) - max(start - halo, 0) for start, stop in cores}


def _area(edge: int, margin: int, shape: tuple[int, int, int]) -> int:
    """Return the pixels of a square with a margin, clipped at the image."""
    height, width = (min(edge + 2 * margin, length) for length in shape[1:])
    return height * width


def _must_compile() -> bool:
    """Return whether the kernels are yet to be compiled, judged by the kernel that a run compiles last."""
    if not hasattr(LAST_KERNEL, "stats"):  # numba's compiler is disabled
        return False
    function = LAST_KERNEL.py_func
    module, line = function.__module__.rpartition(".")[2], function.__code__.co_firstlineno
    cached = Path(LAST_KERNEL.stats.cache_path).glob(f"{module}.{function.__name__}-{line}.*.nbi")
    return not any(cached)


def _check_memory(plan: Plan, spec: RunSpec) -> None:
    if spec.scheduler or (spec.cluster and not spec.memory_limit):
        return  # the workers' machines are checked when they are connected
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = (machine - plan.driver_bytes) / plan.workers if plan.driver_bytes else machine
    if spec.memory_limit:
        limit = spec.memory_limit * 2**30
    if plan.memory_bytes > limit:
        raise PlanError(
            f"a process with {plan.threads} worker(s) would take {plan.memory_bytes / 2**30:.2f} GiB, above "
            f"the limit of {limit / 2**30:.2f} GiB: use a smaller --tile (now {plan.tile}) or --window "
            f"(now {plan.window}), or fewer --workers (now {plan.workers})"
        )
