"""Ops for rendering a radiance field. Each op has an eager PyTorch definition and native runners that agree with it."""

from eugen_nerf.ops.differentiable import differentiable_render
from eugen_nerf.ops.dispatch import (
    Backend,
    composite,
    factor_products,
    hash_encode,
    march,
    masked_adam,
    network,
    sample_points,
    select_visible,
    spherical_harmonics,
)
from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule
from eugen_nerf.ops.radiance_field import RadianceField
from eugen_nerf.ops.reference import MIN_TRANSMITTANCE, occupied, ray_box_intersection, transmittance
from eugen_nerf.ops.render import render

__all__ = [
    "MIN_TRANSMITTANCE",
    "Backend",
    "HashGridLayout",
    "PackedSamples",
    "RadianceField",
    "Space",
    "StepRule",
    "composite",
    "differentiable_render",
    "factor_products",
    "hash_encode",
    "march",
    "masked_adam",
    "network",
    "occupied",
    "ray_box_intersection",
    "render",
    "sample_points",
    "select_visible",
    "spherical_harmonics",
    "transmittance",
]
