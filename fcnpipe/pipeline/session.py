"""Opening a run: check the inputs, plan, identify the result, open the store, start the engine."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fcnpipe import engines, networks
from fcnpipe.core.errors import InputError, ModelError, SpecError, StoreError
from fcnpipe.core.spec import RunSpec
from fcnpipe.core.version import __version__
from fcnpipe.images.fingerprints import fingerprint_inputs
from fcnpipe.pipeline import recovery, tasks
from fcnpipe.pipeline.criteria import resolve_criteria
from fcnpipe.pipeline.inputs import Command, Inputs, identify_inputs, open_inputs
from fcnpipe.pipeline.job import Job
from fcnpipe.pipeline.plan import Plan, check_disk, plan_run
from fcnpipe.pipeline.workflow import Stage, list_stages
from fcnpipe.reporting.event_log import EventLog, utc_timestamp
from fcnpipe.reporting.run_recorder import RunRecorder, record_session
from fcnpipe.reporting.run_report import RunReport, parse_report
from fcnpipe.stores import (
    STAGES,
    Layout,
    RunIdentity,
    State,
    ZarrStore,
    lock_output,
    partial_path,
    prepare_output,
    remove_partial,
)
from fcnpipe.stores.hierarchy import SCRATCH

Adoption = Callable[[Job], None]
"""Function that copies the intact maps of a finished store of the same run into the new one."""


@dataclass(frozen=True)
class Session:
    """A run in progress.

    Attributes
    ----------
    job : Job
        Input of all tasks.
    engine : Engine
        Runs the tasks.
    resumed : bool
        Whether an earlier run is resumed.
    recorder : RunRecorder
        Writes the event log and the run report.
    """

    job: Job
    engine: engines.Engine
    resumed: bool
    recorder: RunRecorder

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the run, in order."""
        return list_stages(self.job)


@contextmanager
def open_session(
    spec: RunSpec,
    command: Command = "segment",
    adopt: Adoption | None = None,
    host_bytes: int = 0,
) -> Iterator[Session | None]:
    """Check everything, open or create the store, and start the engine.

    Parameters
    ----------
    spec : RunSpec
        The run.
    command : {"segment", "predict"}
        What the run produces.
    adopt : callable, optional
        Called with the job to copy the intact maps of a finished store, whose run is then repeated.
    host_bytes : int
        Bytes that the host program (such as Prefect) uses in this process.

    Yields
    ------
    Session or None
        None if the finished result of this run already exists.

    Raises
    ------
    FcnpipeError
        With a message of one line: the value, the limit and the fix.
    """
    networks.tune_allocator()  # takes effect only before the first thread starts
    with EventLog(spec.log_file) as event_log:
        job, state = _open_run(spec, command, adopt, host_bytes)
        if job is None:
            event_log.write("run finished", message=f"{spec.out} already exists")
            yield None
            return
        store = ZarrStore(Path(job.path))
        with lock_output(store.path, job.nonce), _remove_if_refused(store):
            recorder = RunRecorder(_open_report(job, store, command), store, event_log)
            with record_session(recorder, resumed=state == "resume"):
                recovery.reconcile(job, resumed=state == "resume", adopt=adopt)
                engine = engines.open_engine(job.spec, _list_requirements(job))
                recorder.run_report.workers = engine.workers
                try:
                    yield Session(job, engine, state == "resume", recorder)
                finally:
                    engine.close()


def _open_run(
    spec: RunSpec, command: Command, adopt: Adoption | None, host_bytes: int
) -> tuple[Job | None, State]:
    """Check, plan and identify a run, and open its store; no job if the result already exists."""
    fingerprints = fingerprint_inputs(
        spec
    )  # before anything else, so that every later change is noticed
    inputs = open_inputs(spec, command)
    unfinished_tile = _find_unfinished_tile(spec)
    plan = plan_run(inputs, unfinished_tile, host_bytes)
    check_disk(plan, spec.out)
    criteria = resolve_criteria(spec, inputs.model.header)

    identity = identify_inputs(inputs, plan.precision)
    state = _find_state(spec, identity, adopt)
    if state == "complete":
        return None, state
    if state == "fresh" and unfinished_tile is not None:  # the unfinished run was another one
        plan = plan_run(inputs, None, host_bytes)

    if state == "resume":
        store = ZarrStore.resume(spec.out)
    else:
        replaces = spec.overwrite or adopt is not None
        attributes = _describe_run(inputs, plan)
        store = ZarrStore.create(spec.out, _lay_out(inputs, plan), identity, attributes, replaces)
    spec = spec.model_copy(update={"precision": plan.precision}).with_absolute_paths()
    path, nonce = str(store.path.absolute()), uuid.uuid4().hex
    return Job(spec, plan, criteria, path, nonce, fingerprints, inputs.model.digest), state


def _find_unfinished_tile(spec: RunSpec) -> int | None:
    """Return the tile edge of an unfinished run at the output, which a resume keeps; None if there is none.

    Notes
    -----
    Whether that run is this one is known only with the digest of the inputs, which takes a long time to compute.
    """
    try:
        return ZarrStore.resume(spec.out).layout.edge[0]
    except (StoreError, KeyError, TypeError, ValueError):
        return None  # nothing there, or damaged: `prepare_output` reports which


def _find_state(spec: RunSpec, identity: RunIdentity, adopt: Adoption | None) -> State:
    """Return the state of the output; the run of a finished store that is repaired starts from scratch."""
    state = prepare_output(spec.out, identity, spec.overwrite)
    if state != "complete" or adopt is None:
        return state
    partial = partial_path(spec.out)
    if partial.exists():
        raise StoreError(
            f"{partial} is an unfinished run that was to replace {spec.out}: finish it, or remove it"
        )
    return "fresh"


def _lay_out(inputs: Inputs, plan: Plan) -> Layout:
    info = inputs.image.info
    return Layout(
        shape=plan.shape,
        edge=(plan.tile, plan.tile),
        mesh=plan.mesh,
        cell=plan.cell,
        classes=inputs.model.classes,
        bands=info.bands,
        keep_image=inputs.spec.keep_image,
        cards=info.cards,
        unit=info.unit,
        chunk=plan.chunk,
        stages=STAGES[:2] if plan.maps else STAGES,
        maps=plan.maps,
    )


def _describe_run(inputs: Inputs, plan: Plan) -> dict[str, Any]:
    """Return the root attributes of the store."""
    spec = inputs.spec
    content = "Predictions" if plan.maps else "Sources"
    names = ", ".join(Path(name).name for name in spec.image)
    return {
        "title": f"{content} of {names}",
        "source": f"fcnpipe {__version__}",
        "input": list(spec.image),
        **{k: v for k in ("weight", "mask", "prior") if (v := getattr(spec, k))},
        "model": spec.model,
        "tiling": _describe_tiling(inputs.model.header),
        "unit": inputs.image.info.unit,
        "versions": {
            name: version(name) for name in ("numpy", "numba", "torch", "zarr", "astropy")
        },
    }


def _describe_tiling(header: networks.ModelHeader) -> str:
    """State whether the network's halo is proven to be large enough, or only declared."""
    certificate = header.certificate
    if certificate is not None and certificate.kind == "proven":
        return f"proven exact with a halo of {header.halo} px"
    return f"unproven: a halo of {header.halo} px is declared, seams may show"


@contextmanager
def _remove_if_refused(store: ZarrStore) -> Iterator[None]:
    """Remove a store without a finished tile if its input is refused: it would block the corrected command."""
    try:
        yield
    except (InputError, ModelError, SpecError):
        if not store.done("predict").any():
            remove_partial(store.path)
        raise


def _open_report(job: Job, store: ZarrStore, command: Command) -> RunReport:
    """Return the report of the run so far, with all facts that are known before the first task."""
    file = store.path / SCRATCH / "report.json"
    report = (parse_report(file.read_bytes()) if file.is_file() else None) or RunReport(
        began=utc_timestamp()
    )
    spec, plan = job.spec, job.plan
    known = {
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
    return report.model_copy(update=known)


def _list_requirements(job: Job) -> engines.WorkerRequirements:
    """Return what worker processes need; the network only if tiles remain to be predicted."""
    prepare: Callable[[], object] = networks.tune_allocator
    if tasks.list_remaining(job, "predict", (tile.name for tile in job.plan.tiles)):
        prepare = job.load_network
    memory = job.plan.memory
    return engines.WorkerRequirements(
        networks.worker_environment(), prepare, memory.of(1), memory.task
    )
