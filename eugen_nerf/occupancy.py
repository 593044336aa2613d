"""Occupancy grid: where in the unit cube samples are worth taking."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

# Eager PyTorch needs about 2 kB for each position in a hash grid of 16 levels.
POSITIONS_AT_ONCE = 1 << 18


def pack_bits(mask: Tensor) -> Tensor:
    """[8 n] bool -> [n] uint8, the first element in the lowest bit."""
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)  # made there: nothing waits for a copy
    return (mask.view(-1, 8).to(torch.uint8) << places).sum(dim=1, dtype=torch.uint8)


def _checked(thickness: Tensor, positions: Tensor) -> Tensor:
    # [M, 1] would be compared with every cell's value, M by M.
    if thickness.shape != positions.shape[:1]:
        wanted = list(positions.shape[:1])
        raise ValueError(f"thickness must have the shape {wanted}, one value a position, not {list(thickness.shape)}")
    return thickness


class OccupancyGrid(nn.Module):
    """Running maximum of the field's optical thickness per cell, and the bitfield that marching reads.

    After Müller et al. 2022 ("Instant NGP", appendix C): a cell keeps the larger of its decayed value and a
    new evaluation at a random position inside of it. It counts as occupied while its value exceeds the smaller
    of ``threshold`` and the mean over the grid, or while it was never evaluated.

    Random positions depend on the step, ``seed`` and the kind of device alone, so that replicas with equal fields
    keep equal grids. Everything happens on the grid's device.

    Args:
        resolution: cells along each axis; even.
        threshold: optical thickness (density times step length) of one step that is worth a sample.
        decay: factor on a cell's old value at each evaluation.
        interval: training steps between updates.
        warmup_steps: steps during which an update evaluates every cell; later ones evaluate a quarter of all
            cells in turn, and as many random ones of those that are occupied.

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
        if not 0 <= threshold < math.inf:  # with one that is not a number no cell would be occupied
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
        # Below zero means: never evaluated.
        self.register_buffer("values", torch.full((cells,), -1.0))
        self.register_buffer("bits", torch.full((cells // 8,), 255, dtype=torch.uint8))

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, threshold={self.threshold}"

    @property
    def occupied_fraction(self) -> float:
        """Share of cells that marching samples."""
        counts = torch.tensor([bin(byte).count("1") for byte in range(256)], device=self.bits.device)
        return counts[self.bits.long()].sum().item() / self.values.numel()

    def update_every_n_steps(self, step: int, thickness: Callable[[Tensor], Tensor]) -> bool:
        """Update if this training step is one for it; see `update`. Returns whether it was."""
        if step % self.interval:
            return False
        self.update(step, thickness)
        return True

    @torch.no_grad()
    def update(self, step: int, thickness: Callable[[Tensor], Tensor]) -> None:
        """Evaluate cells and renew the bitfield.

        Args:
            step: training step; chooses the cells and the positions inside of them.
            thickness: positions [M, 3] in the unit cube -> optical thickness of one step there [M].

        Raises:
            ValueError: thickness answered with another shape.
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
        # One value that is not finite would be the mean of all, and stay where it is. It is worth a look: no less.
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
