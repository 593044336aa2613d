"""Static descriptions that the ops share: hash-grid levels, occupancy bits, step rule, packed samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HashGridLayout:
    """Levels of a multiresolution hash grid over the unit cube (Müller et al. 2022, "Instant NGP", section 3).

    Level ``l`` has ``resolutions[l]`` cells along each axis, hence ``(resolutions[l] + 1)**3`` vertices. A level
    whose vertices fit into ``2**log2_table_size`` entries is stored densely, the others are hashed. All levels
    live in one table; level ``l`` owns the rows ``offsets[l]:offsets[l + 1]``.
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]
    features_per_level: int
    log2_table_size: int

    @staticmethod
    def build(
        num_levels: int,
        features_per_level: int,
        log2_table_size: int,
        base_resolution: int,
        max_resolution: int,
    ) -> HashGridLayout:
        """Resolutions grow geometrically from ``base_resolution`` to ``max_resolution``.

        Raises:
            ValueError: a count is below 1, or ``max_resolution`` is below ``base_resolution``.
        """
        if min(num_levels, features_per_level, log2_table_size, base_resolution) < 1:
            raise ValueError("levels, features per level, table size and resolution must be at least 1")
        if max_resolution < base_resolution:
            raise ValueError(f"max_resolution {max_resolution} is below base_resolution {base_resolution}")
        growth = (max_resolution / base_resolution) ** (1 / max(num_levels - 1, 1))
        # The small addend keeps the last level at max_resolution in spite of round-off.
        resolutions = tuple(int(base_resolution * growth**level + 1e-6) for level in range(num_levels))
        return HashGridLayout._of(resolutions, features_per_level, log2_table_size)

    @staticmethod
    def _of(resolutions: tuple[int, ...], features_per_level: int, log2_table_size: int) -> HashGridLayout:
        offsets = [0]
        for resolution in resolutions:
            offsets.append(offsets[-1] + min((resolution + 1) ** 3, 1 << log2_table_size))
        return HashGridLayout(resolutions, tuple(offsets), features_per_level, log2_table_size)

    def with_table_size(self, log2_table_size: int) -> HashGridLayout:
        """The same levels with another limit on their entries."""
        return HashGridLayout._of(self.resolutions, self.features_per_level, log2_table_size)

    @property
    def num_levels(self) -> int:
        return len(self.resolutions)

    @property
    def num_entries(self) -> int:
        """Rows of the table."""
        return self.offsets[-1]

    @property
    def out_features(self) -> int:
        return self.num_levels * self.features_per_level

    def is_dense(self, level: int) -> bool:
        """Whether every vertex of the level has a row of its own."""
        return (self.resolutions[level] + 1) ** 3 <= 1 << self.log2_table_size


@dataclass(frozen=True)
class Space:
    """How world positions map to the unit cube that hash grid and occupancy grid cover.

    Bounded scenes: ``box`` maps linearly to the unit cube and nothing exists outside of it. Unbounded scenes
    (``contracted``): the box maps to the middle half along each axis, and the rest of the world is contracted
    around it with the infinity norm (Barron et al. 2022, "Mip-NeRF 360", eq. 10, with that norm as in nerfacto).
    """

    box: tuple[tuple[float, float, float], tuple[float, float, float]]
    contracted: bool = False

    @property
    def diagonal(self) -> float:
        """Length of the box's diagonal in world units."""
        return math.dist(self.box[0], self.box[1])

    def to_unit(self, positions: Tensor) -> Tensor:
        """Map world positions [..., 3] to the unit cube [..., 3]; inside the cube unless the scene is bounded
        and the position lies outside of the box."""
        low = torch.tensor(self.box[0], dtype=positions.dtype, device=positions.device)
        high = torch.tensor(self.box[1], dtype=positions.dtype, device=positions.device)
        unit = (positions - low) / (high - low)
        if not self.contracted:
            return unit
        centred = 2 * unit - 1
        norm = centred.abs().amax(dim=-1, keepdim=True).clamp_min(1)
        return 0.25 * centred * (2 - 1 / norm) / norm + 0.5

    def to_world(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit` [..., 3]; the faces of a contracted cube, at infinity, come out very far."""
        low = torch.tensor(self.box[0], dtype=unit.dtype, device=unit.device)
        high = torch.tensor(self.box[1], dtype=unit.dtype, device=unit.device)
        if self.contracted:
            contracted = 4 * unit - 2
            # Short of 2, which stands for infinity and would give NaN.
            norm = contracted.abs().amax(dim=-1, keepdim=True).clamp(1, 2 - 1e-6)
            unit = 0.5 * contracted / (norm * (2 - norm)) + 0.5
        return low + unit * (high - low)


@dataclass(frozen=True)
class StepRule:
    """Where samples stand along a ray: at whole steps of a coordinate ``s`` with ``t = distance(s)``.

    ``distance(s) = step_size * s`` up to ``s = 1 / cone_angle`` and ``step_size / cone_angle * exp(cone_angle * s
    - 1)`` beyond: steps of constant length near the camera that grow in proportion to the distance further
    out, with a continuous derivative. ``cone_angle = 0`` keeps them constant.
    """

    step_size: float  # world units
    cone_angle: float = 0.0

    def distance(self, s: Tensor) -> Tensor:
        """Distance along the ray, world units, of the step coordinate ``s`` (any shape)."""
        if self.cone_angle == 0:
            return self.step_size * s
        beyond = (self.cone_angle * s - 1).clamp_min(0)
        near = s.clamp_max(1 / self.cone_angle)
        return self.step_size * near * torch.exp(beyond)

    def coordinate(self, distance: Tensor) -> Tensor:
        """Inverse of `distance`."""
        if self.cone_angle == 0:
            return distance / self.step_size
        ratio = distance * (self.cone_angle / self.step_size)
        return (ratio.clamp_max(1) + ratio.clamp_min(1).log()) / self.cone_angle


@dataclass(frozen=True)
class PackedSamples:
    """Samples of R rays one after the other, without padding (compressed sparse rows).

    Ray ``r`` owns the samples ``ray_offsets[r]:ray_offsets[r + 1]``, ordered front to back.
    """

    ray_offsets: Tensor  # [R + 1] int64
    t_starts: Tensor  # [N] world units along the ray
    t_ends: Tensor  # [N]

    @property
    def num_rays(self) -> int:
        return self.ray_offsets.shape[0] - 1

    @property
    def num_samples(self) -> int:
        return self.t_starts.shape[0]

    @property
    def t_mids(self) -> Tensor:
        """[N] the distances at which the field is evaluated."""
        return 0.5 * (self.t_starts + self.t_ends)

    def counts(self) -> Tensor:
        """[R] samples of each ray."""
        return self.ray_offsets.diff()

    def ray_indices(self) -> Tensor:
        """[N] the ray of each sample."""
        rays = torch.arange(self.num_rays, device=self.ray_offsets.device)
        return rays.repeat_interleave(self.counts(), output_size=self.num_samples)

    def select(self, indices: Tensor) -> PackedSamples:
        """The samples with these indices [M], which must rise, of the same rays."""
        offsets = torch.searchsorted(indices, self.ray_offsets)
        return PackedSamples(offsets, self.t_starts.index_select(0, indices), self.t_ends.index_select(0, indices))

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """[N, 3] world positions of the samples of rays with these origins and directions, both [R, 3]."""
        rays = self.ray_indices()
        return origins[rays] + directions[rays] * self.t_mids[:, None]
