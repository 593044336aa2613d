"""Baseline layers that EUGen is compared with, and `build_network`, which stacks them or EUGen layers.

`Dense`, `LowRank` and `SNNK` (in its own file) each replace a fully connected layer together with its activation.
A narrow MLP is a stack of `Dense` layers with fewer units.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eugen_nerf.layers.activations import Activation, describe, resolve_activation
from eugen_nerf.layers.eugen import EUGen, check_sizes
from eugen_nerf.layers.projections import make_projection
from eugen_nerf.layers.snnk import SNNK

NETWORK_KINDS = ("eugen", "mlp", "low-rank", "snnk")


class Dense(nn.Module):
    """Fully connected layer with its activation: y = act(W x + b).

    `weight` starts normal with standard deviation sqrt(2 / in_features) (He et al. 2015, arXiv 1502.01852); the bias
    starts at zero.

    Shape: [..., in_features] -> [..., out_features].

    Args:
        in_features: input width.
        out_features: number of units.
        activation: a name of `eugen_nerf.layers.activations.ACTIVATIONS` or an elementwise callable.
        bias: adds a learned bias, [out].
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size is below 1, or the activation's name is unknown.
        TypeError: the activation is neither a name nor callable.
    """

    weight: Tensor  # [out, in]
    bias: Tensor | None  # [out]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation = "relu",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("Dense", in_features=in_features, out_features=out_features)
        resolve_activation(activation)
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        _set_bias(self, out_features if bias else None, device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a new weight and set the bias to zero."""
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.in_features))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return resolve_activation(self.activation)(F.linear(x, self.weight, self.bias))

    def extra_repr(self) -> str:
        """The constructor's arguments, as printed inside `Dense(...)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"activation={describe(self.activation)}, bias={self.bias is not None}"
        )


class LowRank(nn.Module):
    """Fully connected layer whose weight matrix has rank m: y = act(W G x + b), W [out, m], G [m, in].

    Both factors are trained. Entries of G start with variance 1 / in_features, those of W with variance 2 / m
    (He et al. 2015, arXiv 1502.01852). With the identity as activation this is the low-rank special case of EUGen
    (EUGens, NeurIPS 2025, arXiv 2601.22563, appendix B.3).

    Shape: [..., in_features] -> [..., out_features].

    Args:
        in_features: input width.
        out_features: number of units.
        num_features: the rank m.
        activation: a name of `eugen_nerf.layers.activations.ACTIVATIONS` or an elementwise callable.
        bias: adds a learned bias, [out].
        projection: the kind of random rows that G starts from, as in `make_projection`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a size is below 1, or the name of the activation or projection is unknown.
        TypeError: the activation is neither a name nor callable.
    """

    projections: Tensor  # [m, in]
    weight: Tensor  # [out, m]
    bias: Tensor | None  # [out]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_features: int,
        activation: str | Activation = "relu",
        bias: bool = True,
        projection: str = "orthogonal",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes("LowRank", in_features=in_features, out_features=out_features, num_features=num_features)
        resolve_activation(activation)
        self.in_features = in_features
        self.out_features = out_features
        self.num_features = num_features
        self.activation = activation
        self.projection = projection
        self.projections = nn.Parameter(torch.empty(num_features, in_features, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(out_features, num_features, device=device, dtype=dtype))
        _set_bias(self, out_features if bias else None, device, dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw both factors anew and set the bias to zero."""
        rows = self.projections
        drawn = make_projection(
            self.projection, self.num_features, self.in_features, dtype=rows.dtype, device=rows.device
        )
        rows.copy_(drawn / math.sqrt(self.in_features))
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.num_features))
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return resolve_activation(self.activation)(F.linear(F.linear(x, self.projections), self.weight, self.bias))

    def extra_repr(self) -> str:
        """The constructor's arguments, as printed inside `LowRank(...)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"num_features={self.num_features}, activation={describe(self.activation)}, "
            f"bias={self.bias is not None}, projection={self.projection}"
        )


def build_network(
    kind: str,
    in_features: int,
    hidden: int,
    num_hidden_layers: int,
    out_features: int,
    num_features: int,
    *,
    order: int = 1,
    shared: bool = False,
    norm_first: bool = True,
    phi: str = "relu",
    trainable_projections: bool = True,
    feature_bias: bool = False,
    projection: str = "orthogonal",
    activation: str = "relu",
) -> nn.Sequential:
    """Build a stack of hidden layers of one kind and a final linear layer. `merge_chain` merges every kind.

    Args:
        kind: "eugen", "mlp", "low-rank" or "snnk".
        in_features: input width.
        hidden: width of the hidden layers' outputs. Merged "eugen" and "snnk" networks no longer contain it: their
            cost depends on `num_features`.
        num_hidden_layers: number of hidden layers; 0 gives the linear layer alone.
        out_features: output width.
        num_features: features per layer: m of EUGen (per order) and SNNK, the rank of low-rank layers. Not used by
            "mlp".
        order: order k of EUGen layers.
        shared: uses the same projections for all orders of an EUGen layer.
        norm_first: appends the norm of the input in the first EUGen layer. Later layers never take a norm, because a
            norm inside a merged chain costs a quadratic form in the features.
        phi: Phi of EUGen layers.
        trainable_projections: trains the projections of EUGen layers. Those of SNNK layers stay frozen, as in the
            SNNK paper.
        feature_bias: adds a learned constant to the projections of EUGen layers.
        projection: kind of random rows that EUGen, low-rank and SNNK layers start from.
        activation: activation of "mlp", "low-rank" and "snnk" layers. For "snnk" it must be "relu", because the
            other SNNK features do not merge.

    Returns:
        The network, [..., in_features] -> [..., out_features].

    Raises:
        ValueError: the kind is unknown, a size or name is invalid, or the activation of "snnk" is not "relu".
    """
    if kind not in NETWORK_KINDS:
        raise ValueError(f"unknown network kind {kind!r}; known: {', '.join(NETWORK_KINDS)}")
    if kind == "snnk" and activation != "relu":
        raise ValueError(f"a mergeable SNNK network has ReLU features; got activation {activation!r}")
    layers: list[nn.Module] = []
    width = in_features
    for index in range(num_hidden_layers):
        if kind == "eugen":
            layer: nn.Module = EUGen(
                width,
                hidden,
                num_features,
                order=order,
                norm=norm_first and index == 0,
                phi=phi,
                shared=shared,
                trainable_projections=trainable_projections,
                feature_bias=feature_bias,
                projection=projection,
            )
        elif kind == "mlp":
            layer = Dense(width, hidden, activation)
        elif kind == "low-rank":
            layer = LowRank(width, hidden, num_features, activation, projection=projection)
        else:
            layer = SNNK(width, hidden, num_features, activation, projection=projection)
        layers.append(layer)
        width = hidden
    layers.append(nn.Linear(width, out_features))
    return nn.Sequential(*layers)


def _set_bias(layer: nn.Module, size: int | None, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
    bias = None if size is None else nn.Parameter(torch.empty(size, device=device, dtype=dtype))
    layer.register_parameter("bias", bias)
