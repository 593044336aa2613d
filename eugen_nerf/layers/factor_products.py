"""Products of the factors of a chain's matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Product:
    """left @ right + constant, not multiplied yet; `right` alone if there is no `left`."""

    right: Tensor  # [q, d] or [q]
    left: Tensor | None = None  # [p, q]
    constant: Tensor | None = None  # [p], only where `right` is a vector

    @property
    def shape(self) -> torch.Size:
        """Shape of the value: [p, d] or [p]."""
        return self.right.shape if self.left is None else self.left.shape[:1] + self.right.shape[1:]

    def value(self) -> Tensor:
        """The product, differentiable in every factor."""
        if self.left is None:
            return self.right
        product = self.left @ self.right
        return product if self.constant is None else product + self.constant
