"""Normalisation with frozen statistics: a network that saw the whole image no longer does.

GroupNorm and InstanceNorm take mean and variance over the image at hand, so a tile is normalised
otherwise than the whole. With the statistics of one sample image kept, they are a factor and a summand
for each channel, exact in tiles of any size. How much the answer changes depends on how typical the
sample is; on the sample itself it stays.
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
        (channels,).
    """

    def __init__(self, factor: Tensor, summand: Tensor) -> None:
        super().__init__()
        self.factor = nn.Parameter(factor.detach()[:, None, None].clone())
        self.summand = nn.Parameter(summand.detach()[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Give the normalised (n, channels, h, w)."""
        return x * self.factor + self.summand


def freeze_norms(module: nn.Module, sample: Tensor) -> nn.Module:
    """Give the network with its GroupNorm and InstanceNorm frozen to the statistics of a sample.

    Parameters
    ----------
    module : Module
        The network; it is not changed.
    sample : Tensor
        (n, bands, h, w), scaled as the network will see images, as large and as typical as can be;
        of several images the statistics are averaged.

    Returns
    -------
    Module
        In evaluation mode. It is no class of fcnpipe/networks any more: save it with
        `torch.export.save`.

    Raises
    ------
    ModelError
        If it has no such layer, or one that is called several times and has no statistics of its
        own.

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
            "use it as it is, or give its normalisation a layer"
        )
    for name, norm in _measure(frozen, names, sample).items():
        if not name:
            return norm
        parent, _, child = name.rpartition(".")
        setattr(frozen.get_submodule(parent), child, norm)
    return frozen


def _list_norms(module: nn.Module) -> Iterator[str]:
    """Give the names of the layers that take statistics of the image."""
    for name, layer in module.named_modules():
        own = isinstance(layer, _INSTANCE_NORMS) and not layer.track_running_stats
        if own or isinstance(layer, nn.GroupNorm):
            yield name


def _measure(module: nn.Module, names: list[str], sample: Tensor) -> dict[str, FrozenNorm]:
    """Run the sample through the network and give what takes the place of each layer."""
    found: dict[str, FrozenNorm] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name in found:
                raise ModelError(
                    f"{name} ({type(layer).__name__}) is called several times, with statistics of its "
                    "own each time: give each call its own layer"
                )
            found[name] = _freeze(layer, inputs[0])

        return hook

    hooks = [module.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        with torch.no_grad():
            module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _freeze(layer: Any, x: Tensor) -> FrozenNorm:
    """Give the layer with the mean and variance of each group of channels of (n, c, h, w)."""
    groups = layer.num_groups if isinstance(layer, nn.GroupNorm) else x.shape[1]
    return FrozenNorm(*_measure_groups(x, groups, layer.weight, layer.bias, layer.eps))


def _measure_groups(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Give factor and summand of each channel."""
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
    """Give the total subsampling of a program, whatever its normalisations see, px.

    Raises
    ------
    ModelError
        If something else stands in the way of tiling it, or it has nothing to freeze.
    """
    nodes = _list_calls(graph)
    one = {node.name: (torch.ones(n), torch.zeros(n)) for node, n in _count_channels(nodes)}
    return analyse(_replace_calls(graph, one), bands).stride


def freeze_program(graph: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """Give a program with its GroupNorm and InstanceNorm frozen, as `freeze_norms` does.

    Parameters
    ----------
    graph : GraphModule
        What an exported program runs; it is not changed.
    sample : Tensor
        (1, bands, h, w), scaled as the network will see images; sizes that the program takes.

    Raises
    ------
    ModelError
        If it has nothing to freeze.
    """
    meter = _StatisticsRecorder(graph, {node.name for node in _list_calls(graph)})
    with torch.no_grad():
        meter.run(sample)
    return _replace_calls(graph, meter.found)


class _StatisticsRecorder(fx.Interpreter):
    """Runs a program and notes the statistics that its normalisations take."""

    def __init__(self, graph: fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph)
        self.names = names
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a call; of a normalisation, keep what takes its place."""
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
    """Give the normalisations by statistics of the image."""
    kinds = (torch.ops.aten.group_norm.default, torch.ops.aten.instance_norm.default)
    calls = [node for node in graph.graph.nodes if node.target in kinds]
    seeing = [n for n in calls if _name_arguments(n, n.args, n.kwargs).get("use_input_stats", True)]
    if not seeing:
        raise ModelError(
            "the program calls no GroupNorm or InstanceNorm that sees the image: use it as it is, or "
            "export it without decompositions"
        )
    return seeing


def _count_channels(nodes: list[fx.Node]) -> Iterator[tuple[fx.Node, int]]:
    for node in nodes:
        yield node, int(node.meta["val"].shape[1])


def _replace_calls(
    graph: fx.GraphModule, found: dict[str, tuple[Tensor, Tensor]]
) -> fx.GraphModule:
    """Give a copy in which each of these calls is a factor and a summand."""
    frozen = copy.deepcopy(graph)
    for node in list(frozen.graph.nodes):
        if node.name not in found:
            continue
        x = _name_arguments(node, node.args, node.kwargs)["input"]
        with frozen.graph.inserting_before(node):
            for what, values in zip(("mul", "add"), found[node.name], strict=True):
                name = f"frozen_{node.name}_{what}"
                frozen.register_buffer(name, values[:, None, None].clone())
                function = getattr(torch.ops.aten, what).Tensor
                x = frozen.graph.call_function(function, (x, frozen.graph.get_attr(name)))
        node.replace_all_uses_with(x)
        frozen.graph.erase_node(node)
    frozen.recompile()
    return frozen
