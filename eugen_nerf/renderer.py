"""Volume rendering of a field: differentiable for training, with early termination for pictures."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf import ops
from eugen_nerf.field import EugenField
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import RadianceField, Space, StepRule


@dataclass(frozen=True)
class RenderOutput:
    """What R rays see."""

    rgb: Tensor  # [R, 3] without a background: add (1 - alpha) * background
    alpha: Tensor  # [R]
    depth: Tensor  # [R] expected distance in world units; 0 where nothing was hit
    num_samples: Tensor  # [R] samples that contributed
    total_samples: int | None = None  # their sum, where it is known without waiting for a GPU


class Renderer:
    """Renders an `EugenField` through its occupancy grid.

    Args:
        field: densities and colours over the unit cube.
        occupancy: which parts of the unit cube are sampled.
        space: map from the world to the unit cube.
        rule: step lengths along rays.
        near, far: limits along each ray, world units; far is finite where the space is contracted.
        skip_hidden: leave samples behind opaque surfaces out of training.

    Raises:
        ValueError: limits, box or steps are such that there is nothing to see, or no end to it.
    """

    def __init__(
        self,
        field: EugenField,
        occupancy: OccupancyGrid,
        space: Space,
        rule: StepRule,
        near: float,
        far: float,
        skip_hidden: bool = True,
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
        self.skip_hidden = skip_hidden

    def limits(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """near and far of each ray, both [R]."""
        rays = origins.shape[0]
        return origins.new_full((rays,), self.near), origins.new_full((rays,), self.far)

    def differentiable(self, origins: Tensor, directions: Tensor, jitter: Tensor | float | None = None) -> RenderOutput:
        """Render with gradients to the field.

        Args:
            origins, directions: [R, 3], directions of unit length.
            jitter: [R] in [0, 1), or one number for all, shifts each ray's samples by that part of a step; None
                centres them.

        Raises:
            ValueError: a tensor has another shape, or another dtype than the field's parameters.
        """
        field = self.field.merged()
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
            self.skip_hidden,
        )
        return RenderOutput(color, alpha, _expected(depth, alpha), samples.counts(), samples.num_samples)

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        near: Tensor | float | None = None,
        far: Tensor | float | None = None,
    ) -> RenderOutput:
        """Render without gradients, on merged networks, stopping where a ray has become opaque.

        Args:
            origins, directions: [R, 3], directions of unit length.
            near, far: [R] or [R, 1], or one number for all: narrower limits of the rays (a crop box), world units.
                Ranges that end within twice the renderer's near are taken as they are: ns-export looks at the middle
                of such a range, a surface, from right in front of it, where no camera is whose surroundings were to be
                left out.

        Raises:
            ValueError: a tensor has another shape, or another dtype than the field's parameters.
        """
        field = self.field.evaluator()
        _check_rays(origins, directions, field)
        default_near, default_far = self.limits(origins)
        far = None if far is None else _one_per_ray("far", far, origins)
        if near is None:
            near = default_near
        else:
            near = _one_per_ray("near", near, origins)
            short = torch.zeros_like(near, dtype=torch.bool) if far is None else far <= 2 * default_near
            near = torch.where(short, near.clamp_min(0), torch.maximum(near, default_near))
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
        """Let the occupancy grid follow the field; returns whether this step was one for an update."""
        field = functools.cache(self.field.evaluator)  # merged once for all cells, and not in vain

        def thickness(unit: Tensor) -> Tensor:
            """Of the shortest step. In the distance steps are longer, but so is what they look at: to count their full
            length would keep every far cell occupied for its last trace of fog."""
            merged = field()
            if isinstance(merged, RadianceField):  # positions have the grid's dtype
                unit = unit.to(merged.density.weight.dtype)
            return merged.density_at(unit)[0] * self.rule.step_size

        return self.occupancy.update_every_n_steps(step, thickness)


def _check_rays(origins: Tensor, directions: Tensor, field: RadianceField | EugenField) -> None:
    if origins.dim() != 2 or origins.shape[1] != 3:
        raise ValueError(f"origins must have the shape [R, 3], not {list(origins.shape)}")
    if directions.shape != origins.shape:
        raise ValueError(f"directions must have the origins' shape {list(origins.shape)}, not {list(directions.shape)}")
    # The networks' dtype: a GPU's table may be of halves. Fields that are not merged convert what they are given.
    dtype = field.density.weight.dtype if isinstance(field, RadianceField) else origins.dtype
    for name, tensor in (("origins", origins), ("directions", directions)):
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, as the field's parameters are, not {tensor.dtype}")


def _one_per_ray(name: str, values: Tensor | float, origins: Tensor) -> Tensor:
    """[R] of a number, of [R], or of [R, 1], which is nerfstudio's shape."""
    rays = origins.shape[0]
    if not isinstance(values, Tensor):
        return origins.new_full((rays,), values)
    if values.dtype != origins.dtype:
        raise ValueError(f"{name} must be {origins.dtype}, as the rays are, not {values.dtype}")
    if values.shape == (rays, 1):
        return values[:, 0]
    if values.shape != (rays,):  # would be combined with every ray, R by R
        raise ValueError(f"{name} must be a number or have the shape [{rays}], not {list(values.shape)}")
    return values


def _expected(depth: Tensor, alpha: Tensor) -> Tensor:
    """Divide the summed distances by alpha; where almost nothing was hit there is no depth to speak of."""
    return torch.where(alpha > 1e-4, depth / alpha.clamp_min(1e-4), torch.zeros_like(depth))
