"""The work pools of the deployments in deploy/: job templates, deployments, and the Kubernetes job of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import prefect
import yaml
from prefect.utilities.templating import apply_values

from tests.deploy.commands import DEPLOY, load

WORKERS = "server/api/collections_data/views/aggregate-worker-metadata.json"
"""File of Prefect with the default templates of all workers, including those of separate packages."""


def read_templates() -> dict[str, dict[str, Any]]:
    """Return the base job template of each work pool."""
    kinds = json.loads((Path(prefect.__file__).parent / WORKERS).read_text())
    default = "default_base_job_configuration"
    return {
        "fcnpipe": kinds["prefect"]["process"][default],
        "fcnpipe-docker": kinds["prefect-docker"]["docker"][default],
        "fcnpipe-kubernetes": load("kubernetes/job-template.json"),
    }


def list_deployments() -> list[dict[str, Any]]:
    files = sorted(DEPLOY.glob("prefect*.yaml"))
    return [one for file in files for one in yaml.safe_load(file.read_text())["deployments"]]


def describe_job() -> dict[str, Any]:
    """Return the Kubernetes job of a run, with the template filled in as by the worker."""
    template = load("kubernetes/job-template.json")
    defaults = {
        name: known["default"]
        for name, known in template["variables"]["properties"].items()
        if "default" in known
    }
    values = {"name": "run", "command": ["prefect", "flow-run", "execute"], "labels": {}}
    env = [{"name": "PREFECT_HOME", "value": "/scratch/prefect"}]
    job: dict[str, Any] = apply_values(
        template["job_configuration"]["job_manifest"], {**defaults, **values, "env": env}
    )
    pod = job["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)  # the worker requires them
    assert pod["containers"][0]["name"] == "prefect-job"  # and this name
    return job
