"""The operators with the CUDA kernels, run on CPU tensors by the emulator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eugen_nerf.ops import HashGridLayout, Space, StepRule, operators, reference
from eugen_nerf.ops.operators import grid_arguments, rule_argument, space_arguments
from eugen_nerf.ops.packing import pack_chain
from tests.emulator.device import EmulatedDevice, emulated
from tests.emulator.test_rays import RESOLUTION, field, random_bits, random_rays
from tests.ops.comparisons import BOUNDED, TOLERANCE, UNBOUNDED, network_case, relative_error
from tests.ops.test_differentiable import Field, definition, gradients, loss
from tests.ops.test_differentiable import render as differentiable_render

OPS = (
    "hash_encode",
    "hash_encode_backward",
    "spherical_harmonics",
    "network",
    "network_backward",
    "march",
    "sample_points",
    "select_visible",
    "composite",
    "composite_backward",
    "render",
)
SPACE = space_arguments(BOUNDED[0])


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("device", ["CPU", "CUDA"])
def test_every_operator_has_kernels_as_soon_as_it_is_there(name: str, device: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"eugen_nerf::{name}", device)


def test_network() -> None:
    case = network_case("color", 60, torch.float16)
    spec, eps = list(case.spec), list(case.eps)
    x, parameters = case.x.clone().requires_grad_(), case.parameters.clone().requires_grad_()
    with emulated(EmulatedDevice(80)):
        y = operators.network(x, parameters, spec, eps)
        y.backward(case.grad)
        assert x.grad is not None
        assert parameters.grad is not None
        pairs = (y, case.y), (x.grad, case.grad_x), (parameters.grad, case.grad_parameters)
        for got, expected in pairs:
            assert relative_error(got, expected) <= TOLERANCE[torch.float16]
        with pytest.raises(ValueError, match="fit together"):
            operators.network(case.x, case.parameters, [1, 4, *spec[2:12], spec[-1]][: 4 + 7], eps[:1])
        with pytest.raises(TypeError, match="float32"):
            operators.network(case.x.double(), case.parameters, spec, eps)


def both(name: str, *arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Results of the CUDA runner and the CPU runner, in pairs."""
    results = [getattr(operators, name)(*arguments)]
    with emulated(EmulatedDevice(80)):
        results.insert(0, getattr(operators, name)(*arguments))
    got, expected = ([result] if isinstance(result, torch.Tensor) else result for result in results)
    return list(zip(got, expected, strict=True))


def test_grid_and_rays_agree_with_the_cpus_runners() -> None:
    layout = HashGridLayout.build(6, 2, 10, 4, 40)
    grid = grid_arguments(layout)
    generator = torch.Generator().manual_seed(0)
    x, table = torch.rand(50, 3, generator=generator), torch.randn(layout.num_entries, 2, generator=generator)
    grad = torch.randn(50, layout.out_features, generator=generator)
    rays, bits = random_rays(60), random_bits(0.3)
    march = (*rays, bits, RESOLUTION, *SPACE, rule_argument(BOUNDED[1]))
    offsets, starts, ends = operators.march(*march)
    points = (rays[0], rays[1], offsets, starts, ends, *SPACE)
    sigma, rgb = torch.rand(len(starts), generator=generator), torch.rand(len(starts), 3, generator=generator)
    samples = (sigma, rgb, starts, ends, offsets)
    for name, arguments in {
        "hash_encode": (x, table, *grid),
        "hash_encode_backward": (x, table, grad, *grid, True, True),
        "spherical_harmonics": (rays[1],),
        "march": march,
        "sample_points": points,
        "select_visible": (20 * sigma, starts, ends, offsets, [rgb, sigma], reference.MIN_TRANSMITTANCE),
        "composite": samples,
        "composite_backward": (*samples, torch.randn(60, 5, generator=generator)),
    }.items():
        for mine, theirs in both(name, *arguments):
            assert relative_error(mine, theirs) <= 1e-5, name


def test_render() -> None:
    of, rays, bits = field("eugen"), random_rays(60)[:4], random_bits(0.3)
    density, color = pack_chain(of.density), pack_chain(of.color)
    arguments = (*rays, bits, RESOLUTION, *SPACE, rule_argument(BOUNDED[1]), of.table, *grid_arguments(of.layout),
                 density.parameters, density.spec, density.eps, color.parameters, color.spec, color.eps,
                 reference.MIN_TRANSMITTANCE)  # fmt: skip
    for mine, theirs in both("render", *arguments):
        assert relative_error(mine, theirs) <= 5e-3


@pytest.mark.parametrize("skip_occluded", [False, True], ids=["all", "visible"])
@pytest.mark.parametrize("where", [BOUNDED, UNBOUNDED], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("kind", ["eugen", "order-2"])
def test_rendering_with_gradients(kind: str, where: tuple[Space, StepRule], skip_occluded: bool) -> None:
    """From rays to the gradient of every parameter."""
    field = Field(kind)
    with emulated(EmulatedDevice(80)):
        *got, samples = differentiable_render(field.merged(), 40, skip_occluded, where)
        loss(*got).backward()
    mine = gradients(field)
    field.zero_grad()
    expected = definition(field, 40, samples, where[0])
    loss(*expected).backward()
    assert samples.num_samples > 200
    for got_one, exact in zip([*got, *mine], [*expected, *gradients(field)], strict=True):
        assert relative_error(got_one, exact) <= 0.03  # half precision, and ReLUs that pass a unit in only one of them


def test_masked_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(9, 2, generator=generator) * torch.tensor([1.0, 0.0])
    mine = [torch.rand(9, 2, generator=generator) for _ in range(3)]
    theirs, numbers = [tensor.clone() for tensor in mine], ((0.9, 0.99), 1e-8, 0.1, 2.0)
    operators.masked_adam(theirs[0], grad, *theirs[1:], *numbers)
    with emulated(EmulatedDevice(80)):
        operators.masked_adam(mine[0], grad, *mine[1:], *numbers)
        with pytest.raises(ValueError, match="contiguous"):
            operators.masked_adam(torch.rand(2, 9).T, grad, *mine[1:], *numbers)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)
