"""Security: code in input files, paths in names, listening ports, and secrets in outputs and messages."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from astropy.io import fits

from fcnpipe.cli import commands
from fcnpipe.core.errors import InputError, ModelError, SpecError
from fcnpipe.images import open_image, open_map
from fcnpipe.networks import list_models, load_model
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.base import Output, Scaling, list_maps
from fcnpipe.networks.models.bundle import save_model
from fcnpipe.networks.models.certified_headers import make_header
from fcnpipe.survey.image_list import list_images
from fcnpipe.training.labelled_images import PairsSpec, read_pairs
from fcnpipe.training.loop import load_checkpoint, load_recipe
from fcnpipe.training.recipe import make_recipe

EVIL = "../../evil"
SECRET = "a-secret/that+must=not+be/kept"
LISTEN = psutil.CONN_LISTEN
LOOPBACK = {"127.0.0.1", "::1"}


class UnpickleBomb:
    """Object that creates the folder ``boom`` when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("boom",)


PICKLE = pickle.dumps(UnpickleBomb())


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder two levels down, so that files written outside of it are found."""
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    fits.writeto("sky.fits", values)
    return folder


def get_error_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line of error of a command; check that no code was run and nothing was written."""
    with pytest.raises(SystemExit) as left:
        commands.main(arguments)
    message = capsys.readouterr().err
    assert left.value.code == 2, message
    assert len(message.splitlines()) == 1
    assert not Path("boom").exists()
    assert not Path("out.zarr").exists()
    return message


def assert_nothing_outside(work_folder: Path) -> None:
    found = {
        p.name for place in (work_folder.parent, work_folder.parents[1]) for p in place.iterdir()
    }
    assert found == {"outer", "inner"}


# --- code in files --------------------------------------------------------------------------------


def write_zarr(path: Path, **metadata: object) -> None:
    plain = {"zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "<f4", "order": "C"}
    absent = {"compressor": None, "filters": None, "fill_value": 0}
    path.mkdir()
    (path / ".zarray").write_text(json.dumps(plain | absent | metadata))
    (path / "0.0").write_bytes(PICKLE)


UNPICKLE = {"id": "pickle", "protocol": 5}
DELTA = {"id": "delta", "dtype": "<f4"}
IMAGES: dict[str, Callable[[Path], object]] = {
    "objects.npy": lambda path: np.save(path, np.array([[UnpickleBomb()]]), allow_pickle=True),
    "objects.npz": lambda path: np.savez(path, np.array([[UnpickleBomb()]])),
    "pickle.npy": lambda path: path.write_bytes(PICKLE),
    "pickle.fits": lambda path: path.write_bytes(PICKLE),
    "weights.pt": lambda path: torch.save(UnpickleBomb(), path),
    "objects.zarr": lambda path: write_zarr(path, dtype="|O", filters=[UNPICKLE]),
    "text.zarr": lambda path: write_zarr(path, dtype="|O", filters=[{"id": "vlen-utf8"}, UNPICKLE]),
    "filter.zarr": lambda path: write_zarr(path, filters=[DELTA, UNPICKLE]),
    "compressor.zarr": lambda path: write_zarr(path, compressor=UNPICKLE),
}
MODELS: dict[str, Callable[[Path], object]] = {
    "net.pt": lambda path: torch.save(UnpickleBomb(), path),
    "pickle.safetensors": lambda path: path.write_bytes(PICKLE),
    "archive.safetensors": lambda path: torch.save(UnpickleBomb(), path),
    "pickle.pt2": lambda path: path.write_bytes(PICKLE),
    "archive.pt2": lambda path: torch.save(UnpickleBomb(), path),
}


def test_unpickling_the_bomb_runs_code() -> None:
    """The other tests rely on it."""
    pickle.loads(PICKLE)
    assert Path("boom").is_dir()


@pytest.mark.parametrize("name", IMAGES)
def test_no_image_mask_weight_or_prior_runs_code(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    IMAGES[name](Path(name))
    command = ("segment", "--quiet", "--model", "none")
    get_error_line(capsys, *command, name, "out.zarr")
    for option in ("--mask", "--weight"):
        get_error_line(capsys, *command, "sky.fits", "out.zarr", option, name)
    with pytest.raises(InputError):
        open_map(name, None, (64, 64), "prior")
    assert not Path("boom").exists()


@pytest.mark.parametrize("name", MODELS)
def test_no_model_runs_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    MODELS[name](Path(name))
    get_error_line(capsys, "segment", "--quiet", "sky.fits", "out.zarr", "--model", name)
    get_error_line(capsys, "models", "show", name)


@pytest.mark.parametrize("name", IMAGES)
def test_no_training_pair_runs_code(name: str) -> None:
    IMAGES[name](Path(name))
    pairs = PairsSpec(name, name, train="0", choose="1")
    with pytest.raises(InputError):
        read_pairs(pairs, "0", Scaling())
    assert not Path("boom").exists()


def test_no_checkpoint_runs_code() -> None:
    torch.save({"network": UnpickleBomb()}, "checkpoint.pt")
    with pytest.raises(InputError, match="weights and numbers only"):
        load_checkpoint(Path("checkpoint.pt"))
    assert not Path("boom").exists()


TAG = "!!python/object/apply:os.mkdir [boom]"


def test_no_table_recipe_or_configuration_runs_code(capsys: pytest.CaptureFixture[str]) -> None:
    Path("survey.yaml").write_text(f"images: {TAG}\n")
    Path("survey.ecsv").write_text(
        f"# %ECSV 1.0\n# ---\n# datatype:\n# - {{name: image, datatype: string}}\n# meta: {TAG}\nimage\nx.fits\n"
    )
    for name in ("survey.yaml", "survey.ecsv"):
        with pytest.raises(SpecError, match="cannot be read"):
            list_images(name, "out")
    with pytest.raises(SpecError, match="cannot be read"):
        load_recipe(Path("survey.yaml"))
    get_error_line(capsys, "segment", "sky.fits", "out.zarr", "--config", "survey.yaml")


def test_a_table_starts_no_program() -> None:
    """A YAML file may set the class of a cluster, like the command line; a table may not."""
    cluster = {"cluster_class": "subprocess.Popen", "cluster_kwargs": {"args": ["mkdir", "boom"]}}
    row = {"image": "x.fits", "cluster": cluster, "scheduler": "tcp://h:1", "scratch": "/x"}
    row |= {
        "log_file": "/x/.bashrc",
        "overwrite": True,
        "engine": "dask",
        "workers": 99,
        "device": "cuda",
    }
    pq.write_table(pa.Table.from_pylist([row]), "survey.parquet")
    (entry,) = list_images("survey.parquet", "out")
    assert entry.options.keys() == {"image", "out"}


# --- paths in names -------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [EVIL, "/evil.zarr", "s3://bucket/evil.zarr", "a/../../evil"])
def test_a_table_cannot_name_a_store_outside_the_folder(out: str) -> None:
    Path("survey.csv").write_text(f"image,out\nx.fits,{out}\n")
    with pytest.raises(SpecError, match="leaves the output folder"):
        list_images("survey.csv", "out")


@pytest.mark.parametrize(
    "out", ["x$(mkdir boom)", "`mkdir boom`", "x;mkdir boom", "a\\b", "-x", "x\u202ey"]
)
def test_a_table_cannot_put_commands_into_names(out: str) -> None:
    Path("survey.csv").write_text(f"image,out\nx.fits,{out}\n")
    with pytest.raises(SpecError, match=r"which a shell may interpret|is not the name of a store"):
        list_images("survey.csv", "out")


def test_a_table_is_not_taken_for_the_name_of_another() -> None:
    """A reader of astropy opens the file or the URL that a table of one line names."""
    Path("secret.csv").write_text("image\nx.fits\n")
    Path("survey.csv").write_text("secret.csv")
    with pytest.raises(SpecError, match="has no images"):
        list_images("survey.csv", "out")


def test_image_names_do_not_lead_outside_the_folder(work_folder: Path) -> None:
    names = [f"{EVIL}.fits", "/a/..", "..", "https://h/x/..", f"sky.fits[{EVIL}]"]
    for entry in list_images([{"image": name} for name in names], "out"):
        place = Path(entry.out).resolve()
        assert place.parent == work_folder / "out", entry.name


def run(*arguments: str) -> None:
    commands.app(arguments, standalone_mode=False)


def test_names_in_headers_are_not_used_as_paths(work_folder: Path) -> None:
    """Header cards are copied to the store and its exports, as cards only."""
    header = fits.Header({name: EVIL for name in ("EXTNAME", "OBJECT", "FILENAME")})
    Path("in").mkdir()
    fits.writeto("in/sky.fits", fits.getdata("sky.fits"), header)
    run("segment", "--quiet", "--model", "none", f"in/sky.fits[{EVIL}]", "in/out.zarr")
    run("export", "in/out.zarr", "in/labels.fits", "--what", "labels")
    written = fits.getheader("in/labels.fits")
    assert (written["OBJECT"], written["EXTNAME"]) == (EVIL, "LABEL")
    assert sorted(os.listdir("in")) == [
        *(
            "labels.fits",
            "out.parquet",
            "out.report.html",
            "out.report.json",
            "out.zarr",
            "sky.fits",
        )
    ]
    assert_nothing_outside(work_folder)


def test_a_zarr_image_cannot_be_outside_its_store() -> None:
    zarr.save_array("evil", np.ones((64, 64), np.float32))
    group = zarr.open_group("a/b/image.zarr", mode="w")
    group.attrs["ome"] = {"multiscales": [{"datasets": [{"path": f"{EVIL}/../evil"}]}]}
    with pytest.raises(InputError, match="invalid"):
        open_image("a/b/image.zarr")


def test_names_in_models_are_not_used_as_paths(
    work_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = UNet(1, 1, base=2, depth=1).eval()
    header = make_header(network, EVIL, (Output(name="source", role="source"),), {"source": 1.0})
    save_model("net.safetensors", network, header)
    run("models", "show", "net.safetensors")
    assert EVIL in capsys.readouterr().out
    assert EVIL not in list_models()
    assert_nothing_outside(work_folder)
    wrong = header.model_copy(update={"outputs": (Output(name=EVIL, role="source"),)})
    with pytest.raises(ModelError, match="cannot be stored under this name"):
        list_maps(wrong)
    strange = header.model_copy(update={"architecture": "../../evil"})
    with pytest.raises(ModelError, match="is not one of"):
        save_model("other.safetensors", network, strange)
    with pytest.raises(ModelError, match="neither"):
        load_model(EVIL)


def test_a_recipe_cannot_name_a_file_in_another_folder() -> None:
    """The model file of a training run is named after its recipe."""
    with pytest.raises(SpecError, match="without folders"):
        make_recipe({"name": EVIL}, "recipe.yaml")


# --- ports and secrets ----------------------------------------------------------------------------


def list_listening_addresses(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process and its children listen."""
    found = set()
    with suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found |= {tuple(c.laddr) for c in one.net_connections() if c.status == LISTEN}
    return found


def test_a_run_listens_on_loopback_only_and_stores_no_secret(work_folder: Path) -> None:
    """The run has a Dask scheduler with dashboard, a nanny and a worker."""
    command = (
        sys.executable,
        "-m",
        "fcnpipe",
        "segment",
        "sky.fits",
        "out.zarr",
        "--model",
        "none",
    )
    secrets = {"AWS_SECRET_ACCESS_KEY": SECRET, "POSTGRES_PASSWORD": SECRET}
    environment = {**os.environ, **secrets}
    addresses: set[tuple[str, int]] = set()
    with open("log", "wb") as log:
        done = subprocess.Popen(
            [*command, "--engine", "dask", "--workers", "1"],
            env=environment,
            stdout=log,
            stderr=log,
        )
        while done.poll() is None:
            addresses |= list_listening_addresses(psutil.Process(done.pid))
            time.sleep(0.1)
    assert done.returncode == 0, Path("log").read_text()
    assert len(addresses) >= 4, addresses
    assert {host for host, _ in addresses} <= LOOPBACK
    kept = [p for p in work_folder.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert kept == []


@pytest.mark.parametrize("option", ["--scheduler", "--mask", "--weight"])
def test_a_password_is_not_repeated(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = "tcp" if option == "--scheduler" else "https"
    url = f"{kind}://astronomer:sesame@127.0.0.1:1/x"
    message = get_error_line(
        capsys, "segment", "sky.fits", "out.zarr", "--model", "none", option, url
    )
    assert "sesame" not in message
    assert "contains a user or password" in message


@pytest.mark.parametrize(
    "images",
    [
        [{"image": "https://a:sesame@h/x.fits"}],
        [{"image": "https://h/x.fits?token=sesame"}],
        "https://a:sesame@127.0.0.1:1/x.csv",
    ],
)
def test_a_survey_does_not_repeat_a_secret(images: Any) -> None:
    with pytest.raises(SpecError) as refused:
        list_images(images, "out")
    assert "sesame" not in str(refused.value)
