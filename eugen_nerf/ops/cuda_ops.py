"""The ops of `cpu` for CUDA tensors: the same operators, gradients and shapes, run by the kernels of `cuda`.

Importing this module registers the kernels. Arguments are checked without waiting for the device, so values that only
it knows, like the contents of ray_offsets, are made harmless in the kernels instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eugen_nerf.ops import cpu, cuda
from eugen_nerf.ops.checks import check_grid, check_network, check_rays, prepare
from eugen_nerf.ops.cuda_driver import Gpu, gpu, gpu_number

F32 = torch.float32


def _gpu(device: torch.device) -> Gpu:
    return gpu(gpu_number(device))


def _row_dtype(x: Tensor) -> torch.dtype:
    """What a network's inputs and outputs may be: float32, or what tensor cores multiply."""
    half = torch.bfloat16 if cuda.precision() == "bf16" else torch.float16
    return half if x.dtype == half else F32


def _table_dtype(table: Tensor) -> torch.dtype:
    return table.dtype if table.dtype == torch.float16 and cuda.precision() == "fp16" else F32


@cpu.hash_encode.register_kernel("cuda")
def hash_encode(
    x: Tensor, table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int
) -> Tensor:
    device = x.device
    x = prepare("x", x, (None, 3), F32, device)
    table = prepare("table", table, (offsets[-1], None), _table_dtype(table), device)
    check_grid(table, resolutions, offsets)
    return cuda.hash_encode_forward(_gpu(device), x, table, resolutions, offsets, log2_table_size)


@cpu.hash_encode_backward.register_kernel("cuda")
def hash_encode_backward(
    x: Tensor,
    table: Tensor,
    grad: Tensor,
    resolutions: Sequence[int],
    offsets: Sequence[int],
    log2_table_size: int,
    needs_table: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:
    device = x.device
    x = prepare("x", x, (None, 3), F32, device)
    table = prepare("table", table, (offsets[-1], None), F32, device)
    grad = prepare("grad", grad, (x.shape[0], len(resolutions) * table.shape[1]), F32, device)
    layout = (resolutions, offsets, log2_table_size)
    return cuda.hash_encode_backward(_gpu(device), x, table, grad, *layout, needs_table, needs_x)


@cpu.spherical_harmonics.register_kernel("cuda")
def spherical_harmonics(directions: Tensor) -> Tensor:
    device = directions.device
    return cuda.spherical_harmonics(_gpu(device), prepare("directions", directions, (None, 3), F32, device))


@cpu.network.register_kernel("cuda")
def network(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    device = x.device
    x, parameters = check_network(x, parameters, spec, eps, device, _row_dtype(x))
    return cuda.network_forward(_gpu(device), x, parameters, spec, eps)


@cpu.network_backward.register_kernel("cuda")
def network_backward(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    device = x.device
    x, parameters = check_network(x, parameters, spec, eps, device, _row_dtype(x))
    grad = prepare("grad", grad, (x.shape[0], spec[-3]), x.dtype, device)
    return cuda.network_backward(_gpu(device), x, parameters, grad, spec, eps, needs_x)


@cpu.march.register_kernel("cuda")
def march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor,
    bits: Tensor,
    resolution: int,
    box: Sequence[float],
    contracted: bool,
    rule: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    device = origins.device
    rays = check_rays(origins, directions, near, far, bits, resolution, rule, device)
    jitter = prepare("jitter", jitter, (origins.shape[0],), F32, device)
    return cuda.march(_gpu(device), *rays[:4], jitter, rays[4], resolution, box, contracted, rule)


@cpu.sample_points.register_kernel("cuda")
def sample_points(
    origins: Tensor,
    directions: Tensor,
    ray_offsets: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    box: Sequence[float],
    contracted: bool,
) -> tuple[Tensor, Tensor]:
    device, rays, n = origins.device, ray_offsets.shape[0] - 1, t_starts.shape[0]
    return cuda.sample_points(
        _gpu(device),
        prepare("origins", origins, (rays, 3), F32, device),
        prepare("directions", directions, (rays, 3), F32, device),
        prepare("ray_offsets", ray_offsets, (None,), torch.int64, device),
        prepare("t_starts", t_starts, (n,), F32, device),
        prepare("t_ends", t_ends, (n,), F32, device),
        box,
        contracted,
    )


def _samples(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, device = sigma.shape[0], sigma.device
    return (
        prepare("sigma", sigma, (n,), F32, device),
        prepare("rgb", rgb, (n, 3), F32, device),
        prepare("t_starts", t_starts, (n,), F32, device),
        prepare("t_ends", t_ends, (n,), F32, device),
        prepare("ray_offsets", ray_offsets, (None,), torch.int64, device),
    )


@cpu.composite.register_kernel("cuda")
def composite(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    return cuda.composite_forward(_gpu(sigma.device), *_samples(sigma, rgb, t_starts, t_ends, ray_offsets))


@cpu.composite_backward.register_kernel("cuda")
def composite_backward(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    samples = _samples(sigma, rgb, t_starts, t_ends, ray_offsets)
    grad = prepare("grad", grad, (ray_offsets.shape[0] - 1, 5), F32, sigma.device)
    return cuda.composite_backward(_gpu(sigma.device), *samples, grad)


@cpu.render.register_kernel("cuda")
def render(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    box: Sequence[float],
    contracted: bool,
    rule: Sequence[float],
    table: Tensor,
    resolutions: Sequence[int],
    offsets: Sequence[int],
    log2_table_size: int,
    density: Tensor,
    density_spec: Sequence[int],
    density_eps: Sequence[float],
    color: Tensor,
    color_spec: Sequence[int],
    color_eps: Sequence[float],
    min_transmittance: float,
) -> tuple[Tensor, Tensor]:
    device = origins.device
    rays = check_rays(origins, directions, near, far, bits, resolution, rule, device)
    table = prepare("table", table, (offsets[-1], None), _table_dtype(table), device)
    check_grid(table, resolutions, offsets)
    encoded = near.new_empty(0, len(resolutions) * table.shape[1])
    _, density = check_network(encoded, density, density_spec, density_eps, device)
    inputs = near.new_empty(0, 15 + density_spec[-3])
    _, color = check_network(inputs, color, color_spec, color_eps, device)
    if color_spec[-3] != 3:
        raise ValueError(f"the colour network must have 3 outputs, not {color_spec[-3]}")
    return cuda.render(
        _gpu(device),
        *rays,
        resolution,
        box,
        contracted,
        rule,
        table,
        resolutions,
        offsets,
        log2_table_size,
        density,
        density_spec,
        density_eps,
        color,
        color_spec,
        color_eps,
        min_transmittance,
    )


def sparse_adam(
    parameter: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    eps: float,
    step_size: float,
    second_scale: float,
) -> None:
    """One Adam step, in place, on the values whose gradient is not zero; all tensors of one shape."""
    device, shape = parameter.device, tuple(parameter.shape)
    grad = prepare("grad", grad, shape, F32, device)
    for name, tensor in (("parameter", parameter), ("first", first), ("second", second)):
        prepare(name, tensor, shape, F32, device)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, since it is changed in place")
    cuda.sparse_adam(_gpu(device), parameter, grad, first, second, betas, eps, step_size, second_scale)
