"""The ops as PyTorch operators, for every device with native code.

Each op has one signature, one set of checks, one shape function for tracing and one gradient. The operators are
registered with torch.library, so torch.compile and DistributedDataParallel see ordinary operators. Their arguments are
limited to the types of PyTorch's dispatcher; this module converts them to the objects that `cpu` and `cuda` take.

Tensors are float32, contiguous or strided. Arguments are checked before native code uses them. On a GPU the checks do
not synchronize with the device: the kernels themselves guard against invalid values in GPU memory, such as the contents
of ray_offsets.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, List, TypeVar  # noqa: UP035

import torch
from torch import Tensor

from eugen_nerf.ops import cpu, cuda
from eugen_nerf.ops.checks import (
    check_color_outputs,
    check_grid,
    check_network,
    check_offsets,
    check_products,
    check_rays,
    prepare,
)
from eugen_nerf.ops.cuda_driver import gpu, gpu_number
from eugen_nerf.ops.layout import HashGridLayout, Space, StepRule
from eugen_nerf.ops.network_spec import HARMONICS, outputs_of
from eugen_nerf.ops.packing import PackedChain
from eugen_nerf.ops.products import empty_gradients, product_table

F32 = torch.float32
DEVICES = ("cpu", "cuda")

T = TypeVar("T")


def choose(device: torch.device, on_cpu: Callable[..., T], on_gpu: Callable[..., T]) -> Callable[..., T]:
    """Return the one of an op's two runners that works on a device's tensors."""
    return on_cpu if device.type == "cpu" else functools.partial(on_gpu, gpu(gpu_number(device)))


def _operator(function: Callable[..., Any]) -> Any:
    return torch.library.custom_op(f"eugen_nerf::{function.__name__}", function, mutates_args=(), device_types=DEVICES)


def _refuse_second_order(backward: Any) -> None:
    """Raise an error with advice if a gradient is differentiated."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "Native code has first-order gradients only. For second-order gradients (a gradient penalty, normals in a "
            'loss) pass backend="reference" to the op, or set EUGEN_BACKEND=reference.'
        )

    backward.register_autograd(refuse)


def grid_arguments(layout: HashGridLayout) -> tuple[Sequence[int], Sequence[int], int]:
    """A hash grid's levels in the form that operators take: resolutions, offsets, log2 of the table size."""
    return layout.resolutions, layout.offsets, layout.log2_table_size


def space_arguments(space: Space) -> tuple[list[float], bool]:
    """A space in the form that operators take: both corners of the box, and whether it is contracted."""
    return [*space.box[0], *space.box[1]], space.contracted


def rule_argument(rule: StepRule) -> list[float]:
    """A step rule in the form that operators take: step size and cone angle."""
    return [rule.step_size, rule.cone_angle]


def _space(box: Sequence[float], contracted: bool) -> Space:
    return Space(((box[0], box[1], box[2]), (box[3], box[4], box[5])), contracted)


def is_half_table(table: Tensor) -> bool:
    """Whether a hash grid's table is fp16 on a device with kernels for fp16 tables. Those are forward only."""
    return table.is_cuda and table.dtype == torch.float16 and cuda.precision() == "fp16"


def _grid(
    table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int, halves: bool = False
) -> tuple[Tensor, HashGridLayout]:
    """Return the checked table [entries, F] of a hash grid, and its layout. `halves` allows a table in fp16."""
    dtype = torch.float16 if halves and is_half_table(table) else F32
    table = prepare("table", table, (offsets[-1], None), dtype, table.device)
    layout = HashGridLayout(tuple(resolutions), tuple(offsets), table.shape[1], log2_table_size)
    check_grid(layout, table.device)
    return table, layout


def _row_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a network's inputs and outputs: float32, or on a GPU also the tensor cores' half type."""
    return x.dtype if x.is_cuda and x.dtype == cuda.half_dtype() else F32


# --- hash_encode ---------------------------------------------------------------------------------------------


@_operator
def hash_encode(
    x: Tensor, table: Tensor, resolutions: Sequence[int], offsets: Sequence[int], log2_table_size: int
) -> Tensor:
    """[N, 3], [entries, F] -> [N, L * F]; see reference.hash_encode."""
    x = prepare("x", x, (None, 3), F32, x.device)
    table, layout = _grid(table, resolutions, offsets, log2_table_size, halves=True)
    return choose(x.device, cpu.hash_encode_forward, cuda.hash_encode_forward)(x, table, layout)


@hash_encode.register_fake
def _(x: Tensor, table: Tensor, resolutions: Sequence[int], *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], len(resolutions) * table.shape[1])


@_operator
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
    """Gradients of table and x; a gradient that is not needed is an empty tensor."""
    x = prepare("x", x, (None, 3), F32, x.device)
    table, layout = _grid(table, resolutions, offsets, log2_table_size)
    grad = prepare("grad", grad, (x.shape[0], layout.out_features), F32, x.device)
    run = choose(x.device, cpu.hash_encode_backward, cuda.hash_encode_backward)
    return run(x, table, grad, layout, needs_table, needs_x)


@hash_encode_backward.register_fake
def _(
    x: Tensor, table: Tensor, grad: Tensor, r: Any, o: Any, log2: int, needs_table: bool, needs_x: bool
) -> tuple[Tensor, Tensor]:
    grad_table = table.new_empty(table.shape) if needs_table else table.new_empty(0)
    return grad_table, x.new_empty(x.shape) if needs_x else x.new_empty(0)


def _hash_encode_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, *ctx.grid = inputs
    ctx.save_for_backward(x, table)


def _hash_encode_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, table = ctx.saved_tensors
    needs_x, needs_table = ctx.needs_input_grad[:2]
    grad_table, grad_x = hash_encode_backward(x, table, grad, *ctx.grid, needs_table, needs_x)
    return (grad_x if needs_x else None, grad_table if needs_table else None, None, None, None)


hash_encode.register_autograd(_hash_encode_gradient, setup_context=_hash_encode_setup)
_refuse_second_order(hash_encode_backward)


# --- spherical_harmonics -------------------------------------------------------------------------------------


@_operator
def spherical_harmonics(directions: Tensor) -> Tensor:
    """[N, 3] -> [N, 16]; see reference.spherical_harmonics. Not differentiable."""
    directions = prepare("directions", directions, (None, 3), F32, directions.device)
    return choose(directions.device, cpu.spherical_harmonics, cuda.spherical_harmonics)(directions)


@spherical_harmonics.register_fake
def _(directions: Tensor) -> Tensor:
    return directions.new_empty(directions.shape[0], HARMONICS)


# --- network -------------------------------------------------------------------------------------------------


@_operator
def network(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    """[N, D] and a packed chain -> [N, D_out]; see reference.network and packing.PackedChain."""
    x, parameters = check_network(x, parameters, spec, eps, _row_dtype(x))
    return choose(x.device, cpu.network_forward, cuda.network_forward)(x, parameters, spec, eps)


@network.register_fake
def _(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    return x.new_empty(x.shape[0], outputs_of(spec))


@_operator
def network_backward(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty if not needed) and of the packed parameters."""
    x, parameters = check_network(x, parameters, spec, eps, _row_dtype(x))
    grad = prepare("grad", grad, (x.shape[0], outputs_of(spec)), x.dtype, x.device)
    run = choose(x.device, cpu.network_backward, cuda.network_backward)
    return run(x, parameters, grad, spec, eps, needs_x)


@network_backward.register_fake
def _(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    # Contiguous, whatever the strides of the inputs, as the native code returns them.
    return x.new_empty(x.shape if needs_x else 0), parameters.new_empty(parameters.shape)


def _network_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, parameters, ctx.spec, ctx.eps = inputs
    ctx.save_for_backward(x, parameters)


def _network_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, parameters = ctx.saved_tensors
    needs_x = ctx.needs_input_grad[0]
    grad_x, grad_parameters = network_backward(x, parameters, grad, ctx.spec, ctx.eps, needs_x)
    return (grad_x if needs_x else None, grad_parameters, None, None)


network.register_autograd(_network_gradient, setup_context=_network_setup)
_refuse_second_order(network_backward)


# --- factor_products -------------------------------------------------------------------------------------------


@_operator
def factor_products(factors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Factors and the places of products -> all values [K]; see reference.factor_products and products.describe."""
    factors = check_products(factors, places)
    return choose(factors[0].device, cpu.factor_products_forward, cuda.factor_products_forward)(factors, places)


@factor_products.register_fake
def _(factors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    return factors[0].new_empty(product_table(tuple(places)).values)


@_operator
def factor_products_backward(
    factors: Sequence[Tensor], places: Sequence[int], grad: Tensor, needed: Sequence[bool]
) -> List[Tensor]:  # noqa: UP006 (PyTorch 2.6 does not know list)
    """Gradients of the factors; one that is not needed is an empty tensor."""
    factors = check_products(factors, places)
    device = factors[0].device
    grad = prepare("grad", grad, (product_table(tuple(places)).values,), F32, device)
    if len(needed) != len(factors):
        raise ValueError("needed must have one entry for each factor")
    return choose(device, cpu.factor_products_backward, cuda.factor_products_backward)(factors, places, grad, needed)


@factor_products_backward.register_fake
def _(factors: Sequence[Tensor], places: Sequence[int], grad: Tensor, needed: Sequence[bool]) -> list[Tensor]:
    return empty_gradients(factors, needed)


def _factor_products_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    factors, ctx.places = inputs
    ctx.needed = [factor.requires_grad for factor in factors]
    ctx.save_for_backward(*factors)


def _factor_products_gradient(ctx: Any, grad: Tensor) -> tuple[list[Tensor | None], None]:
    found = factor_products_backward(list(ctx.saved_tensors), ctx.places, grad, ctx.needed)
    return [one if need else None for one, need in zip(found, ctx.needed, strict=True)], None


factor_products.register_autograd(_factor_products_gradient, setup_context=_factor_products_setup)
_refuse_second_order(factor_products_backward)


# --- march, sample_points ------------------------------------------------------------------------------------


@_operator
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
    *rays, bits = check_rays(origins, directions, near, far, bits, resolution, rule)
    jitter = prepare("jitter", jitter, (origins.shape[0],), F32, origins.device)
    run = choose(origins.device, cpu.march, cuda.march)
    return run(*rays, jitter, bits, resolution, _space(box, contracted), StepRule(*rule))


@march.register_fake
def _(origins: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.library.get_ctx().new_dynamic_size()
    offsets = origins.new_empty(origins.shape[0] + 1, dtype=torch.int64)
    return offsets, origins.new_empty(total), origins.new_empty(total)


@_operator
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
    device, rays, n = origins.device, ray_offsets.shape[0] - 1, t_starts.shape[0]
    return choose(device, cpu.sample_points, cuda.sample_points)(
        prepare("origins", origins, (rays, 3), F32, device),
        prepare("directions", directions, (rays, 3), F32, device),
        check_offsets(ray_offsets, n, device),
        prepare("t_starts", t_starts, (n,), F32, device),
        prepare("t_ends", t_ends, (n,), F32, device),
        _space(box, contracted),
    )


@sample_points.register_fake
def _(origins: Tensor, directions: Tensor, ray_offsets: Tensor, t_starts: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return t_starts.new_empty(t_starts.shape[0], 3), t_starts.new_empty(t_starts.shape[0], 3)


# --- select_visible ------------------------------------------------------------------------------------------


@_operator
def select_visible(
    sigma: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_offsets: Tensor,
    rows: Sequence[Tensor],
    min_transmittance: float,
) -> List[Tensor]:  # noqa: UP006 (PyTorch 2.6 does not know list)
    """Packed samples and tensors [N, ...] -> ray_offsets [R + 1], t_starts [M], t_ends [M], and their rows [M, ...].

    See reference.select_visible.
    """
    n, device = sigma.shape[0], sigma.device
    if not 0 < min_transmittance <= 1:
        raise ValueError(f"min_transmittance must be above 0 and at most 1, not {min_transmittance}")
    return choose(device, cpu.select_visible, cuda.select_visible)(
        prepare("sigma", sigma, (n,), F32, device),
        prepare("t_starts", t_starts, (n,), F32, device),
        prepare("t_ends", t_ends, (n,), F32, device),
        check_offsets(ray_offsets, n, device),
        [prepare("rows", each, (n, *[None] * (each.dim() - 1)), F32, device) for each in rows],
        -math.log(min_transmittance),
    )


@select_visible.register_fake
def _(sigma: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, rows: Sequence[Tensor], *_: Any) -> Any:
    total = torch.library.get_ctx().new_dynamic_size()
    kept = [each.new_empty(total, *each.shape[1:]) for each in (t_starts, t_ends, *rows)]
    return [ray_offsets.new_empty(ray_offsets.shape), *kept]


# --- composite -----------------------------------------------------------------------------------------------


def _samples(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> tuple[Tensor, ...]:
    n, device = sigma.shape[0], sigma.device
    return (
        prepare("sigma", sigma, (n,), F32, device),
        prepare("rgb", rgb, (n, 3), F32, device),
        prepare("t_starts", t_starts, (n,), F32, device),
        prepare("t_ends", t_ends, (n,), F32, device),
        check_offsets(ray_offsets, n, device),
    )


@_operator
def composite(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    """Packed samples -> [R, 5]: rgb, alpha, depth; see reference.composite."""
    run = choose(sigma.device, cpu.composite_forward, cuda.composite_forward)
    return run(*_samples(sigma, rgb, t_starts, t_ends, ray_offsets))


@composite.register_fake
def _(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    return sigma.new_empty(ray_offsets.shape[0] - 1, 5)


@_operator
def composite_backward(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sigma [N] and rgb [N, 3]."""
    grad = prepare("grad", grad, (ray_offsets.shape[0] - 1, 5), F32, sigma.device)
    run = choose(sigma.device, cpu.composite_backward, cuda.composite_backward)
    return run(*_samples(sigma, rgb, t_starts, t_ends, ray_offsets), grad)


@composite_backward.register_fake
def _(sigma: Tensor, rgb: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return sigma.new_empty(sigma.shape), rgb.new_empty(rgb.shape)  # contiguous, see network_backward


def _composite_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _composite_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_sigma, grad_rgb = composite_backward(*ctx.saved_tensors, grad)
    return grad_sigma, grad_rgb, None, None, None


composite.register_autograd(_composite_gradient, setup_context=_composite_setup)
_refuse_second_order(composite_backward)


# --- render --------------------------------------------------------------------------------------------------


@_operator
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
    rays = check_rays(origins, directions, near, far, bits, resolution, rule)
    table, layout = _grid(table, resolutions, offsets, log2_table_size, halves=True)
    _, density = check_network(near.new_empty(0, layout.out_features), density, density_spec, density_eps)
    geometry = outputs_of(density_spec) - 1  # the other output is the density
    _, color = check_network(near.new_empty(0, geometry + HARMONICS), color, color_spec, color_eps)
    check_color_outputs(color_spec)
    return choose(origins.device, cpu.render, cuda.render)(
        *rays,
        resolution,
        _space(box, contracted),
        StepRule(*rule),
        table,
        layout,
        PackedChain(density, tuple(density_spec), tuple(density_eps)),
        PackedChain(color, tuple(color_spec), tuple(color_eps)),
        min_transmittance,
    )


@render.register_fake
def _(origins: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rays = origins.shape[0]
    return origins.new_empty(rays, 5), origins.new_empty(rays, dtype=torch.int64)


# --- masked Adam: works in place and has no gradient, so it is a function and not an operator ----------------


def masked_adam(
    parameter: Tensor,
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    betas: tuple[float, float],
    eps: float,
    step_size: float,
    second_scale: float,
) -> None:
    """One Adam step, in place, on the values with nonzero gradient. All tensors have the same shape.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape, or a tensor that is changed in place is not contiguous.
    """
    device, shape = parameter.device, tuple(parameter.shape)
    grad = prepare("grad", grad, shape, F32, device)
    for name, tensor in (("parameter", parameter), ("first", first), ("second", second)):
        prepare(name, tensor, shape, F32, device)
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, since it is changed in place")
    run = choose(device, cpu.masked_adam, cuda.masked_adam)
    run(parameter, grad, first, second, betas, eps, step_size, second_scale)
    # So that autograd detects a graph that has saved the old values, as after any in-place change.
    torch.autograd.graph.increment_version(parameter)
