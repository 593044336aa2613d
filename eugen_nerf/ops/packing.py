"""A merged chain as one flat parameter vector and a list of numbers, the form that native runners read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf.layers.eugen import num_projections
from eugen_nerf.layers.merge import FeatureStage, MergedChain

# Numbers of the nonlinearities, as in src/network_simd.h.
PHI_NUMBERS = {"identity": 0, "relu": 1, "squared_relu": 2, "softplus": 3, "gelu": 4, "sin": 5}


@dataclass(frozen=True)
class PackedChain:
    """A chain for native runners.

    ``spec`` holds the number of stages; for each of them input width, features m, order, shared, phi, has
    offsets, has norm; then output width and has bias; last, the input width. ``parameters`` holds for each
    stage its projections [P * m, d], offsets [P * m] and norm column [P * m], then output matrix and bias.
    """

    parameters: Tensor  # [K], differentiable
    spec: tuple[int, ...]
    eps: tuple[float, ...]


def why_not_native(chain: MergedChain) -> str | None:
    """Why native runners have no code for the chain; None if they have."""
    for stage in chain.stages:
        if stage.order > 2:
            return f"order {stage.order} is above 2"
        if stage.phi not in PHI_NUMBERS:
            return f"phi {stage.phi} is unknown to them"
        if stage.norm_factor is not None:
            return "a norm inside a chain is not supported by them"
    return None


def pack_chain(chain: MergedChain) -> PackedChain:
    """Flatten a chain; gradients flow through the packed parameters to the chain's tensors."""
    tensors: list[Tensor] = []
    spec = [len(chain.stages)]
    for stage in chain.stages:
        spec += _stage_spec(stage)
        tensors.append(stage.projections)
        tensors += [t for t in (stage.offsets, stage.norm_column) if t is not None]
    spec += [chain.out_features, int(chain.bias is not None), chain.in_features]
    tensors.append(chain.weight)
    if chain.bias is not None:
        tensors.append(chain.bias)
    parameters = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return PackedChain(parameters, tuple(spec), tuple(stage.eps for stage in chain.stages))


def _stage_spec(stage: FeatureStage) -> list[int]:
    features = stage.projections.shape[0] // num_projections(stage.order, stage.shared)
    return [
        stage.in_features,
        features,
        stage.order,
        int(stage.shared),
        PHI_NUMBERS[stage.phi],
        int(stage.offsets is not None),
        int(stage.norm_column is not None),
    ]
