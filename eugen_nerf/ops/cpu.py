"""Native CPU runners of the ops, as PyTorch operators: float32, any contiguous or strided CPU tensors.

Every function here is registered with torch.library, with shapes for tracing and with its gradient, so that
torch.compile and DistributedDataParallel see ordinary operators. Arguments are checked before C++ sees them.
The number of threads is that of ``torch.get_num_threads()``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.ops.build import cpu_library
from eugen_nerf.ops.checks import check_grid, check_network, check_rays, prepare


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _floats(values: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(values))(*values)


def _call(function: str, *arguments: Any) -> None:
    """Call an entry point with the number of threads as its last argument."""
    converted = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
    if getattr(cpu_library(), function)(*converted, ctypes.c_int(torch.get_num_threads())):
        raise ValueError(f"{function} has no code for these arguments")


# --- hash_encode ---------------------------------------------------------------------------------------------


@torch.library.custom_op("eugen_nerf::hash_encode", mutates_args=(), device_types="cpu")
def hash_encode(
    x: Tensor, table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int
) -> Tensor:
    """[N, 3], [entries, F] -> [N, L * F]; see reference.hash_encode."""
    x = prepare("x", x, (None, 3), torch.float32)
    table = prepare("table", table, (offsets[-1], None), torch.float32)
    check_grid(table, resolutions, offsets)
    out = torch.empty(x.shape[0], len(resolutions) * table.shape[1])
    grid = _grid(table, resolutions, offsets, log2_table_size)
    _call("eugen_hash_encode_forward", x, table, *grid, ctypes.c_int64(x.shape[0]), out)
    return out


def _grid(table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int) -> tuple[Any, ...]:
    return (
        _integers(resolutions),
        _integers(offsets),
        ctypes.c_int(len(resolutions)),
        ctypes.c_int(table.shape[1]),
        ctypes.c_int(log2_table_size),
    )


@hash_encode.register_fake
def _(x: Tensor, table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int) -> Tensor:
    return x.new_empty(x.shape[0], len(resolutions) * table.shape[1])


@torch.library.custom_op("eugen_nerf::hash_encode_backward", mutates_args=(), device_types="cpu")
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
    """Gradients of table and x; an empty tensor stands for one that nobody needs."""
    x = prepare("x", x, (None, 3), torch.float32)
    table = prepare("table", table, (offsets[-1], None), torch.float32)
    grad = prepare("grad", grad, (x.shape[0], len(resolutions) * table.shape[1]), torch.float32)
    grad_table = torch.zeros_like(table) if needs_table else table.new_empty(0)
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    _call(
        "eugen_hash_encode_backward",
        x,
        table,
        *_grid(table, resolutions, offsets, log2_table_size),
        ctypes.c_int64(x.shape[0]),
        grad,
        grad_table if needs_table else None,
        grad_x if needs_x else None,
    )
    return grad_table, grad_x


@hash_encode_backward.register_fake
def _(
    x: Tensor,
    table: Tensor,
    grad: Tensor,
    resolutions: Sequence[int],
    offsets: Sequence[int],
    log2_table_size: int,
    needs_table: bool,
    needs_x: bool,
) -> tuple[Tensor, Tensor]:
    grad_table = torch.empty_like(table) if needs_table else table.new_empty(0)
    return grad_table, torch.empty_like(x) if needs_x else x.new_empty(0)


def _hash_encode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, *ctx.grid = inputs
    ctx.save_for_backward(x, table)


def _hash_encode_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, table = ctx.saved_tensors
    needs_x, needs_table = ctx.needs_input_grad[:2]
    grad_table, grad_x = hash_encode_backward(x, table, grad, *ctx.grid, needs_table, needs_x)
    return (grad_x if needs_x else None, grad_table if needs_table else None, None, None, None)


hash_encode.register_autograd(_hash_encode_gradient, setup_context=_hash_encode_setup)


# --- spherical_harmonics -------------------------------------------------------------------------------------


@torch.library.custom_op("eugen_nerf::spherical_harmonics", mutates_args=(), device_types="cpu")
def spherical_harmonics(directions: Tensor) -> Tensor:
    """[N, 3] -> [N, 16]; see reference.spherical_harmonics. Without a gradient."""
    directions = prepare("directions", directions, (None, 3), torch.float32)
    out = torch.empty(directions.shape[0], 16)
    _call("eugen_spherical_harmonics", directions, ctypes.c_int64(directions.shape[0]), out)
    return out


@spherical_harmonics.register_fake
def _(directions: Tensor) -> Tensor:
    return directions.new_empty(directions.shape[0], 16)


# --- network -------------------------------------------------------------------------------------------------


@torch.library.custom_op("eugen_nerf::network", mutates_args=(), device_types="cpu")
def network(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    """[N, D] and a packed chain -> [N, D_out]; see reference.network and packing.PackedChain."""
    x, parameters = check_network(x, parameters, spec, eps)
    out = torch.empty(x.shape[0], spec[-3])
    n = ctypes.c_int64(x.shape[0])
    _call("eugen_network_forward", x, parameters, _integers(spec), _floats(eps), n, out)
    return out


@network.register_fake
def _(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    return x.new_empty(x.shape[0], spec[-3])


@torch.library.custom_op("eugen_nerf::network_backward", mutates_args=(), device_types="cpu")
def network_backward(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty if nobody needs it) and of the packed parameters."""
    x, parameters = check_network(x, parameters, spec, eps)
    grad = prepare("grad", grad, (x.shape[0], spec[-3]), torch.float32)
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    grad_parameters = torch.empty_like(parameters)
    _call(
        "eugen_network_backward",
        x,
        parameters,
        _integers(spec),
        _floats(eps),
        ctypes.c_int64(x.shape[0]),
        grad,
        grad_x if needs_x else None,
        grad_parameters,
    )
    return grad_x, grad_parameters


@network_backward.register_fake
def _(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x) if needs_x else x.new_empty(0), torch.empty_like(parameters)


def _network_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, parameters, ctx.spec, ctx.eps = inputs
    ctx.save_for_backward(x, parameters)


def _network_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, parameters = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[0]
    grad_x, grad_parameters = network_backward(x, parameters, grad, ctx.spec, ctx.eps, needs_x)
    return (grad_x if needs_x else None, grad_parameters, None, None)


network.register_autograd(_network_gradient, setup_context=_network_setup)


# --- march ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("eugen_nerf::march", mutates_args=(), device_types="cpu")
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
    """Rays and an occupancy bitfield -> ray_offsets [R + 1], t_starts [N], t_ends [N]; see reference.march."""
    rays = origins.shape[0]
    origins, directions, near, far, bits = check_rays(origins, directions, near, far, bits, resolution, rule)
    jitter = prepare("jitter", jitter, (rays,), torch.float32)
    ray_offsets = torch.zeros(rays + 1, dtype=torch.int64)

    counts = torch.empty(rays, dtype=torch.int64)
    library = cpu_library()
    library.eugen_march.restype = ctypes.c_void_p
    handle = library.eugen_march(
        *map(_pointer, (origins, directions, near, far, jitter)),
        ctypes.c_int64(rays),
        _pointer(bits),
        ctypes.c_int(resolution),
        _floats(box),
        ctypes.c_int(contracted),
        _floats(rule),
        _pointer(counts),
        ctypes.c_int(torch.get_num_threads()),
    )
    ray_offsets[1:] = counts.cumsum(0)
    total = int(ray_offsets[-1])
    t_starts, t_ends = torch.empty(total), torch.empty(total)
    library.eugen_march_take(ctypes.c_void_p(handle), _pointer(t_starts), _pointer(t_ends))
    return ray_offsets, t_starts, t_ends


@march.register_fake
def _(
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
    total = torch.library.get_ctx().new_dynamic_size()
    offsets = origins.new_empty(origins.shape[0] + 1, dtype=torch.int64)
    return offsets, origins.new_empty(total), origins.new_empty(total)


# --- sample_points -------------------------------------------------------------------------------------------


def _check_offsets(ray_offsets: Tensor, samples: int) -> Tensor:
    offsets = prepare("ray_offsets", ray_offsets, (None,), torch.int64)
    rises = offsets.shape[0] > 0 and int(offsets[0]) == 0 and int(offsets[-1]) == samples
    if not rises or bool((offsets.diff() < 0).any()):
        raise ValueError(f"ray_offsets must rise from 0 to the number of samples, {samples}")
    return offsets


@torch.library.custom_op("eugen_nerf::sample_points", mutates_args=(), device_types="cpu")
def sample_points(
    origins: Tensor,
    directions: Tensor,
    ray_offsets: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    box: Sequence[float],
    contracted: bool,
) -> tuple[Tensor, Tensor]:
    """Packed samples -> positions in the unit cube [N, 3], directions [N, 3]; see reference.sample_points."""
    n, rays = t_starts.shape[0], ray_offsets.shape[0] - 1
    offsets = _check_offsets(ray_offsets, n)
    unit, view = torch.empty(n, 3), torch.empty(n, 3)
    _call(
        "eugen_sample_points",
        prepare("origins", origins, (rays, 3), torch.float32),
        prepare("directions", directions, (rays, 3), torch.float32),
        ctypes.c_int64(rays),
        offsets,
        prepare("t_starts", t_starts, (n,), torch.float32),
        prepare("t_ends", t_ends, (n,), torch.float32),
        _floats(box),
        ctypes.c_int(contracted),
        unit,
        view,
    )
    return unit, view


@sample_points.register_fake
def _(
    origins: Tensor,
    directions: Tensor,
    ray_offsets: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    box: Sequence[float],
    contracted: bool,
) -> tuple[Tensor, Tensor]:
    return t_starts.new_empty(t_starts.shape[0], 3), t_starts.new_empty(t_starts.shape[0], 3)


# --- composite -----------------------------------------------------------------------------------------------


def _check_samples(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n = sigma.shape[0]
    offsets = _check_offsets(ray_offsets, n)
    return (
        prepare("sigma", sigma, (n,), torch.float32),
        prepare("rgb", rgb, (n, 3), torch.float32),
        prepare("t_starts", t_starts, (n,), torch.float32),
        prepare("t_ends", t_ends, (n,), torch.float32),
        offsets,
    )


@torch.library.custom_op("eugen_nerf::composite", mutates_args=(), device_types="cpu")
def composite(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    """Packed samples -> [R, 5]: rgb, alpha, depth; see reference.composite."""
    arrays = _check_samples(sigma, rgb, t_starts, t_ends, ray_offsets)
    rays = ray_offsets.shape[0] - 1
    out = torch.empty(rays, 5)
    _call("eugen_composite_forward", *arrays, ctypes.c_int64(rays), out)
    return out


@composite.register_fake
def _(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    return sigma.new_empty(ray_offsets.shape[0] - 1, 5)


@torch.library.custom_op("eugen_nerf::composite_backward", mutates_args=(), device_types="cpu")
def composite_backward(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sigma [N] and rgb [N, 3]."""
    arrays = _check_samples(sigma, rgb, t_starts, t_ends, ray_offsets)
    rays = ray_offsets.shape[0] - 1
    grad = prepare("grad", grad, (rays, 5), torch.float32)
    grad_sigma, grad_rgb = torch.empty_like(arrays[0]), torch.empty_like(arrays[1])
    _call("eugen_composite_backward", *arrays, ctypes.c_int64(rays), grad, grad_sigma, grad_rgb)
    return grad_sigma, grad_rgb


@composite_backward.register_fake
def _(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(sigma), torch.empty_like(rgb)


def _composite_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _composite_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_sigma, grad_rgb = composite_backward(*ctx.saved_tensors, grad)
    return grad_sigma, grad_rgb, None, None, None


composite.register_autograd(_composite_gradient, setup_context=_composite_setup)


# --- render --------------------------------------------------------------------------------------------------


@torch.library.custom_op("eugen_nerf::render", mutates_args=(), device_types="cpu")
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
    """Rays and a whole field -> [R, 5] rgb, alpha, depth, and samples [R]; see reference.render."""
    rays = origins.shape[0]
    origins, directions, near, far, bits = check_rays(origins, directions, near, far, bits, resolution, rule)
    table = prepare("table", table, (offsets[-1], None), torch.float32)
    check_grid(table, resolutions, offsets)
    encoded = near.new_empty(0, len(resolutions) * table.shape[1])
    _, density = check_network(encoded, density, density_spec, density_eps)
    _, color = check_network(near.new_empty(0, 15 + density_spec[-3]), color, color_spec, color_eps)
    if color_spec[-3] != 3:
        raise ValueError(f"the colour network must have 3 outputs, not {color_spec[-3]}")
    out, samples = torch.empty(rays, 5), torch.empty(rays, dtype=torch.int64)
    _call(
        "eugen_render",
        origins,
        directions,
        near,
        far,
        ctypes.c_int64(rays),
        bits,
        ctypes.c_int(resolution),
        _floats(box),
        ctypes.c_int(contracted),
        _floats(rule),
        table,
        *_grid(table, resolutions, offsets, log2_table_size),
        density,
        _integers(density_spec),
        _floats(density_eps),
        color,
        _integers(color_spec),
        _floats(color_eps),
        ctypes.c_float(min_transmittance),
        out,
        samples,
    )
    return out, samples


@render.register_fake
def _(origins: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rays = origins.shape[0]
    return origins.new_empty(rays, 5), origins.new_empty(rays, dtype=torch.int64)


# --- sparse Adam ---------------------------------------------------------------------------------------------


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
    shape = tuple(parameter.shape)
    grad = prepare("grad", grad, shape, torch.float32)
    for name, tensor in (("parameter", parameter), ("first", first), ("second", second)):
        if prepare(name, tensor, shape, torch.float32).data_ptr() != tensor.data_ptr():
            raise ValueError(f"{name} must be contiguous, since it is changed in place")
    _call(
        "eugen_sparse_adam",
        parameter,
        grad,
        first,
        second,
        ctypes.c_int64(parameter.numel()),
        ctypes.c_float(betas[0]),
        ctypes.c_float(betas[1]),
        ctypes.c_float(eps),
        ctypes.c_float(step_size),
        ctypes.c_float(second_scale),
    )
