"""Occupancy grid: marks the cells of the unit cube in which ray marching takes samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Eager PyTorch needs about 2 kB per position for a hash grid with 16 levels.
POSITIONS_AT_ONCE = 1 << 18


def pack_bits(mask: Tensor) -> Tensor:
    """[8 n] bool -> [n] uint8, the first element in the lowest bit."""
    places = torch.arange(
        8, dtype=torch.uint8, device=mask.device
    )  # created on the device, which avoids waiting for a copy
    return (mask.view(-1, 8).to(torch.uint8) << places).sum(dim=1, dtype=torch.uint8)


def _checked(thickness: Tensor, positions: Tensor) -> Tensor:
    # [M, 1] would broadcast against the cells' values to [M, M].
    if thickness.shape != positions.shape[:1]:
        wanted = list(positions.shape[:1])
        raise ValueError(f"thickness must have the shape {wanted}, one value per position, not {list(thickness.shape)}")
    return thickness


class OccupancyGrid(nn.Module):
    """Running maximum of the field's optical thickness per cell, and the bitfield that ray marching reads.

    After Müller et al. 2022 ("Instant NGP", appendix C): an update sets a cell to the larger of its decayed value and
    a new evaluation at a random position inside it. A cell is occupied if its value exceeds
    min(``threshold``, grid mean), or if it has never been evaluated.

    The random positions depend only on the step, ``seed`` and the kind of device, so that replicas with equal fields
    keep equal grids. All work is done on the grid's device.

    Args:
        resolution: cells along each axis; even.
        threshold: optical thickness (density times step size) of one step above which a cell is occupied.
        decay: factor applied to a cell's old value at each evaluation.
        interval: training steps between updates.
        warmup_steps: until this step, an update evaluates every cell. Later updates evaluate every fourth cell, in
            rotation, and up to as many random occupied cells.
        seed: random seed of the positions and of the choice of cells.

    Raises:
        ValueError: the resolution is odd or below 2, or another argument is out of its range.
    """

    bits: Tensor
    values: Tensor

    def __init__(
        self,
        resolution: int = 128,
        threshold: float = 0.01,
        decay: float = 0.95,
        interval: int = 16,
        warmup_steps: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if resolution < 2 or resolution % 2:
            raise ValueError(f"occupancy resolution must be even and positive, not {resolution}")
        if not 0 <= threshold < math.inf:  # with NaN, no cell would be occupied
            raise ValueError(f"occupancy threshold must be a number from 0 on, not {threshold}")
        if not 0 <= decay <= 1:
            raise ValueError(f"occupancy decay must lie between 0 and 1, not {decay}")
        if interval < 1:
            raise ValueError(f"occupancy interval must be at least 1 step, not {interval}")
        self.resolution = resolution
        self.threshold = threshold
        self.decay = decay
        self.interval = interval
        self.warmup_steps = warmup_steps
        self.seed = seed
        cells = resolution**3
        # Negative values mark cells that were never evaluated.
        self.register_buffer("values", torch.full((cells,), -1.0))
        self.register_buffer("bits", torch.full((cells // 8,), 255, dtype=torch.uint8))

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, threshold={self.threshold}"

    @property
    def occupied_fraction(self) -> float:
        """Fraction of cells that are occupied."""
        counts = torch.tensor([bin(byte).count("1") for byte in range(256)], device=self.bits.device)
        return counts[self.bits.long()].sum().item() / self.values.numel()

    def update_every_n_steps(self, step: int, thickness: Callable[[Tensor], Tensor]) -> bool:
        """Call `update` if it is due at this training step. Returns whether it was due."""
        if step % self.interval:
            return False
        self.update(step, thickness)
        return True

    @torch.no_grad()
    def update(self, step: int, thickness: Callable[[Tensor], Tensor]) -> None:
        """Evaluate cells and rebuild the bitfield.

        Args:
            step: training step; selects the cells and the positions inside them.
            thickness: positions [M, 3] in the unit cube -> optical thickness of one step there [M].

        Raises:
            ValueError: thickness returned another shape.
        """
        device = self.values.device
        generator = torch.Generator(device).manual_seed(self.seed * 1_000_003 + step)
        cells = self._cells_to_evaluate(step, generator)
        offsets = torch.rand(cells.shape[0], 3, generator=generator, device=device)
        r = self.resolution
        corner = torch.stack([cells % r, cells // r % r, cells // (r * r)], dim=-1)
        positions = (corner + offsets) / r
        new = torch.cat([_checked(thickness(part), part) for part in positions.split(POSITIONS_AT_ONCE)])
        new = new.to(self.values.dtype)
        new = torch.maximum(self.values[cells] * self.decay, new)
        # A single value that is not finite would make the grid mean non-finite and would persist. Such cells get the
        # threshold instead.
        self.values[cells] = new.nan_to_num(nan=self.threshold, posinf=self.threshold)
        self._renew_bits()

    def _cells_to_evaluate(self, step: int, generator: torch.Generator) -> Tensor:
        total, device = self.values.numel(), self.values.device
        if step < self.warmup_steps:
            return torch.arange(total, device=device)
        turn = step // self.interval % 4
        in_turn = torch.arange(turn, total, 4, device=device)
        occupied = (self.values > self._limit()).nonzero()[:, 0]
        chosen = torch.randperm(occupied.numel(), generator=generator, device=device)[: total // 4]
        return torch.cat([in_turn, occupied[chosen]]).unique()

    def _limit(self) -> Tensor:
        return self.values.clamp_min(0).mean().clamp_max(self.threshold)

    def _renew_bits(self) -> None:
        self.bits.copy_(pack_bits((self.values > self._limit()) | (self.values < 0)))
