"""Volume rendering of a field: differentiable for training, with early termination for rendered images."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf import ops
from eugen_nerf.field import EugenField, HashGrid
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import RadianceField, Space, StepRule
from eugen_nerf.ops.radiance_field import FactoredField


@dataclass(frozen=True)
class RenderOutput:
    """Result of rendering R rays."""

    rgb: Tensor  # [R, 3] without a background: add (1 - alpha) * background
    alpha: Tensor  # [R]
    depth: Tensor  # [R] expected distance in world units; 0 where nothing was hit
    num_samples: Tensor  # [R] samples that contributed
    total_samples: int | None = None  # their sum, if known without waiting for a GPU


class Renderer:
    """Renders an `EugenField` through its occupancy grid.

    Args:
        field: density and color over the unit cube.
        occupancy: marks the parts of the unit cube that are sampled.
        space: map from the world to the unit cube.
        rule: step sizes along rays.
        near, far: limits along each ray, world units; far must be finite in a contracted space.
        skip_occluded: leave occluded samples out of training.

    Raises:
        ValueError: the limits, the box or the step sizes are out of range.
    """

    def __init__(
        self,
        field: EugenField,
        occupancy: OccupancyGrid,
        space: Space,
        rule: StepRule,
        near: float,
        far: float,
        skip_occluded: bool = True,
    ) -> None:
        if not 0 <= near < far or (space.contracted and math.isinf(far)):
            finite = ", and far must be finite in a contracted space" if space.contracted else ""
            raise ValueError(f"the limits of rays must be 0 <= near < far{finite}, not near={near}, far={far}")
        if not all(-math.inf < low < high < math.inf for low, high in zip(*space.box, strict=True)):
            raise ValueError(f"the space's box must be finite, with low below high along each axis, not {space.box}")
        if not (0 < rule.step_size < math.inf and 0 <= rule.cone_angle < math.inf):
            raise ValueError(f"the step size must be positive and the cone angle not negative, but both finite: {rule}")
        self.field = field
        self.occupancy = occupancy
        self.space = space
        self.rule = rule
        self.near = near
        self.far = far
        self.skip_occluded = skip_occluded

    def limits(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """The near and far limit of each ray, both [R]."""
        rays = origins.shape[0]
        return origins.new_full((rays,), self.near), origins.new_full((rays,), self.far)

    def render_differentiable(
        self, origins: Tensor, directions: Tensor, jitter: Tensor | float | None = None
    ) -> RenderOutput:
        """Render with gradients to the field.

        Args:
            origins, directions: [R, 3], directions of unit length.
            jitter: [R] in [0, 1), or one number for all: shifts each ray's samples by this fraction of a step. None
                centers them.

        Raises:
            ValueError: a tensor has the wrong shape, or its dtype is not that of the field's parameters.
        """
        field = self.field.factored()
        _check_rays(origins, directions, field)
        if jitter is not None:
            jitter = _one_per_ray("jitter", jitter, origins)
        near, far = self.limits(origins)
        color, alpha, depth, samples = ops.differentiable_render(
            origins,
            directions,
            near,
            far,
            self.occupancy.bits,
            self.occupancy.resolution,
            self.space,
            self.rule,
            field,
            jitter,
            self.skip_occluded,
        )
        return RenderOutput(color, alpha, _expected(depth, alpha), samples.counts(), samples.num_samples)

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        near: Tensor | float | None = None,
        far: Tensor | float | None = None,
    ) -> RenderOutput:
        """Render without gradients, using merged networks and early termination of opaque rays.

        Args:
            origins, directions: [R, 3], directions of unit length.
            near, far: [R] or [R, 1], or one number for all: narrower limits of the rays (a crop box), world units.
                `near` is raised to the renderer's near, except where all rays begin at 0 and end at the same distance,
                at most twice the renderer's near: so ns-export samples short ranges around a surface, without a camera
                whose surroundings would have to be skipped.

        Raises:
            ValueError: a tensor has the wrong shape, or its dtype is not that of the field's parameters.
        """
        field = self.field.evaluator()
        _check_rays(origins, directions, field)
        default_near, default_far = self.limits(origins)
        far = None if far is None else _one_per_ray("far", far, origins)
        if near is None:
            near = default_near
        else:
            near = _one_per_ray("near", near, origins)
            raised = torch.maximum(near, default_near)
            if far is None:
                near = raised
            else:
                around_surface = (near == 0).all() & (far == far[:1]).all() & (far <= 2 * default_near)
                near = torch.where(around_surface, near, raised)
        far = default_far if far is None else torch.minimum(far, default_far)
        with torch.no_grad():
            color, alpha, depth, count = ops.render(
                origins,
                directions,
                near,
                far,
                self.occupancy.bits,
                self.occupancy.resolution,
                self.space,
                self.rule,
                field,
            )
        return RenderOutput(color, alpha, _expected(depth, alpha), count)

    def update_occupancy(self, step: int) -> bool:
        """Update the occupancy grid from the field, if due at this step. Returns whether it was due."""
        field = functools.cache(self.field.evaluator)  # merged once for all cells, and only if an update is due

        def thickness(unit: Tensor) -> Tensor:
            """Optical thickness of the shortest step.

            Steps grow with distance, but so does the content they cover. Using their full size would keep every
            distant cell occupied down to the faintest trace of fog.
            """
            merged = field()
            if isinstance(merged, RadianceField):  # positions have the grid's dtype
                unit = unit.to(merged.density.weight.dtype)
            return merged.density_at(unit)[0] * self.rule.step_size

        return self.occupancy.update_every_n_steps(step, thickness)


def _check_rays(origins: Tensor, directions: Tensor, field: RadianceField | FactoredField | EugenField) -> None:
    if origins.dim() != 2 or origins.shape[1] != 3:
        raise ValueError(f"origins must have the shape [R, 3], not {list(origins.shape)}")
    if directions.shape != origins.shape:
        raise ValueError(f"directions must have the origins' shape {list(origins.shape)}, not {list(directions.shape)}")
    if isinstance(field, FactoredField):
        dtype = field.density.weight.right.dtype
    elif isinstance(field, RadianceField):
        dtype = field.density.weight.dtype  # a GPU's table may be in half precision
    elif isinstance(encoding := getattr(field, "encoding", None), HashGrid):
        dtype = encoding.table.dtype
    else:
        dtype = origins.dtype  # tiny-cuda-nn's modules convert their inputs
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, as the field's parameters are, not {tensor.dtype}")


def _one_per_ray(name: str, values: Tensor | float, origins: Tensor) -> Tensor:
    """Expand a number, [R], or [R, 1] (nerfstudio's shape) to [R]."""
    rays = origins.shape[0]
    if not isinstance(values, Tensor):
        return origins.new_full((rays,), values)
    if values.dtype != origins.dtype:
        raise ValueError(f"{name} must be {origins.dtype}, as the rays are, not {values.dtype}")
    if values.shape == (rays, 1):
        return values[:, 0]
    if values.shape != (rays,):  # would broadcast to [R, R]
        raise ValueError(f"{name} must be a number or have the shape [{rays}], not {list(values.shape)}")
    return values


def _expected(depth: Tensor, alpha: Tensor) -> Tensor:
    """Divide the summed distances by alpha. Where almost nothing was hit, the depth is 0."""
    return depth / torch.where(alpha > 1e-4, alpha, math.inf)
