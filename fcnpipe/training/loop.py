"""The training loop: from a recipe to a network, interruptible at any moment."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from fcnpipe.errors import SpecError, TrainingError
from fcnpipe.networks import Bundle, load_model
from fcnpipe.networks.allocator import tune_allocator
from fcnpipe.networks.unet import UNet
from fcnpipe.training.losses import Weights, measure_loss
from fcnpipe.training.stream import Stream, simulate_example
from fcnpipe.training.targets import Example

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "default.yaml"
VALIDATION_SEED = 977
LOG_EVERY, VALIDATE_EVERY = 25, 500


@dataclass(frozen=True)
class Recipe:
    """Everything that a training depends on."""

    name: str = "sources"
    """Name of the model."""
    kind: str = "wide"
    """Kind of the scenes, see scenes.KINDS."""
    seed: int = 1
    """Seed of the weights, the scenes and the crops."""
    network: dict[str, Any] = field(default_factory=dict)
    """Arguments of the U-Net."""
    begin: str = ""
    """Model whose weights to begin with, by name or file; empty: random weights."""
    precision: str = "fp32"
    """Arithmetic of the passes, fp32 or bf16; weights and optimiser stay float32."""
    steps: int = 8000
    """Number of steps, the cooldown included."""
    cooldown: int = 1600
    """Steps over which the rate falls to 0 at the end."""
    warmup: int = 200
    """Steps over which the rate rises at the start."""
    batch: int = 10
    """Crops a step."""
    crop: int = 160
    """Side of a crop, px, a multiple of the stride."""
    rate: float = 2e-3
    """Learning rate of AdamW."""
    decay: float = 1e-2
    """Weight decay of AdamW."""
    clip: float = 1.0
    """Greatest norm of the gradient."""
    average: float = 0.998
    """Decay of the running average of the weights."""
    scene_side: int = 640
    """Side of a scene, px."""
    pool: int = 200
    """Scenes that crops are taken from at any time."""
    opening: int = 48
    """Scenes in the pool at the start; it grows to its size."""
    refresh: float = 0.25
    """New scenes a step."""
    validation: int = 16
    """Scenes of the validation."""
    minutes_between: float = 3.0
    """Minutes between two checkpoints."""
    weights: Weights = field(default_factory=Weights)
    """Weights of the outputs in the loss."""


@dataclass
class State:
    """Where a training stands."""

    network: nn.Module
    """The network as it is being trained."""
    averaged: dict[str, Tensor]
    """Running average of its weights: what is used in the end."""
    optimizer: torch.optim.Optimizer
    """AdamW."""
    end: int
    """Number of the last step."""
    shortened: bool = False
    """Whether an early cooldown has set the end."""
    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time spent on them."""
    validation: float | None = None
    """Loss of the last validation."""


Report = Callable[[int, int], None]
"""Is told the steps done, and how many there are, after each."""


def load_recipe(path: Path) -> Recipe:
    """The recipe of a YAML file.

    Raises
    ------
    SpecError
        When the file names something that a recipe does not have.
    """
    given = yaml.safe_load(path.read_text()) or {}
    known = {f.name for f in fields(Recipe)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise SpecError(
            f"{path}: {', '.join(unknown)} is unknown; a recipe has {', '.join(sorted(known))}"
        )
    if "weights" in given:
        given["weights"] = Weights(**given["weights"])
    recipe = Recipe(**given)
    if recipe.precision not in ("fp32", "bf16"):
        raise SpecError(f"{path}: precision {recipe.precision!r}: choose fp32 or bf16")
    return recipe


def train(recipe: Recipe, out: Path, resume: bool = True, report: Report | None = None) -> Path:
    """The trained weights of a recipe.

    Parameters
    ----------
    recipe
        What to train on what.
    out
        Folder of the checkpoint, the log and the result.
    resume
        Go on from the checkpoint in the folder, if there is one: the same steps on the same
        examples as without the interruption.
    report
        Is called after each step.

    Returns
    -------
    Path
        ``out/best.pt``: the averaged weights, a float32 state dict.

    Notes
    -----
    The rate is constant until the cooldown, so a file ``out/cooldown`` may end the training early:
    the cooldown then begins at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    tune_allocator()
    checkpoint = out / "checkpoint.pt"
    state = _resume(recipe, checkpoint) if resume and checkpoint.exists() else start(recipe)
    stream, pool = _fill(recipe, out, state.step)
    validation = list(_list_validation(recipe))
    try:
        _run(recipe, out, state, (stream, pool, validation), report)
        state.validation = _validate(recipe, state, validation)
    finally:
        stream.close()
    return _save(state, recipe, out)


def _list_validation(recipe: Recipe) -> Iterator[Example]:
    side = min(256, recipe.scene_side)
    for number in range(recipe.validation):
        yield simulate_example(recipe.kind, side, VALIDATION_SEED, number)


def rate_at(recipe: Recipe, step: int, end: int) -> float:
    """Learning rate of a step: a linear rise, a plateau, a fall as 1 - sqrt(t) to 0."""
    rise = min(1.0, (step + 1) / recipe.warmup)
    gone = (step - (end - recipe.cooldown)) / recipe.cooldown
    # A numpy number would go into the checkpoint, which then could not be read without pickle.
    return float(recipe.rate * rise * (1.0 - np.sqrt(gone) if gone > 0 else 1.0))


def cut_batch(
    pool: list[Example], recipe: Recipe, step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Input (n, 1, c, c) and targets (n, 3, c, c) of a step, turned and mirrored at random."""
    rng = np.random.default_rng([recipe.seed, step, 7])
    crops = [_cut(pool, recipe.crop, rng) for _ in range(recipe.batch)]
    x = np.stack([c[0] for c in crops]).astype(np.float32)[:, None]
    return x, np.stack([c[1] for c in crops]).astype(np.float32) / np.float32(255)


def _cut(pool: list[Example], side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    # Of two places the one with more centres is taken more often: skies are mostly empty.
    options = [_window(pool, side, rng) for _ in range(2)]
    if rng.random() < 0.6:
        options.sort(key=lambda o: int(o[1][1, ::4, ::4].sum(dtype=np.int64)), reverse=True)
    x, targets = options[0]
    turns = int(rng.integers(4))
    x, targets = np.rot90(x, turns), np.rot90(targets, turns, (1, 2))
    return (x[:, ::-1], targets[:, :, ::-1]) if rng.random() < 0.5 else (x, targets)


def _window(pool: list[Example], side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    example = pool[int(rng.integers(len(pool)))]
    y, x = rng.integers(0, np.array(example.x.shape) - side + 1)
    box = (slice(y, y + side), slice(x, x + side))
    return example.x[box], example.targets[:, box[0], box[1]]


def start(recipe: Recipe) -> State:
    """The state before the first step."""
    torch.manual_seed(recipe.seed)
    network = UNet(**recipe.network)
    if recipe.begin:
        network.load_state_dict(_weights_of(recipe.begin))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    averaged = {name: value.clone() for name, value in network.state_dict().items()}
    return State(network, averaged, optimizer, end=recipe.steps)


def _weights_of(name: str) -> dict[str, Tensor]:
    model = load_model(name)
    if not isinstance(model, Bundle):
        raise SpecError(f"begin: {name}: model {name} has no weights; name a model file")
    return model.module().state_dict()


def _resume(recipe: Recipe, path: Path) -> State:
    state = start(recipe)
    stored = torch.load(path, weights_only=True)
    state.network.load_state_dict(stored["network"])
    state.optimizer.load_state_dict(stored["optimizer"])
    state.averaged, state.step = stored["averaged"], stored["step"]
    state.seconds, state.shortened = stored["seconds"], stored["shortened"]
    state.end = stored["end"] if state.shortened else recipe.steps
    return state


def _newest(recipe: Recipe, step: int) -> int:
    """Number of the newest example in the pool at a step."""
    return recipe.opening - 1 + int(step * recipe.refresh)


def _oldest(recipe: Recipe, step: int) -> int:
    return max(0, _newest(recipe, step) - recipe.pool + 1)


def _fill(recipe: Recipe, out: Path, step: int) -> tuple[Stream, list[Example]]:
    first, newest = _oldest(recipe, step), _newest(recipe, step)
    stream = Stream(out / "pool", (recipe.kind, recipe.scene_side, recipe.seed), first)
    taken = {number % recipe.pool: stream.take(number) for number in range(first, newest + 1)}
    return stream, [taken[slot] for slot in range(len(taken))]


def _renew(pool: list[Example], recipe: Recipe, number: int, stream: Stream) -> None:
    if len(pool) < recipe.pool:
        pool.append(stream.take(number))
    else:
        pool[number % recipe.pool] = stream.take(number)


def _run(
    recipe: Recipe,
    out: Path,
    state: State,
    data: tuple[Stream, list[Example], list[Example]],
    report: Report | None,
) -> None:
    stream, pool, validation = data
    saved, recent = time.monotonic(), []
    while state.step < state.end:
        begun = time.monotonic()
        for number in range(
            _newest(recipe, max(state.step - 1, 0)) + 1, _newest(recipe, state.step) + 1
        ):
            _renew(pool, recipe, number, stream)
        recent.append(advance(recipe, state, pool))
        state.seconds += time.monotonic() - begun
        if report is not None:
            report(state.step, state.end)
        if (out / "cooldown").exists():
            state.end, state.shortened = min(state.end, state.step + recipe.cooldown), True
            (out / "cooldown").unlink()
        if state.step % LOG_EVERY == 0:
            _log(out / "log.csv", recipe, state, float(np.mean(recent)), "train")
            recent = []
        if state.step % VALIDATE_EVERY == 0:
            state.validation = _validate(recipe, state, validation)
            _log(out / "log.csv", recipe, state, state.validation, "validation")
        if time.monotonic() - saved > 60 * recipe.minutes_between:
            _save(state, recipe, out)
            stream.forget(_oldest(recipe, state.step))
            saved = time.monotonic()


def advance(recipe: Recipe, state: State, pool: list[Example]) -> float:
    """The loss of one step, after which the state is one step further."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate_at(recipe, state.step, state.end)
    x, targets = (torch.from_numpy(part) for part in cut_batch(pool, recipe, state.step))
    with _arithmetic(recipe):
        logits = state.network(x.contiguous(memory_format=torch.channels_last))
    loss = measure_loss(logits.float(), targets, recipe.weights)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), recipe.clip)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"step {state.step}: the loss is {float(loss.detach())}; resume with a lower rate"
        )
    state.optimizer.step()
    state.step += 1
    _average(recipe, state)
    return float(loss.detach())


def _arithmetic(recipe: Recipe) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16")


@torch.no_grad()
def _average(recipe: Recipe, state: State) -> None:
    # Slower as it goes on, so that the random start is forgotten.
    decay = min(recipe.average, (1 + state.step) / (10 + state.step))
    for name, value in state.network.state_dict().items():
        state.averaged[name].lerp_(value, 1 - decay)


@torch.no_grad()
def _validate(recipe: Recipe, state: State, examples: list[Example]) -> float:
    network = UNet(**recipe.network)
    network.load_state_dict(state.averaged)
    losses = []
    for example in examples:
        x = torch.from_numpy(example.x.astype(np.float32))[None, None]
        targets = torch.from_numpy(example.targets.astype(np.float32) / 255)[None]
        with _arithmetic(recipe):
            logits = network(x)
        losses.append(float(measure_loss(logits.float(), targets, recipe.weights)))
    return float(np.mean(losses))


def _log(path: Path, recipe: Recipe, state: State, loss: float, what: str) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["what", "step", "hours", "loss", "rate"])
        rate = rate_at(recipe, state.step, state.end)
        writer.writerow(
            [what, state.step, f"{state.seconds / 3600:.4f}", f"{loss:.5f}", f"{rate:.2e}"]
        )


def _save(state: State, recipe: Recipe, out: Path) -> Path:
    """Write checkpoint and averaged weights, each at once or not at all."""
    checkpoint = {
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "averaged": state.averaged,
        "step": state.step,
        "end": state.end,
        "shortened": state.shortened,
        "seconds": state.seconds,
    }
    _replace(out / "checkpoint.pt", checkpoint)
    _replace(out / "best.pt", {k: v.contiguous() for k, v in state.averaged.items()})
    facts = {"recipe": asdict(recipe), "step": state.step, "hours": state.seconds / 3600}
    facts["pixels_seen"] = state.step * recipe.batch * recipe.crop**2
    facts["validation"] = state.validation
    (out / "best.json").write_text(json.dumps(facts, indent=1))
    return out / "best.pt"


def _replace(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".part")
    torch.save(content, draft)
    draft.replace(path)
