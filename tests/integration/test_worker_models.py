"""Each Dask worker has the same model as the run, or is excluded from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import distributed
import numpy as np
import pytest
import torch
from astropy.io import fits

from fcnpipe import networks
from fcnpipe.core.errors import EngineError, ModelError
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Output
from fcnpipe.networks.models.certified_headers import make_header
from fcnpipe.pipeline import run
from fcnpipe.pipeline.job import Job
from fcnpipe.pipeline.session import open_session
from fcnpipe.reporting.observers import SilentObserver
from fcnpipe.stores import ZarrStore
from tests.engines import processes
from tests.integration.scenes import write_field

NAME = "net.safetensors"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with an image and a model; the relative path of the model is another file elsewhere."""
    monkeypatch.chdir(tmp_path)
    write_field(tmp_path / "field.fits", (128, 310))
    fits.writeto(tmp_path / "mask.fits", np.zeros((128, 310), np.uint8))
    write_model(tmp_path / NAME, seed=1)
    return tmp_path


def write_model(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    network = UNet(1, 1, base=4, depth=1).eval()
    header = make_header(network, "net", (Output(name="source", role="source"),), {"source": 1.0})
    networks.save_model(path, network, header)


def make_run_spec(**options: object) -> RunSpec:
    """Return a specification in which all paths are relative."""
    fields = {"model": NAME, "window": 128, "tile": 128, "quiet": True, "thresh": 0.5, **options}
    return make_spec(image=("field.fits",), mask="mask.fits[0]", out="out.zarr", **fields)


@pytest.fixture
def scheduler(here: Path) -> Iterator[Path]:
    with processes.scheduler(here) as file:
        yield file


def wait_for_workers(scheduler: Path, count: int) -> None:
    with distributed.Client(scheduler_file=str(scheduler), set_as_default=False) as client:
        client.wait_for_workers(count, timeout=120)


def test_a_worker_with_another_model_is_excluded(here: Path, scheduler: Path) -> None:
    """A late worker with another model is closed; one that is present at the start prevents the run.

    The first worker is in an empty folder: relative paths are resolved by the process that starts the run.
    """
    early, late = here / "early", here / "late"
    early.mkdir()
    late.mkdir()
    with processes.workers(scheduler, 1, "--name", "early", folder=early):
        wait_for_workers(scheduler, 1)
        with open_session(make_run_spec(scheduler=str(scheduler))) as session:
            assert session
            write_model(here / NAME, seed=2)  # the session has loaded it already
            with processes.workers(scheduler, 1, "--name", "late", folder=late) as (worker,):
                worker.wait(120)
            log = (late / "stderr").read_text()
            for stage in session.stages:
                run.run_stage(session, stage, SilentObserver())
            run.finish(session)
        assert ZarrStore.open(here / "out.zarr").verify().ok
        (line,) = [line for line in log.splitlines() if "cannot run" in line]
        assert "Dask worker late cannot run the tasks of this run" in line
        assert f"model {here / NAME} is another file on this machine" in line
        # Each folder has another file of the same name, as on different machines.
        elsewhere = f"/proc/self/cwd/{NAME}"
        for folder, seed in ((here, 1), (early, 1), (late, 2)):
            write_model(folder / NAME, seed)
        again = make_run_spec(scheduler=str(scheduler), model=elsewhere, overwrite=True)
        with processes.workers(scheduler, 1, "--name", "wrong", folder=late):
            wait_for_workers(scheduler, 2)
            match = f"worker wrong cannot run.*{elsewhere} is another file"
            with pytest.raises(EngineError, match=match), open_session(again):
                pass


def test_a_model_is_loaded_once_per_process(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_session(make_run_spec(engine="serial")) as session:
        assert session
        jobs = [session.job, replace(session.job, nonce="another run")]
        loaded = [job.predictor for job in jobs]
        (here / NAME).unlink()
        assert {id(job.predictor) for job in jobs} == {id(loaded[0])}
        write_model(here / NAME, seed=2)
        other: Job = replace(session.job, model_digest="0" * 32)
        with pytest.raises(
            ModelError, match=f"model {here / NAME} is another file on this machine"
        ):
            other.load_network()


def test_weights_of_a_file_replaced_after_its_header_was_read_are_refused(here: Path) -> None:
    model = networks.load_model(NAME)
    write_model(here / NAME, seed=2)
    with pytest.raises(ModelError, match="changed while it was read"):
        model.predictor("cpu", "fp32")
