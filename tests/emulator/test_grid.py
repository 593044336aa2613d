"""The CUDA kernels of the hash grid and of its optimizer on the emulator, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eugen_nerf.ops import HashGridLayout, cuda, reference
from tests.emulator.device import ORDERS, EmulatedDevice
from tests.ops.comparisons import relative_error

TOLERANCE = 1e-5  # sums are float32

# levels, features, log2 of the table's size, resolutions: dense and hashed levels, and a last group that is not full.
LAYOUTS = [(6, 2, 10, 4, 40), (5, 1, 8, 2, 20), (3, 4, 12, 4, 64), (3, 8, 10, 5, 20)]


def positions(n: int) -> Tensor:
    """Corners and faces, points outside of the cube, neighbors along a ray, and random points."""
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 3, generator=generator)
    x[: n // 8] = x[: n // 8].round()
    x[n // 8 : n // 4] = 3 * x[n // 8 : n // 4] - 1
    middle = torch.arange(n // 4, n // 2)
    x[middle] = 0.5 * x[n // 4 : n // 4 + 1] + 2e-3 * (middle - n // 4)[:, None]
    return x


@pytest.mark.parametrize("architecture", [80, 90])  # without and with atomic additions of pairs
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hash_encode(layout: tuple[int, int, int, int, int], order: str, architecture: int) -> None:
    grid = HashGridLayout.build(*layout)
    device = EmulatedDevice(architecture, order)
    for n in (1, 301):
        generator = torch.Generator().manual_seed(0)
        x = positions(n)
        table = torch.randn(grid.num_entries, grid.features_per_level, generator=generator)
        weight = torch.randn(n, grid.out_features, generator=generator)
        got = cuda.hash_encode_forward(device, x, table, grid)
        grad_table, grad_x = cuda.hash_encode_backward(device, x, table, weight, grid, True, True)
        x64, table64 = x.double().requires_grad_(), table.double().requires_grad_()
        expected = reference.hash_encode(x64, table64, grid)
        (expected * weight).sum().backward()
        assert table64.grad is not None
        assert x64.grad is not None
        assert relative_error(got, expected) <= TOLERANCE
        assert relative_error(grad_table, table64.grad) <= TOLERANCE
        assert relative_error(grad_x, x64.grad) <= TOLERANCE


def test_hash_encode_with_a_table_of_halves() -> None:
    for layout in LAYOUTS[:2]:
        grid = HashGridLayout.build(*layout)
        x = positions(40)
        shape = grid.num_entries, grid.features_per_level
        table = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half()
        got = cuda.hash_encode_forward(EmulatedDevice(80), x, table, grid)
        assert relative_error(got, reference.hash_encode(x.double(), table.double(), grid)) <= TOLERANCE


def test_hash_encode_of_what_is_no_position() -> None:
    grid = HashGridLayout.build(*LAYOUTS[0])
    table = torch.randn(grid.num_entries, 2, generator=torch.Generator().manual_seed(0))
    device = EmulatedDevice(80)
    bad = torch.tensor([[math.nan, 0.5, 0.5], [math.inf, -math.inf, 0.2], [1e30, -1e30, 0.5]])
    good = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.2], [1.0, 0.0, 0.5]])
    out = cuda.hash_encode_forward(device, bad, table, grid)
    assert torch.equal(out, cuda.hash_encode_forward(device, good, table, grid))
    grads = cuda.hash_encode_backward(device, bad, table, torch.ones_like(out), grid, True, True)
    assert all(grad.isfinite().all() for grad in grads)


def test_only_the_gradients_that_are_needed() -> None:
    grid = HashGridLayout.build(*LAYOUTS[0])
    table = torch.zeros(grid.num_entries, 2)
    for n, needs in ((9, (True, False)), (9, (False, True)), (0, (True, True))):
        weight = torch.ones(n, grid.out_features)
        grads = cuda.hash_encode_backward(EmulatedDevice(80), positions(n), table, weight, grid, *needs)
        assert [grad.numel() > 0 for grad in grads] == [needs[0], needs[1] and n > 0]


def test_masked_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(100, 3, generator=generator) * (torch.rand(100, 3, generator=generator) < 0.5)
    parameter, first = torch.randn(2, 100, 3, generator=generator)
    second = torch.rand(100, 3, generator=generator)
    before = [t.clone() for t in (parameter, first, second)]
    cuda.masked_adam(EmulatedDevice(80), parameter, grad, first, second, (0.9, 0.99), 1e-8, 0.1, 2.0)
    m = before[1].double().lerp(grad.double(), 0.1)
    v = before[2].double().lerp(grad.double().square(), 0.01)
    expected = [before[0].double() - 0.1 * m / ((2 * v).sqrt() + 1e-8), m, v]
    for got, new, old in zip((parameter, first, second), expected, before, strict=True):
        torch.testing.assert_close(got.double(), torch.where(grad != 0, new, old.double()), rtol=1e-5, atol=1e-6)
        assert torch.equal(got[grad == 0], old[grad == 0])
