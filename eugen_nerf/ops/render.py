"""Rendering by the fastest runner: one native pass where there is one, else `reference.render`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from eugen_nerf.ops import operators, reference
from eugen_nerf.ops.checks import why_not_grid
from eugen_nerf.ops.cuda_driver import gpu, gpu_number
from eugen_nerf.ops.dispatch import runs_network, uses_native
from eugen_nerf.ops.layout import Space, StepRule
from eugen_nerf.ops.operators import grid_arguments, rule_argument, space_arguments
from eugen_nerf.ops.packing import PackedChain, pack_chain, why_not_native
from eugen_nerf.ops.radiance_field import RadianceField
from eugen_nerf.ops.tiles import render_shared_bytes

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

# `reference.render` holds all samples of its rays at once, some kB for each ray.
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
    """See `reference.render`. A `RadianceField` may be rendered natively, any other function is called."""
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
    out, samples = operators.render(
        origins,
        directions,
        near,
        far,
        bits,
        resolution,
        *space_arguments(space),
        rule_argument(rule),
        field.table,
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


def _packed_networks(field: RadianceField, *rays: Tensor) -> tuple[PackedChain, PackedChain] | None:
    """The field's networks for the native runner of its device; None if that cannot render the field in one pass."""
    device = rays[0].device
    if why_not_native(field.density) or why_not_native(field.color) or why_not_grid(field.layout, device):
        return None
    if not uses_native(field.backend, *rays, field.table, field.density.weight):
        return None
    density, color = pack_chain(field.density), pack_chain(field.color)
    if not all(runs_network(chain, device, field.backend) for chain in (density, color)):
        return None
    if device.type == "cuda":
        shared = gpu(gpu_number(device)).shared_memory
        if render_shared_bytes(density.spec, color.spec) > shared:
            return None  # op by op, each with its own kernels
    return density, color
