"""Loss terms against slow implementations of their formulas."""

import itertools
import json
import multiprocessing
from datetime import timedelta

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import distributed

from fcnpipe.core.errors import SpecError
from fcnpipe.training.losses import TERMS, OutputWeights, compute_default_loss, make_loss
from fcnpipe.training.shape_losses import compute_border_weights, soft_skeleton


def _slow_default_loss(logits, targets, weights):
    p = 1 / (1 + np.exp(-logits))
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    factor = 1 + weights.boost * targets[:, 1]
    return (
        weights.source * entropy[:, 0].mean()
        + weights.heat * (factor * entropy[:, 1]).mean()
        + weights.relief * entropy[:, 2].mean()
    )


def test_the_default_loss_equals_its_formula():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 3, 4, 5)), rng.random((2, 3, 4, 5))
    weights = OutputWeights(source=0.5, heat=2.0, boost=3.0, relief=1.5)
    loss = compute_default_loss(torch.tensor(logits), torch.tensor(targets), weights)
    assert float(loss) == pytest.approx(_slow_default_loss(logits, targets, weights))


def test_the_gradient_of_the_default_loss_is_correct():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(1, 3, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: compute_default_loss(x, targets, OutputWeights()), (logits,)
    )


def test_the_target_itself_is_the_optimum():
    targets = torch.rand(1, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1
    logits = torch.logit(targets).requires_grad_()
    compute_default_loss(logits, targets, OutputWeights()).backward()
    assert logits.grad.abs().max() < 1e-12


# --- each term against its formula ----------------------------------------------------------------

PSF = [[0.0, 0.1, 0.0], [0.05, 0.6, 0.1], [0.0, 0.15, 0.0]]
ALL = {
    "mse": {},
    "cross_entropy": {"positive": 3.0, "classes": [1.0, 2.0]},
    "dice": {},
    "vnet_dice": {"smooth": 0.5},
    "jaccard": {},
    "generalised_dice": {},
    "tversky": {"alpha": 0.3, "beta": 0.7},
    "lovasz": {},
    "cldice": {"iterations": 2},
    "flux": {},
    "psf": {"psf": PSF},
}
SOFTMAX = {
    "cross_entropy": {"classes": [1.0, 2.0, 0.5]},
    "generalised_dice": {},
    "dice": {},
    "lovasz": {},
}


def _batch(seed=0, channels=2, side=7, soft=False):
    """Return logits, targets and weights; two pixels are ignored, and their targets are NaN."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, channels, side, side))
    targets = rng.random(logits.shape)
    targets = targets if soft else (targets > 0.6).astype(float)
    weight = rng.random((2, 1, side, side)) + 0.2
    weight[0, 0, 2, 3] = weight[1, 0, 4, 4] = 0
    targets[0, :, 2, 3] = targets[1, :, 4, 4] = np.nan
    return tuple(torch.tensor(part) for part in (logits, targets, weight))


def _classes(seed=0, side=5):
    logits, _, weight = _batch(seed, channels=3, side=side)
    number = torch.tensor(np.random.default_rng(seed).integers(0, 3, (2, side, side)))
    targets = torch.nn.functional.one_hot(number, 3).permute(0, 3, 1, 2).double()
    return logits, targets, weight


def _pixels(prediction, targets, weight, channel):
    """Return (p, g, w) of each pixel that counts."""
    weight = np.broadcast_to(weight, prediction.shape)
    parts = (part[:, channel].ravel() for part in (prediction, targets, weight))
    return [(p, g, w) for p, g, w in zip(*parts, strict=True) if w > 0]


def _mean_over_channels(ratio):
    def loss(p, g, w):
        return np.mean([1 - ratio(_pixels(p, g, w, c)) for c in range(p.shape[1])])

    return loss


def _slow_entropy(p, g, w):
    value = mass = 0.0
    for channel, share in enumerate([1.0, 2.0]):
        for q, t, v in _pixels(p, g, w, channel):
            v = v * share * (3 if t == 1 else 1)
            value, mass = value - v * np.log(q if t == 1 else 1 - q), mass + v
    return value / mass


def _slow_squares(p, g, w):
    pixels = _pixels(p, g, w, 0) + _pixels(p, g, w, 1)
    return sum(v * (q - t) ** 2 for q, t, v in pixels) / sum(v for _, _, v in pixels)


def _slow_generalised(p, g, w):
    above = below = 0.0
    for channel in range(p.shape[1]):
        pixels = _pixels(p, g, w, channel)
        share = 1 / sum(v * t for _, t, v in pixels) ** 2
        above += share * 2 * sum(v * q * t for q, t, v in pixels)
        below += share * sum(v * (q + t) for q, t, v in pixels)
    return 1 - above / below


def _slow_lovasz(p, g, w):
    """Integrate the Jaccard loss of the errors above a threshold over all thresholds."""
    losses = []
    for channel in range(p.shape[1]):
        pixels = _pixels(p, g, w, channel)
        errors = [(max(0, 1 - np.log(q / (1 - q)) * (2 * t - 1)), t, v) for q, t, v in pixels]
        there = sum(v for _, t, v in errors if t == 1)
        levels = sorted({0.0} | {e for e, _, _ in errors})
        loss = 0.0
        for low, high in itertools.pairwise(levels):
            missed = sum(v for e, t, v in errors if e > low and t == 1)
            false = sum(v for e, t, v in errors if e > low and t == 0)
            loss += (high - low) * (1 - (there - missed) / (there + false))
        losses.append(loss)
    return np.mean(losses)


def _slow_skeleton(x, iterations):
    cross = ndimage.generate_binary_structure(2, 1)

    def erode(a):
        return ndimage.grey_erosion(a, footprint=cross, mode="constant", cval=np.inf)

    def open_(a):
        return ndimage.grey_dilation(erode(a), size=3, mode="constant", cval=-np.inf)

    left = np.ones_like(x)
    for _ in range(iterations + 1):
        left = left * (1 - np.maximum(x - open_(x), 0))
        x = erode(x)
    return 1 - left


def _slow_cldice(p, g, w):
    keep = np.broadcast_to(w > 0, p.shape)
    p, g, w = np.where(keep, p, 0), np.where(keep, g, 0), np.broadcast_to(w, p.shape)
    losses = []
    for c in range(p.shape[1]):
        ours, theirs = (
            np.stack([_slow_skeleton(part[n, c], 2) for n in range(len(p))]) for part in (p, g)
        )
        v = w[:, c]
        precise = ((v * ours * g[:, c]).sum() + 1) / ((v * ours).sum() + 1)
        whole = ((v * theirs * p[:, c]).sum() + 1) / ((v * theirs).sum() + 1)
        losses.append(1 - 2 * precise * whole / (precise + whole))
    return np.mean(losses)


def _slow_flux(p, g, w):
    keep = np.broadcast_to(w > 0, p.shape)
    errors = []
    for n in range(len(p)):
        found, flux = p[n][keep[n]].sum(), g[n][keep[n]].sum()
        errors.append(((found - flux) / (flux + 1)) ** 2)
    return np.mean(errors)


def _slow_psf(p, g, w):
    value = mass = 0.0
    for n, c in np.ndindex(p.shape[:2]):
        blurred = ndimage.convolve(p[n, c], np.array(PSF), mode="constant")
        for y, x in itertools.product(range(1, p.shape[2] - 1), range(1, p.shape[3] - 1)):
            if (w[n, 0, y - 1 : y + 2, x - 1 : x + 2] > 0).all():
                value += w[n, 0, y, x] * (blurred[y, x] - g[n, c, y, x]) ** 2
                mass += w[n, 0, y, x]
    return value / mass


def _sums(pixels):
    both = sum(v * p * g for p, g, v in pixels)
    return both, sum(v * p for p, _, v in pixels), sum(v * g for _, g, v in pixels)


def _dice(pixels):
    both, found, there = _sums(pixels)
    return (2 * both + 1) / (found + there + 1)


def _jaccard(pixels):
    both, found, there = _sums(pixels)
    return (both + 0.5) / (found + there - both + 0.5)


def _vnet(pixels):
    both, squares = _sums(pixels)[0], sum(v * (p * p + g * g) for p, g, v in pixels)
    return (2 * both + 0.5) / (squares + 0.5)


def _tversky(pixels):
    both = _sums(pixels)[0]
    false = sum(v * p * (1 - g) for p, g, v in pixels)
    missed = sum(v * (1 - p) * g for p, g, v in pixels)
    return (both + 0.5) / (both + 0.3 * false + 0.7 * missed + 0.5)


SLOW = {
    "mse": _slow_squares,
    "cross_entropy": _slow_entropy,
    "dice": _mean_over_channels(_dice),
    "vnet_dice": _mean_over_channels(_vnet),
    "jaccard": _mean_over_channels(_jaccard),
    "generalised_dice": _slow_generalised,
    "tversky": _mean_over_channels(_tversky),
    "lovasz": _slow_lovasz,
    "cldice": _slow_cldice,
    "flux": _slow_flux,
    "psf": _slow_psf,
}


def test_all_terms_are_tested():
    assert set(ALL) == set(SLOW) == set(TERMS)


@pytest.mark.parametrize("name", ALL)
def test_each_term_equals_a_slow_version(name):
    logits, targets, weight = _batch()
    loss = make_loss({name: ALL[name]})(logits, targets, weight)
    slow = SLOW[name](torch.sigmoid(logits).numpy(), targets.numpy(), weight.numpy())
    assert float(loss) == pytest.approx(slow, rel=1e-10)


def test_cross_entropy_of_classes_equals_that_of_torch():
    logits, targets, weight = _classes()
    number = targets.argmax(1).where(weight[:, 0] > 0, -100)
    loss = make_loss({"cross_entropy": SOFTMAX["cross_entropy"]}, "softmax")
    theirs = torch.nn.functional.cross_entropy(logits, number, torch.tensor([1.0, 2, 0.5]).double())
    assert float(loss(logits, targets, (weight > 0).double())) == pytest.approx(float(theirs))


@pytest.mark.parametrize("name", ALL)
def test_the_gradient_of_each_term_is_correct(name):
    logits, targets, weight = _batch(soft=name in ("mse", "dice", "flux", "psf"))
    loss = make_loss({name: ALL[name]})
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, weight), (logits,))


@pytest.mark.parametrize("name", SOFTMAX)
def test_the_gradient_of_each_term_with_a_softmax_is_correct(name):
    logits, targets, weight = _classes()
    loss = make_loss({name: SOFTMAX[name]}, "softmax")
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, weight), (logits,))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("mark", ["weight", "value"])
def test_ignored_pixels_have_no_gradient_and_no_effect(activation, mark):
    """The weight or a value of the targets marks ignored pixels; with a softmax one channel suffices."""
    terms = ALL if activation == "sigmoid" else SOFTMAX
    logits, targets, weight = _batch() if activation == "sigmoid" else _classes()
    ignored = (weight == 0).expand_as(targets)
    if mark == "value":
        targets = targets.where(~ignored, 255.0)
        terms, weight = terms | {"dice": {"ignore": 255}}, torch.ones_like(weight)
    results = []
    for filler in (0.3, torch.inf, torch.nan):
        x = logits.where(~ignored, filler).requires_grad_()
        loss = make_loss(terms, activation)(x, targets, weight)
        loss.backward()
        assert (x.grad[ignored] == 0).all()
        assert (x.grad[~ignored] != 0).any()
        results.append((float(loss.detach()), x.grad))
    assert results[0][0] == results[1][0] == results[2][0]
    assert torch.equal(results[0][1], results[1][1])


def test_a_pixel_ignored_in_one_class_of_a_softmax_is_ignored_in_all():
    logits, targets, _ = _classes()
    targets = targets.nan_to_num()
    weight = torch.ones_like(targets)
    weight[0, 1, 0, 0] = 0
    logits.requires_grad_()
    make_loss(SOFTMAX, "softmax")(logits, targets, weight).backward()
    assert (logits.grad[0, :, 0, 0] == 0).all()
    assert (logits.grad[0, :, 0, 1] != 0).all()


def test_an_ignored_pixel_has_no_increment_of_lovasz_on_an_empty_tile():
    logits = torch.tensor([[[[9.0, -0.5, -2.0, -0.8]]]])
    weight = torch.tensor([[[[0.0, 1.0, 1.0, 1.0]]]])
    loss = make_loss({"lovasz": 1})(logits, torch.zeros_like(logits), weight)
    assert float(loss) == 0.5  # the maximum error of the other pixels


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_finite_if_all_pixels_are_ignored(name):
    logits, targets, weight = _batch()
    logits.requires_grad_()
    loss = make_loss({name: ALL[name]})(logits, targets, 0 * weight)
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert (logits.grad == 0).all()


def test_nan_in_a_pixel_that_is_not_ignored_propagates():
    logits, targets, _ = _batch()
    assert all(
        make_loss(ALL).compute_terms(logits, targets)[name].isnan() for name in ("mse", "dice")
    )
    assert not make_loss({"dice": {"ignore": np.nan}})(logits, targets).isnan()


# --- identities -----------------------------------------------------------------------------------


def test_overlap_losses_satisfy_their_identities():
    logits, targets, weight = (part[:, :1] for part in _batch(soft=True))
    parts = {
        "dice": 1,
        "jaccard": 1,
        "tversky.half": {"alpha": 0.5, "beta": 0.5},
        "tversky.one": {"alpha": 1, "beta": 1},
    }
    loss = {
        name: float(v)
        for name, v in make_loss(parts).compute_terms(logits, targets, weight).items()
    }
    dice = 1 - loss["dice"]
    assert 1 - loss["jaccard"] == pytest.approx(dice / (2 - dice), rel=1e-14)
    assert loss["jaccard"] == pytest.approx(2 * loss["dice"] / (1 + loss["dice"]), rel=1e-14)
    assert loss["tversky.half"] == loss["dice"]
    assert loss["tversky.one"] == loss["jaccard"]


def _binary(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.random((2, 2, 1, 6, 6)) < 0.4
    jaccard = 1 - (truth & guess).sum() / (truth | guess).sum()
    return torch.tensor(truth).double(), torch.tensor(guess), jaccard


def test_lovasz_is_jaccard_where_errors_are_0_or_1():
    targets, guess, jaccard = _binary(0)
    right = guess == (targets > 0)
    hinge = make_loss({"lovasz": 1})
    logits = torch.where(right, 4 * targets - 2, 0.0)
    assert float(hinge(logits, targets)) == pytest.approx(jaccard)
    assert float(hinge(2.0 * guess - 1, targets)) == pytest.approx(2 * jaccard)


def test_lovasz_with_a_softmax_is_the_mean_jaccard_of_the_present_classes():
    targets, guess, _ = _binary(1)
    absent = torch.full_like(targets, -1e3)
    logits = torch.cat([1e3 * guess, 1e3 * ~guess, absent], 1)
    truth = torch.cat([targets, 1 - targets, 0 * targets], 1)
    losses = []
    for found, there in ((guess, targets > 0), (~guess, targets == 0)):
        losses.append(1 - float((found & there).sum() / (found | there).sum()))
    loss = make_loss({"lovasz": 1}, "softmax")(logits, truth)
    assert float(loss) == pytest.approx(np.mean(losses))


def test_the_gradient_of_lovasz_points_to_a_lower_jaccard_loss():
    """From a prediction of 0.5 everywhere, a step against the gradient goes towards the truth."""
    targets, _, _ = _binary(2)
    logits = torch.zeros_like(targets).requires_grad_()
    make_loss({"lovasz": 1})(logits, targets).backward()
    step = -torch.sign(logits.grad)
    assert ((step > 0) == (targets > 0)).all()


def test_an_absent_class_has_the_weight_of_the_rarest_in_generalised_dice():
    logits, targets, _ = _classes()
    targets[:, 2] = 0
    p = logits.softmax(1)
    there = targets.sum((0, 2, 3))
    weight = 1 / torch.stack([there[0], there[1], there[:2].min()]) ** 2
    both, found = (p * targets).sum((0, 2, 3)), p.sum((0, 2, 3))
    slow = 1 - 2 * (weight * both).sum() / (weight * (found + there)).sum()
    loss = make_loss({"generalised_dice": 1}, "softmax")(logits, targets)
    assert float(loss) == pytest.approx(float(slow))


def test_the_loss_of_the_truth_is_0():
    _, targets, _ = _batch()
    targets = targets.nan_to_num()
    losses = make_loss(ALL | {"psf": {"psf": [[1.0]]}}).compute_terms(80 * targets - 40, targets)
    assert all(abs(float(value)) < 1e-12 for value in losses.values()), losses


def test_the_gradient_of_dice_is_tiny_on_an_empty_tile():
    targets = torch.zeros(1, 1, 256, 256, dtype=torch.float64)
    greatest = {}
    for name in ("dice", "cross_entropy"):
        logits = torch.zeros_like(targets).requires_grad_()
        make_loss({name: 1})(logits, targets).backward()
        greatest[name] = float(logits.grad.max())
    assert 1e-10 < greatest["dice"] < 1e-8
    assert greatest["cross_entropy"] > 1000 * greatest["dice"]


# --- combinations ---------------------------------------------------------------------------------


def test_a_combination_is_the_weighted_sum():
    logits, targets, weight = _batch()
    both = make_loss({"dice": 2.0, "cross_entropy": {"weight": 0.5, "channel": 1}})
    dice, entropy = make_loss({"dice": 1}), make_loss({"cross_entropy": 1})
    one = (slice(None), slice(1, 2))
    expected = 2 * dice(logits, targets, weight) + 0.5 * entropy(logits[one], targets[one], weight)
    assert float(both(logits, targets, weight)) == pytest.approx(float(expected))


def test_a_channel_of_a_softmax_still_competes_with_the_others():
    logits, targets, _ = _classes()
    loss = make_loss({"dice": {"channel": 1}}, "softmax")(logits, targets)
    p = torch.logit(logits.softmax(1)[:, 1:2])
    assert float(loss) == pytest.approx(float(make_loss({"dice": 1})(p, targets[:, 1:2])))


def test_half_precision_is_converted_to_float32():
    logits, targets, weight = _batch(soft=True)
    loss = make_loss(ALL)(logits.bfloat16(), targets, weight)
    assert loss.dtype == torch.float32
    exact = make_loss(ALL)(logits.bfloat16().double(), targets, weight)
    assert float(loss) == pytest.approx(float(exact), rel=1e-5)


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, "no terms"),
        ({"dise": 1}, "dise.*mse, cross_entropy, dice"),
        ({"dice": {"smoth": 1}}, "smoth is unknown.*weight, channel, ignore, activation, smooth"),
        ({"dice": {"smooth": "soft"}}, "dice"),
        ({"dice": "much"}, "much"),
        ({"dice": -1.0}, "-1.0"),
        ({"dice": {"channel": "disk"}}, "disk"),
        ({"dice": {"ignore": 0.0}, "mse": {"ignore": 255}}, "same value"),
        ({"dice": {"ignore": "nothing"}}, "nothing"),
        ({"dice": {"activation": "relu"}}, "relu.*sigmoid, softmax, identity"),
        ({"lovasz": {"activation": "identity"}}, "sigmoid or softmax"),
        ({"cross_entropy": {"activation": "softmax", "channel": 1}}, "leave the channel out"),
        ({"cross_entropy": {"positive": 0}}, "positive"),
        ({"cross_entropy": {"classes": [1, -1]}}, "classes"),
        ({"tversky": {"alpha": -0.1}}, "alpha"),
        ({"cldice": {"iterations": 0}}, "iterations"),
        ({"flux": {"floor": 0}}, "floor"),
        ({"psf": {}}, "psf"),
        ({"psf": {"psf": [[1.0, 0.0]]}}, "odd"),
        ({"psf": {"psf": [[np.nan]]}}, "finite"),
    ],
)
def test_invalid_terms_are_refused_at_once(terms, words):
    with pytest.raises(SpecError, match=words):
        make_loss(terms)


@pytest.mark.parametrize(
    ("terms", "shape", "words"),
    [
        ({"dice": {"channel": 2}}, (1, 2, 5, 5), "0 to 1"),
        ({"cross_entropy": {"classes": [1]}}, (1, 2, 5, 5), "1 weights for 2"),
        ({"dice": 1}, (1, 3, 5, 5), "no term compares"),
        ({"dice": 1}, (1, 1, 5, 5), "do not match"),
        ({"dice": 1}, (1, 2, 5, 4), "do not match"),
        ({"flux": {"image": 3}}, (1, 3, 5, 5), "3 channels"),
        ({"psf": {"psf": np.ones((7, 7))}}, (1, 2, 5, 5), "smaller than the PSF"),
    ],
)
def test_mismatching_shapes_are_refused(terms, shape, words):
    with pytest.raises(SpecError, match=words):
        make_loss(terms)(torch.zeros(1, 2, 5, 5), torch.zeros(shape))


# --- shapes ---------------------------------------------------------------------------------------


def _weigh_slowly(labels, peak, sigma_px):
    numbers = [n for n in np.unique(labels) if n]
    places = {n: np.argwhere(labels == n) for n in numbers}
    weight = np.zeros(labels.shape)
    for y, x in np.ndindex(labels.shape):
        near = sorted(np.hypot(*(places[n] - (y, x)).T).min() for n in numbers)
        part = np.mean(labels > 0) if labels[y, x] else np.mean(labels == 0)
        weight[y, x] = 0.5 / part
        if labels[y, x] == 0:
            weight[y, x] += peak * np.exp(-((near[0] + near[1]) ** 2) / (2 * sigma_px**2))
    return weight


def test_border_weights_equal_a_slow_version():
    labels = np.zeros((30, 40), np.int32)
    labels[3:9, 2:12], labels[11:20, 5:9], labels[4:20, 14:20], labels[25:, 30:] = 7, 2, 9, 40
    np.testing.assert_allclose(
        compute_border_weights(labels), _weigh_slowly(labels, 10, 5), rtol=1e-6
    )
    weight = compute_border_weights(labels, peak=3, sigma_px=1.0, classes=(1, 1))
    assert weight.min() == 1  # the limit of the distances has no visible effect
    assert weight.max() == pytest.approx(1 + 3 * np.exp(-9 / 2), rel=1e-6)


def test_border_weights_are_largest_in_a_thin_gap():
    labels = np.zeros((40, 60), np.int32)
    labels[5:35, 5:28], labels[5:35, 30:50] = 1, 2
    weight = compute_border_weights(labels)
    gap = np.zeros(labels.shape, bool)
    gap[5:35, 28:30] = True
    assert weight[gap].min() > 5
    assert weight[gap].min() > 2 * weight[~gap & (labels > 0)].max()
    assert np.isin(np.argmax(weight), np.flatnonzero(gap))


@pytest.mark.parametrize("cells", [0, 1])
def test_border_weights_are_constant_in_each_class_without_borders(cells):
    labels = np.zeros((8, 8), np.int32)
    labels[:2] = cells
    weight = compute_border_weights(labels)
    assert len(np.unique(weight)) == 1 + cells
    if cells:
        assert weight[labels > 0].sum() == pytest.approx(weight[labels == 0].sum())
    assert len(np.unique(compute_border_weights(np.full((4, 4), 5)))) == 1


def test_cldice_prefers_a_thin_vessel_to_a_broken_one():
    vessel = torch.zeros(1, 1, 15, 30, dtype=torch.float64)
    vessel[..., 5:10, :] = 1
    thin, broken = vessel.clone(), vessel.clone()
    thin[..., 5, :] = thin[..., 9, :] = 0
    broken[..., 9:21] = 0
    assert thin.sum() == broken.sum()
    loss = make_loss({"cldice": 1, "dice": 1}).compute_terms
    same, thinned, torn = (loss(80 * x - 40, vessel) for x in (vessel, thin, broken))
    assert float(same["cldice"]) == pytest.approx(0, abs=1e-12)
    assert float(thinned["dice"]) == pytest.approx(float(torn["dice"]))
    assert float(torn["cldice"]) > 0.1 + float(thinned["cldice"])


def test_the_skeleton_of_a_bar_is_its_middle_line():
    bar = torch.zeros(1, 1, 11, 30)
    bar[..., 3:8, 4:26] = 1
    skeleton = soft_skeleton(bar, 4)[0, 0]
    assert (skeleton[5, 8:22] == 1).all()
    assert (skeleton[[3, 4, 6, 7], 8:22] == 0).all()


# --- physics --------------------------------------------------------------------------------------


def test_the_flux_term_depends_on_the_sum_of_the_components_only():
    rng = np.random.default_rng(0)
    bulge, disk = torch.tensor(rng.random((2, 3, 1, 6, 6)))
    image = torch.roll(bulge + disk, 1, 3)
    targets = torch.cat([bulge, disk, image], 1)
    loss = make_loss({"flux": {"image": 2, "floor": 1e-9}}, "identity")
    assert float(loss(torch.cat([disk, bulge], 1), targets)) == pytest.approx(0, abs=1e-20)
    assert float(loss(torch.cat([1.1 * disk, 1.1 * bulge], 1), targets)) == pytest.approx(0.01)


def test_psf_consistency_is_0_for_the_scene_that_made_the_image():
    rng = np.random.default_rng(0)
    scene = rng.random((1, 2, 12, 12))
    psf = rng.random((5, 3))
    image = ndimage.convolve(scene.sum((0, 1)), psf, mode="constant")
    targets = torch.tensor(np.concatenate([scene, image[None, None]], 1))
    loss = make_loss({"psf": {"psf": psf, "image": 2}}, "identity")
    assert float(loss(torch.tensor(scene), targets)) == pytest.approx(0, abs=1e-25)
    turned = make_loss({"psf": {"psf": psf[::-1], "image": 2}}, "identity")
    assert float(turned(torch.tensor(scene), targets)) > 1e-3


# --- distributed training -------------------------------------------------------------------------

DISTRIBUTED_TERMS = {"sigmoid": ALL | {"mse": {"channel": 1}}, "softmax": SOFTMAX}


def _make_distributed_batch(activation):
    """Return four examples, of which the first two, those of the first process, are nearly empty."""
    _, targets, weight = _batch(1) if activation == "sigmoid" else _classes(1)
    weight[:, :, :2] *= 4
    emptier = targets.clone()
    emptier[:, 0, 1:], emptier[:, 1:, 1:] = activation == "softmax", 0
    image = torch.tensor(np.random.default_rng(3).normal(size=(4, 1, *targets.shape[2:])))
    return image, torch.cat([emptier, targets]), torch.cat([weight, 0.3 * weight])


def _compute_losses_and_gradient(activation, part):
    """Return each loss, and the gradient of a layer below their sum, averaged over the processes."""
    torch.manual_seed(0)
    image, targets, weight = (x[part] for x in _make_distributed_batch(activation))
    layer = torch.nn.Conv2d(1, targets.shape[1], 3, padding=1).double()
    loss, logits = make_loss(DISTRIBUTED_TERMS[activation], activation), layer(image)
    measured = {
        k: float(v) for k, v in loss.compute_terms(logits.detach(), targets, weight).items()
    }
    loss(logits, targets, weight).backward()
    gradient = torch.cat([p.grad.flatten() for p in layer.parameters()])
    if distributed.is_initialized():  # as DistributedDataParallel does, whose import is slow
        distributed.all_reduce(gradient)
        gradient /= distributed.get_world_size()
    return measured, gradient.tolist()


def _run_process(rank, folder):
    distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", timedelta(seconds=60), world_size=2, rank=rank
    )
    try:
        if rank == 0:  # a shared loss would wait for the other process forever
            make_loss({"dice": 1}, shared=False)(*_batch())
        return {
            name: _compute_losses_and_gradient(name, slice(2 * rank, 2 * rank + 2))
            for name in DISTRIBUTED_TERMS
        }
    finally:
        distributed.destroy_process_group()


def _run_second_process(folder):
    torch.set_num_threads(1)
    (folder / "other.json").write_text(json.dumps(_run_process(1, folder)))


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=_run_second_process, args=(tmp_path,)
    )
    process.start()
    one = _run_process(0, tmp_path)
    process.join(60)
    assert process.exitcode == 0
    other = json.loads((tmp_path / "other.json").read_text())
    for name in DISTRIBUTED_TERMS:
        losses, gradient = _compute_losses_and_gradient(name, slice(None))
        for ours, theirs in (one[name], other[name]):
            assert ours == pytest.approx(losses, rel=1e-12)
            np.testing.assert_allclose(theirs, gradient, rtol=1e-10, atol=1e-12)
