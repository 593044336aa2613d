"""A merged chain as one vector of parameters and a list of integers, the form that native runners take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf.layers.eugen import num_projections
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import FactoredChain, FactoredStage, MergedChain
from eugen_nerf.ops.network_spec import StageSpec

# Numbers of the nonlinearities, as in src/phi.h.
PHI_NUMBERS = {"identity": 0, "relu": 1, "squared_relu": 2, "softplus": 3, "gelu": 4, "sin": 5}


@dataclass(frozen=True)
class PackedChain:
    """A chain in the form that native runners take.

    ``spec`` contains the number of stages; for each stage the input width, features m, order, shared, phi, has offsets,
    norm; then the output width and has bias; and last the input width. The norm is 0 if there is none, 1 for the norm
    of the stage's input x, and 1 + r for the norm of the r values R x + c. ``parameters`` contains for each stage its
    projections [P * m, d], offsets [P * m], norm column [P * m], R [r, d] and c [r], then the output matrix and bias.
    """

    parameters: Tensor  # [K], differentiable
    spec: tuple[int, ...]
    eps: tuple[float, ...]


@dataclass(frozen=True)
class PackedProducts:
    """A `PackedChain` whose parameters are products that are not multiplied yet."""

    products: tuple[Product, ...]
    spec: tuple[int, ...]
    eps: tuple[float, ...]


def why_not_native(chain: MergedChain | FactoredChain) -> str | None:
    """Say why native runners do not support the chain; None if they do."""
    for stage in chain.stages:
        if stage.order > 2:
            return f"a layer has order {stage.order}, and native code supports at most order 2"
        if stage.phi not in PHI_NUMBERS:
            return f"native code does not support phi {stage.phi}"
        if stage.norm_constant is not None and stage.norm_constant.requires_grad:
            return "native code has no gradient of a norm's constant"  # merge_chain creates none that needs one
    return None


def pack_chain(chain: MergedChain) -> PackedChain:
    """Flatten a chain; gradients flow through the packed parameters to the chain's tensors."""
    packed = pack_products(chain.factored())
    parameters = torch.cat([product.right.reshape(-1) for product in packed.products])
    return PackedChain(parameters, packed.spec, packed.eps)


def pack_products(chain: FactoredChain) -> PackedProducts:
    """Put a chain's products in the order of packed parameters."""
    products: list[Product] = []
    spec = [len(chain.stages)]
    for stage in chain.stages:
        form = _norm_form(stage)
        spec += [*_stage_spec(stage, form[1].numel() if form else 0)]
        products.append(stage.projections)
        if stage.offsets is not None:
            products.append(stage.offsets)
        if stage.norm_column is not None:
            products.append(Product(stage.norm_column))
        products += [Product(tensor) for tensor in form]
    products.append(chain.weight)
    if chain.bias is not None:
        products.append(chain.bias)
    inputs = (chain.stages[0].projections if chain.stages else chain.weight).shape[1]
    spec += [chain.weight.shape[0], int(chain.bias is not None), inputs]
    return PackedProducts(tuple(products), tuple(spec), tuple(stage.eps for stage in chain.stages))


def _norm_form(stage: FactoredStage) -> list[Tensor]:
    """R and c such that the stage's norm is sqrt(||R x + c||^2 + eps); empty if it is sqrt(||x||^2 + eps)."""
    factor, offset, constant = stage.norm_factor, stage.norm_offset, stage.norm_constant
    if factor is None:
        return []
    offset = factor.new_zeros(factor.shape[0]) if offset is None else offset
    if constant is not None:  # one more value, which does not depend on x
        factor = torch.cat([factor, factor.new_zeros(1, factor.shape[1])])
        offset = torch.cat([offset, constant.sqrt().reshape(1)])
    return [factor, offset]


def _stage_spec(stage: FactoredStage, norm_rows: int) -> StageSpec:
    rows, inputs = stage.projections.shape
    return StageSpec(
        in_features=inputs,
        features=rows // num_projections(stage.order, stage.shared),
        order=stage.order,
        shared=int(stage.shared),
        phi=PHI_NUMBERS[stage.phi],
        offsets=int(stage.offsets is not None),
        norm=0 if stage.norm_column is None else 1 + norm_rows,
    )
