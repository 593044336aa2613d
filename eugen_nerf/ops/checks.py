"""Checks of the native ops' arguments, before pointers are handed over: dtype, device, shape, and what must fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU = torch.device("cpu")

# Feature widths of a hash grid's vertices for which code is compiled.
FEATURES_PER_LEVEL = (1, 2, 4, 8)


def prepare(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, device: torch.device = CPU
) -> Tensor:
    """Check a tensor and make it contiguous; on a GPU also begin at a multiple of 16 bytes, for vector loads.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape; None stands for any length.
    """
    if tensor.dtype != dtype or tensor.device != device:
        where = "the CPU" if device == CPU else device
        raise TypeError(f"{name} must be {dtype} on {where}, not {tensor.dtype} on {tensor.device}")
    fits = tensor.dim() == len(shape) and all(w is None or w == n for w, n in zip(shape, tensor.shape, strict=True))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must have the shape [{wanted}], not {list(tensor.shape)}")
    tensor = tensor.contiguous()
    return tensor.clone() if device != CPU and tensor.data_ptr() % 16 else tensor


def check_grid(table: Tensor, resolutions: Sequence[int], offsets: Sequence[int]) -> None:
    if len(offsets) != len(resolutions) + 1 or offsets[-1] >= 2**31:
        raise ValueError("offsets must have one entry more than resolutions and stay below 2**31")
    if table.shape[1] not in FEATURES_PER_LEVEL:
        raise ValueError(f"features per level must be one of {FEATURES_PER_LEVEL}, not {table.shape[1]}")


def check_network(
    x: Tensor,
    parameters: Tensor,
    spec: Sequence[int],
    eps: Sequence[float],
    device: torch.device = CPU,
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
        prepare("x", x, (None, spec[-1]), dtype, device),
        prepare("parameters", parameters, (last,), torch.float32, device),
    )


def check_rays(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    rule: Sequence[float],
    device: torch.device = CPU,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if not rule[0] > 0 or not rule[1] >= 0:
        raise ValueError(f"the step size must be positive and the cone angle not negative: {list(rule)}")
    if resolution < 1 or resolution**3 % 8:
        raise ValueError(f"the occupancy resolution must be even, so that the cells fill whole bytes, not {resolution}")
    rays = origins.shape[0]
    return (
        prepare("origins", origins, (rays, 3), torch.float32, device),
        prepare("directions", directions, (rays, 3), torch.float32, device),
        prepare("near", near, (rays,), torch.float32, device),
        prepare("far", far, (rays,), torch.float32, device),
        prepare("bits", bits, (resolution**3 // 8,), torch.uint8, device),
    )
