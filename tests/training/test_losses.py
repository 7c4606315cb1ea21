"""The loss against its formula, written out."""

import numpy as np
import pytest
import torch

from fcnpipe.training.losses import Weights, measure_loss


def _slow(logits, targets, weights):
    p = 1 / (1 + np.exp(-logits))
    entropy = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    factor = 1 + weights.boost * targets[:, 1]
    return (
        weights.source * entropy[:, 0].mean()
        + weights.heat * (factor * entropy[:, 1]).mean()
        + weights.relief * entropy[:, 2].mean()
    )


def test_equals_the_formula():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 3, 4, 5)), rng.random((2, 3, 4, 5))
    weights = Weights(source=0.5, heat=2.0, boost=3.0, relief=1.5)
    loss = measure_loss(torch.tensor(logits), torch.tensor(targets), weights)
    assert float(loss) == pytest.approx(_slow(logits, targets, weights))


def test_gradient():
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(1, 3, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: measure_loss(x, targets, Weights()), (logits,))


def test_the_target_itself_is_the_optimum():
    targets = torch.rand(1, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1
    logits = torch.logit(targets).requires_grad_()
    measure_loss(logits, targets, Weights()).backward()
    assert logits.grad.abs().max() < 1e-12
