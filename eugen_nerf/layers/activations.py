"""Elementwise functions by name: Phi and Psi of an EUGen layer, activations of the dense baselines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """x itself."""
    return x


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0) squared."""
    return torch.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "identity": identity,
    "relu": torch.relu,
    "squared_relu": squared_relu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "sin": torch.sin,
}


def resolve(activation: str | Activation) -> Activation:
    """The function named `activation`, or `activation` itself if it is callable.

    Raises:
        ValueError: the name is unknown.
        TypeError: `activation` is neither a name nor callable.
    """
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(f"an activation is a name or a callable, not {type(activation).__name__}")
    return activation


def describe(activation: str | Activation) -> str:
    """A short name of `activation` for printed representations."""
    if isinstance(activation, str):
        return activation
    return getattr(activation, "__name__", type(activation).__name__)
