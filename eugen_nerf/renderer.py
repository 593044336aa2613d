"""Volume rendering of a field: differentiable for training, with early termination for pictures."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf import ops
from eugen_nerf.field import EugenField
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import Space, StepRule


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
        near, far: limits along each ray, world units.
        skip_hidden: leave samples behind opaque surfaces out of training.
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

    def differentiable(self, origins: Tensor, directions: Tensor, jitter: Tensor | None = None) -> RenderOutput:
        """Render with gradients to the field.

        Args:
            origins, directions: [R, 3], directions of unit length.
            jitter: [R] in [0, 1) shifts each ray's samples by that part of a step; None centres them.
        """
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
            self.field.merged(),
            jitter,
            self.skip_hidden,
        )
        return RenderOutput(color, alpha, _expected(depth, alpha), samples.counts(), samples.num_samples)

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        near: Tensor | None = None,
        far: Tensor | None = None,
    ) -> RenderOutput:
        """Render without gradients, on merged networks, stopping where a ray has become opaque.

        Args:
            origins, directions: [R, 3], directions of unit length.
            near, far: [R] narrower limits of the rays (a crop box), world units. Ranges that end within twice the
                renderer's near are taken as they are: ns-export looks at the middle of such a range, a surface, from
                right in front of it, where no camera is whose surroundings were to be left out.
        """
        default_near, default_far = self.limits(origins)
        if near is None:
            near = default_near
        else:
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
                self.field.evaluator(),
            )
        return RenderOutput(color, alpha, _expected(depth, alpha), count)

    def update_occupancy(self, step: int) -> bool:
        """Let the occupancy grid follow the field; returns whether this step was one for an update."""
        field = functools.cache(self.field.evaluator)  # merged once for all cells, and not in vain

        def thickness(unit: Tensor) -> Tensor:
            """Of the shortest step. In the distance steps are longer, but so is what they look at: to count their full
            length would keep every far cell occupied for its last trace of fog."""
            return field().density_at(unit)[0] * self.rule.step_size

        return self.occupancy.update_every_n_steps(step, thickness)


def _expected(depth: Tensor, alpha: Tensor) -> Tensor:
    """Divide the summed distances by alpha; where almost nothing was hit there is no depth to speak of."""
    return torch.where(alpha > 1e-4, depth / alpha.clamp_min(1e-4), torch.zeros_like(depth))
