"""Fewer random features after training has begun: those of an EUGen layer that its outputs depend on most.

A network that starts with many features and keeps the best of them after part of its training can end better, after
equal steps, than one that has only as many from the start: docs/eugen-study.md. Which features to keep is a question
that EUGens (NeurIPS 2025, arXiv 2601.22563) leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eugen_nerf.layers.baselines import Dense
from eugen_nerf.layers.eugen import EUGen
from eugen_nerf.layers.least_squares import NormalEquations


@dataclass(frozen=True)
class Kept:
    """The features that an EUGen layer kept."""

    layer: EUGen
    features: Tensor
    """Their former positions among those of each order, [m], ascending."""
    columns: Tensor
    """Former positions of the columns of g(W) that belong to them, [k * m]."""
    explained: float
    """Share of the variance of the layer's former outputs that it still explains; 1 is all."""


@torch.no_grad()
def select_features(
    network: nn.Sequential, num_features: int, batches: Sequence[tuple[Tensor, Tensor]], ridge: float = 1e-6
) -> list[Kept]:
    """Keeps the m features of every EUGen layer that contribute most, and fits the output weights to what it did.

    Front to back. A layer's features are chosen greedily by what they take off the squared error of its outputs, as the
    projections of the next layer show it; what remains is a least-squares problem, which also corrects what the layers
    before it have lost. Parameters keep their identity, so that optimizers go on with them; their state has to follow,
    see `follow`.

    Args:
        network: EUGen layers with a learned g(W), `Dense` and `torch.nn.Linear`; changed in place.
        num_features: m. Layers that have no more keep all of theirs and are not fitted.
        batches: what the network has received so far and what it will receive now, [N, d] each, for the same samples.
            The two differ where a network before it has lost features.
        ridge: penalty on the output weights, in units of the mean variance of the features.

    Returns:
        One for each layer that has lost features.

    Raises:
        ValueError: a layer is of another kind, m is below 1, there are no samples, or they are not finite. The network
            is unchanged then, but for the last of these.
    """
    layers = list(network)
    if num_features < 1:
        raise ValueError(f"select_features: m must be at least 1, got {num_features}")
    for layer in layers:
        if not isinstance(layer, EUGen | Dense | nn.Linear):
            raise ValueError(f"select_features: {type(layer).__name__} has no place in such a network")
        if isinstance(layer, EUGen) and (layer.order < 1 or layer.psi is not None):
            raise ValueError("select_features: features are selected in layers of order 1 or more with a learned g(W)")
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
    """The matrix [r, out] through which the next layer sees a layer's output; None for the output itself."""
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
    """Cuts the state that an optimizer has of the layers' parameters down to the features that were kept.

    Values of a parameter's shape, as Adam's moments, lose what the parameter lost; so do Adafactor's of its columns.
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
                # Of size 1 are means over the features.
                if isinstance(value, Tensor) and value.dim() == parameter.dim() and value.shape[1] > 1:
                    state[name] = value.index_select(1, index.to(value.device))
