"""Elementwise functions by name: Phi and Psi of EUGen layers, and the activations of the dense baselines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """Return x unchanged."""
    return x


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2."""
    return torch.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "identity": identity,
    "relu": torch.relu,
    "squared_relu": squared_relu,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "sin": torch.sin,
}


def resolve_activation(activation: str | Activation) -> Activation:
    """Return the function named `activation`, or `activation` itself if it is callable.

    Args:
        activation: a name of `ACTIVATIONS`, or an elementwise callable.

    Returns:
        The elementwise function, any shape -> the same shape.

    Raises:
        ValueError: the name is unknown.
        TypeError: `activation` is neither a name nor callable.
    """
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[activation]
    if not callable(activation):
        raise TypeError(f"an activation must be a name or a callable, not {type(activation).__name__}")
    return activation


def describe(activation: str | Activation) -> str:
    """Return a short name of `activation` for printed representations."""
    if isinstance(activation, str):
        return activation
    return getattr(activation, "__name__", type(activation).__name__)
