"""Training loop: from a recipe to trained weights, with checkpoints, so that it can be interrupted at any time."""

from __future__ import annotations

import csv
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcnpipe.core.errors import InputError, SpecError, TrainingError
from fcnpipe.networks import Bundle, load_model
from fcnpipe.networks.architectures.registry import architecture
from fcnpipe.networks.inference.memory_allocator import tune_allocator
from fcnpipe.training.batches import Batch, BatchSource, draw_batch, open_batch_source
from fcnpipe.training.distributed import ProcessGroup, count_processes, join_process_group
from fcnpipe.training.learning_curve import draw_learning_curve
from fcnpipe.training.losses import CombinedLoss, compute_default_loss, make_loss
from fcnpipe.training.recipe import DEFAULT_RECIPE, Recipe, learning_rate_at, load_recipe

__all__ = [
    "DEFAULT_RECIPE",
    "Recipe",
    "TrainingState",
    "draw_batch",
    "initialise",
    "learning_rate_at",
    "load_recipe",
    "make_network",
    "pixels_per_step",
    "train",
    "train_step",
]

LOG_EVERY = 25
DEFAULT_TERMS = {"image": {"mse": 1.0}}
"""Loss terms of the tasks that do not use cross-entropy."""
ACTIVATIONS = {"classes": "softmax", "image": "identity"}
"""Activation of the logits, for tasks that do not use a sigmoid."""


@dataclass
class TrainingState:
    """Everything that changes during a training."""

    network: nn.Module
    """The network with its current weights."""
    averaged: dict[str, Tensor]
    """Running average of the weights, which is validated and saved."""
    optimizer: torch.optim.Optimizer
    """AdamW with its moments."""
    end: int
    """Total number of steps."""
    shortened: bool = False
    """Whether the cooldown was started early, which sets ``end``."""
    step: int = 0
    """Number of steps done."""
    seconds: float = 0.0
    """Time spent on them, s."""
    validation: float | None = None
    """Loss of the last validation."""
    best: float | None = None
    """Minimum validation loss."""
    best_step: int = 0
    """Number of steps done at that validation."""
    best_weights: dict[str, Tensor] | None = None
    """Averaged weights at that validation, if the recipe keeps them."""


ProgressCallback = Callable[[int, int], None]
"""Called after each step with the number of steps done and the total number of steps."""


def train(
    recipe: Recipe, out: Path, resume: bool = True, report: ProgressCallback | None = None
) -> Path:
    """Train a network and return the file of its weights.

    Parameters
    ----------
    recipe
        Everything that the training depends on.
    out
        Folder of the checkpoint, the log and the result.
    resume
        Whether to continue from the folder's checkpoint; the remaining steps see the same examples
        as without the interruption.
    report
        Called after each step.

    Returns
    -------
    Path
        ``out/best.pt``: averaged float32 weights, of the best validation or of the last step.

    Raises
    ------
    SpecError
        If the recipe needs a GPU where there is none, or an unknown network or loss.
    TrainingError
        If the gradient is not finite.

    Notes
    -----
    The learning rate is constant until the cooldown, which can start at any time: when the file
    ``out/cooldown`` is created, or after ``patience`` validations without a new minimum.

    Under ``torchrun`` each process computes its own micro-batches. Training with n processes equals
    training with one process that accumulates n times as many micro-batches, except for the order
    of summation.
    """
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device 'cuda': no GPU found: use a machine that has one, or device: cpu")
    tune_allocator()
    with join_process_group(recipe.device) as processes:
        checkpoint = out / "checkpoint.pt"
        state = (
            _resume(recipe, checkpoint) if resume and checkpoint.exists() else initialise(recipe)
        )
        out.mkdir(parents=True, exist_ok=True)
        source = open_batch_source(recipe, out, state.step, processes.is_first)
        try:
            _Training(recipe, out, state, source, processes).run(report)
        finally:
            source.close()
    return out / "best.pt"


def pixels_per_step(recipe: Recipe) -> int:
    """Return the number of pixels that the network sees in a step, over all processes."""
    return count_processes() * recipe.accumulate * recipe.batch * recipe.crop**2


# --- the network ----------------------------------------------------------------------------------


def make_network(recipe: Recipe) -> nn.Module:
    """Return the network of a recipe with random weights.

    Raises
    ------
    SpecError
        If the architecture does not accept the arguments.
    """
    try:
        return architecture(recipe.architecture)(**recipe.network)
    except TypeError as error:
        raise SpecError(f"network: architecture {recipe.architecture!r}: {error}") from None


def initialise(recipe: Recipe) -> TrainingState:
    """Return the state before the first step.

    Raises
    ------
    SpecError
        If the recipe asks for a network or a loss that does not exist.
    """
    _make_loss(recipe, shared=False)
    torch.manual_seed(recipe.seed)
    network = make_network(recipe)
    if recipe.begin:
        network.load_state_dict(_load_weights(recipe.begin))
    network.to(recipe.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    return TrainingState(network, _clone(network.state_dict()), optimizer, end=recipe.steps)


def _clone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in weights.items()}


def _load_weights(name: str) -> dict[str, Tensor]:
    model = load_model(name)
    if not isinstance(model, Bundle):
        raise SpecError(f"begin: model {name} has no weights: name a model file")
    return model.module().state_dict()


def load_checkpoint(path: Path, device: str = "cpu") -> Any:
    """Load a file of weights and numbers that a training has written.

    Raises
    ------
    InputError
        If the file is damaged, or is a pickle of other objects, which could run any code.
    """
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError, KeyError, ValueError):
        raise InputError(
            f"{path} does not contain weights and numbers only, so it is not read: "
            "train into another folder, or start again with --no-resume"
        ) from None


def _resume(recipe: Recipe, path: Path) -> TrainingState:
    state = initialise(recipe)
    stored = load_checkpoint(path, recipe.device)
    state.network.load_state_dict(stored["network"])
    state.optimizer.load_state_dict(stored["optimizer"])
    state.averaged, state.step = stored["averaged"], stored["step"]
    state.seconds, state.shortened = stored["seconds"], stored["shortened"]
    state.end = stored["end"] if state.shortened else recipe.steps
    state.best, state.best_step = stored.get("best"), stored.get("best_step", 0)
    state.best_weights = stored.get("best_weights")
    return state


# --- a step ---------------------------------------------------------------------------------------


def train_step(
    recipe: Recipe,
    state: TrainingState,
    source: BatchSource,
    processes: ProcessGroup = ProcessGroup(),  # noqa: B008
) -> float:
    """Perform one optimiser step and return its loss.

    Parameters
    ----------
    recipe
        The recipe.
    state
        State of the training, which is updated.
    source
        Source of the micro-batches.
    processes
        All processes of the training, each of which calls this function.

    Raises
    ------
    TrainingError
        If the gradient is not finite.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate_at(recipe, state.step, state.end)
    state.optimizer.zero_grad(set_to_none=True)
    passes = range(recipe.accumulate * processes.rank, recipe.accumulate * (processes.rank + 1))
    loss = sum(_backpropagate(recipe, state, source.batch(state.step, number)) for number in passes)
    processes.average_gradients(state.network)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"step {state.step}: the gradient is not finite (loss {loss}): resume with a lower rate"
        )
    state.optimizer.step()
    state.step += 1
    _update_average(recipe, state)
    return loss


def _backpropagate(recipe: Recipe, state: TrainingState, batch: Batch) -> float:
    """Add the gradient of a micro-batch, divided by the number of micro-batches; return its share of the loss."""
    loss = compute_loss(recipe, state.network, batch) / recipe.accumulate
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def compute_loss(recipe: Recipe, network: nn.Module, batch: Batch) -> Tensor:
    """Compute the loss of a network on a batch, a scalar.

    Raises
    ------
    SpecError
        If the network has another number of outputs than the targets.
    """
    x = torch.from_numpy(batch.x).to(recipe.device)
    with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = network(x.contiguous(memory_format=torch.channels_last)).float()
    shape = logits.shape[-2:]
    targets = _crop_centre(torch.from_numpy(batch.targets).to(recipe.device), shape)
    if targets.shape != logits.shape and not recipe.compares_with_image:
        raise SpecError(
            f"the network has {logits.shape[1]} outputs but the task has {targets.shape[1]}: "
            f"change its arguments {recipe.network}"
        )
    if not recipe.task and not recipe.loss:
        return compute_default_loss(logits, targets, recipe.weights)
    weight = None if batch.weight is None else torch.from_numpy(batch.weight).to(recipe.device)
    loss = _make_loss(recipe, network.training)
    return loss(logits, targets, None if weight is None else _crop_centre(weight, shape))


def _make_loss(recipe: Recipe, shared: bool) -> CombinedLoss:
    """Return the loss that a recipe names, or the default loss of its task."""
    terms = recipe.loss or DEFAULT_TERMS.get(recipe.task, {"cross_entropy": 1.0})
    return make_loss(terms, ACTIVATIONS.get(recipe.task, "sigmoid"), shared)


def _crop_centre(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the central part of maps, for a network whose output is smaller than its input."""
    top, left = ((have - want) // 2 for have, want in zip(maps.shape[-2:], shape, strict=True))
    return maps[..., top : top + shape[0], left : left + shape[1]]


@torch.no_grad()
def _update_average(recipe: Recipe, state: TrainingState) -> None:
    # The decay grows with the steps, so that the average forgets the random initial weights.
    decay = min(recipe.average, (1 + state.step) / (10 + state.step))
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.averaged[name].lerp_(value, 1 - decay)
        else:
            state.averaged[name].copy_(value)


# --- all steps ------------------------------------------------------------------------------------


@dataclass
class _Training:
    recipe: Recipe
    out: Path
    state: TrainingState
    source: BatchSource
    processes: ProcessGroup

    def run(self, report: ProgressCallback | None) -> None:
        """Train to the last step and write the result."""
        state, saved, recent = self.state, time.monotonic(), []
        while state.step < state.end:
            started = time.monotonic()
            self.source.prepare(state.step)
            loss = train_step(self.recipe, state, self.source, self.processes)
            recent.append(loss)
            state.seconds += time.monotonic() - started
            if report is not None:
                report(state.step, state.end)
            self._check_cooldown_request()
            if state.step % LOG_EVERY == 0:
                self._log(float(np.mean(recent)), "train")
                recent = []
            if state.step % self.recipe.validate_every == 0:
                self._validate()
            if time.monotonic() - saved > 60 * self.recipe.minutes_between:
                self._save()
                self.source.discard_before(state.step)
                saved = time.monotonic()
        if state.step % self.recipe.validate_every or state.validation is None:
            self._validate()
        self._save()

    def _check_cooldown_request(self) -> None:
        asked = self.out / "cooldown"
        if self.processes.broadcast(asked.exists(), self.recipe.device):
            self._start_cooldown()
            if self.processes.is_first:
                asked.unlink()

    def _start_cooldown(self) -> None:
        state = self.state
        state.end, state.shortened = min(state.end, state.step + self.recipe.cooldown), True

    def _validate(self) -> None:
        """Compute the validation loss, keep the best weights, and start the cooldown if patience has run out."""
        state, recipe = self.state, self.recipe
        loss = (
            _compute_validation_loss(recipe, state, self.source) if self.processes.is_first else 0.0
        )
        state.validation = self.processes.broadcast(loss, recipe.device)
        self._log(state.validation, "validation")
        if state.best is None or state.validation < state.best:
            state.best, state.best_step = state.validation, state.step
            state.best_weights = _clone(state.averaged) if recipe.keeps_best else None
        waited = state.step - state.best_step
        allowed = recipe.patience * recipe.validate_every or waited + 1
        if waited >= allowed and not state.shortened:
            self._start_cooldown()

    def _log(self, loss: float, what: str) -> None:
        loss = self.processes.average(loss, self.recipe.device)
        if not self.processes.is_first:
            return
        path, state = self.out / "log.csv", self.state
        fresh, rate = not path.exists(), learning_rate_at(self.recipe, state.step, state.end)
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["what", "step", "hours", "loss", "rate"])
            hours = f"{state.seconds / 3600:.4f}"
            writer.writerow([what, state.step, hours, f"{loss:.5f}", f"{rate:.2e}"])

    def _save(self) -> None:
        if self.processes.is_first:
            _save(self.state, self.recipe, self.out, self.source)
            draw_learning_curve(self.out / "log.csv")


@torch.no_grad()
def _compute_validation_loss(recipe: Recipe, state: TrainingState, source: BatchSource) -> float:
    """Return the mean loss of the averaged weights on the validation batches."""
    network = make_network(recipe).to(recipe.device)
    network.load_state_dict(state.averaged)
    network.eval()
    stride = int(getattr(network, "stride", 1))
    losses = [float(compute_loss(recipe, network, _pad(b, stride))) for b in source.validation]
    return float(np.mean(losses))


def _pad(batch: Batch, stride: int) -> Batch:
    """Return a batch padded to multiples of the stride; the added pixels have weight 0."""
    missing = [-n % stride for n in batch.x.shape[-2:]]
    if missing == [0, 0] or batch.weight is None:
        return batch
    width = ((0, 0), (0, 0), (0, missing[0]), (0, missing[1]))
    x, targets = (np.pad(part, width, mode="edge") for part in (batch.x, batch.targets))
    return Batch(x, targets, np.pad(batch.weight, width))


def _save(state: TrainingState, recipe: Recipe, out: Path, source: BatchSource) -> None:
    """Write the checkpoint and the averaged weights, each atomically."""
    checkpoint = {
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "averaged": state.averaged,
        "step": state.step,
        "end": state.end,
        "shortened": state.shortened,
        "seconds": state.seconds,
        "best": state.best,
        "best_step": state.best_step,
        "best_weights": state.best_weights,
    }
    _write_atomically(out / "checkpoint.pt", checkpoint)
    chosen = state.averaged if state.best_weights is None else state.best_weights
    _write_atomically(out / "best.pt", {k: v.cpu().contiguous() for k, v in chosen.items()})
    facts = {"recipe": asdict(recipe), "step": state.step, "hours": state.seconds / 3600}
    facts["pixels_seen"] = state.step * pixels_per_step(recipe)
    facts["validation"] = state.validation if state.best_weights is None else state.best
    facts["scaling"] = source.scaling.model_dump()
    if state.best_weights is not None:
        facts["best_step"] = state.best_step
    (out / "best.json").write_text(json.dumps(facts, indent=1))


def _write_atomically(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".part")
    torch.save(content, draft)
    draft.replace(path)
