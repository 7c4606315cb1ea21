"""The work pools of Prefect that deploy/ is for, and what they make of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import prefect
import yaml
from prefect.utilities.templating import apply_values

from tests.deploy.commands import DEPLOY, load

WORKERS = "server/api/collections_data/views/aggregate-worker-metadata.json"
"""What Prefect knows of workers, those that are packages of their own among them."""


def read_templates() -> dict[str, dict[str, Any]]:
    """Give what makes a run of a deployment into a process, a container or a job, by pool."""
    kinds = json.loads((Path(prefect.__file__).parent / WORKERS).read_text())
    usual = "default_base_job_configuration"
    return {
        "fcnpipe": kinds["prefect"]["process"][usual],
        "fcnpipe-docker": kinds["prefect-docker"]["docker"][usual],
        "fcnpipe-kubernetes": load("kubernetes/job-template.json"),
    }


def list_deployments() -> list[dict[str, Any]]:
    files = sorted(DEPLOY.glob("prefect*.yaml"))
    return [one for file in files for one in yaml.safe_load(file.read_text())["deployments"]]


def describe_job() -> dict[str, Any]:
    """Give the job of a run in the pool of Kubernetes, as its worker fills it in."""
    template = load("kubernetes/job-template.json")
    usual = {
        name: known["default"]
        for name, known in template["variables"]["properties"].items()
        if "default" in known
    }
    words = {"name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {}}
    env = [{"name": "PREFECT_HOME", "value": "/scratch/prefect"}]
    job: dict[str, Any] = apply_values(
        template["job_configuration"]["job_manifest"], {**usual, **words, "env": env}
    )
    pod = job["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)  # its worker asks for them
    assert pod["containers"][0]["name"] == "prefect-job"  # and for this name
    return job
