"""Feature selection during training: keep the random features of an EUGen layer that its outputs depend on most.

A network that starts with many features and keeps the best of them partway through training can reach a better result
in the same number of steps than a network that has the smaller number from the start (docs/eugen-study.md). The EUGens
paper (NeurIPS 2025, arXiv 2601.22563) leaves open which features to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.least_squares import NormalEquations


@dataclass(frozen=True)
class Kept:
    """The features that an EUGen layer kept."""

    layer: EUGen
    features: Tensor
    """Former positions of the kept features within each order, [m], ascending."""
    columns: Tensor
    """Former positions of the columns of g(W) that belong to them, [k * m]."""
    explained: float
    """Fraction of the variance of the layer's former outputs that is still explained; at most 1."""


@torch.no_grad()
def select_features(
    network: nn.Sequential, num_features: int, batches: Sequence[tuple[Tensor, Tensor]], ridge: float = 1e-6
) -> list[Kept]:
    """Keep the m features of every EUGen layer that contribute most, and refit its output weights to its former output.

    Layers are processed front to back. In each layer, features are chosen greedily by how much they reduce the squared
    error of the layer's outputs, measured through the projections of the next layer. The output weights are then the
    least-squares solution for the chosen features, which also compensates for what the layers before have lost. The
    parameters remain the same objects, so optimizers keep working with them; call `follow` to reduce the optimizers'
    state as well.

    Args:
        network: EUGen layers with a learned g(W), `Dense` and `torch.nn.Linear`; changed in place.
        num_features: m. Layers with at most m features keep all of them and are not refitted.
        batches: the network's former inputs and its future inputs, [N, d] each, for the same samples. The two differ if
            a network in front of this one has lost features.
        ridge: penalty on the output weights, in units of the mean variance of the features.

    Returns:
        One entry for each layer that has lost features.

    Raises:
        ValueError: a layer is of an unsupported kind, m is below 1, there are no samples, or they are not finite. The
            network is unchanged, except in the last case.
    """
    layers = list(network)
    if num_features < 1:
        raise ValueError(f"select_features: m must be at least 1, got {num_features}")
    for layer in layers:
        if not isinstance(layer, EUGen | Dense | nn.Linear):
            raise ValueError(f"select_features: {type(layer).__name__} layers are not supported")
        if isinstance(layer, EUGen) and (layer.order < 1 or layer.psi is not None):
            raise ValueError("select_features: features are selected in layers of order 1 or more with a learned g(W)")
        if isinstance(layer, EUGen) and is_parametrized(layer):
            raise ValueError("select_features: parameters computed by torch.nn.utils.parametrize cannot be cut")
    before, after = [x for x, _ in batches if len(x)], [x for _, x in batches if len(x)]
    if not before:
        raise ValueError("select_features: no samples were collected")
    kept = []
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        wanted = [layer(x) for x in before]
        if isinstance(layer, EUGen) and layer.num_features > num_features:
            kept.append(_select(layer, num_features, list(zip(after, wanted, strict=True)), _view(following), ridge))
        before, after = wanted, [layer(x) for x in after]
    return kept


def _view(following: nn.Module | None) -> Tensor | None:
    """The matrix [r, out] that the next layer applies to a layer's output; None if there is no next layer."""
    if isinstance(following, EUGen):
        return following.projections.flatten(0, 1)[:, : following.in_features]
    return following.weight if isinstance(following, Dense | nn.Linear) else None


def _select(
    layer: EUGen, num_features: int, pairs: Sequence[tuple[Tensor, Tensor]], view: Tensor | None, ridge: float
) -> Kept:
    equations = NormalEquations(constant=layer.bias is not None)
    for x, y in pairs:
        equations.add(layer.features(x), y)
    index = equations.choose(num_features, "contribution", ridge, view, columns_each=layer.order)
    columns = layer.columns(index)
    solution = equations.solve(ridge, columns)
    layer.keep(index)
    layer.set_output(solution.weight, solution.bias)
    return Kept(layer, index, columns, solution.explained)


def follow(optimizer: torch.optim.Optimizer, kept: Sequence[Kept]) -> None:
    """Reduce an optimizer's state for the layers' parameters to the features that were kept.

    State of a parameter's shape (Adam's moments) and Adafactor's column statistics lose the entries that the parameter
    lost.
    """
    for one in kept:
        layer = one.layer
        for parameter, index in (
            (layer.projections, one.features),
            (layer.offsets, one.features),
            (layer.weight, one.columns),
        ):
            if parameter is None or parameter not in optimizer.state:
                continue
            state = optimizer.state[parameter]
            for name, value in state.items():
                # State of size 1 along this dimension holds means over the features.
                if isinstance(value, Tensor) and value.dim() == parameter.dim() and value.shape[1] > 1:
                    state[name] = value.index_select(1, index.to(value.device))
