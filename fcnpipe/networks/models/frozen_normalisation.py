"""Normalisation with frozen statistics, so that networks with GroupNorm or InstanceNorm can be tiled.

GroupNorm and InstanceNorm use the mean and the variance of their input, so a tile is normalised
differently from the whole image. With the statistics of a sample image frozen, each layer becomes a
multiplication and an addition for each channel, which is exact in tiles of any size. The output on the
sample itself stays the same. The output on other images changes; the change is larger if the sample is
less typical.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fcnpipe.core.errors import ModelError
from fcnpipe.networks.reach.analysis import analyse

_INSTANCE_NORMS = (nn.InstanceNorm2d, nn.LazyInstanceNorm2d)


class FrozenNorm(nn.Module):
    """A normalisation with the statistics of a sample: ``x * factor + summand`` for each channel.

    Parameters
    ----------
    factor, summand : Tensor
        (channels,) float.
    """

    def __init__(self, factor: Tensor, summand: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor.detach()[:, None, None].clone())
        self.summand = nn.Parameter(summand.detach()[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Compute the normalised (n, channels, h, w) array."""
        return x * self.factor + self.summand


def freeze_norms(module: nn.Module, sample: Tensor) -> nn.Module:
    """Return a network whose GroupNorm and InstanceNorm are frozen to the statistics of a sample.

    Parameters
    ----------
    module : Module
        The network; it is not changed.
    sample : Tensor
        (n, bands, h, w), scaled as the network's input is, as large and as typical as possible.
        Statistics are averaged over the n images.

    Returns
    -------
    Module
        A copy in evaluation mode. It is no longer an architecture of fcnpipe, so save it with
        `torch.export.save`.

    Raises
    ------
    ModelError
        If the network has no such layer, or calls one several times, each time with other statistics.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4))
    >>> freeze_norms(network, torch.randn(1, 1, 64, 64))[1]
    FrozenNorm()
    """
    frozen = copy.deepcopy(module).eval()
    names = list(_list_norms(frozen))
    if not names:
        raise ModelError(
            f"network {type(module).__name__} has no GroupNorm or InstanceNorm layer to freeze: "
            "use it as it is, or make its normalisation a layer"
        )
    for name, norm in _measure_statistics(frozen, names, sample).items():
        if not name:
            return norm
        parent, _, child = name.rpartition(".")
        setattr(frozen.get_submodule(parent), child, norm)
    return frozen


def _list_norms(module: nn.Module) -> Iterator[str]:
    """Yield the names of the layers that use statistics of their input."""
    for name, layer in module.named_modules():
        is_instance_norm = isinstance(layer, _INSTANCE_NORMS) and not layer.track_running_stats
        if is_instance_norm or isinstance(layer, nn.GroupNorm):
            yield name


def _measure_statistics(
    module: nn.Module, names: list[str], sample: Tensor
) -> dict[str, FrozenNorm]:
    """Run the network on the sample, and return the frozen form of each layer by name."""
    found: dict[str, FrozenNorm] = {}

    def make_hook(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            if name in found:
                raise ModelError(
                    f"{name} ({type(layer).__name__}) is called several times, each time with "
                    "other statistics: use a layer of its own for each call"
                )
            x = inputs[0]
            groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
            pair = _measure_groups(x, groups, layer.weight, layer.bias, layer.eps)
            found[name] = FrozenNorm(*pair)

        return hook

    hooks = [module.get_submodule(n).register_forward_pre_hook(make_hook(n)) for n in names]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _measure_groups(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand of each channel that replace a normalisation of ``x``."""
    values = x.reshape(len(x), groups, -1)
    each = x.shape[1] // groups
    mean = values.mean(dim=2).mean(dim=0).repeat_interleave(each)
    variance = values.var(dim=2, correction=0).mean(dim=0).repeat_interleave(each)
    factor = torch.rsqrt(variance + eps)
    if weight is not None:
        factor = factor * weight
    summand = -mean * factor
    return factor, summand if bias is None else summand + bias


# --- exported programs ----------------------------------------------------------------------------


def find_stride(graph: fx.GraphModule, bands: int) -> int:
    """Return the total subsampling of a program, px, with its normalisations frozen.

    Raises
    ------
    ModelError
        If the program cannot be tiled for another reason, or has no GroupNorm or InstanceNorm to freeze.
    """
    nodes = _list_calls(graph)
    channels = {node.name: int(node.meta["val"].shape[1]) for node in nodes}
    identity = {name: (torch.ones(n), torch.zeros(n)) for name, n in channels.items()}
    return analyse(_replace_calls(graph, identity), bands).stride


def freeze_program(graph: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """Return a program whose GroupNorm and InstanceNorm are frozen, as `freeze_norms` does.

    Parameters
    ----------
    graph : GraphModule
        Graph of an exported program; it is not changed.
    sample : Tensor
        (1, bands, h, w), scaled as the network's input is, of a size that the program accepts.

    Returns
    -------
    GraphModule
        A copy whose normalisations are a multiplication and an addition.

    Raises
    ------
    ModelError
        If the program has no GroupNorm or InstanceNorm to freeze.
    """
    recorder = _StatisticsRecorder(graph, {node.name for node in _list_calls(graph)})
    with torch.no_grad():
        recorder.run(sample)
    return _replace_calls(graph, recorder.found)


class _StatisticsRecorder(fx.Interpreter):
    """Run a program and record the statistics that its normalisations use."""

    def __init__(self, graph: fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph)
        self.names = names
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a call; if it is a normalisation, record the factor and the summand that replace it."""
        if n.name in self.names:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            given = _name_arguments(n, args, kwargs)
            x = given["input"]
            pair = _measure_groups(
                x,
                given.get("num_groups") or x.shape[1],
                given["weight"],
                given["bias"],
                given["eps"],
            )
            self.found[n.name] = pair
        return super().run_node(n)


def _name_arguments(node: fx.Node, args: Any, kwargs: Any) -> dict[str, Any]:
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    return {**defaults, **dict(zip((a.name for a in schema), args, strict=False)), **kwargs}


def _list_calls(graph: fx.GraphModule) -> list[fx.Node]:
    """Return the calls that normalise with statistics of their input; raise if there are none."""
    kinds = (torch.ops.aten.group_norm.default, torch.ops.aten.instance_norm.default)
    calls = [node for node in graph.graph.nodes if node.target in kinds]
    with_statistics = [
        n for n in calls if _name_arguments(n, n.args, n.kwargs).get("use_input_stats", True)
    ]
    if not with_statistics:
        raise ModelError(
            "the program calls no GroupNorm or InstanceNorm with statistics of the image: use it as it is, or "
            "export it without decompositions"
        )
    return with_statistics


def _replace_calls(
    graph: fx.GraphModule, found: dict[str, tuple[Tensor, Tensor]]
) -> fx.GraphModule:
    """Return a copy in which each call named in ``found`` is a multiplication and an addition."""
    frozen = copy.deepcopy(graph)
    for node in list(frozen.graph.nodes):
        if node.name not in found:
            continue
        x = _name_arguments(node, node.args, node.kwargs)["input"]
        with frozen.graph.inserting_before(node):
            for operator, values in zip(("mul", "add"), found[node.name], strict=True):
                name = f"frozen_{node.name}_{operator}"
                frozen.register_buffer(name, values[:, None, None].clone())
                function = getattr(torch.ops.aten, operator).Tensor
                x = frozen.graph.call_function(function, (x, frozen.graph.get_attr(name)))
        node.replace_all_uses_with(x)
        frozen.graph.erase_node(node)
    frozen.recompile()
    return frozen
