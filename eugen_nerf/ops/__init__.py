"""The ops a radiance field is rendered with; each is defined by its eager reference."""

from eugen_nerf.ops.layout import HashGridLayout, PackedSamples, Space, StepRule
from eugen_nerf.ops.reference import (
    composite,
    hash_encode,
    march,
    network,
    occupied,
    ray_box_intersection,
    render,
    spherical_harmonics,
)

__all__ = [
    "HashGridLayout",
    "PackedSamples",
    "Space",
    "StepRule",
    "composite",
    "hash_encode",
    "march",
    "network",
    "occupied",
    "ray_box_intersection",
    "render",
    "spherical_harmonics",
]
