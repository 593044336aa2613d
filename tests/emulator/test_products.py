"""The CUDA kernels of products of factors on the emulator, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from eugen_nerf.ops import cuda
from eugen_nerf.ops.products import describe
from tests.emulator.device import ORDERS, EmulatedDevice, SimulatedDevice
from tests.ops.comparisons import FACTORS, products_of, random_factors, relative_error


def both(device: SimulatedDevice, shapes: str, needed: list[bool]) -> list[tuple[Tensor, Tensor]]:
    """Values and gradients, ours and exact."""
    factors, places = describe(products_of(random_factors(*FACTORS[shapes])))
    exact = [factor.double().requires_grad_(need) for factor, need in zip(factors, needed, strict=True)]
    expected = torch.cat([product.value().flatten() for product in products_of(exact)])
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(grad.double())
    gradients = cuda.factor_products_backward(device, factors, places, grad, needed)
    pairs = [(cuda.factor_products_forward(device, factors, places), expected.detach())]
    for mine, other in zip(gradients, exact, strict=True):
        if other.grad is None:
            assert mine.numel() == 0
        else:
            pairs.append((mine, other.grad))
    return pairs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shapes", FACTORS)
def test_values_and_gradients(shapes: str, order: str) -> None:
    for needed in ([True] * 5, [False, True, True, False, True]):
        for mine, exact in both(EmulatedDevice(80, order), shapes, needed):
            assert relative_error(mine, exact) <= 1e-6
