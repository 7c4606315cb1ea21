"""Limit of the number of parameters of a network that is built from the header of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class TooManyParameters(Exception):
    """A network has more parameters than the limit allows."""


class ParameterLimit(TorchFunctionMode):
    """Stop the construction of a network once its layers have more parameters than a limit.

    Parameters
    ----------
    limit : int
        Largest number of parameters.

    Raises
    ------
    TooManyParameters
        Within the context, when a layer exceeds the limit.

    Notes
    -----
    Layers make their parameters by ``torch.empty``. A header of a few bytes can ask for a network of any size; on
    the meta device its arrays take no memory, but its layers do.

    Examples
    --------
    >>> with torch.device("meta"), ParameterLimit(1000):
    ...     torch.nn.Linear(10**6, 10**6)
    Traceback (most recent call last):
        ...
    fcnpipe.networks.models.parameter_limit.TooManyParameters
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.empty:
            self._left -= result.numel()
            if self._left < 0:
                raise TooManyParameters
        return result
