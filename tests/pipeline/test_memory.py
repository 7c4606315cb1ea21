"""Projected against measured memory; ``python -m benchmarks.memory`` compares more runs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from benchmarks.memory import MAX_RATIO, measure_peaks
from fcnpipe.core.errors import PlanError
from fcnpipe.core.spec import make_spec
from fcnpipe.engines.base import WorkerRequirements
from fcnpipe.pipeline.memory import COMPILER_BYTES, FLOW_BYTES, Load, PixelBytes, project
from fcnpipe.pipeline.plan import Plan, make_plan

MIB = 2**20


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field") / "field.fits"
    fits.writeto(path, np.random.default_rng(1).normal(0, 1, (1600, 1600)).astype(np.float32))
    return path


def plan(field: Path, **options: object) -> Plan:
    return make_plan(make_spec(image=(str(field),), out=str(field.with_suffix(".zarr")), **options))


def test_a_run_stays_within_the_projection(field: Path) -> None:
    planned = plan(field, engine="threads", workers=2, window=768, tile=768)
    out = str(field.with_suffix(".zarr"))
    command = [sys.executable, "-m", "fcnpipe", "segment", str(field), out, "--quiet"]
    took = measure_peaks([*command, "--workers", "2", "--window", "768", "--tile", "768"])[0]
    assert took <= planned.memory_bytes
    # The projection assumes that all kernels are compiled; often only some are.
    assert planned.memory_bytes - COMPILER_BYTES <= MAX_RATIO * took


def test_the_larger_stage_counts_not_the_sum() -> None:
    def need(window: int, per_pixel: float) -> int:
        load = Load(4 << 20, 4 << 20, window, 1, PixelBytes(per_pixel), torch=True)
        return project(load, 0, dask=False, compiles=False).task

    assert need(1 << 16, 100) == need(0, 100)
    assert need(4 << 20, 800) - need(0, 100) > 3000 * MIB


def test_threads_share_a_process_and_dask_workers_do_not(field: Path) -> None:
    one = plan(field, engine="serial", tile=512, window=512)
    four = plan(field, engine="threads", workers=4, tile=512, window=512)
    dask = plan(field, engine="dask", workers=4, tile=512, window=512)
    assert one.threads == dask.threads == 1
    assert four.memory_bytes == one.memory_bytes + 3 * one.memory.task
    assert one.memory_bytes < dask.memory_bytes < one.memory_bytes + 50 * MIB
    assert one.driver_bytes == four.driver_bytes == 0 < dask.driver_bytes
    shown = [dict(planned.lines())["memory"] for planned in (one, dask)]
    assert ["for the driver" in line for line in shown] == [False, True]
    wide = {"cluster_kwargs": {"n_workers": 1, "threads_per_worker": 4}}
    assert plan(field, cluster=wide, tile=512, window=512).threads == 4


def test_the_memory_of_prefect_is_added_for_a_flow(field: Path) -> None:
    def flow(**options: object) -> Plan:
        spec = make_spec(image=(str(field),), out=str(field.with_suffix(".zarr")), **options)
        return make_plan(spec, host_bytes=FLOW_BYTES)

    serial, dask = plan(field, engine="serial"), plan(field, engine="dask")
    assert flow(engine="serial").memory_bytes == serial.memory_bytes + FLOW_BYTES
    assert flow(engine="dask").memory_bytes == dask.memory_bytes
    assert flow(engine="dask").driver_bytes == dask.driver_bytes + FLOW_BYTES


def test_there_are_no_more_threads_than_tiles(field: Path) -> None:
    assert plan(field, workers=64, tile=1024).threads == 4
    assert plan(field, workers=64, tile=2048, window=512).threads == 1


def test_memory_grows_with_precision_and_window(field: Path) -> None:
    by_precision = [plan(field, precision=p).memory.task for p in ("bf16", "fp32")]
    assert by_precision == sorted(by_precision)
    by_window = [plan(field, window=w, tile=1536).memory.task for w in (256, 512, 768)]
    assert by_window == sorted(by_window)
    assert plan(field, model="none").memory_bytes < plan(field, workers=1).memory_bytes


def test_a_run_that_exceeds_the_limit_is_refused(field: Path) -> None:
    with pytest.raises(
        PlanError, match=r"with 4 worker\(s\) would take .* limit of 0\.50 GiB: use"
    ):
        plan(field, workers=4, tile=512, window=512, memory_limit=0.5)


def test_a_worker_needs_memory_for_each_thread() -> None:
    assert WorkerRequirements(memory_bytes=500, task_bytes=200).memory_for(3) == 900
