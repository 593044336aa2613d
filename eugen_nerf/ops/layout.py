"""Descriptions that the ops share: hash-grid levels, scene space, step rule and packed samples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A level of a hash grid begins at a multiple of so many rows. Vertices that are neighbors along x then lie in the same
# line of the cache, or sector of a GPU's memory, as often as possible.
ROW_ALIGNMENT = 8


def _used_rows(resolutions: tuple[int, ...], log2_table_size: int) -> tuple[int, ...]:
    return tuple(min((resolution + 1) ** 3, 1 << log2_table_size) for resolution in resolutions)


@dataclass(frozen=True)
class HashGridLayout:
    """Levels of a multiresolution hash grid over the unit cube (Müller et al. 2022, "Instant NGP", section 3).

    Level ``l`` has ``resolutions[l]`` cells along each axis and hence ``(resolutions[l] + 1)**3`` vertices. A level
    whose vertices fit into ``2**log2_table_size`` entries is stored densely; the others are hashed. All levels share
    one table; level ``l`` owns the rows ``offsets[l]:offsets[l + 1]``, of which it uses the first `used_rows`. Use
    `build` to create a layout.
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
        """Create a layout whose resolutions grow geometrically from ``base_resolution`` to ``max_resolution``.

        Args:
            num_levels: number of levels L.
            features_per_level: features per vertex F.
            log2_table_size: binary logarithm of the largest number of entries of a level.
            base_resolution: cells along an axis of the first level.
            max_resolution: cells along an axis of the last level.

        Raises:
            ValueError: a count is below 1, or ``max_resolution`` is below ``base_resolution``.
        """
        if min(num_levels, features_per_level, log2_table_size, base_resolution) < 1:
            raise ValueError("levels, features per level, table size and resolution must be at least 1")
        if max_resolution < base_resolution:
            raise ValueError(f"max_resolution {max_resolution} is below base_resolution {base_resolution}")
        growth = (max_resolution / base_resolution) ** (1 / max(num_levels - 1, 1))
        # The small addend keeps the last level at max_resolution despite round-off.
        resolutions = tuple(int(base_resolution * growth**level + 1e-6) for level in range(num_levels))
        return HashGridLayout._of(resolutions, features_per_level, log2_table_size)

    @staticmethod
    def _of(resolutions: tuple[int, ...], features_per_level: int, log2_table_size: int) -> HashGridLayout:
        offsets = [0]
        for rows in _used_rows(resolutions, log2_table_size):
            offsets.append(offsets[-1] + -(-rows // ROW_ALIGNMENT) * ROW_ALIGNMENT)
        return HashGridLayout(resolutions, tuple(offsets), features_per_level, log2_table_size)

    def with_table_size(self, log2_table_size: int) -> HashGridLayout:
        """Return a layout of the same levels with another limit on their entries."""
        return HashGridLayout._of(self.resolutions, self.features_per_level, log2_table_size)

    @property
    def num_levels(self) -> int:
        return len(self.resolutions)

    @property
    def num_entries(self) -> int:
        """Rows of the table."""
        return self.offsets[-1]

    @property
    def used_rows(self) -> tuple[int, ...]:
        """Rows that each level uses. The others are padding."""
        return _used_rows(self.resolutions, self.log2_table_size)

    def levels(self, table: Tensor) -> list[Tensor]:
        """The table [num_entries, F] -> views of the rows that each level uses."""
        return [table[begin : begin + rows] for begin, rows in zip(self.offsets, self.used_rows, strict=False)]

    def with_padding(self, used: Tensor) -> Tensor:
        """The used rows of all levels, one behind the other [sum(used_rows), F] -> the table [num_entries, F]."""
        table = used.new_zeros(self.num_entries, used.shape[1])
        for level, rows in zip(self.levels(table), used.split(self.used_rows), strict=True):
            level.copy_(rows)
        return table

    @property
    def out_features(self) -> int:
        return self.num_levels * self.features_per_level

    def is_dense(self, level: int) -> bool:
        """Whether every vertex of the level has a row of its own."""
        return (self.resolutions[level] + 1) ** 3 <= 1 << self.log2_table_size


@dataclass(frozen=True)
class Space:
    """Map from world positions to the unit cube that the hash grid and the occupancy grid cover.

    In bounded scenes, ``box`` maps linearly to the unit cube and nothing exists outside of it. In unbounded scenes
    (``contracted``), the box maps to the middle half of the cube along each axis and the rest of the world is
    contracted around it (Barron et al. 2022, "Mip-NeRF 360", eq. 10, but with the infinity norm, as in nerfacto).

    ``box`` holds the lower and upper corner in world units.
    """

    box: tuple[tuple[float, float, float], tuple[float, float, float]]
    contracted: bool = False

    @property
    def diagonal(self) -> float:
        """Length of the box's diagonal in world units."""
        return math.dist(self.box[0], self.box[1])

    def to_unit(self, positions: Tensor) -> Tensor:
        """Map world positions [..., 3] to the unit cube [..., 3].

        The result lies outside of the cube only if the scene is bounded and the position is outside of the box.
        """
        low = torch.tensor(self.box[0], dtype=positions.dtype, device=positions.device)
        high = torch.tensor(self.box[1], dtype=positions.dtype, device=positions.device)
        unit = (positions - low) / (high - low)
        if not self.contracted:
            return unit
        centered = 2 * unit - 1
        norm = centered.abs().amax(dim=-1, keepdim=True).clamp_min(1)
        return 0.25 * centered * (2 - 1 / norm) / norm + 0.5

    def to_world(self, unit: Tensor) -> Tensor:
        """Inverse of `to_unit`, [..., 3] -> [..., 3]. Faces of a contracted cube map to very distant, finite points."""
        low = torch.tensor(self.box[0], dtype=unit.dtype, device=unit.device)
        high = torch.tensor(self.box[1], dtype=unit.dtype, device=unit.device)
        if self.contracted:
            contracted = 4 * unit - 2
            # Below 2, which represents infinity and would give NaN.
            norm = contracted.abs().amax(dim=-1, keepdim=True).clamp(1, 2 - 1e-6)
            unit = 0.5 * contracted / (norm * (2 - norm)) + 0.5
        return low + unit * (high - low)


@dataclass(frozen=True)
class StepRule:
    """Placement of samples along a ray: at unit steps of a coordinate ``s``, at distance ``t = distance(s)``.

    ``distance(s)`` is ``step_size * s`` up to ``s = 1 / cone_angle``, and ``step_size / cone_angle * exp(cone_angle * s
    - 1)`` beyond. Steps have constant length near the camera and grow in proportion to the distance farther out; the
    derivative is continuous. ``cone_angle = 0`` keeps the length constant everywhere.
    """

    step_size: float  # world units
    cone_angle: float = 0.0

    def distance(self, s: Tensor) -> Tensor:
        """Distance along the ray, in world units, of the step coordinate ``s`` (any shape)."""
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
    """N samples of R rays, ray after ray, without padding (the layout of compressed sparse rows).

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
        """[N] the distances at which the field is evaluated, world units."""
        return 0.5 * (self.t_starts + self.t_ends)

    def counts(self) -> Tensor:
        """[R] the number of samples of each ray."""
        return self.ray_offsets.diff()

    def ray_indices(self) -> Tensor:
        """[N] the index of each sample's ray."""
        rays = torch.arange(self.num_rays, device=self.ray_offsets.device)
        return rays.repeat_interleave(self.counts(), output_size=self.num_samples)

    def select(self, indices: Tensor) -> PackedSamples:
        """Select samples by their indices [M], which must be in ascending order. The rays stay the same."""
        offsets = torch.searchsorted(indices, self.ray_offsets)
        return PackedSamples(offsets, self.t_starts.index_select(0, indices), self.t_ends.index_select(0, indices))

    def positions(self, origins: Tensor, directions: Tensor) -> Tensor:
        """[N, 3] world positions of the samples, given the rays' origins and directions, both [R, 3]."""
        rays = self.ray_indices()
        return origins[rays] + directions[rays] * self.t_mids[:, None]


def ray_offsets_of(counts: Tensor) -> Tensor:
    """Numbers of samples of rays [R] int64 -> ray_offsets [R + 1] of `PackedSamples`."""
    offsets = counts.new_zeros(counts.shape[0] + 1)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets
