"""Argument checks of the native ops, made before pointers are passed on: dtype, device, shape and consistency."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from eugen_nerf.ops.layout import HashGridLayout
from eugen_nerf.ops.network_spec import has_bias, inputs_of, length, outputs_of, stages_of
from eugen_nerf.ops.products import FIELDS, MAX_FACTORS, MAX_PRODUCTS
from eugen_nerf.ops.tiles import MAX_LEVELS

# Features per vertex of a hash grid for which code is compiled.
FEATURES_PER_LEVEL = (1, 2, 4, 8)


def prepare(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Check a tensor and make it contiguous. On a GPU also align it to 16 bytes, for vector loads.

    Args:
        name: the tensor's name in error messages.
        tensor: the tensor to check.
        shape: the required shape; None stands for any length.
        dtype: the required dtype.
        device: the required device.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape.
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
    """Say why a device's native runner does not support a hash grid; None if it does."""
    if layout.features_per_level not in FEATURES_PER_LEVEL:
        return f"features per level must be one of {FEATURES_PER_LEVEL}, not {layout.features_per_level}"
    if device.type == "cuda" and layout.num_levels > MAX_LEVELS:
        return f"levels must be at most {MAX_LEVELS} on a GPU, not {layout.num_levels}"
    return None


def check_grid(layout: HashGridLayout, device: torch.device) -> None:
    """Raise ValueError if a hash grid is inconsistent or the device's native runner does not support it."""
    if len(layout.offsets) != layout.num_levels + 1 or layout.num_entries >= 2**31:
        raise ValueError("offsets must have one entry more than resolutions and stay below 2**31")
    # Native code derives a vertex's row from resolution and table size, so each level must have that many rows.
    sizes = [end - start for start, end in itertools.pairwise(layout.offsets)]
    fits = layout.offsets[0] == 0 and 1 <= layout.log2_table_size <= 30
    for resolution, size in zip(layout.resolutions, sizes, strict=True):
        fits = fits and resolution >= 1 and size >= min((resolution + 1) ** 3, 1 << layout.log2_table_size)
    if not fits:
        raise ValueError(
            "offsets must begin at 0 and leave each level min((resolution + 1)^3, 2^log2_table_size) rows, with "
            "resolutions of at least 1 and log2_table_size from 1 to 30"
        )
    if problem := why_not_grid(layout, device):
        raise ValueError(problem)


def check_offsets(ray_offsets: Tensor, samples: int, device: torch.device) -> Tensor:
    """Check ray_offsets [R + 1]. The values are checked only on a CPU, where that does not synchronize with a GPU.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape, or the offsets do not rise from 0 to the number of samples.
    """
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
    """Check that a network's widths match and that there are as many parameters as its description requires.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: the description is inconsistent, or a shape does not match it.
    """
    if len(spec) != length(spec[0]) or len(eps) != spec[0]:
        raise ValueError("the network's description has the wrong length")
    last, width = 0, inputs_of(spec)
    for stage in stages_of(spec):
        if stage.in_features != width or stage.order not in (1, 2) or stage.features < 1:
            raise ValueError("the network's stages do not fit together")
        columns = stage.in_features + stage.offsets + min(stage.norm, 1)
        last += stage.features * stage.projections * columns + stage.norm_rows * (stage.in_features + 1)
        width = stage.order * stage.features
    last += outputs_of(spec) * (width + has_bias(spec))
    return (
        prepare("x", x, (None, inputs_of(spec)), dtype, x.device),
        prepare("parameters", parameters, (last,), torch.float32, x.device),
    )


def check_products(factors: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """Check that factors have the shapes that the places of their products require; see `products.describe`.

    Raises:
        TypeError: wrong dtype or device.
        ValueError: a shape does not fit, a factor has no place, or there are too many products or factors.
    """
    count = len(FIELDS)
    if not factors or len(places) % count or len(places) > count * MAX_PRODUCTS or len(factors) > MAX_FACTORS:
        raise ValueError(f"there must be 1 to {MAX_FACTORS} factors and at most {MAX_PRODUCTS} products")
    sizes: dict[int, int] = {}
    for left, right, constant, rows, inner, columns in zip(*[iter(places)] * count, strict=True):
        wanted = [(right, (rows if left == -1 else inner) * columns)]
        wanted += [(left, rows * inner)] if left != -1 else []
        wanted += [(constant, rows)] if constant != -1 else []
        fits = min(rows, inner, columns) >= 1 and (constant == -1 or (left != -1 and columns == 1))
        fits = fits and (left != -1 or rows == inner)
        if not fits or any(sizes.setdefault(factor, size) != size for factor, size in wanted):
            raise ValueError("the factors' products do not fit together")
    if set(sizes) != set(range(len(factors))):
        raise ValueError("the factors' products do not fit together")
    checked = []
    for number, factor in enumerate(factors):
        name, shape = f"factor {number}", tuple(factor.shape)
        if factor.numel() != sizes[number]:
            raise ValueError(f"{name} must have {sizes[number]} values, not {factor.numel()}")
        checked.append(prepare(name, factor, shape, torch.float32, factors[0].device))
    return checked


def check_color_outputs(spec: Sequence[int]) -> None:
    if outputs_of(spec) != 3:
        raise ValueError(f"the color network must have 3 outputs, not {outputs_of(spec)}")


def check_rays(
    origins: Tensor,
    directions: Tensor,
    near: Tensor,
    far: Tensor,
    bits: Tensor,
    resolution: int,
    rule: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Check rays [R], an occupancy bitfield and a step rule (step size, cone angle).

    Raises:
        TypeError: wrong dtype or device.
        ValueError: wrong shape, step rule or resolution.
    """
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
