"""What a plan refuses, and that what it says instead works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from fcnpipe import engines, networks
from fcnpipe.core.errors import ModelError, PlanError, SpecError
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.networks.base import Output
from fcnpipe.networks.inference import predictor
from fcnpipe.pipeline.plan import make_plan
from fcnpipe.pipeline.precision import resolve_precision

GPUS = {"cluster_class": "dask_kubernetes.operator.KubeCluster", "resources": {"GPU": 1}}
SLURM = {"cluster_class": "dask_jobqueue.SLURMCluster"}


@pytest.fixture
def model() -> networks.Model:
    return networks.load_model("default")


def spec(**options: object) -> RunSpec:
    return make_spec(image=("a.fits",), out="a.zarr", **options)


@pytest.mark.parametrize(
    ("model", "window", "tile", "said"),
    [
        ("none", 100, None, "window=100 and tile=300 leave chunks of 4 px, below 64"),
        ("default", 100, None, "window=100 is not a multiple of the network's stride 8"),
        ("none", 128, 200, "tile=200 is not a multiple of window=128"),
    ],
)
def test_what_is_said_instead_works(
    tmp_path: Path, model: str, window: int, tile: int | None, said: str
) -> None:
    image = str(tmp_path / "a.npy")
    np.save(image, np.zeros((300, 260), np.float32))
    options = {"image": (image,), "out": "out.zarr", "model": model, "engine": "serial"}
    with pytest.raises(PlanError, match=said) as caught:
        make_plan(make_spec(**options, window=window, tile=tile))
    mend = dict(re.findall(r"--(\w+) (\d+)", str(caught.value)))
    found = make_plan(make_spec(**{**options, "window": window, "tile": tile, **mend}))
    assert found.tile % found.window == 0


# --- where the tiles are worked on ----------------------------------------------------------------


def test_auto_is_what_the_workers_of_a_scheduler_say(
    model: networks.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine, which may have no GPU, is not asked."""

    def query_workers(asked: RunSpec, question: object) -> set[str]:
        said.append(asked.scheduler)
        return answers

    said: list[str | None] = []
    monkeypatch.setattr(engines, "query_workers", query_workers)
    answers = {"bf16"}
    assert resolve_precision(spec(scheduler="tcp://far:8786", device="cuda"), model) == "bf16"
    answers = {"int8", "bf16"}
    with pytest.raises(SpecError, match="'auto' means bf16 or int8, depending on the Dask worker"):
        resolve_precision(spec(scheduler="tcp://far:8786"), model)
    assert said == ["tcp://far:8786"] * 2
    stated = spec(scheduler="tcp://far:8786", device="cuda", precision="fp32")
    assert resolve_precision(stated, model) == "fp32"
    assert resolve_precision(spec(scheduler="tcp://far:8786", model="none"), none()) == "fp32"
    assert len(said) == 2


def none() -> networks.Model:
    return networks.load_model("none")


@pytest.mark.parametrize(
    ("options", "meant"),
    [
        ({"cluster": GPUS}, "bf16"),
        ({"cluster": SLURM, "device": "cuda"}, "bf16"),
        ({"cluster": SLURM, "device": "cuda", "precision": "int8"}, "int8"),
        ({"cluster": GPUS, "device": "cpu"}, "here"),
        ({"cluster": SLURM}, "here"),
        ({"engine": "dask"}, "here"),
    ],
)
def test_workers_that_are_to_come_are_taken_at_the_word_of_the_cluster(
    model: networks.Model, options: dict[str, object], meant: str
) -> None:
    if meant == "here":
        meant = model.precision("auto", str(options.get("device", "auto")))
    assert resolve_precision(spec(**options), model) == meant


def test_gpus_to_come_restore_images_in_float32(model: networks.Model) -> None:
    restores = Output(name="clean", role="restored")
    header = model.header.model_copy(update={"outputs": (restores,)})
    image = networks.Bundle(Path("a.safetensors"), header, model.digest)
    assert resolve_precision(spec(cluster=GPUS), image) == "fp32"


def test_gpus_of_this_machine_are_looked_at(
    model: networks.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(predictor.torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolve_precision(spec(cluster=GPUS), model) == "fp32"


def test_this_machine_has_to_have_what_it_is_to_work_with(model: networks.Model) -> None:
    with pytest.raises(SpecError, match="no CUDA device is to be seen"):
        resolve_precision(spec(device="cuda"), model)
    header = model.header.model_copy(update={"ranges": {}})
    bare = networks.Bundle(Path("a.safetensors"), header, model.digest)
    with pytest.raises((ModelError, SpecError)):
        resolve_precision(spec(precision="int8"), bare)
