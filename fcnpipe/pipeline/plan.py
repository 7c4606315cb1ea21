"""Spec + image + network -> the plan of a run, checked before the first pixel is read."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import gcd, lcm
from pathlib import Path
from typing import Literal

import numpy as np

from fcnpipe import engines, images, networks
from fcnpipe.core.errors import PlanError, SpecError, StoreError
from fcnpipe.core.geometry import Box, TileGrid, round_up
from fcnpipe.core.records import ImageInfo, OutputMap
from fcnpipe.core.spec import RunSpec
from fcnpipe.pipeline.memory import (
    Load,
    PixelBytes,
    Projection,
    project,
    project_driver,
    weigh_pixel,
)
from fcnpipe.science.apertures import LAST_KERNEL

Command = Literal["segment", "predict"]
FILL = 4
"""Reach of the repair of bad pixels before the network sees them, px."""
CHUNK = 512
"""Inner chunk of the store, px; a tile that it does not divide takes the common divisor."""
LEAST_CHUNK = 64
DEFAULT_TILE = 2048


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do, and what it will take.

    Attributes
    ----------
    shape : (int, int)
        Image height and width, px.
    bands : int
        Bands of the image.
    tile, window : int
        Core edges, px; the tile is a multiple of the window.
    halo, stride : int
        Of the network, px.
    chunk : int
        Edge of an inner chunk of the store, px.
    cell : int
        Edge of a cell of the background mesh, px.
    workers : int
        Tasks at the same time.
    threads : int
        Of these, in one process.
    memory : Projection
        What a process takes at most.
    driver_bytes : int
        What the process of the stages takes at most where workers of Dask have the tiles, else 0.
    disk_bytes : int
        Largest the output can get before compression.
    precision : str
        Arithmetic of the network: fp32, bf16 or int8.
    maps : tuple of OutputMap
        What the network gives, to be stored as it is; empty if sources are to be found.
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
        """Projected peak of a process that works on tiles, with all its tasks at the same time."""
        return self.memory.of(self.threads)

    @property
    def overhead(self) -> float:
        """Pixels that the network looks at for each pixel that it writes."""
        looked = sum(w.core.grow(self.halo).clip(self.canvas).size for w in self.windows)
        return looked / self.frame.size

    def lines(self) -> list[tuple[str, str]]:
        """Give (what, how much) rows for people."""
        rows, columns = self.tiles.counts
        return [
            (
                "image",
                f"{self.bands} x {self.shape[0]} x {self.shape[1]} ({self.frame.size / 1e6:.1f} Mpix)",
            ),
            ("tiles", f"{rows} x {columns} = {len(self.tiles)} of {self.tile} px"),
            (
                "windows",
                f"{len(self.windows)} of {self.window} px + halo {self.halo} px, stride {self.stride}",
            ),
            ("overhead", f"{self.overhead:.3f} px looked at for each px written"),
            ("precision", self.precision),
            ("storage", f"shards of {self.tile} px, chunks of {self.chunk} px"),
            ("background", f"mesh of {self.mesh[0]} x {self.mesh[1]} cells of {self.cell} px"),
            ("workers", f"{self.workers}, {self.threads} in a process"),
            ("memory", self._say_memory()),
            ("disk", f"{self.disk_bytes / 2**30:.2f} GiB at most, before compression"),
        ]

    def _say_memory(self) -> str:
        said = f"{self.memory_bytes / 2**30:.2f} GiB for each process (projected peak)"
        if not self.driver_bytes:
            return said
        return f"{said}, {self.driver_bytes / 2**30:.2f} for the one that hands out the tiles"


def make_plan(
    spec: RunSpec, tile: int | None = None, command: Command = "segment", host_bytes: int = 0
) -> Plan:
    """Plan a run.

    Parameters
    ----------
    spec : RunSpec
        The run.
    tile : int, optional
        Tile edge of a run that is being resumed; wins over the spec's.
    command : {"segment", "predict"}
        Whether sources are to be found, or the outputs of the network stored as they are.
    host_bytes : int
        What the program takes besides that this process runs.

    Raises
    ------
    InputError, ModelError, SpecError, EngineError
        If the image, the model or the precision cannot be used.
    PlanError
        If the tile does not fit the window or the store, or the run does not fit the machine.
    """
    image = images.open_image(spec.image, spec.hdu)
    model = networks.load_model(spec.model, spec.fwhm, spec.declared)
    bands, height, width = shape = image.info.shape
    maps = _list_maps(model.header, spec, image.info, command)
    edge = _tile_edge(spec.window, tile or spec.tile, (height, width))
    _check_window(spec.window, model.stride)
    spec = spec.model_copy(update={"precision": settle_precision(spec, model)})
    workers = spec.workers or (
        engines.count_cores() if spec.on_dask or spec.engine != "serial" else 1
    )
    kept_bytes = image.overhead_bytes + host_bytes * (not spec.on_dask)
    load = _load(spec, model, edge, shape, bands + len(model.header.extra) + len(maps))
    tiles = len(TileGrid((height, width), (edge, edge)))
    plan = Plan(
        shape=(height, width),
        bands=bands,
        tile=edge,
        window=spec.window,
        halo=model.halo,
        stride=model.stride,
        chunk=_chunk(edge, spec.window),
        cell=spec.back_size,
        workers=workers,
        threads=min(_count_threads(spec, workers), tiles),
        memory=project(load, kept_bytes, dask=spec.on_dask, compiles=_must_compile()),
        driver_bytes=project_driver(tiles, load.torch) + host_bytes if spec.on_dask else 0,
        disk_bytes=height * width * (_bytes_stored(maps, model) + 4 * bands * spec.keep_image),
        precision=spec.precision,
        maps=maps,
    )
    _check_memory(plan, spec)
    return plan


def settle_precision(spec: RunSpec, model: networks.Model) -> str:
    """Give the arithmetic of the network, fp32, bf16 or int8: what auto means where the tiles go.

    Raises
    ------
    SpecError, ModelError
        If this machine is to do the work and has no such device or precision, or if workers differ.
    EngineError
        If workers cannot be asked, or have not the device.

    Notes
    -----
    The workers of a scheduler are asked: they may have what this machine has not, above all a GPU.
    Those that a cluster is to start cannot be; GPUs are taken to multiply bfloat16. What is given in
    so many words is checked by each worker before its first tile.
    """
    elsewhere = bool(spec.scheduler or spec.cluster)
    if _is_filter(model) or not elsewhere:
        return model.precision(spec.precision, spec.device)
    if spec.precision != "auto":
        return spec.precision
    if spec.scheduler:
        return _agree(engines.query_workers(spec, partial(model.precision, "auto", spec.device)))
    if not _asks_for_gpus(spec):
        return model.precision("auto", spec.device)
    with suppress(SpecError):  # a cluster of this machine's own
        return model.precision("auto", "cuda")
    return "fp32" if model.header.has_image_outputs else "bf16"


def _agree(answers: set[str]) -> str:
    if len(answers) > 1:
        raise SpecError(
            f"precision='auto' means {' or '.join(sorted(answers))}, by the Dask worker, and each gives its "
            "own labels: choose one with --precision, or have tasks ask for resources"
        )
    return answers.pop()


def _asks_for_gpus(spec: RunSpec) -> bool:
    resources = (spec.cluster or {}).get("resources") or {}
    return spec.device == "cuda" or (spec.device == "auto" and "GPU" in resources)


def _list_maps(
    header: networks.ModelHeader, spec: RunSpec, info: ImageInfo, command: Command
) -> tuple[OutputMap, ...]:
    """Give the outputs to be stored, none for segment; refuse a model that cannot do it."""
    networks.check_inputs(header, info.shape[0], spec.prior)
    if command == "predict":
        return networks.list_maps(header, info.unit)
    networks.check_separates(header)
    return ()


def _bytes_stored(maps: tuple[OutputMap, ...], model: networks.Model) -> int:
    """Bytes of a pixel of the store; label, segments, elevation and flags where sources are found."""
    if maps:
        return 1 + sum(np.dtype(output.dtype).itemsize for output in maps)
    return 4 + 2 + 1 + 4 + len(model.classes)


def check_disk(plan: Plan, out: str) -> None:
    """Refuse an output folder that cannot be written or is clearly too small.

    Raises
    ------
    StoreError
        If the folder is missing or not writable, or has less room than a tenth of the output's
        largest size (labels and probabilities compress at least that well).
    """
    folder = Path(out).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StoreError(
            f"output folder {folder} is not a folder that can be written; make it or choose another OUT"
        )
    free = shutil.disk_usage(folder).free
    if free < plan.disk_bytes // 10:
        raise StoreError(
            f"output needs at least {plan.disk_bytes / 1e10:.2f} GB but {folder} has {free / 1e9:.2f} GB free; "
            "free some, or choose another OUT"
        )


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
            f"use --window {round_up(window, lcm(stride, LEAST_CHUNK))}"
        )


def _chunk(tile: int, window: int) -> int:
    chunk = gcd(tile, CHUNK)
    if chunk < LEAST_CHUNK:  # so is the window, of which the tile is a multiple
        raise PlanError(
            f"window={window} and tile={tile} leave chunks of {chunk} px, below {LEAST_CHUNK}: "
            f"use --window {round_up(window, LEAST_CHUNK)}, and a multiple of it as --tile"
        )
    return chunk


def _count_threads(spec: RunSpec, workers: int) -> int:
    """Give the tasks at the same time in one process, as far as it is said before it is there."""
    if not spec.on_dask:
        return 1 if spec.engine == "serial" else workers
    options = (spec.cluster or {}).get("cluster_kwargs") or {}
    return int(options.get("threads_per_worker") or options.get("nthreads") or 1)


def _load(
    spec: RunSpec, model: networks.Model, tile: int, shape: tuple[int, int, int], planes: int
) -> Load:
    """Give what a task works on."""
    rows, columns = (_looks(n, spec.window, model.halo, model.stride) for n in shape[1:])
    alike = len(rows) == len(columns) == 1
    return Load(
        tile=_area(tile, 0, shape),
        read=_area(tile, model.halo + FILL, shape),
        window=max(rows) * max(columns),
        planes=planes,
        pixel_bytes=_pixel_bytes(model, spec.precision, alike),
        torch=not _is_filter(model),
        weight=spec.weight is not None,
        mask=spec.mask is not None,
    )


def _looks(length: int, window: int, halo: int, stride: int) -> set[int]:
    """Give how far windows with their halo go along an axis: those at its ends less."""
    end = round_up(length, stride)
    cores = ((start, min(start + window, end)) for start in range(0, end, window))
    return {min(stop + halo, end) - max(start - halo, 0) for start, stop in cores}


def _area(edge: int, reach: int, shape: tuple[int, int, int]) -> int:
    """Give the pixels of a square and what is around it, as far as the image goes."""
    height, width = (min(edge + 2 * reach, length) for length in shape[1:])
    return height * width


def _pixel_bytes(model: networks.Model, precision: str, alike: bool) -> PixelBytes:
    per_pixel = model.header.bytes_per_pixel
    if _is_filter(model):
        return PixelBytes(per_pixel)
    return weigh_pixel(per_pixel, precision, alike)


def _is_filter(model: networks.Model) -> bool:
    """Whether there is no network, only a matched filter."""
    return model.header.architecture == "matched"


def _must_compile() -> bool:
    """Whether numba finds no kernels of an earlier run; LAST_KERNEL is the last that a run needs."""
    kernel = LAST_KERNEL
    if not hasattr(kernel, "stats"):  # numba is told not to compile
        return False
    line = kernel.py_func.__code__.co_firstlineno
    file = kernel.py_func.__module__.rpartition(".")[2]
    found = Path(kernel.stats.cache_path).glob(f"{file}.{kernel.__name__}-{line}.*.nbi")
    return not any(found)


def _check_memory(plan: Plan, spec: RunSpec) -> None:
    if spec.scheduler or (spec.cluster and not spec.memory_limit):
        return  # these machines are looked at when they are there
    limit = spec.memory_limit * 2**30 if spec.memory_limit else _share(plan)
    if plan.memory_bytes > limit:
        raise PlanError(
            f"a process with {plan.threads} worker(s) would take {plan.memory_bytes / 2**30:.2f} GiB, above "
            f"the limit of {limit / 2**30:.2f} GiB: use a smaller --tile (now {plan.tile}) or --window "
            f"(now {plan.window}), or fewer --workers (now {plan.workers})"
        )


def _share(plan: Plan) -> float:
    """Give the part of this machine's memory that there is for a process."""
    if not plan.driver_bytes:
        return _machine_bytes()
    return (_machine_bytes() - plan.driver_bytes) / plan.workers


def _machine_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
