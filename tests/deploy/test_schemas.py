"""The files of deploy/, checked with the schemas of the programs that read them."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

pytest.importorskip("prefect")

from fcnpipe.core.spec import load_spec
from fcnpipe.engines import WorkerRequirements, dask_cluster
from fcnpipe.engines import dask as engine
from fcnpipe.engines.gpu import GpuCluster
from tests.deploy.commands import DEPLOY, documents, load, pods
from tests.deploy.pools import describe_job, list_deployments, read_templates

KUBERNETES = "1.31"
HERE = Path(__file__).parent
KUBECLUSTER = """
    name namespace image n_workers resources env worker_command create_mode port_forward_cluster_ip
    shutdown_on_close idle_timeout resource_timeout quiet scheduler_service_type custom_cluster_spec
    scheduler_forward_port jupyter loop asynchronous
"""
"""Arguments of dask_kubernetes.operator.KubeCluster 2026.3.0, a package too large to install for one test."""


# --- compose --------------------------------------------------------------------------------------


def check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False
    )


def test_compose_follows_its_specification(tmp_path: Path) -> None:
    done = check_compose(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout
    broken = tmp_path / "compose.yaml"
    broken.write_text(
        (DEPLOY / "compose.yaml").read_text().replace("healthcheck:", "healthcheque:")
    )
    assert check_compose(broken).returncode == 1


def test_compose_publishes_only_on_loopback() -> None:
    services = load("compose.yaml")["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert not any("network_mode" in service for service in services.values())


def test_compose_containers_are_unprivileged() -> None:
    services = load("compose.yaml")["services"]
    for name, service in services.items():
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged")
        if name != "postgres":
            assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name


def test_compose_contains_no_secrets() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    secrets = re.findall(r"^\s*\w*(?:PASSWORD|AUTH_STRING): (.+)$", text, re.MULTILINE)
    assert secrets
    assert all(re.fullmatch(r"\$\{\w+(:\?[^}]+)?\}", secret) for secret in secrets)
    asked = set(re.findall(r"\$\{(\w+)", text))
    example = (DEPLOY / "env.example").read_text()
    assert asked == set(re.findall(r"^#?(\w+)=", example, re.MULTILINE))
    assert re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE) == [
        ("POSTGRES_PASSWORD", ""),
        ("PREFECT_AUTH", ""),
    ]


def test_named_volumes_exist() -> None:
    compose = load("compose.yaml")
    used = {
        re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).partition(":")[0]
        for service in compose["services"].values()
        for volume in service["volumes"]
    }
    assert used == set(compose["volumes"])


# --- the image ------------------------------------------------------------------------------------


def test_the_image_runs_as_an_unprivileged_user() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    base, *targets = re.split(r"^FROM ", text, flags=re.MULTILINE)[-3:]
    assert re.search(r"^USER 10001:10001$", base, re.MULTILINE)
    assert not any("USER" in target for target in targets)
    assert [target.split()[2] for target in targets] == ["cuda", "cpu"]


def test_copied_paths_exist_and_are_not_ignored() -> None:
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    kept = re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert names == set(kept)
    assert all((DEPLOY.parent / name).exists() for name in names)


def test_installed_packages_are_pinned() -> None:
    installs = re.findall(r"pip install (.+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


# --- work pools of Prefect ------------------------------------------------------------------------


@pytest.mark.parametrize("deployment", list_deployments(), ids=lambda d: d["name"])
def test_job_variables_are_those_of_the_pool(deployment: dict[str, Any]) -> None:
    pool = deployment["work_pool"]
    variables = read_templates()[pool["name"]]["variables"]
    Draft202012Validator(variables | {"additionalProperties": False}).validate(
        pool["job_variables"]
    )
    assert Path(DEPLOY.parent, deployment["entrypoint"].partition(":")[0]).is_file()


def test_the_job_of_a_run_is_valid() -> None:
    kubernetes_validate.validate(describe_job(), KUBERNETES, strict=True)


PODS = [*pods(), ("job-template.json", describe_job()["spec"]["template"]["spec"])]


# --- Kubernetes -----------------------------------------------------------------------------------


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DEPLOY / "kubernetes/cpu").glob("*.yaml")):
        for document in documents(f"kubernetes/cpu/{path.name}"):
            if document["kind"] != "Kustomization":
                yield path.name, document


OURS, DASKS = [], []
for _name, _document in manifests():
    (DASKS if "dask.org" in _document["apiVersion"] else OURS).append(_document)


@pytest.mark.parametrize("document", OURS, ids=lambda d: f"{d['kind']} {d['metadata']['name']}")
def test_kubernetes_accepts_the_manifest(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", DASKS, ids=lambda d: d["kind"])
def test_the_dask_operator_accepts_the_manifest(document: dict[str, Any]) -> None:
    schema = json.loads((HERE / "dask-operator.schema.json").read_text())
    validator = Draft202012Validator(schema)
    validator.validate(document)
    assert not validator.is_valid({**document, "spec": {**document["spec"], "workers": 3}})
    assert not validator.is_valid({**document, "spec": {}})


@pytest.mark.parametrize(("place", "pod"), PODS)
def test_pods_are_valid_and_unprivileged(place: str, pod: dict[str, Any]) -> None:
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    kubernetes_validate.validate(whole, KUBERNETES, strict=True)
    broken = {**pod, "containers": [{**pod["containers"][0], "imagine": "x"}]}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**whole, "spec": broken}, KUBERNETES, strict=True)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        security = container["securityContext"]
        assert (security["allowPrivilegeEscalation"], security["readOnlyRootFilesystem"]) == (
            False,
            True,
        )
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "memory" in container["resources"]["limits"]


def test_names_in_the_manifests_refer_to_objects() -> None:
    known = {(document["kind"], document["metadata"]["name"]) for _, document in manifests()}
    for _, pod in PODS:
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in known
        for container in pod["containers"]:
            for source in container["envFrom"]:
                if config := source.get("configMapRef"):
                    assert ("ConfigMap", config["name"]) in known
    (autoscaler,) = (document for document in DASKS if document["kind"] == "DaskAutoscaler")
    assert ("DaskCluster", autoscaler["spec"]["cluster"]) in known
    listed = load("kubernetes/cpu/kustomization.yaml")["resources"]
    assert set(listed) == {path for path, _ in manifests()}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl, to build the variants")
def test_the_gpu_variant_has_gpu_workers() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / "kubernetes/gpu")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [d for d in yaml.safe_load_all(built.stdout) if d["kind"] == "DaskCluster"]
    (worker,) = found[0]["spec"]["worker"]["spec"]["containers"]
    assert worker["image"] == "fcnpipe:cuda"
    assert worker["args"][-2:] == ["--resources", "GPU=1"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_gpu_variant_changes_existing_fields() -> None:
    """The paths of the patches exist. This test does not need kubectl."""
    (cluster,) = (document for document in DASKS if document["kind"] == "DaskCluster")
    for step in load("kubernetes/gpu/workers.yaml"):
        *parents, last = step["path"].strip("/").split("/")
        place: Any = cluster
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        assert last == "-" or step["op"] == "add" or last in place


# --- clusters -------------------------------------------------------------------------------------


def parameters(*kinds: Any) -> set[str]:
    return {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}


def allowed(kind: str) -> set[str]:
    """Return the arguments of a cluster class, including those that it passes on."""
    if kind == "distributed.LocalCluster":
        return parameters(distributed.LocalCluster, distributed.Nanny, distributed.Worker)
    if kind == "fcnpipe.engines.gpu.GpuCluster":
        return parameters(GpuCluster) | allowed("distributed.LocalCluster")
    if kind == "dask_jobqueue.SLURMCluster":
        jobqueue = pytest.importorskip("dask_jobqueue")
        from dask_jobqueue.core import Job

        return parameters(jobqueue.SLURMCluster, jobqueue.slurm.SLURMJob, Job)
    assert kind == "dask_kubernetes.operator.KubeCluster"
    return set(KUBECLUSTER.split())


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("cluster-*.yaml")), ids=lambda p: p.name)
def test_a_cluster_file_has_arguments_of_its_class(path: Path) -> None:
    description = yaml.safe_load(path.read_text())
    assert set(description) <= dask_cluster.CLUSTER_KEYS
    assert set(description["cluster_kwargs"]) <= allowed(description["cluster_class"]) - {
        "self",
        "kwargs",
    }
    assert set(description.get("adapt_kwargs", {})) <= {"minimum", "maximum"}
    spec = description["cluster_kwargs"].get("custom_cluster_spec")
    if spec:  # KubeCluster reads only the first document, and uses its name
        assert [
            document["kind"] for document in yaml.safe_load_all((DEPLOY.parent / spec).read_text())
        ] == ["DaskCluster"]


def test_kubecluster_has_the_recorded_arguments() -> None:
    operator = pytest.importorskip("dask_kubernetes.operator")
    assert parameters(operator.KubeCluster) - {"self", "kwargs"} == set(KUBECLUSTER.split())


@pytest.mark.parametrize(
    ("name", "few", "threads", "resources"),
    [
        ("cluster-local.yaml", {"n_workers": 1}, 1, None),
        ("cluster-gpu.yaml", {"devices": ["0"]}, 2, {"GPU": 1}),
    ],
)
def test_a_local_cluster_starts_as_described(
    name: str, few: dict[str, Any], threads: int, resources: dict[str, float] | None
) -> None:
    description = load(name)
    description["cluster_kwargs"] |= few
    started = engine.start_cluster(description, WorkerRequirements())
    try:
        assert started.workers == threads
        assert started.selection.resources == resources
    finally:
        started.close()


JOB_SCRIPT = """\
#!/usr/bin/env bash

#SBATCH -J dask-worker
#SBATCH -e slurm-logs/dask-worker-%J.err
#SBATCH -o slurm-logs/dask-worker-%J.out
#SBATCH -n 1
#SBATCH --cpus-per-task=16
#SBATCH --mem=48G
#SBATCH -t 04:00:00
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184
export MALLOC_TOP_PAD_=268435456 MALLOC_ARENA_MAX=1
export OMP_NUM_THREADS=1
PYTHON -m distributed.cli.dask_worker tcp://SCHEDULER --name dummy-name --nthreads 1 \
--memory-limit 3.00GiB --nworkers 16 --nanny --death-timeout 300 --local-directory /tmp \
--lifetime 225m --lifetime-stagger 10m --no-dashboard --memory-limit 0
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    jobqueue = pytest.importorskip("dask_jobqueue")
    monkeypatch.chdir(tmp_path)  # SLURMCluster creates the folder of the logs
    arguments = load("cluster-slurm.yaml")["cluster_kwargs"]
    with jobqueue.SLURMCluster(**arguments) as cluster:
        yield cluster


def test_the_job_script_of_slurm_is_the_recorded_one(slurm: Any) -> None:
    script = slurm.job_script().replace(sys.executable, "PYTHON")
    script = re.sub(r"tcp://[\d.]+:\d+", "tcp://SCHEDULER", script)
    assert script.strip() == JOB_SCRIPT.strip()


def test_workers_end_before_the_batch_system_kills_them() -> None:
    arguments = load("cluster-slurm.yaml")["cluster_kwargs"]
    hours, minutes, _ = map(int, arguments["walltime"].split(":"))
    extra = arguments["worker_extra_args"]
    life, stagger = (
        int(extra[extra.index(o) + 1][:-1]) for o in ("--lifetime", "--lifetime-stagger")
    )
    assert life + stagger <= 60 * hours + minutes - 5
    cores = arguments["cores"]
    assert (arguments["processes"], load("cluster-slurm.yaml")["adapt_kwargs"]["minimum"]) == (
        cores,
        cores,
    )


def test_the_options_of_a_run_on_a_scheduler_are_valid(tmp_path: Path) -> None:
    spec = load_spec(DEPLOY / "run-scheduler.yaml", image=("a.fits",), out="a.zarr")
    assert spec.scheduler == "tcp://127.0.0.1:8786"


# --- systemd --------------------------------------------------------------------------------------

UNITS = sorted((DEPLOY / "systemd").glob("*.*"))
HARDENED = (
    "NoNewPrivileges=true",
    "ProtectSystem=strict",
    "CapabilityBoundingSet=",
    "PrivateTmp=true",
)


@pytest.mark.parametrize(
    "path", [path for path in UNITS if path.suffix == ".service"], ids=lambda p: p.name
)
def test_a_unit_is_hardened(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert set(HARDENED) <= set(lines)
    assert "User=fcnpipe" in lines
    if shutil.which("systemd-analyze"):
        found = subprocess.run(
            [
                "systemd-analyze",
                "security",
                "--offline=true",
                "--no-pager",
                "--threshold=25",
                str(path),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stdout[-2000:]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = path.read_text()
        for old, new in {
            "/opt/fcnpipe/.venv/bin": str(Path(sys.executable).parent),
            "Documentation=file:///opt/fcnpipe": f"Documentation=file://{DEPLOY.parent}",
        }.items():
            text = text.replace(old, new)
        (tmp_path / path.name.replace("@", "@1")).write_text(text)
    names = [str(path) for path in sorted(tmp_path.glob("*.*"))]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        capture_output=True,
        text=True,
        check=False,
    )
    messages = [line for line in done.stderr.splitlines() if "fcnpipe" in line]
    assert (done.returncode, messages) == (0, [])
