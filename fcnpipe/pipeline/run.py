r"""Spec in, store out: the run as a list of stages.

::

    image -> background -> predict -> separate -> merge -> select -> label -> measure -> publish
                               \----- where outputs are stored as they are -----------/

Each stage is one or more steps; a step is one function of :mod:`fcnpipe.pipeline.tasks` called for many
names, in any order, on any engine. Steps talk to each other through the store alone, so a run can
be killed at any moment: the next one asks the ledger what is there and does the rest.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from fcnpipe import engines, networks
from fcnpipe.core import errors
from fcnpipe.core.errors import (
    InputChanged,
    InputError,
    ModelError,
    SpecError,
    StoreError,
    TilesFailed,
)
from fcnpipe.core.geometry import list_levels
from fcnpipe.core.records import TaskReport
from fcnpipe.core.spec import RunSpec, make_spec
from fcnpipe.core.version import __version__
from fcnpipe.images.fingerprints import fingerprint_inputs
from fcnpipe.images.masked_image import MaskedImage
from fcnpipe.pipeline import tasks as work
from fcnpipe.pipeline.job import ALL, Job, resolve_criteria
from fcnpipe.pipeline.plan import Command, Plan, check_disk, make_plan, settle_precision
from fcnpipe.pipeline.session import begin_report
from fcnpipe.pipeline.stages.publication import list_pyramid
from fcnpipe.reporting.event_log import Journal
from fcnpipe.reporting.run_recorder import Recorder, recording
from fcnpipe.science.wcs import describe_wcs_error
from fcnpipe.stores import (
    STAGES,
    Damage,
    Layout,
    RunIdentity,
    State,
    ZarrStore,
    discard,
    hold,
    open_store,
    parquet_path,
    partial_path,
    prepare,
)


class Observer(Protocol):
    """Watches a run, to show how far it is."""

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Be told that a stage begins, and how much there is to do."""
        ...

    def report(self, report: TaskReport) -> None:
        """Be told that a task has ended."""
        ...

    def end(self, stage: str, seconds: float) -> None:
        """Be told that a stage has ended."""
        ...


class Silence:
    """An observer that shows nothing."""

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Ignore it."""

    def report(self, report: TaskReport) -> None:
        """Ignore it."""

    def end(self, stage: str, seconds: float) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Audience:
    """Several observers as one."""

    observers: tuple[Observer, ...]

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        """Tell each that a stage begins."""
        for observer in self.observers:
            observer.start(stage, tasks, pixels)

    def report(self, report: TaskReport) -> None:
        """Tell each that a task has ended."""
        for observer in self.observers:
            observer.report(report)

    def end(self, stage: str, seconds: float) -> None:
        """Tell each that a stage has ended."""
        for observer in self.observers:
            observer.end(stage, seconds)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave.

    Attributes
    ----------
    path : str
        The finished store.
    catalogue : str
        The catalogue as parquet, beside the store.
    sources : int
        Number of sources.
    seconds : float
        Wall time of this call.
    resumed : bool
        Whether an earlier run was taken up, or found finished.
    no_sky : str
        Why there are no positions on the sky though the header promises them; empty otherwise.
    """

    path: str
    catalogue: str
    sources: int
    seconds: float
    resumed: bool
    no_sky: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run gave that stores the outputs of a network as they are.

    Attributes
    ----------
    path : str
        The finished store.
    outputs : tuple of str
        Names of the arrays of ``image/0`` that the network gave.
    seconds : float
        Wall time of this call.
    resumed : bool
        Whether an earlier run was taken up, or found finished.
    """

    path: str
    outputs: tuple[str, ...]
    seconds: float
    resumed: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One function of :mod:`fcnpipe.pipeline.tasks` and the names to call it for.

    Attributes
    ----------
    task : str
        Name of the function.
    names : tuple of str
        Tiles, nodes, or ``("all",)``.
    beside : str
        A function that is called meanwhile, once for all; none if empty.
    """

    task: str
    names: tuple[str, ...]
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that people see as one."""

    name: str
    steps: tuple[Step, ...]


ONE = (ALL,)
Adoption = Callable[[Job], None]
"""Takes over what is good of a finished store."""


@dataclass(frozen=True)
class Session:
    """A run in progress: the job that tasks need, the engine that does them, and who takes it down."""

    job: Job
    engine: engines.Engine
    resumed: bool
    recorder: Recorder

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is to be done, in order."""
        return list_stages(self.job)


def segment(spec: RunSpec, observer: Observer | None = None) -> Result:
    """Find, separate and catalogue the sources of an image.

    Parameters
    ----------
    spec : RunSpec
        The run.
    observer : Observer, optional
        Is told how far the run is.

    Returns
    -------
    Result

    Raises
    ------
    FcnpipeError
        One line: value, limit, mend. ``TilesFailed`` names tiles; the rest has landed.
    """
    begun = time.perf_counter()
    return _result(spec.out, begun, _perform(spec, "segment", observer))


def predict(spec: RunSpec, observer: Observer | None = None) -> Prediction:
    """Store what a network gives of an image: restored images, components, probabilities.

    Parameters
    ----------
    spec : RunSpec
        The run; what it says of sources is ignored.
    observer : Observer, optional
        Is told how far the run is.

    Returns
    -------
    Prediction

    Raises
    ------
    FcnpipeError
        As `segment`.
    """
    begun = time.perf_counter()
    resumed = _perform(spec.without_sources(), "predict", observer)
    outputs = tuple(output.name for output in ZarrStore.open(spec.out).layout.maps)
    return Prediction(spec.out, outputs, time.perf_counter() - begun, resumed)


def repair(out: str, observer: Observer | None = None, **options: Any) -> tuple[Damage, ...]:
    """Make a published store again what it was, from the image and from what is not damaged.

    Parameters
    ----------
    out : str
        OUT.zarr.
    observer : Observer, optional
        Is told how far the run is.
    **options
        Of how it is run, as on the command line: ``engine``, ``workers``, ...

    Returns
    -------
    tuple of Damage
        What was damaged, and is not any more.

    Raises
    ------
    FcnpipeError
        If the image or the model is not there, or is another one.

    Notes
    -----
    The run is begun again in OUT.zarr.partial, where the network has been on every tile whose maps
    are whole: these are taken over. All else is made of them anew, and is the same as it does not
    depend on when it is made. OUT.zarr stays until then.
    """
    old = open_store(out)
    damage = tuple(old.find_damage())
    if damage:
        spec, command = _read_spec(old, options)
        _perform(spec, command, observer, partial(_adopt, old, damage))
    return damage


def _read_spec(store: ZarrStore, options: Mapping[str, Any]) -> tuple[RunSpec, Command]:
    """Give the spec of the run that made a store."""
    attributes = store.attrs
    science = json.loads(attributes["spec"])
    command: Command = "predict" if science.pop("command") == "predict" else "segment"
    files = {name: attributes[name] for name in ("weight", "mask", "prior") if name in attributes}
    made = {
        "image": tuple(attributes["input"]),
        "out": str(store.path),
        "tile": store.layout.edge[0],
    }
    return make_spec(**science, **files, **made, **options), command


def _adopt(old: ZarrStore, damage: Iterable[Damage], job: Job) -> None:
    """Take over what the network has given for the tiles of a store that are whole.

    Notes
    -----
    Shards of which only the checksum is lost are taken as they are, since they can be decoded.
    """
    names = [*(o.name for o in job.plan.maps), "flags"]
    names += [] if job.plan.maps else ["probability", "elevation"]
    names += ["science"] if job.plan.maps and job.spec.keep_image else []
    places = {f"image/0/{name}" for name in names}
    lost = [d.tile for d in damage if d.place in places]
    whole = () if None in lost else (t.name for t in job.plan.tiles if t not in lost)
    for name in work.remaining(job, "predict", whole):
        work.adopt_prediction(job, old, name, names)


def _perform(
    spec: RunSpec, command: Command, observer: Observer | None, adopt: Adoption | None = None
) -> bool:
    """Run all stages; give whether an earlier run was taken up, or found finished."""
    with open_session(spec, command, adopt) as session:
        if session is None:
            return True
        for stage in session.stages:
            run_stage(session, stage, observer or Silence())
        finish(session)
        return session.resumed


@contextmanager
def open_session(
    spec: RunSpec,
    command: Command = "segment",
    adopt: Adoption | None = None,
    host_bytes: int = 0,
) -> Iterator[Session | None]:
    """Check everything, take up or begin the store, and start the engine.

    Parameters
    ----------
    spec : RunSpec
        The run.
    command : {"segment", "predict"}
        What is wanted of it.
    adopt : callable, optional
        A finished store of this very run is begun again; is called with the job to take over what
        is good of it.
    host_bytes : int
        What the program takes besides that this process runs.

    Yields
    ------
    Session or None
        None if the finished result of this very run is there already.
    """
    networks.tune_allocator()  # before there are threads
    with Journal(spec.log_file) as journal:
        begun = _begin(spec, command, adopt, host_bytes)
        if begun is None:
            journal.write("run finished", message=f"{spec.out} is there already")
            yield None
            return
        job, state = begun
        store = ZarrStore(Path(job.path))
        with hold(store.path, job.nonce), _withdrawn(store):
            account = begin_report(job.spec, job.plan, store, command)
            recorder = Recorder(account, store, journal)
            with recording(recorder, resumed=state == "resume"):
                _settle(job, state, adopt)
                engine = engines.open_engine(job.spec, _list_needs(job))
                recorder.account.workers = engine.workers
                try:
                    yield Session(job, engine, state == "resume", recorder)
                finally:
                    engine.close()


def _begin(
    spec: RunSpec, command: Command, adopt: Adoption | None, host_bytes: int
) -> tuple[Job, State] | None:
    """Check everything, and take up or begin the store; None if the result is there already."""
    plan = make_plan(spec, None, command, host_bytes)
    check_disk(plan, spec.out)
    inputs = fingerprint_inputs(spec)  # before the digest is taken: what comes later is a change
    image, model = MaskedImage(spec), networks.load_model(spec.model, spec.fwhm, spec.declared)
    criteria = resolve_criteria(spec, model.header)
    # What auto means is part of the run key: a resume elsewhere must not change it.
    spec = spec.model_copy(update={"precision": plan.precision})
    identity = _identify(spec, image, model, command)
    state = _prepare(spec, identity, adopt)
    if state == "complete":
        return None
    if state == "resume":
        store = ZarrStore.resume(spec.out)
        plan = make_plan(spec, store.layout.edge[0], command, host_bytes)
    else:
        layout = _lay_out(plan, image, model, spec)
        attributes = _attributes(spec, image, plan, model)
        replaces = spec.overwrite or adopt is not None
        store = ZarrStore.create(spec.out, layout, identity, attributes, replaces)
    nonce = uuid.uuid4().hex
    path = str(store.path.absolute())
    job = Job(spec.anchored(), plan, criteria, path, nonce, inputs, model.digest)
    return job, state


@contextmanager
def _withdrawn(store: ZarrStore) -> Iterator[None]:
    """Remove a store without a finished tile when what was given is wrong: it would be in the way."""
    try:
        yield
    except (InputError, ModelError, SpecError):
        if not store.done("predict").any():
            discard(store.path)
        raise


def _list_needs(job: Job) -> engines.WorkerRequirements:
    prepare: Callable[[], object] = networks.tune_allocator
    if work.remaining(job, "predict", (tile.name for tile in job.plan.tiles)):
        prepare = job.load_network
    memory = job.plan.memory
    return engines.WorkerRequirements(
        networks.worker_environment(), prepare, memory.of(1), memory.task
    )


def _prepare(spec: RunSpec, identity: RunIdentity, adopt: Adoption | None) -> State:
    """Say what lies at the output; what is to be mended is begun again."""
    state = prepare(spec.out, identity, spec.overwrite)
    if state != "complete" or adopt is None:
        return state
    if partial_path(spec.out).exists():
        raise StoreError(
            f"{partial_path(spec.out)} is a run that was to replace {spec.out}: finish it, or remove it"
        )
    return "fresh"


def _settle(job: Job, state: State, adopt: Adoption | None) -> None:
    """Settle what is done already: what is good of an earlier run, and nothing else."""
    if state == "resume":
        _distrust(job)
    if adopt is not None:
        adopt(job)
    _take_back(job)


def list_stages(job: Job) -> tuple[Stage, ...]:
    """Give the stages of a run and their steps."""
    tiles = tuple(tile.name for tile in job.plan.tiles)
    return (
        Stage(
            "background",
            (Step("weigh_bands", ONE), Step("measure_cells", tiles), Step("fit_sky", ONE)),
        ),
        Stage("predict", (Step("predict", tiles),)),
        *(_output_stages(job, tiles) if job.plan.maps else _source_stages(job, tiles)),
    )


def _source_stages(job: Job, tiles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Give the stages that make sources of the maps."""
    return (
        Stage("separate", (Step("separate", tiles),)),
        Stage("merge", _merge_steps(job.plan)),
        Stage("select", (Step("select", ONE),)),
        Stage("label", (Step("label", tiles),)),
        Stage("measure", (Step("measure", tiles),)),
        Stage(
            "publish",
            (
                *_pyramid_steps(job, beside="write_catalogue"),
                Step("check_tile", tiles, "prepare_parquet"),
                Step("check_sums", ONE),
            ),
        ),
    )


def _output_stages(job: Job, tiles: tuple[str, ...]) -> tuple[Stage, ...]:
    """Give the stages after the maps where they are the result."""
    steps = (*_pyramid_steps(job, "tabulate"), Step("check_tile", tiles), Step("check_sums", ONE))
    return (Stage("publish", steps),)


def _merge_steps(plan: Plan) -> tuple[Step, ...]:
    """Join 2 x 2 nodes up to the root, then settle from the root down."""
    levels = [tuple(node.name for node in level) for level in list_levels(plan.tiles.counts)[1:]]
    return (
        *(Step("join", level) for level in levels),
        *(Step("settle", level) for level in reversed(levels)),
    )


def _pyramid_steps(job: Job, beside: str) -> tuple[Step, ...]:
    levels = [tuple(node.name for node in nodes) for nodes in list_pyramid(job)]
    if not levels:
        return (Step("create_pyramid", ONE), Step(beside, ONE))
    first, *others = levels
    return (
        Step("create_pyramid", ONE),
        Step("build_level", first, beside),
        *(Step("build_level", names) for names in others),
    )


def run_stage(session: Session, stage: Stage, observer: Observer) -> None:
    """Run what is still to be done of one stage.

    Raises
    ------
    TilesFailed
        If a step that everything later needs has failed for some tiles.
    FcnpipeError
        If what the user gave turns out to be wrong.
    """
    begun, job = time.perf_counter(), session.job
    todo = {step: _remaining(job, step) for step in stage.steps}
    size = sum(work.count_pixels(job, step.task, names) for step, names in todo.items())
    audience = Audience((session.recorder, observer))
    audience.start(stage.name, sum(map(len, todo.values())), size)
    for step, names in todo.items():
        _run_step(session, step, names, audience)
    audience.end(stage.name, time.perf_counter() - begun)


def _remaining(job: Job, step: Step) -> list[str]:
    alone = work.remaining(job, step.beside, ONE) if step.beside else []
    return [*alone, *work.remaining(job, step.task, step.names)]


def _run_step(session: Session, step: Step, names: list[str], observer: Observer) -> None:
    failed = []
    call = partial(work.perform_either, session.job, step.task, step.beside or step.task)
    for given in session.engine.run(call, names):
        report = replace(given, stage=given.stage or step.task)  # lost with its worker
        if _is_of_the_run(report):
            session.recorder.report(report)
            raise getattr(errors, report.kind)(report.error)
        observer.report(report)
        if report.error:
            failed.append(report)
    if failed and step.task not in work.TOLERANT:
        raise TilesFailed([f"{r.name} ({r.stage}: {r.error})" for r in failed])


def _is_of_the_run(report: TaskReport) -> bool:
    """Whether the error of a task is that of the whole run, which is said once, at the end."""
    return report.kind in work.FATAL or (report.name == ALL and hasattr(errors, report.kind))


def finish(session: Session) -> None:
    """Give the store, which the last stage has verified, its final name.

    Raises
    ------
    TilesFailed
        If tiles have failed: the store keeps its ``.partial`` name and holds everything else.
    InputChanged
        If an input became another during the run; what was made of it is forgotten.
    """
    job = session.job
    _check_inputs(job)
    if not work.is_whole(job):
        failed = work.list_failures(job)
        job.store.close_incomplete(failed)
        raise TilesFailed(failed)
    session.recorder.complete(job.store.publish(job.spec.overwrite, checked=True))


def _check_inputs(job: Job) -> None:
    """Refuse a result whose tiles may have been read from different inputs."""
    try:
        job.check_inputs(thorough=True)
    except InputChanged:
        _forget(job, work.TASKS)
        raise


def _distrust(job: Job) -> None:
    """Take back what is said to be done and is not there: a disk that lost power may lose files.

    Notes
    -----
    Looks at the length of each map, not at all of it: that is for the check before a store is
    published, which is made anew, as is all that is small. What the check finds wrong is done again
    when the run is taken up next.
    """
    pyramid = job.store.has_arrays("done-create_pyramid", ALL)
    job.store.restore_frame(job.image.info.cards, pyramid)
    if work.drop_broken_records(job):
        _forget(job, (*work.SKY, *work.AFTER_PREDICT))
    for task in work.list_with_maps(job):
        if damaged := work.list_damaged(job, task):
            work.forget_tiles(job, task, damaged)
            _forget(job, work.list_followers(task))
    levels = list_pyramid(job)
    if not all(work.is_built(job, node) for nodes in levels for node in nodes):
        _forget(job, work.list_followers("measure"))
    _forget(job, work.SMALL)


def _take_back(job: Job) -> None:
    """Take back what was finished without some tiles, so that it is done again with them."""
    if job.store.attrs["status"] != "incomplete":
        return
    again: tuple[str, ...] = work.AFTER_PREDICT
    if job.store.pending("background"):  # the sky of all tiles hangs together
        again = (*work.SKY, "predict", *again)
    _forget(job, again)
    job.store.reopen()


def _forget(job: Job, tasks: Iterable[str]) -> None:
    """Take back those of some tasks that this run has."""
    stages = list_stages(job)
    known = {task for stage in stages for step in stage.steps for task in (step.task, step.beside)}
    for task in tasks:
        if task in known:
            work.forget(job, task)


def identify(spec: RunSpec, command: Command) -> RunIdentity:
    """Give what decides the bytes of a run's result; takes the digests of its inputs."""
    model = networks.load_model(spec.model, spec.fwhm, spec.declared)
    spec = spec.model_copy(update={"precision": settle_precision(spec, model)})
    return _identify(spec, MaskedImage(spec), model, command)


def _identify(
    spec: RunSpec, image: MaskedImage, model: networks.Model, command: Command
) -> RunIdentity:
    science = spec.science() | {"command": command}
    return RunIdentity(image.digest, model.digest, __version__, science)


def _lay_out(plan: Plan, image: MaskedImage, model: networks.Model, spec: RunSpec) -> Layout:
    info = image.info
    return Layout(
        shape=plan.shape,
        edge=(plan.tile, plan.tile),
        mesh=plan.mesh,
        cell=plan.cell,
        classes=model.classes,
        bands=info.bands,
        keep_image=spec.keep_image,
        cards=info.cards,
        unit=info.unit,
        chunk=plan.chunk,
        stages=STAGES[:2] if plan.maps else STAGES,
        maps=plan.maps,
    )


def _attributes(
    spec: RunSpec, image: MaskedImage, plan: Plan, model: networks.Model
) -> dict[str, object]:
    what = "Predictions" if plan.maps else "Sources"
    names = ", ".join(Path(name).name for name in spec.image)
    return {
        "title": f"{what} of {names}",
        "source": f"fcnpipe {__version__}",
        "input": list(spec.image),
        **{k: v for k in ("weight", "mask", "prior") if (v := getattr(spec, k))},
        "model": spec.model,
        "tiling": _vouch(model.header),
        "unit": image.info.unit,
        "versions": {
            name: version(name) for name in ("numpy", "numba", "torch", "zarr", "astropy")
        },
    }


def _vouch(header: networks.ModelHeader) -> str:
    """Say whether the halo of the network is proven to be enough, or somebody's word."""
    proof = header.certificate
    if proof is not None and proof.kind == "proven":
        return f"proven exact with a halo of {header.halo} px"
    return f"unproven: a halo of {header.halo} px is declared, seams may show"


def _result(out: str, begun: float, resumed: bool) -> Result:
    store = ZarrStore.open(out)
    seconds, no_sky = time.perf_counter() - begun, describe_wcs_error(store.cards)
    return Result(out, str(parquet_path(out)), store.n_sources, seconds, resumed, no_sky)
