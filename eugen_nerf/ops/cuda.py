"""The ops on an NVIDIA GPU: which kernels run, with which arguments, in which order.

`operators` calls these functions with a `cuda_driver.Device` and checked, contiguous tensors aligned to 16 bytes.
Kernels of networks are compiled for their widths at first use, which takes a few seconds, and are cached on disk.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eugen_nerf.errors import UserError
from eugen_nerf.ops.cuda_driver import Device
from eugen_nerf.ops.layout import HashGridLayout, Space, StepRule, ray_offsets_of
from eugen_nerf.ops.network_spec import HARMONICS, inputs_of, outputs_of
from eugen_nerf.ops.packing import PackedChain
from eugen_nerf.ops.products import MAX_FACTORS, MAX_PRODUCTS, ProductPlace, empty_gradients, product_table
from eugen_nerf.ops.tiles import (
    MAX_LEVELS,
    MAX_STAGES,
    RENDER_WARPS,
    Shape,
    Tiles,
    plan,
    render_blocks,
    render_shared_bytes,
)

PRECISIONS = ("fp16", "bf16")

WARP = 32
THREADS = 128  # of a block in kernels that give each thread one item
MAX_ARRAYS = 8  # that one launch selects rows of, as in src/rays.cu
BLOCK = 4  # cells along an axis of a block of the occupancy grid, as in src/march.h


def precision() -> str:
    """Return the precision that tensor cores multiply in: EUGEN_PRECISION, by default fp16.

    Sums, parameters and gradients are float32.

    Raises:
        UserError: the name is unknown.
    """
    name = os.environ.get("EUGEN_PRECISION", "fp16")
    if name not in PRECISIONS:
        raise UserError(f"EUGEN_PRECISION is {name!r}, but the precisions are {', '.join(PRECISIONS)}.")
    return name


def half_dtype() -> torch.dtype:
    """Return the dtype that tensor cores multiply in."""
    return torch.bfloat16 if precision() == "bf16" else torch.float16


def network_tiles(device: Device, spec: Sequence[int]) -> Tiles:
    """Return how the device divides a network's work.

    Raises:
        ValueError: the network does not fit. `dispatch` checks this in advance.
    """
    tiles = plan(tuple(spec), device.shared_memory)
    if tiles is None:
        raise ValueError("the network does not fit into the GPU's shared memory")
    return tiles


def network_constants(spec: Sequence[int], tiles: Tiles, half_rows: bool, padded: bool = False) -> tuple[str, ...]:
    """Preprocessor definitions of src/network.cu for a network, whose input rows are `padded_rows` long or not."""
    in_row = padded_rows(inputs_of(spec)) if padded else inputs_of(spec)
    return _network_constants(tuple(spec), tiles, half_rows, precision() == "bf16", in_row)


@functools.cache
def _network_constants(
    spec: tuple[int, ...], tiles: Tiles, half_rows: bool, bf16: bool, in_row: int
) -> tuple[str, ...]:
    numbers = ",".join(str(number) for number in spec)
    return (
        f"EUGEN_SPEC={numbers}",
        *tiles.constants(),
        f"EUGEN_HALF_ROWS={int(half_rows)}",
        f"EUGEN_BF16={int(bf16)}",
        f"EUGEN_IN_ROW={in_row}",
    )


def padded_rows(width: int) -> int:
    """Return the length of a row in memory that network kernels read and write four values at a time."""
    return _blocks(width, 4) * 4


def _rows_in_memory(x: Tensor) -> Tensor:
    """Contiguous [n, row]: the rows of `x` [n, width] and, if they are padded to `padded_rows`, the padding."""
    n, width = x.shape
    row = padded_rows(width)
    if x.is_contiguous() or x.stride() != (row, 1):
        return x.contiguous()
    last = x.storage_offset() + n * row
    inside = last * x.element_size() <= x.untyped_storage().nbytes() and x.data_ptr() % 16 == 0
    return x.as_strided((n, row), (row, 1)) if inside else x.contiguous()


def _epsilons(eps: Sequence[float]) -> ctypes.Array[ctypes.c_float]:
    """struct Epsilons of src/chain.cuh."""
    return (ctypes.c_float * MAX_STAGES)(*eps)


def _blocks(n: int, each: int) -> int:
    return -(-n // each)


def load_network(device: Device, spec: Sequence[int], padded: bool = False) -> None:
    """Compile and load the kernels of a network for float32 rows, with input rows that are `padded_rows` long or not.

    Raises:
        BuildError: they do not compile.
        CudaError: the driver rejects them.
    """
    tiles = network_tiles(device, spec)
    constants = network_constants(spec, tiles, False, padded)
    device.resident_blocks("network.cu", constants, "network_forward", WARP * tiles.warps, tiles.shared_bytes)
    device.resident_blocks(
        "network.cu", constants, "network_backward", WARP * tiles.back_warps, tiles.back_shared_bytes
    )


def _rounded(device: Device, parameters: Tensor, spec: Sequence[int], constants: tuple[str, ...]) -> Tensor:
    """Round the matrices to halves in the layout of shared memory, for networks whose weights are streamed."""
    rounded = torch.empty(Shape(spec).weight_bytes // 2, dtype=torch.int16, device=parameters.device)
    grid = min(_blocks(rounded.numel() // 2, 256), 8 * device.multiprocessors)
    device.launch("network.cu", constants, "round_weights", (grid, 1), 256, 0, (parameters, rounded))
    return rounded


def network_forward(
    device: Device,
    x: Tensor,
    parameters: Tensor,
    spec: Sequence[int],
    eps: Sequence[float],
    tiles: Tiles | None = None,
) -> Tensor:
    """[n, in] -> [n, out] in the dtype of ``x``: float32, or the half type of `precision`.

    ``x`` is read faster if its rows are `padded_rows` long. ``tiles`` replaces `network_tiles`, for measurements.
    """
    n, rows = x.shape[0], _rows_in_memory(x)
    out = x.new_empty(n, outputs_of(spec))
    tiles = tiles or network_tiles(device, spec)
    constants = network_constants(spec, tiles, x.dtype != torch.float32, rows.shape != x.shape)
    kernel = "network.cu", constants, "network_forward"
    size = WARP * tiles.warps, tiles.shared_bytes
    if n:
        rounded = _rounded(device, parameters, spec, constants) if tiles.streamed else None
        grid = min(_blocks(n, tiles.rows), device.resident_blocks(*kernel, *size))
        arguments = (rows, parameters, rounded, _epsilons(eps), ctypes.c_int64(n), out)
        device.launch(*kernel, (grid, 1), *size, arguments)
    return out


def network_backward(
    device: Device,
    x: Tensor,
    parameters: Tensor,
    grad: Tensor,
    spec: Sequence[int],
    eps: Sequence[float],
    needs_x: bool,
    tiles: Tiles | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty if not needed) and of the packed parameters, which are float32.

    The rows of the gradient of ``x`` lie as those of ``x`` do, see `network_forward`.
    """
    n, rows = x.shape[0], _rows_in_memory(x)
    padded = rows.shape != x.shape
    grad_rows = torch.empty_like(rows) if needs_x else x.new_empty(0)
    grad_parameters = torch.zeros_like(parameters)
    tiles = tiles or network_tiles(device, spec)
    constants = network_constants(spec, tiles, x.dtype != torch.float32, padded)
    size = WARP * tiles.back_warps, tiles.back_shared_bytes
    if n:
        largest = torch.zeros(1, dtype=torch.int32, device=x.device)
        grid = min(_blocks(grad.numel(), 1024), device.multiprocessors * 8)
        arguments: tuple[Any, ...] = (grad, ctypes.c_int64(grad.numel()), largest)
        of_warps = 4 * 256 // WARP
        device.launch("network.cu", constants, "largest_magnitude", (grid, 1), 256, of_warps, arguments)
        rounded = _rounded(device, parameters, spec, constants) if tiles.back_streamed else None
        kernel = "network.cu", constants, "network_backward"
        grid = min(_blocks(n, tiles.back_rows), device.resident_blocks(*kernel, *size))
        arguments = (rows, parameters, rounded, _epsilons(eps), ctypes.c_int64(n), grad, largest,
                     grad_rows if needs_x else None, grad_parameters)  # fmt: skip
        device.launch(*kernel, (grid, 1), *size, arguments)
    return grad_rows[:, : x.shape[1]] if needs_x and padded else grad_rows, grad_parameters


class GridLevels(ctypes.Structure):
    """struct GridLevels of src/grid.cuh."""

    _fields_ = (
        ("count", ctypes.c_int),
        ("mask", ctypes.c_uint32),
        ("dense", ctypes.c_uint32),
        ("resolution", ctypes.c_int * MAX_LEVELS),
        ("offset", ctypes.c_uint32 * MAX_LEVELS),
    )


@functools.cache
def _levels(layout: HashGridLayout) -> GridLevels:
    return GridLevels(
        layout.num_levels,
        (1 << layout.log2_table_size) - 1,
        sum(layout.is_dense(level) << level for level in range(layout.num_levels)),
        (ctypes.c_int * MAX_LEVELS)(*layout.resolutions),
        (ctypes.c_uint32 * MAX_LEVELS)(*layout.offsets[:-1]),
    )


def grid_constants(features: int, half_table: bool) -> tuple[str, ...]:
    """Preprocessor definitions of src/grid.cuh."""
    return (f"EUGEN_FEATURES={features}", f"EUGEN_HALF_TABLE={int(half_table)}")


def _level_groups(layout: HashGridLayout) -> int:
    """Number of blocks along the grid's second axis, one for each group of levels, as in src/grid.cu."""
    return _blocks(layout.num_levels, max(1, 8 // layout.features_per_level))


def hash_encode_forward(device: Device, x: Tensor, table: Tensor, layout: HashGridLayout) -> Tensor:
    """[n, 3], [entries, F] float32 or float16 -> [n, L * F] float32."""
    n = x.shape[0]
    out = x.new_empty(n, layout.out_features)
    if n:
        constants = grid_constants(layout.features_per_level, table.dtype == torch.float16)
        arguments = (x, table, _levels(layout), ctypes.c_int64(n), out)
        grid = _blocks(n, THREADS), _level_groups(layout)
        device.launch("grid.cu", constants, "hash_encode_forward", grid, THREADS, 0, arguments)
    return out


def hash_encode_backward(
    device: Device, x: Tensor, table: Tensor, grad: Tensor, layout: HashGridLayout, needs_table: bool, needs_x: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of table and x; a gradient that is not needed is an empty tensor."""
    n = x.shape[0]
    grad_table = table.new_zeros(table.shape) if needs_table else table.new_empty(0)
    grad_x = torch.empty_like(x) if needs_x else x.new_empty(0)
    constants = grid_constants(layout.features_per_level, half_table=False)
    levels, count = _levels(layout), ctypes.c_int64(n)
    if n and needs_table:
        arguments: tuple[Any, ...] = (x, levels, count, grad, grad_table)
        grid = _blocks(n, THREADS), _level_groups(layout)
        device.launch("grid.cu", constants, "hash_encode_backward", grid, THREADS, 0, arguments)
    if n and needs_x:
        arguments = (x, table, levels, count, grad, grad_x)
        grid = _blocks(n, THREADS), 1
        device.launch("grid.cu", constants, "hash_encode_position_gradient", grid, THREADS, 0, arguments)
    return grad_table, grad_x


class AdamStep(ctypes.Structure):
    """struct AdamStep of src/adam.h."""

    _fields_ = tuple((name, ctypes.c_float) for name in ("beta1", "beta2", "eps", "step_size", "second_scale"))


def masked_adam(
    device: Device,
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
    n = parameter.numel()
    if n:
        step = AdamStep(*betas, eps, step_size, second_scale)
        arguments = (parameter, grad, first, second, ctypes.c_int64(n), step)
        device.launch("adam.cu", (), "masked_adam", (_blocks(n, THREADS), 1), THREADS, 0, arguments)


class Products(ctypes.Structure):
    """struct Products of src/products.cu."""

    _fields_ = (("count", ctypes.c_int), ("at", ProductPlace * MAX_PRODUCTS))


class Pointers(ctypes.Structure):
    """An argument of a kernel that holds pointers.

    Attributes:
        tensors: what they point to. Devices that run kernels on copies of their arguments need to know.
    """

    tensors: Sequence[Tensor] = ()


class Factors(Pointers):
    """struct Factors of src/products.cu."""

    _fields_ = (("at", ctypes.c_void_p * MAX_FACTORS),)


class Gradients(Pointers):
    """struct Gradients of src/products.cu."""

    _fields_ = (
        ("count", ctypes.c_int),
        ("start", ctypes.c_int * (MAX_FACTORS + 1)),
        ("at", ctypes.c_void_p * MAX_FACTORS),
    )


@functools.cache
def _products(places: tuple[int, ...]) -> Products:
    table = product_table(places).places
    return Products(len(table), (ProductPlace * MAX_PRODUCTS)(*table))


def _factors(factors: Sequence[Tensor]) -> Factors:
    pointers = Factors((ctypes.c_void_p * MAX_FACTORS)(*(factor.data_ptr() for factor in factors)))
    pointers.tensors = factors
    return pointers


def factor_products_forward(device: Device, factors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Factors and the places of products -> all values [K]; see `products.describe`."""
    places = tuple(places)
    n = product_table(places).values
    out = factors[0].new_empty(n)
    if n:
        arguments = (_factors(factors), _products(places), ctypes.c_int(n), out)
        grid = _blocks(n, THREADS), 1
        device.launch("products.cu", (), "factor_products_forward", grid, THREADS, 0, arguments)
    return out


def factor_products_backward(
    device: Device, factors: Sequence[Tensor], places: Sequence[int], grad: Tensor, needed: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the factors; one that is not needed is an empty tensor."""
    grads = empty_gradients(factors, needed)
    starts = list(itertools.accumulate((factor.numel() for factor in factors), initial=0))
    if starts[-1]:
        pointers = (one.data_ptr() if need else None for one, need in zip(grads, needed, strict=True))
        gradients = Gradients(
            len(factors),
            (ctypes.c_int * (MAX_FACTORS + 1))(*starts),
            (ctypes.c_void_p * MAX_FACTORS)(*pointers),
        )
        gradients.tensors = grads
        arguments = (_factors(factors), _products(tuple(places)), grad, gradients)
        grid = _blocks(starts[-1], THREADS), 1
        device.launch("products.cu", (), "factor_products_backward", grid, THREADS, 0, arguments)
    return grads


class MarchArguments(ctypes.Structure):
    """struct MarchArguments of src/march.cuh."""

    _fields_ = (
        ("box", ctypes.c_float * 6),
        ("rule", ctypes.c_float * 2),
        ("contracted", ctypes.c_int),
        ("resolution", ctypes.c_int),
    )


def _occupied_blocks(device: Device, bits: Tensor, resolution: int) -> Tensor:
    """Which blocks of BLOCK^3 cells contain an occupied cell, uint8. Ray marching crosses the others in one step."""
    blocks = bits.new_empty(_blocks(resolution, BLOCK) ** 3)
    _ray_kernel(device, "occupied_blocks", blocks.numel(), bits, ctypes.c_int(resolution), blocks)
    return blocks


def _march(space: Space, rule: StepRule, resolution: int) -> MarchArguments:
    box, steps = (*space.box[0], *space.box[1]), (rule.step_size, rule.cone_angle)
    return MarchArguments((ctypes.c_float * 6)(*box), (ctypes.c_float * 2)(*steps), int(space.contracted), resolution)


def _ray_kernel(device: Device, kernel: str, threads: int, *arguments: Any) -> None:
    """Run a kernel of src/rays.cu with the given number of threads; do nothing for 0."""
    if threads:
        device.launch("rays.cu", (), kernel, (_blocks(threads, THREADS), 1), THREADS, 0, arguments)


def _warp_kernel(device: Device, kernel: str, rays: int, *arguments: Any) -> None:
    """Run a kernel of src/rays.cu with one warp for each ray; do nothing without rays."""
    _ray_kernel(device, kernel, WARP * rays, *arguments)


def spherical_harmonics(device: Device, directions: Tensor) -> Tensor:
    """[n, 3] -> [n, 16]."""
    n = directions.shape[0]
    out = directions.new_empty(n, HARMONICS)
    _ray_kernel(device, "spherical_harmonics", n, directions, ctypes.c_int64(n), out)
    return out


def color_inputs(device: Device, directions: Tensor, geometry: Tensor) -> Tensor:
    """[n, 3], [n, G] -> [n, 16 + G]: spherical harmonics and geometry, in rows that are `padded_rows` long."""
    harmonics = spherical_harmonics(device, directions)
    width = HARMONICS + geometry.shape[1]
    padding = harmonics[:, : padded_rows(width) - width]  # any numbers
    return torch.cat([harmonics, geometry, padding], dim=-1)[:, :width]


def march(
    device: Device,
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
    """Rays -> ray_offsets [R + 1], t_starts [N], t_ends [N]. Synchronizes with the device to read N."""
    rays = origins.shape[0]
    arguments = _march(space, rule, resolution)
    blocks = _occupied_blocks(device, bits, resolution) if rays else None
    common = (origins, directions, near, far, jitter, ctypes.c_int64(rays), arguments, bits, blocks)
    counts = torch.empty(rays, dtype=torch.int64, device=origins.device)
    _warp_kernel(device, "march_count", rays, *common, counts)
    ray_offsets = ray_offsets_of(counts)
    total = int(ray_offsets[-1])
    t_starts, t_ends = origins.new_empty(total), origins.new_empty(total)
    _warp_kernel(device, "march_write", rays, *common, ray_offsets, t_starts, t_ends)
    return ray_offsets, t_starts, t_ends


def sample_points(
    device: Device,
    origins: Tensor,
    directions: Tensor,
    ray_offsets: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    space: Space,
) -> tuple[Tensor, Tensor]:
    """Packed samples -> positions in the unit cube [N, 3], directions [N, 3]."""
    rays, n = origins.shape[0], t_starts.shape[0]
    unit, view = t_starts.new_empty(n, 3), t_starts.new_empty(n, 3)
    march = _march(space, StepRule(1.0), 2)  # positions depend on neither step rule nor occupancy
    sizes = ctypes.c_int64(rays), ctypes.c_int64(n)
    _warp_kernel(device, "sample_points", rays, origins, directions, sizes[0], ray_offsets, t_starts, t_ends,
                sizes[1], march, unit, view)  # fmt: skip
    return unit, view


class RowArrays(Pointers):
    """struct RowArrays of src/rays.cu."""

    _fields_ = (
        ("width", ctypes.c_int * MAX_ARRAYS),
        ("from_", ctypes.c_void_p * MAX_ARRAYS),
        ("to", ctypes.c_void_p * MAX_ARRAYS),
    )


def select_visible(
    device: Device,
    sigma: Tensor,
    t_starts: Tensor,
    t_ends: Tensor,
    ray_offsets: Tensor,
    rows: Sequence[Tensor],
    max_thickness: float,
) -> list[Tensor]:
    """Packed samples and tensors [N, ...] -> ray_offsets [R + 1], and the visible samples' rows of t_starts, ....

    Synchronizes with the device to read how many samples are visible.
    """
    rays, n = ray_offsets.shape[0] - 1, ctypes.c_int64(sigma.shape[0])
    counts = torch.empty(rays, dtype=torch.int64, device=sigma.device)
    samples = sigma, t_starts, t_ends, n, ray_offsets, ctypes.c_int64(rays)
    _warp_kernel(device, "visible_count", rays, *samples, ctypes.c_float(max_thickness), counts)
    kept = ray_offsets_of(counts)
    total = int(kept[-1])
    arrays = [t_starts, t_ends, *rows]
    out = [array.new_empty(total, *array.shape[1:]) for array in arrays]
    for begin in range(0, len(arrays) if total else 0, MAX_ARRAYS):
        some = slice(begin, begin + MAX_ARRAYS)
        pointers = RowArrays(
            (ctypes.c_int * MAX_ARRAYS)(*(array.shape[1:].numel() for array in arrays[some])),
            (ctypes.c_void_p * MAX_ARRAYS)(*(array.data_ptr() for array in arrays[some])),
            (ctypes.c_void_p * MAX_ARRAYS)(*(array.data_ptr() for array in out[some])),
        )
        pointers.tensors = (*arrays[some], *out[some])
        arguments = (pointers, n, ray_offsets, kept, ctypes.c_int64(rays))
        grid = _blocks(WARP * rays, THREADS), len(arrays[some])
        device.launch("rays.cu", (), "visible_rows", grid, THREADS, 0, arguments)
    return [kept, *out]


def composite_forward(
    device: Device, sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor
) -> Tensor:
    """Packed samples -> [R, 5]: rgb, alpha, depth."""
    n, rays = sigma.shape[0], ray_offsets.shape[0] - 1
    out = sigma.new_empty(rays, 5)
    samples = (sigma, rgb, t_starts, t_ends, ctypes.c_int64(n), ray_offsets, ctypes.c_int64(rays))
    _warp_kernel(device, "composite_forward", rays, *samples, out)
    return out


def composite_backward(
    device: Device, sigma: Tensor, rgb: Tensor, t_starts: Tensor, t_ends: Tensor, ray_offsets: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of sigma [N] and rgb [N, 3]."""
    n, rays = sigma.shape[0], ray_offsets.shape[0] - 1
    grad_sigma, grad_rgb = torch.empty_like(sigma), torch.empty_like(rgb)
    samples = (sigma, rgb, t_starts, t_ends, ctypes.c_int64(n), ray_offsets, ctypes.c_int64(rays))
    _warp_kernel(device, "composite_backward", rays, *samples, grad, grad_sigma, grad_rgb)
    return grad_sigma, grad_rgb


def render_constants(
    density_spec: Sequence[int], color_spec: Sequence[int], features: int, half_table: bool
) -> tuple[str, ...]:
    """Preprocessor definitions of src/render.cu."""
    return (
        f"EUGEN_DENSITY_SPEC={','.join(map(str, density_spec))}",
        f"EUGEN_COLOR_SPEC={','.join(map(str, color_spec))}",
        *grid_constants(features, half_table),
        f"EUGEN_WARPS={RENDER_WARPS}",
        f"EUGEN_BLOCKS={render_blocks(density_spec, color_spec)}",
        f"EUGEN_SHARED_BYTES={render_shared_bytes(density_spec, color_spec)}",
        f"EUGEN_BF16={int(precision() == 'bf16')}",
    )


def load_render(
    device: Device, density_spec: Sequence[int], color_spec: Sequence[int], features: int, half_table: bool
) -> None:
    """Compile and load the kernel that renders a field in one pass.

    Raises:
        BuildError: it does not compile.
        CudaError: the driver rejects it.
    """
    constants = render_constants(density_spec, color_spec, features, half_table)
    shared = render_shared_bytes(density_spec, color_spec)
    device.resident_blocks("render.cu", constants, "render", WARP * RENDER_WARPS, shared)


def render(
    device: Device,
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
    if rays:
        half_table = table.dtype == torch.float16
        constants = render_constants(density.spec, color.spec, layout.features_per_level, half_table)
        kernel = "render.cu", constants, "render"
        size = WARP * RENDER_WARPS, render_shared_bytes(density.spec, color.spec)
        grid = min(_blocks(rays, WARP * RENDER_WARPS), device.resident_blocks(*kernel, *size))
        next_ray = torch.zeros(1, dtype=torch.int32, device=origins.device)
        arguments = (
            origins,
            directions,
            near,
            far,
            ctypes.c_int64(rays),
            _march(space, rule, resolution),
            bits,
            _occupied_blocks(device, bits, resolution),
            table,
            _levels(layout),
            density.parameters,
            _epsilons(density.eps),
            color.parameters,
            _epsilons(color.eps),
            ctypes.c_float(min_transmittance),
            next_ray,
            out,
            samples,
        )
        device.launch(*kernel, (grid, 1), *size, arguments)
    return out, samples
