"""A merged chain as one flat parameter vector and a list of numbers, the form that native runners read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf.layers.eugen import num_projections
from eugen_nerf.layers.merge import FeatureStage, MergedChain

# Numbers of the nonlinearities, as in src/phi.h.
PHI_NUMBERS = {"identity": 0, "relu": 1, "squared_relu": 2, "softplus": 3, "gelu": 4, "sin": 5}


@dataclass(frozen=True)
class PackedChain:
    """A chain for native runners.

    ``spec`` holds the number of stages; for each of them input width, features m, order, shared, phi, has
    offsets, norm; then output width and has bias; last, the input width. The norm is 0 where there is none, 1
    where it is that of the stage's input x, 1 + r where it is that of r numbers R x + c. ``parameters`` holds for
    each stage its projections [P * m, d], offsets [P * m], norm column [P * m], R [r, d] and c [r], then output
    matrix and bias.
    """

    parameters: Tensor  # [K], differentiable
    spec: tuple[int, ...]
    eps: tuple[float, ...]


def why_not_native(chain: MergedChain) -> str | None:
    """Why native runners have no code for the chain; None if they have."""
    for stage in chain.stages:
        if stage.order > 2:
            return f"a layer is of order {stage.order}, and native code stops at 2"
        if stage.phi not in PHI_NUMBERS:
            return f"phi {stage.phi} is unknown to native code"
        if stage.norm_constant is not None and stage.norm_constant.requires_grad:
            return "the gradient of a norm's constant is unknown to native code"  # merge_chain makes none that needs it
    return None


def pack_chain(chain: MergedChain) -> PackedChain:
    """Flatten a chain; gradients flow through the packed parameters to the chain's tensors."""
    tensors: list[Tensor] = []
    spec = [len(chain.stages)]
    for stage in chain.stages:
        form = _norm_form(stage)
        spec += _stage_spec(stage, form[1].numel() if form else 0)
        tensors.append(stage.projections)
        tensors += [t for t in (stage.offsets, stage.norm_column) if t is not None]
        tensors += form
    spec += [chain.out_features, int(chain.bias is not None), chain.in_features]
    tensors.append(chain.weight)
    if chain.bias is not None:
        tensors.append(chain.bias)
    parameters = torch.cat([tensor.reshape(-1) for tensor in tensors])
    return PackedChain(parameters, tuple(spec), tuple(stage.eps for stage in chain.stages))


def _norm_form(stage: FeatureStage) -> list[Tensor]:
    """R and c whose ||R x + c||^2 is what the stage's norm adds eps to; empty where that is ||x||^2."""
    factor, offset, constant = stage.norm_factor, stage.norm_offset, stage.norm_constant
    if factor is None:
        return []
    offset = factor.new_zeros(factor.shape[0]) if offset is None else offset
    if constant is not None:  # one number more, which does not depend on x
        factor = torch.cat([factor, factor.new_zeros(1, factor.shape[1])])
        offset = torch.cat([offset, constant.sqrt().reshape(1)])
    return [factor, offset]


def _stage_spec(stage: FeatureStage, norm_rows: int) -> list[int]:
    features = stage.projections.shape[0] // num_projections(stage.order, stage.shared)
    return [
        stage.in_features,
        features,
        stage.order,
        int(stage.shared),
        PHI_NUMBERS[stage.phi],
        int(stage.offsets is not None),
        0 if stage.norm_column is None else 1 + norm_rows,
    ]
