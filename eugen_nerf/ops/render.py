"""Rendering by the fastest runner: one native pass where there is one, else `reference.render`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from eugen_nerf.ops import cpu, reference
from eugen_nerf.ops.dispatch import uses_native_cpu
from eugen_nerf.ops.layout import Space, StepRule
from eugen_nerf.ops.packing import pack_chain, why_not_native
from eugen_nerf.ops.radiance_field import RadianceField

Field = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


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
        or field.layout.features_per_level not in cpu.FEATURES_PER_LEVEL
        or why_not_native(field.density)
        or why_not_native(field.color)
        or not uses_native_cpu(field.backend, origins, directions, near, far, field.table, field.density.weight)
    ):
        return reference.render(origins, directions, near, far, bits, resolution, space, rule, field, min_transmittance)
    density, color, layout = pack_chain(field.density), pack_chain(field.color), field.layout
    out, samples = cpu.render(
        origins,
        directions,
        near,
        far,
        bits,
        resolution,
        [*space.box[0], *space.box[1]],
        space.contracted,
        [rule.step_size, rule.cone_angle],
        field.table,
        layout.resolutions,
        layout.offsets,
        layout.log2_table_size,
        density.parameters,
        density.spec,
        density.eps,
        color.parameters,
        color.spec,
        color.eps,
        min_transmittance,
    )
    return out[:, :3], out[:, 3], out[:, 4], samples
