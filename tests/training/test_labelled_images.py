"""Labelled images: the same training data from any format, and trainings that end in a model."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr
from astropy.io import fits
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import convolve
from scipy.ndimage import label as number_pieces
from torch import nn
from typer.testing import CliRunner

import fcnpipe
from fcnpipe.cli.commands import app
from fcnpipe.core.errors import InputError, SpecError
from fcnpipe.networks import load_model
from fcnpipe.networks.base import Scaling
from fcnpipe.training import loop
from fcnpipe.training.augmentation import NO_AUGMENTATION, Augmentation, apply_symmetry
from fcnpipe.training.batches import LabelledImageSource
from fcnpipe.training.labelled_images import (
    PairsSpec,
    compress_input,
    make_targets,
    measure_scaling,
    parse_numbers,
    read_pairs,
)
from fcnpipe.training.losses import TERMS
from fcnpipe.training.recipe import Recipe, load_recipe, make_recipe
from fcnpipe.training.shape_losses import compute_border_weights

SIDE = 64
TINY = {
    "name": "cells", "network": {"bands": 1, "outputs": 2, "base": 2, "depth": 1}, "steps": 12,
    "cooldown": 4, "warmup": 2, "batch": 2, "crop": 24, "validate_every": 4, "seed": 3,
}  # fmt: skip


def draw_cells(seed):
    """Return a uint8 image of bright cells between dark membranes, and labels: 255, and 0 on membranes."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, SIDE, (9, 2))
    y, x = np.indices((SIDE, SIDE))
    far = np.sort(np.hypot(y[..., None] - centres[:, 0], x[..., None] - centres[:, 1]), axis=-1)
    membrane = far[..., 1] - far[..., 0] < 3
    image = np.where(membrane, 60, 170) + rng.normal(0, 12, (SIDE, SIDE))
    return np.uint8(np.clip(image, 0, 255)), np.uint8(255 * ~membrane)


@pytest.fixture(scope="module")
def stacks():
    """Return twelve images and labels: with that many, the order of names differs from that of numbers."""
    return [np.stack(part) for part in zip(*(draw_cells(n) for n in range(12)), strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stacks):
    folder = tmp_path_factory.mktemp("micrographs")
    for what, stack in zip(("image", "label"), stacks, strict=True):
        (folder / what).mkdir()
        for n, plane in enumerate(stack):
            Image.fromarray(plane).save(folder / what / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def spec(folder):
    return PairsSpec(str(folder / "image"), str(folder / "label"), train="0-9", choose="10,11")


def write(path, stack):
    """Write a stack in the format of the suffix; without a suffix, a folder of TIFF files."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, stack, photometric="minisblack")
    elif path.suffix == ".fits":
        fits.writeto(path, stack)
    elif path.suffix == ".zarr":
        zarr.save_array(path, stack)
    else:
        path.mkdir()
        for n, plane in enumerate(stack):
            tifffile.imwrite(path / f"slice{n}.tif", plane)


@pytest.mark.parametrize("ending", [".tif", ".fits", ".zarr", ""])
def test_every_format_yields_the_same_pairs(tmp_path, stacks, spec, ending):
    names = [tmp_path / f"{what}{ending}" for what in ("image", "label")]
    for name, stack in zip(names, stacks, strict=True):
        write(name, stack)
    other = replace(spec, images=str(names[0]), labels=str(names[1]))
    scaling = Scaling(kind="linear", offset=100, scale=50)
    found = read_pairs(other, "2,10", scaling)
    for pair, number in zip(found, (2, 10), strict=True):
        np.testing.assert_allclose(pair.x[0], (stacks[0][number] - 100.0) / 50, rtol=1e-6)
        np.testing.assert_array_equal(pair.truth, stacks[1][number])


def test_the_scaling_is_mean_and_standard_deviation_of_the_training_images(spec, stacks):
    found = measure_scaling(spec)
    assert found.offset == pytest.approx(stacks[0][:10].mean(), abs=1e-2)
    assert found.scale == pytest.approx(stacks[0][:10].std(), abs=1e-2)
    assert measure_scaling(replace(spec, offset=1.0, scale=2.0)).offset == 1.0


def test_skies_are_scaled_to_the_asinh_of_their_signal_to_noise(tmp_path, spec, stacks):
    sky = np.random.default_rng(2).normal(500, 4, (256, 256)).astype(np.float32)
    sky[100, 100] += 4000
    fits.writeto(tmp_path / "sky.fits", sky)
    fits.writeto(tmp_path / "truth.fits", np.int16(sky > 1000))
    names = {"images": str(tmp_path / "sky.fits"), "labels": str(tmp_path / "truth.fits")}
    stars = replace(spec, **names, scaling="asinh", task="instances", train="0", choose="1")
    scaling = measure_scaling(stars)
    pair = read_pairs(stars, "0", scaling)[0]
    assert pair.x.std() == pytest.approx(np.hypot(1, 1000 / 256), rel=0.1)
    assert compress_input(pair.x, scaling)[0, 100, 100] == pytest.approx(np.arcsinh(1000), rel=0.02)


def test_targets_are_the_interior_and_the_distance(spec):
    label = np.zeros((9, 30), np.int32)
    label[:, 3:] = 255
    (source, relief), known = make_targets(label, spec, Scaling())
    np.testing.assert_array_equal(source, label > 0)
    np.testing.assert_allclose(relief[4], np.clip((np.arange(30) - 2) / 12, 0, 1))
    assert known.all()


def test_touching_objects_have_a_border_between_them(spec):
    label = np.ones((8, 20), np.int32)
    label[:, 10:] = 2
    source, relief = make_targets(label, replace(spec, task="instances", reach_px=4), Scaling())[0]
    assert source.all()
    np.testing.assert_allclose(relief[3, 6:14], [0.75, 0.5, 0.25, 0, 0, 0.25, 0.5, 0.75])


def test_each_class_has_a_channel_and_unknown_pixels_do_not_count(spec):
    names = replace(spec, task="classes", classes=("sky", "source", "dust"))
    label = np.array([[0, 1, 2, -1]], np.int32)
    targets, known = make_targets(label, names, Scaling())
    np.testing.assert_array_equal(targets[:, 0, :3], np.eye(3))
    np.testing.assert_array_equal(known, [[[1, 1, 1, 0]]])
    assert [o.role for o in names.outputs] == ["class:sky", "source", "class:dust"]
    with pytest.raises(InputError, match="label 3 has no name"):
        make_targets(label + 1, names, Scaling())


# --- weights and losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["membrane", "instances"])
def test_border_weights_are_those_of_the_whole_image(spec, stacks, task):
    """A crop that shows two parts of one cell has the weights of the whole image, rotated like the crop."""
    bordered = replace(spec, task=task, border_peak=10.0, border_px=5.0, reach_px=2.0)
    labels = number_pieces(stacks[1][10])[0] if task == "membrane" else stacks[1][10] // 255
    whole = compute_border_weights(labels)
    given = tiny(bordered, augment=NO_AUGMENTATION, batch=20)
    source = LabelledImageSource(given, bordered)
    np.testing.assert_array_equal(source.validation[0].weight[0, 0], whole)
    first = compute_border_weights(
        number_pieces(stacks[1][0])[0] if task == "membrane" else stacks[1][0] // 255
    )
    source.images = source.images[:1]
    symmetric = LabelledImageSource(
        replace(given, augment=replace(NO_AUGMENTATION, symmetries=True)), bordered
    )
    symmetric.images = source.images
    for one in (source, symmetric):
        for crop in one.batch(0).weight[:, 0]:
            assert any(
                _contains(apply_symmetry(first, n), crop)
                for n in range(8 if one is symmetric else 1)
            )
    bent = LabelledImageSource(replace(given, augment=Augmentation(elastic_part=1.0)), bordered)
    assert bent.batch(0).weight.min() >= 0


def _contains(image, crop):
    views = np.lib.stride_tricks.sliding_window_view(image, crop.shape)
    return (views == crop).all((2, 3)).any()


def test_border_weights_change_the_loss(spec):
    bordered = replace(spec, border_peak=10.0)
    losses = []
    for one in (spec, bordered):
        recipe = tiny(one, augment=NO_AUGMENTATION)
        losses.append(
            loop.train_step(recipe, loop.initialise(recipe), LabelledImageSource(recipe, one))
        )
    assert losses[0] != losses[1]
    for wrong in ({"task": "image"}, {"border_peak": -1.0}, {"border_px": 0.0}):
        with pytest.raises(SpecError, match="border_peak"):
            replace(bordered, **wrong)


PSF = [[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]]


@pytest.mark.parametrize("name", TERMS)
def test_a_recipe_can_name_every_loss(spec, name):
    """Recipes from YAML work with labels; flux and PSF work with images."""
    light = name in ("flux", "psf")
    given = {
        "mse": 0.5,
        name: {"weight": 0.5, "ignore": 7} | ({"psf": PSF} if name == "psf" else {}),
    }
    pairs = {"images": spec.images, "labels": spec.labels, "train": "0-9", "choose": "10,11"}
    change = {"pairs": pairs | {"task": "image" if light else "membrane"}, "loss": given}
    network = TINY["network"] | {"outputs": 1 if light else 2}
    recipe = make_recipe(yaml.safe_load(yaml.safe_dump(TINY | change | {"network": network})), "")
    state, source = loop.initialise(recipe), LabelledImageSource(recipe, recipe.pairs)
    before = [p.detach().clone() for p in state.network.parameters()]
    assert np.isfinite(loop.train_step(recipe, state, source))
    assert any((p != b).any() for p, b in zip(state.network.parameters(), before, strict=True))


def test_losses_compare_with_an_image_that_follows_the_components(tmp_path, spec):
    """The targets are bulge, disk, and the image of their sum convolved with a PSF, which is read from a file."""
    rng = np.random.default_rng(0)
    parts = rng.random((2, 2, 40, 40)).astype(np.float32)
    for what in ("image", "parts"):
        (tmp_path / what).mkdir()
    for n, components in enumerate(parts):
        image = convolve(components.sum(0), np.array(PSF), mode="constant")
        fits.writeto(tmp_path / "image" / f"{n}.fits", image.astype(np.float32))
        fits.writeto(tmp_path / "parts" / f"{n}.fits", np.stack([*components, image]))
    fits.writeto(tmp_path / "psf.fits", np.array(PSF, np.float32))
    loss = {"psf": {"psf": str(tmp_path / "psf.fits"), "image": 2}, "flux": {"image": 2}}
    pairs = PairsSpec(
        *(str(tmp_path / what) for what in ("image", "parts")),
        "0",
        "1",
        "image",
        offset=0.0,
        scale=1.0,
    )
    recipe = tiny(pairs, loss=loss, augment=NO_AUGMENTATION)
    source = LabelledImageSource(recipe, pairs)
    batch = source.batch(0)
    assert batch.targets.shape == (2, 3, 24, 24)
    perfect = nn.Module()
    perfect.forward = lambda x: torch.from_numpy(batch.targets[:, :2])
    assert (
        float(loop.compute_loss(replace(recipe, loss={"psf": loss["psf"]}), perfect, batch)) < 1e-12
    )
    assert np.isfinite(loop.train_step(recipe, loop.initialise(recipe), source))
    with pytest.raises(SpecError, match="has 2 outputs but the task has 3"):
        loop.train_step(replace(recipe, loss={}), loop.initialise(recipe), source)


def test_lists_of_numbers_are_parsed():
    assert parse_numbers("3") == [3]
    assert parse_numbers("0-2, 9") == [0, 1, 2, 9]
    with pytest.raises(SpecError, match="0-15"):
        parse_numbers("all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "cells"}, "choose one of membrane"),
        ({"choose": "5-11"}, r"share images \[5, 6, 7, 8, 9\]"),
        ({"scaling": "log"}, "linear or asinh"),
        ({"task": "classes"}, "name the labels"),
    ],
)
def test_invalid_values_are_refused(spec, change, message):
    with pytest.raises(SpecError, match=message):
        replace(spec, **change)


def test_missing_images_and_unknown_keys_are_refused(spec, tmp_path):
    with pytest.raises(InputError, match="numbered 0 to 11"):
        read_pairs(spec, "12", Scaling(kind="linear"))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("pairs: {images: a, labels: b, trian: 0-3}")
    with pytest.raises(SpecError, match="pairs: trian is unknown"):
        load_recipe(recipe)
    recipe.write_text("pairs: {images: a, labels: b}")
    with pytest.raises(SpecError, match="missing"):
        load_recipe(recipe)


def test_a_network_with_another_number_of_outputs_is_refused(spec):
    recipe = Recipe(pairs=spec, network={"base": 2, "depth": 1}, batch=1, crop=16)
    state = loop.initialise(recipe)
    with pytest.raises(SpecError, match="has 3 outputs but the task has 2"):
        loop.train_step(recipe, state, LabelledImageSource(recipe, spec))


# --- training -------------------------------------------------------------------------------------


def tiny(spec, **change):
    return replace(make_recipe(TINY, "tiny"), pairs=spec, **change)


def test_training_on_labelled_images_lowers_the_loss(spec):
    recipe = tiny(spec, rate=1e-2, steps=60, network={"bands": 1, "outputs": 2, "base": 4})
    state, source = loop.initialise(recipe), LabelledImageSource(recipe, spec)
    losses = [loop.train_step(recipe, state, source) for _ in range(50)]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("pang", {"hidden": 1}), ("segnet_basic", {"width": 0.1})],
)
def test_training_other_architectures_lowers_the_loss(spec, architecture, arguments):
    arguments = {"bands": 1, "outputs": 2, **arguments}
    recipe = tiny(spec, architecture=architecture, network=arguments, crop=32, steps=20)
    state, source = loop.initialise(recipe), LabelledImageSource(recipe, spec)
    losses = [loop.train_step(recipe, state, source) for _ in range(12)]
    assert np.mean(losses[-3:]) < losses[0]


def test_the_best_weights_are_kept(spec, tmp_path):
    recipe = tiny(spec, rate=0.3, average=0.0, steps=20, cooldown=1)
    best = torch.load(loop.train(recipe, tmp_path), weights_only=True)
    stored = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    network = loop.make_network(recipe)
    network.load_state_dict(best)
    with torch.no_grad():
        batches = LabelledImageSource(recipe, spec).validation
        loss = np.mean([float(loop.compute_loss(recipe, network.eval(), b)) for b in batches])
    assert loss == pytest.approx(stored["best"], rel=1e-5)
    rows = (tmp_path / "log.csv").read_text().splitlines()
    seen = [float(row.split(",")[3]) for row in rows if row.startswith("validation")]
    assert stored["best"] == pytest.approx(min(seen), abs=1e-5)
    assert seen[-1] > min(seen)


def test_the_cooldown_starts_when_patience_runs_out(spec, tmp_path):
    recipe = tiny(spec, rate=0.0, decay=0.0, steps=100, cooldown=3, patience=2)
    loop.train(recipe, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 4 + 2 * 4 + 3


def test_accumulated_micro_batches_equal_their_mean(spec):
    recipe = tiny(spec, accumulate=2)
    source = LabelledImageSource(recipe, spec)
    state = loop.initialise(recipe)
    loss = loop.train_step(recipe, state, source)
    network = loop.initialise(recipe).network
    parts = [source.batch(0, n) for n in (0, 1)]
    each = [loop.compute_loss(recipe, network, part).item() for part in parts]
    assert loss == pytest.approx(sum(each) / 2, rel=1e-6)
    assert not np.array_equal(parts[0].x, parts[1].x)


KILLED = """
import sys
from pathlib import Path
import fcnpipe.training.loop as loop
recipe, out = loop.load_recipe(Path(sys.argv[1])), Path(sys.argv[2])
loop.train(recipe, out, report=lambda done, end: print(done, flush=True))
"""


def start_process(recipe, out, script=KILLED, launcher=()):
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    root = Path(fcnpipe.__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    arguments = [sys.executable, *launcher, script, str(path), str(out)]
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.fixture
def one_thread():
    """Use one thread, as the child processes do, because the number of threads changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_on_labelled_images_resumes_to_the_same_weights(spec, folder, tmp_path):
    pairs = {"images": spec.images, "labels": spec.labels, "train": "0-9", "choose": "10,11"}
    given = TINY | {"pairs": pairs, "minutes_between": 0.0, "steps": 30}
    given |= {"rate": 1.0, "average": 0.0}  # the best weights are early ones
    whole = loop.train(make_recipe(given, ""), tmp_path / "whole")
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    process = start_process(given, tmp_path / "parts", str(script))
    for line in process.stdout:
        if int(line) >= 9:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    stored = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert 8 <= stored["step"] < 30
    final = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert final["best_step"] <= stored["step"]
    parts = loop.train(make_recipe(given, ""), tmp_path / "parts")
    assert parts.read_bytes() == whole.read_bytes()


def test_two_processes_equal_one_that_accumulates(spec, tmp_path):
    pairs = {"images": spec.images, "labels": spec.labels, "train": "0-9", "choose": "10,11"}
    given = TINY | {"pairs": pairs, "steps": 6}
    script = tmp_path / "run.py"
    script.write_text(KILLED)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start_process(given, tmp_path / "two", str(script), launcher)
    process.communicate()
    assert process.returncode == 0
    one = loop.train(make_recipe(given | {"accumulate": 2}, ""), tmp_path / "one")
    wanted, found = (
        torch.load(path, weights_only=True) for path in (one, tmp_path / "two" / "best.pt")
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    assert len((tmp_path / "two" / "log.csv").read_text().splitlines()) == 1 + 2


def test_a_model_of_labelled_images_segments_its_training_images(spec, folder, tmp_path):
    pairs = {"images": spec.images, "labels": spec.labels, "train": "0-9", "choose": "10,11"}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(TINY | {"pairs": pairs, "note": "of cells", "half": True})
    )
    result = CliRunner().invoke(
        app, ["train", str(tmp_path / "r.yaml"), str(tmp_path / "run"), "--quiet"]
    )
    assert result.exit_code == 0, result.output
    model = load_model(result.stdout.strip())
    header = model.header
    assert header.scaling == measure_scaling(spec)
    assert [output.role for output in header.outputs] == ["source", "topography"]
    assert header.certificate.kind == "proven"
    assert header.recipe["note"] == "of cells"
    assert header.scores["validation_loss"] > 0
    assert (tmp_path / "run" / "log.png").exists()
    stored = load_file(result.stdout.strip())
    assert {value.dtype for value in stored.values()} == {torch.float16}

    out = tmp_path / "cells.zarr"
    path = folder / "image" / "10.png"
    fcnpipe.segment(str(path), str(out), model=str(result.stdout.strip()), window=64, tile=64)
    stored = fcnpipe.open(str(out)).image["probability"][0]
    x = (np.array(Image.open(path), np.float32) - header.scaling.offset) / header.scaling.scale
    wanted = model.predictor("cpu", "auto")(x[None].astype(np.float32)).probability[0]
    np.testing.assert_allclose(np.asarray(stored), wanted, atol=0.5 / 255 + 1e-5)
