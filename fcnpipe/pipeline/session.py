"""Opening a run: check, plan, identify, open the store, start the engine."""

from __future__ import annotations

import platform

from fcnpipe.core.spec import RunSpec
from fcnpipe.core.version import __version__
from fcnpipe.pipeline.plan import Plan
from fcnpipe.reporting.event_log import now
from fcnpipe.reporting.run_report import Report, load_report
from fcnpipe.stores import ZarrStore
from fcnpipe.stores.hierarchy import SCRATCH


def begin_report(spec: RunSpec, plan: Plan, store: ZarrStore, command: str) -> Report:
    """Give the account of the run so far, and what is known of it before the first task."""
    file = store.path / SCRATCH / "report.json"
    report = (load_report(file.read_bytes()) if file.is_file() else None) or Report(began=now())
    told = {
        "status": "running",
        "message": "",
        "command": command,
        "image": list(spec.image),
        "out": spec.out,
        "model": spec.model,
        "run_key": store.identity.key,
        "shape": plan.shape,
        "tile": plan.tile,
        "tiles": len(plan.tiles),
        "engine": "dask" if spec.on_dask else spec.engine,
        "sessions": report.sessions + 1,
        "projected_bytes": plan.memory_bytes,
        "driver_projected_bytes": plan.driver_bytes,
        "versions": {
            "fcnpipe": __version__,
            "python": platform.python_version(),
            **store.attrs.get("versions", {}),
        },
    }
    return report.model_copy(update=told)
