"""``--precision auto`` is resolved where the network runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcnpipe import engines, networks
from fcnpipe.core.errors import ModelError, SpecError
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.networks.base import Output
from fcnpipe.networks.inference import predictor
from fcnpipe.pipeline.precision import resolve_precision

GPUS = {"cluster_class": "dask_kubernetes.operator.KubeCluster", "resources": {"GPU": 1}}
SLURM = {"cluster_class": "dask_jobqueue.SLURMCluster"}


@pytest.fixture
def model() -> networks.Model:
    return networks.load_model("default")


def spec(**options: object) -> RunSpec:
    return make_spec(image=("a.fits",), out="a.zarr", **options)


def test_the_workers_of_a_scheduler_are_asked(
    model: networks.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's machine, which may have no GPU, does not decide."""

    def query_workers(asked: RunSpec, question: object) -> set[str]:
        queries.append(asked.scheduler)
        return answers

    queries: list[str | None] = []
    monkeypatch.setattr(engines, "query_workers", query_workers)
    answers = {"bf16"}
    assert resolve_precision(spec(scheduler="tcp://far:8786", device="cuda"), model) == "bf16"
    answers = {"int8", "bf16"}
    with pytest.raises(SpecError, match="'auto' means bf16 or int8, depending on the Dask worker"):
        resolve_precision(spec(scheduler="tcp://far:8786"), model)
    assert queries == ["tcp://far:8786"] * 2


def test_an_explicit_precision_and_the_matched_filter_need_no_query(
    model: networks.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "query_workers", lambda *_: pytest.fail("workers were asked"))
    explicit = spec(scheduler="tcp://far:8786", device="cuda", precision="fp32")
    assert resolve_precision(explicit, model) == "fp32"
    filtered = spec(scheduler="tcp://far:8786", model="none")
    assert resolve_precision(filtered, networks.load_model("none")) == "fp32"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"cluster": GPUS}, "bf16"),
        ({"cluster": SLURM, "device": "cuda"}, "bf16"),
        ({"cluster": SLURM, "device": "cuda", "precision": "int8"}, "int8"),
        ({"cluster": GPUS, "device": "cpu"}, "as on this machine"),
        ({"cluster": SLURM}, "as on this machine"),
        ({"engine": "dask"}, "as on this machine"),
    ],
)
def test_workers_that_are_yet_to_start_are_assumed_to_have_what_the_cluster_asks_for(
    model: networks.Model, options: dict[str, object], expected: str
) -> None:
    if expected == "as on this machine":
        expected = model.precision("auto", str(options.get("device", "auto")))
    assert resolve_precision(spec(**options), model) == expected


def test_gpus_that_are_yet_to_start_restore_images_in_float32(model: networks.Model) -> None:
    restored = Output(name="clean", role="restored")
    header = model.header.model_copy(update={"outputs": (restored,)})
    image_model = networks.Bundle(Path("a.safetensors"), header, model.digest)
    assert resolve_precision(spec(cluster=GPUS), image_model) == "fp32"


def test_a_gpu_of_this_machine_is_inspected(
    model: networks.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(predictor.torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolve_precision(spec(cluster=GPUS), model) == "fp32"


def test_this_machine_must_have_the_device_and_the_precision(model: networks.Model) -> None:
    with pytest.raises(SpecError, match="device='cuda'"):
        resolve_precision(spec(device="cuda"), model)
    header = model.header.model_copy(update={"ranges": {}})
    without_ranges = networks.Bundle(Path("a.safetensors"), header, model.digest)
    with pytest.raises((ModelError, SpecError)):
        resolve_precision(spec(precision="int8"), without_ranges)
