"""Rendering by the fastest runner: in one native pass if available, otherwise by `reference.render`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from eugen_nerf.ops import cuda, operators, reference
from eugen_nerf.ops.build import BuildError
from eugen_nerf.ops.cuda_driver import CudaError, gpu, gpu_number
from eugen_nerf.ops.layout import Space, StepRule
from eugen_nerf.ops.operators import grid_arguments, rule_argument, space_arguments
from eugen_nerf.ops.packing import PackedChain
from eugen_nerf.ops.radiance_field import RadianceField
from eugen_nerf.ops.tiles import render_shared_bytes, why_not_cuda

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# `reference.render` keeps all samples of its rays in memory, some kB for each ray.
RAYS_AT_ONCE = 1 << 14


def render(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    space: Space,
    rule: StepRule,
    field: RadianceField | Field,
    min_transmittance: float = reference.MIN_TRANSMITTANCE,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Render rays with early termination, without gradients.

    March along the rays, evaluate the field and composite (Mildenhall et al. 2020, "NeRF", eq. 3). A ray is dropped
    once it has become opaque. A `RadianceField` is rendered natively if possible; any other field is called as a
    function.

    Args:
        origins: [R, 3] world units.
        directions: [R, 3] of unit length.
        near: [R] world units.
        far: [R] world units.
        bits: occupancy bitfield over the unit cube, [resolution**3 / 8] uint8; see `occupied`.
        resolution: cells of the occupancy grid along an axis.
        space: map from the world to the unit cube.
        rule: step sizes, in world units.
        field: a `RadianceField`, or a function: positions in the unit cube [N, 3], directions [N, 3] -> density [N] per
            world unit, rgb [N, 3].
        min_transmittance: a ray ends after the sample that takes its transmittance below this value.

    Returns:
        rgb [R, 3] without a background, alpha [R], depth [R] in world units (the sum of weight times distance, not
        divided by alpha), and the number of evaluated samples [R].

    Raises:
        UserError: the field's backend or EUGEN_BACKEND is unknown, or names a native runner that cannot do the work.
        TypeError: in native code, a tensor has the wrong dtype or device.
        ValueError: in native code, a tensor has the wrong shape, the step rule or the resolution is invalid, or the
            field's parts do not fit together.
    """
    if (
        not isinstance(field, RadianceField)
        or (networks := _packed_networks(field, origins, directions, near, far)) is None
    ):
        parts = [
            reference.render(o, d, n, f, bits, resolution, space, rule, field, min_transmittance)
            for o, d, n, f in zip(*(t.split(RAYS_AT_ONCE) for t in (origins, directions, near, far)), strict=True)
        ]
        colors, alphas, depths, counts = (torch.cat(part) for part in zip(*parts, strict=True))
        return colors, alphas, depths, counts
    density, color = networks
    # Tensor cores take the features in fp16 anyway, and an fp16 table halves the memory to read (docs/gpu.md).
    table = field.table.half() if reads_half_tables(origins.device) else field.table
    out, samples = operators.render(
        origins,
        directions,
        near,
        far,
        bits,
        resolution,
        *space_arguments(space),
        rule_argument(rule),
        table,
        *grid_arguments(field.layout),
        density.parameters,
        density.spec,
        density.eps,
        color.parameters,
        color.spec,
        color.eps,
        min_transmittance,
    )
    return out[:, :3], out[:, 3], out[:, 4], samples


def reads_half_tables(device: torch.device) -> bool:
    """Whether a device renders with the hash grid's table in fp16."""
    return device.type == "cuda" and cuda.precision() == "fp16"


def _packed_networks(field: RadianceField, *rays: Tensor) -> tuple[PackedChain, PackedChain] | None:
    """The field's networks packed for its device's native runner; None if that cannot render it in one pass."""
    device, layout = rays[0].device, field.layout
    networks = field.native_networks(*rays)
    if networks is None:
        return None
    density, color = networks
    if device.type == "cuda" and not _has_kernel(
        density.spec, color.spec, layout.features_per_level, reads_half_tables(device), gpu_number(device)
    ):
        return None  # rendered op by op, each op with its own kernels
    return networks


@functools.cache
def _has_kernel(density: tuple[int, ...], color: tuple[int, ...], features: int, half_table: bool, index: int) -> bool:
    """Whether a GPU can render a field with these networks in one pass; warns once if the kernel fails to load."""
    if why_not_cuda(density) or why_not_cuda(color) or render_shared_bytes(density, color) > gpu(index).shared_memory:
        return False
    try:
        cuda.load_render(gpu(index), density, color, features, half_table)
    except (BuildError, CudaError) as error:
        warnings.warn(f"The field is rendered op by op, not in one pass: {error}.", RuntimeWarning, stacklevel=2)
        return False
    return True
