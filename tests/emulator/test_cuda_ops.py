"""The functions that are registered for CUDA tensors, on CPU tensors with the emulator in the GPU's place."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from eugen_nerf.ops import HashGridLayout, cpu, cuda_ops, reference
from eugen_nerf.ops.packing import pack_chain
from tests.emulator.device import EmulatedDevice
from tests.emulator.test_rays import RESOLUTION, field, flat, random_bits, random_rays
from tests.ops.comparisons import BOUNDED, TOLERANCE, network_case, relative_error

OPS = (
    "hash_encode",
    "hash_encode_backward",
    "spherical_harmonics",
    "network",
    "network_backward",
    "march",
    "sample_points",
    "composite",
    "composite_backward",
    "render",
)


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ops, "_gpu", lambda device: EmulatedDevice(80))


def test_every_op_is_registered_once_its_package_is_imported() -> None:
    """In a fresh interpreter: programs that call the operators themselves import nothing else."""
    program = f"""
import torch
from eugen_nerf.ops import cpu
for name in {OPS}:
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("eugen_nerf::" + name, key), (name, key)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_network() -> None:
    case = network_case("color", 60, torch.float16)
    spec, eps = list(case.spec), list(case.eps)
    y = cuda_ops.network(case.x, case.parameters, spec, eps)
    grads = cuda_ops.network_backward(case.x, case.parameters, case.grad, spec, eps, True)
    for got, expected in zip((y, *grads), (case.y, case.grad_x, case.grad_parameters), strict=True):
        assert relative_error(got, expected) <= TOLERANCE[torch.float16]
    with pytest.raises(ValueError, match="fit together"):
        cuda_ops.network(case.x, case.parameters, [1, 4, *spec[2:12], spec[-1]][: 4 + 7], eps[:1])
    with pytest.raises(TypeError, match="float32"):
        cuda_ops.network(case.x.double(), case.parameters, spec, eps)


def test_grid_and_rays_agree_with_the_cpus_runners() -> None:
    layout = HashGridLayout.build(6, 2, 10, 4, 40)
    grid = (layout.resolutions, layout.offsets, layout.log2_table_size)
    generator = torch.Generator().manual_seed(0)
    x, table = torch.rand(50, 3, generator=generator), torch.randn(layout.num_entries, 2, generator=generator)
    grad = torch.randn(50, layout.out_features, generator=generator)
    rays, bits, (space, rule) = random_rays(60), random_bits(0.3), BOUNDED
    march = (*rays, bits, RESOLUTION, *flat(space, rule))
    offsets, starts, ends = cpu.march(*march)
    points = (rays[0], rays[1], offsets, starts, ends, *flat(space, rule)[:2])
    sigma, rgb = torch.rand(len(starts), generator=generator), torch.rand(len(starts), 3, generator=generator)
    samples = (sigma, rgb, starts, ends, offsets)
    for name, arguments in {
        "hash_encode": (x, table, *grid),
        "hash_encode_backward": (x, table, grad, *grid, True, True),
        "spherical_harmonics": (rays[1],),
        "march": march,
        "sample_points": points,
        "composite": samples,
        "composite_backward": (*samples, torch.randn(60, 5, generator=generator)),
    }.items():
        got, expected = getattr(cuda_ops, name)(*arguments), getattr(cpu, name)(*arguments)
        pairs = [(got, expected)] if isinstance(got, torch.Tensor) else zip(got, expected, strict=True)
        for mine, theirs in pairs:
            assert relative_error(mine, theirs) <= 1e-5, name


def test_render() -> None:
    of, rays, bits = field("eugen"), random_rays(60)[:4], random_bits(0.3)
    density, color, layout = pack_chain(of.density), pack_chain(of.color), of.layout
    arguments = (*rays, bits, RESOLUTION, *flat(*BOUNDED), of.table, layout.resolutions, layout.offsets,
                 layout.log2_table_size, density.parameters, density.spec, density.eps, color.parameters, color.spec,
                 color.eps, reference.MIN_TRANSMITTANCE)  # fmt: skip
    for got, expected in zip(cuda_ops.render(*arguments), cpu.render(*arguments), strict=True):
        assert relative_error(got, expected) <= 5e-3


def test_sparse_adam() -> None:
    states = []
    for runner in (cuda_ops, cpu):
        generator = torch.Generator().manual_seed(0)
        grad = torch.randn(9, 2, generator=generator) * torch.tensor([1.0, 0.0])
        state = [torch.rand(9, 2, generator=generator) for _ in range(3)]
        runner.sparse_adam(state[0], grad, *state[1:], (0.9, 0.99), 1e-8, 0.1, 2.0)
        states.append(state)
    for mine, theirs in zip(*states, strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(ValueError, match="contiguous"):
        cuda_ops.sparse_adam(torch.rand(2, 9).T, grad, *states[0][1:], (0.9, 0.99), 1e-8, 0.1, 2.0)
