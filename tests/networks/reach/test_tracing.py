"""Tracing of networks: refused sizes, and peak memory of the activations."""

from __future__ import annotations

import pytest
from torch import nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.architectures.unet import UNet
from fcnpipe.networks.reach.analysis import trace_same_size
from fcnpipe.networks.reach.tracing import activation_bytes, trace


def test_a_network_that_changes_the_size_is_refused_for_runs() -> None:
    with pytest.raises(ModelError, match=r"turns \(96, 192\) px into .* pad inside it"):
        trace_same_size(UNet(1, 1, 1, 2, padding="valid").eval())


def test_activation_memory_is_the_peak_of_the_arrays_alive_together() -> None:
    """At the peak two arrays of 8 channels are alive: 64 bytes for each pixel."""
    network = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 1, 1))
    assert activation_bytes(trace(network)) == 64
    assert activation_bytes(trace(UNet(1, 3, 4, 2).eval())) == 4 * 16
