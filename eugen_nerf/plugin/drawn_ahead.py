"""Training rays of several steps, drawn at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nerfstudio.cameras.rays import RayBundle

WHOLE = ("full_image",)  # entries of nerfstudio's batches that do not have a row for each ray

Batch = tuple[RayBundle, dict[str, Any]]


class DrawnAhead:
    """Hands out rays that were drawn for several steps at once.

    Drawing pixels and generating their rays takes some thirty operators, whose cost depends little on the number of
    rays. The rays of a step remain independent of those of any other.

    Args:
        draw: draws the given number of independent rays: nerfstudio's rays [N] and the pixels that they belong to.
        steps: for how many steps to draw.
    """

    def __init__(self, draw: Callable[[int], Batch], steps: int) -> None:
        self._draw, self._steps = draw, steps
        self._left: Batch | None = None
        self._used = 0

    def take(self, rays: int) -> Batch:
        """The rays of the next step. If fewer are left, they are forgotten and new ones drawn."""
        if self._steps == 1:
            return self._draw(rays)
        if self._left is None or self._used + rays > len(self._left[0]):
            self._left, self._used = self._draw(rays * self._steps), 0
        bundle, pixels = self._left
        mine = slice(self._used, self._used + rays)
        self._used += rays
        return bundle[mine], {name: each if name in WHOLE else each[mine] for name, each in pixels.items()}
