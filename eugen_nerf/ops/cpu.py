"""The ops on a CPU, implemented by the compiled C++ of src/cpu.cpp.

`operators` calls these functions with checked, contiguous tensors. Results take dtype and device from an argument, not
from PyTorch's defaults. The number of threads is ``torch.get_num_threads()``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.ops.build import cpu_library
from eugen_nerf.ops.layout import HashGridLayout, Space, StepRule, ray_offsets_of
from eugen_nerf.ops.network_spec import HARMONICS, outputs_of
from eugen_nerf.ops.packing import PackedChain
from eugen_nerf.ops.products import empty_gradients, product_table


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _floats(*values: float) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * len(values))(*values)


def _count(tensor: Tensor) -> ctypes.c_int64:
    return ctypes.c_int64(tensor.shape[0])


def _call(function: str, *arguments: Any) -> None:
    """Call an entry point with the number of threads as its last argument."""
    converted = [_pointer(a) if a is None or isinstance(a, Tensor) else a for a in arguments]
    if getattr(cpu_library(), function)(*converted, ctypes.c_int(torch.get_num_threads())):
        raise ValueError(f"{function} has no code for these arguments")


def _grid(layout: HashGridLayout) -> tuple[Any, ...]:
    return (
        _integers(layout.resolutions),
        _integers(layout.offsets),
        ctypes.c_int(layout.num_levels),
        ctypes.c_int(layout.features_per_level),
        ctypes.c_int(layout.log2_table_size),
    )


def _space(space: Space) -> tuple[Any, ...]:
    return _floats(*space.box[0], *space.box[1]), ctypes.c_int(space.contracted)


def hash_encode_forward(x: Tensor, table: Tensor, layout: HashGridLayout) -> Tensor:
    """[n, 3], [entries, F] -> [n, L * F]."""
    out = x.new_empty(x.shape[0], layout.out_features)
    _call("eugen_hash_encode_forward", x, table, *_grid(layout), _count(x), out)
    return out


def hash_encode_backward(
    x: Tensor, table: Tensor, grad: Tensor, layout: HashGridLayout, needs_table: bool, needs_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of table and x; a gradient that is not needed is an empty tensor."""
    grad_table = table.new_zeros(table.shape) if needs_table else table.new_empty(0)
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    needed = grad_table if needs_table else None, grad_x if needs_x else None
    _call("eugen_hash_encode_backward", x, table, *_grid(layout), _count(x), grad, *needed)
    return grad_table, grad_x


def spherical_harmonics(directions: Tensor) -> Tensor:
    """[n, 3] -> [n, 16]."""
    out = directions.new_empty(directions.shape[0], HARMONICS)
    _call("eugen_spherical_harmonics", directions, _count(directions), out)
    return out


def color_inputs(directions: Tensor, geometry: Tensor) -> Tensor:
    """[n, 3], [n, G] -> [n, 16 + G]: spherical harmonics and geometry."""
    return torch.cat([spherical_harmonics(directions), geometry], dim=-1)


def network_forward(x: Tensor, parameters: Tensor, spec: Sequence[int], eps: Sequence[float]) -> Tensor:
    """[n, in] -> [n, out]."""
    out = x.new_empty(x.shape[0], outputs_of(spec))
    _call("eugen_network_forward", x, parameters, _integers(spec), _floats(*eps), _count(x), out)
    return out


def network_backward(
    x: Tensor, parameters: Tensor, grad: Tensor, spec: Sequence[int], eps: Sequence[float], needs_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty if not needed) and of the packed parameters."""
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    grad_parameters = torch.empty_like(parameters)
    chain = parameters, _integers(spec), _floats(*eps)
    _call("eugen_network_backward", x, *chain, _count(x), grad, grad_x if needs_x else None, grad_parameters)
    return grad_x, grad_parameters


def march(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    jitter: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rays -> ray_offsets [R + 1], t_starts [N], t_ends [N]."""
    rays = origins.shape[0]
    counts = origins.new_empty(rays, dtype=torch.int64)
    library = cpu_library()
    library.eugen_march.restype = ctypes.c_void_p
    handle = library.eugen_march(
        *map(_pointer, (origins, directions, near, far, jitter)),
        ctypes.c_int64(rays),
        _pointer(bits),
        ctypes.c_int(resolution),
        *_space(space),
        _floats(rule.step_size, rule.cone_angle),
        _pointer(counts),
        ctypes.c_int(torch.get_num_threads()),
    )
    ray_offsets = ray_offsets_of(counts)
    total = int(ray_offsets[-1])
    t_starts, t_ends = origins.new_empty(total), origins.new_empty(total)
    library.eugen_march_take(ctypes.c_void_p(handle), _pointer(t_starts), _pointer(t_ends))
    return ray_offsets, t_starts, t_ends


def sample_points(
    origins: Tensor, directions: Tensor, ray_offsets: Tensor, t_starts: Tensor, t_ends: Tensor, space: Space
) -> tuple[Tensor, Tensor]:
    """Packed samples -> positions in the unit cube [N, 3], directions [N, 3]."""
    n = t_starts.shape[0]
    unit, view = origins.new_empty(n, 3), origins.new_empty(n, 3)
    samples = ray_offsets, t_starts, t_ends
    _call("eugen_sample_points", origins, directions, _count(origins), *samples, *_space(space), unit, view)
    return unit, view


def select_visible(
    sigma: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_offsets: Tensor,
    rows: Sequence[Tensor],
    max_thickness: float,
) -> list[Tensor]:
    """Packed samples and tensors [N, ...] -> ray_offsets [R + 1], and the visible samples' rows of t_starts, ...."""
    counts = torch.empty_like(ray_offsets[1:])
    samples = sigma, t_starts, t_ends, ray_offsets
    _call("eugen_visible_count", *samples, _count(counts), ctypes.c_float(max_thickness), counts)
    kept = ray_offsets_of(counts)
    total, arrays = int(kept[-1]), [t_starts, t_ends, *rows]
    out = [array.new_empty(total, *array.shape[1:]) for array in arrays]
    widths = _integers([array.shape[1:].numel() for array in arrays])
    pointers = _pointers(arrays), _pointers(out), widths, ctypes.c_int(len(arrays))
    _call("eugen_visible_rows", ray_offsets, kept, _count(counts), *pointers)
    return [kept, *out]


def composite_forward(sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor) -> Tensor:
    """Packed samples -> [R, 5]: rgb, alpha, depth."""
    rays = ray_offsets.shape[0] - 1
    out = sigma.new_empty(rays, 5)
    _call("eugen_composite_forward", sigma, rgb, t_starts, t_ends, ray_offsets, ctypes.c_int64(rays), out)
    return out


def composite_backward(
    sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sigma [N] and rgb [N, 3]."""
    grad_sigma, grad_rgb = torch.empty_like(sigma), torch.empty_like(rgb)
    samples = sigma, rgb, t_starts, t_ends, ray_offsets
    _call("eugen_composite_backward", *samples, _count(grad), grad, grad_sigma, grad_rgb)
    return grad_sigma, grad_rgb


def render(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
    table: Tensor,
    layout: HashGridLayout,
    density: PackedChain,
    color: PackedChain,
    min_transmittance: float,
) -> tuple[Tensor, Tensor]:
    """Rays and a whole field -> [R, 5] rgb, alpha, depth, and samples [R]."""
    rays = origins.shape[0]
    out, samples = origins.new_empty(rays, 5), origins.new_empty(rays, dtype=torch.int64)
    networks = [(chain.parameters, _integers(chain.spec), _floats(*chain.eps)) for chain in (density, color)]
    _call(
        "eugen_render",
        origins,
        directions,
        near,
        far,
        ctypes.c_int64(rays),
        bits,
        ctypes.c_int(resolution),
        *_space(space),
        _floats(rule.step_size, rule.cone_angle),
        table,
        *_grid(layout),
        *networks[0],
        *networks[1],
        ctypes.c_float(min_transmittance),
        out,
        samples,
    )
    return out, samples


def factor_products_forward(factors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Factors and the places of products -> all values [K]; see `products.describe`."""
    table = product_table(tuple(places))
    out = factors[0].new_empty(table.values)
    _call("eugen_factor_products_forward", _pointers(factors), table.places, ctypes.c_int(len(table.places)), out)
    return out


def factor_products_backward(
    factors: Sequence[Tensor], places: Sequence[int], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the factors; one that is not needed is an empty tensor."""
    table = product_table(tuple(places)).places
    grads = empty_gradients(factors, needed)
    wanted = [one if need else None for one, need in zip(grads, needed, strict=True)]
    products = _pointers(factors), table, ctypes.c_int(len(table))
    _call("eugen_factor_products_backward", *products, grad, _pointers(wanted))
    return grads


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))


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
    """One Adam step, in place, on the values with nonzero gradient. All tensors have the same shape."""
    numbers = map(ctypes.c_float, (*betas, eps, step_size, second_scale))
    _call("eugen_masked_adam", parameter, grad, first, second, ctypes.c_int64(parameter.numel()), *numbers)
