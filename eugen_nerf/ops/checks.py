"""Checks of the native ops' arguments, before pointers are handed over: dtype, device, shape, and what must fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eugen_nerf.ops.layout import HashGridLayout
from eugen_nerf.ops.tiles import MAX_LEVELS

# Feature widths of a hash grid's vertices for which code is compiled.
FEATURES_PER_LEVEL = (1, 2, 4, 8)


def prepare(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Check a tensor and make it contiguous; on a GPU also begin at a multiple of 16 bytes, for vector loads.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape; None stands for any length.
    """
    if tensor.dtype != dtype or tensor.device != device:
        where = "the CPU" if device.type == "cpu" else device
        raise TypeError(f"{name} must be {dtype} on {where}, not {tensor.dtype} on {tensor.device}")
    fits = tensor.dim() == len(shape) and all(w is None or w == n for w, n in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have the shape [{wanted}], not {list(tensor.shape)}")
    tensor = tensor.contiguous()
    return tensor.clone() if device.type != "cpu" and tensor.data_ptr() % 16 else tensor


def why_not_grid(layout: HashGridLayout, device: torch.device) -> str | None:
    """Why a device's native runner has no code for a hash grid; None if it has."""
    if layout.features_per_level not in FEATURES_PER_LEVEL:
        return f"features per level must be one of {FEATURES_PER_LEVEL}, not {layout.features_per_level}"
    if device.type == "cuda" and layout.num_levels > MAX_LEVELS:
        return f"levels must be at most {MAX_LEVELS} on a GPU, not {layout.num_levels}"
    return None


def check_grid(layout: HashGridLayout, device: torch.device) -> None:
    if len(layout.offsets) != layout.num_levels + 1 or layout.num_entries >= 2**31:
        raise ValueError("offsets must have one entry more than resolutions and stay below 2**31")
    if problem := why_not_grid(layout, device):
        raise ValueError(problem)


def check_offsets(ray_offsets: Tensor, samples: int, device: torch.device) -> Tensor:
    """Checks ray_offsets [R + 1]; their values only on a CPU, where that needs no waiting."""
    offsets = prepare("ray_offsets", ray_offsets, (None,), torch.int64, device)
    rises = offsets.shape[0] > 0
    if rises and device.type == "cpu":
        rises = int(offsets[0]) == 0 and int(offsets[-1]) == samples and not bool((offsets.diff() < 0).any())
    if not rises:
        raise ValueError(f"ray_offsets must rise from 0 to the number of samples, {samples}")
    return offsets


def check_network(
    x: Tensor,
    parameters: Tensor,
    spec: Sequence[int],
    eps: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Checks that make it safe to hand the pointers over: widths fit, and as many parameters as the spec counts."""
    stages, last, width = spec[0], 0, spec[-1]
    if len(spec) != 4 + 7 * stages or len(eps) != stages:
        raise ValueError("the network's description has the wrong length")
    for stage in range(stages):
        in_features, features, order, shared, _, offsets, norm = spec[1 + 7 * stage : 8 + 7 * stage]
        if in_features != width or order not in (1, 2) or features < 1:
            raise ValueError("the network's stages do not fit together")
        rows = features * (order if shared else order * (order + 1) // 2)
        last += rows * (in_features + offsets + min(norm, 1)) + max(norm - 1, 0) * (in_features + 1)
        width = order * features
    last += spec[-3] * (width + spec[-2])
    return (
        prepare("x", x, (None, spec[-1]), dtype, x.device),
        prepare("parameters", parameters, (last,), torch.float32, x.device),
    )


def check_rays(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    rule: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not rule[0] > 0 or not rule[1] >= 0:
        raise ValueError(f"the step size must be positive and the cone angle not negative: {list(rule)}")
    if resolution < 1 or resolution**3 % 8:
        raise ValueError(f"the occupancy resolution must be even, so that the cells fill whole bytes, not {resolution}")
    rays, device = origins.shape[0], origins.device
    return (
        prepare("origins", origins, (rays, 3), torch.float32, device),
        prepare("directions", directions, (rays, 3), torch.float32, device),
        prepare("near", near, (rays,), torch.float32, device),
        prepare("far", far, (rays,), torch.float32, device),
        prepare("bits", bits, (resolution**3 // 8,), torch.uint8, device),
    )
