"""The command lines of deploy/ and the guides, and the environment variables of deploy/."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("distributed")
pytest.importorskip("prefect")

from fcnpipe.engines.dask_client import SETTINGS
from fcnpipe.networks import worker_environment
from tests.deploy import commands
from tests.deploy.commands import DEPLOY, ROOT


@pytest.mark.parametrize("shown", commands.list_commands(), ids=str)
def test_the_program_accepts_the_command(shown: commands.Shown) -> None:
    commands.check(shown.words)


def test_commands_are_found_everywhere() -> None:
    """A collection without commands would pass every check."""
    places = {shown.place.partition(" ")[0] for shown in commands.list_commands()}
    for name in ("README.md", "compose", "deploy/prefect.yaml", "Dockerfile"):
        assert name in places
    for path in [*DEPLOY.glob("cluster-*.yaml"), *DEPLOY.rglob("*.sbatch")]:
        assert str(path.relative_to(ROOT)) in places
    assert {"dask-cluster.yaml", "prefect-worker.yaml"} <= places
    assert {path.name for path in DEPLOY.glob("systemd/*.service")} <= places


@pytest.mark.parametrize(
    "wrong",
    [
        ("fcnpipe", "segment", "a.fits", "a.zarr", "--frobnicate"),
        ("fcnpipe", "segment", "a.fits", "a.zarr", "--config", "deploy/absent.yaml"),
        ("dask", "worker", "tcp://h:1", "--nproc", "2"),
        ("prefect", "worker", "start", "--pol", "x"),
        ("docker", "build", "-f", "deploy/Dockerfile", "--target", "absent", "."),
        ("docker", "run", "--rm", "fcnpipe:cpu", "fcnpipe", "segmnt"),
        ("sudo", "systemctl", "enable", "absent.service"),
        ("frobnicate",),
    ],
    ids=" ".join,
)
def test_wrong_commands_are_refused(wrong: tuple[str, ...]) -> None:
    with pytest.raises(Exception):  # noqa: B017, PT011  each parser has its own error
        commands.check(wrong)


# --- environment variables ------------------------------------------------------------------------


def read_environment(name: str) -> dict[str, str]:
    lines = (DEPLOY / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def test_the_environment_is_that_of_workers_started_by_fcnpipe() -> None:
    assert read_environment("worker.env").items() >= worker_environment().items()


def test_the_settings_of_dask_are_those_of_clusters_started_by_fcnpipe() -> None:
    deployed = {
        name.removeprefix("DASK_").lower().replace("__", ".").replace("_", "-"): value
        for name, value in read_environment("worker.env").items()
        if name.startswith("DASK_")
    }
    ours = {name.replace("_", "-"): str(value) for name, value in SETTINGS.items()}
    assert {name: ours.get(name, "") for name in deployed} == deployed
    assert set(ours) - set(deployed) <= {"distributed.comm.timeouts.connect"}


def test_copies_of_the_environment_agree() -> None:
    wanted = read_environment("worker.env")
    (config, _) = commands.documents("kubernetes/cpu/environment.yaml")
    assert config["data"] == wanted
    for name in ("Dockerfile", "cluster-slurm.yaml"):
        text = (DEPLOY / name).read_text()
        named = dict(re.findall(r"\b((?:MALLOC|OMP)_\w+)=(\d+)", text))
        assert named.items() <= wanted.items()
        assert worker_environment().items() <= named.items()
