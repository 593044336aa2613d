"""The integers that describe a packed chain to native code, by name; `packing.PackedChain` explains them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HARMONICS = 16  # values of the spherical harmonics up to degree 3, which the color network takes besides the geometry


class StageSpec(NamedTuple):
    """One stage of a chain: Phi(G x + offsets + norm column * norm), or products of such rows."""

    in_features: int
    features: int
    order: int
    shared: int
    phi: int  # number of the nonlinearity, see packing.PHI_NUMBERS
    offsets: int  # 1 if there are offsets
    norm: int  # 0 without a norm, 1 for that of x, 1 + r for that of r values R x + c

    @property
    def projections(self) -> int:
        """Number of blocks of `features` rows."""
        return self.order if self.shared else self.order * (self.order + 1) // 2

    @property
    def norm_rows(self) -> int:
        """Rows of R."""
        return max(self.norm - 1, 0)


SIZE = len(StageSpec._fields)


def length(num_stages: int) -> int:
    """Length of the description of a chain with that many stages."""
    return 4 + SIZE * num_stages


def stages_of(spec: Sequence[int]) -> list[StageSpec]:
    return [StageSpec(*spec[1 + SIZE * i : 1 + SIZE * (i + 1)]) for i in range(spec[0])]


def outputs_of(spec: Sequence[int]) -> int:
    return spec[-3]


def has_bias(spec: Sequence[int]) -> bool:
    """Whether the output has a bias."""
    return bool(spec[-2])


def inputs_of(spec: Sequence[int]) -> int:
    return spec[-1]
