"""A whole radiance field as its parameters, the form that rendering in one pass needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eugen_nerf.layers.merge import MergedChain
from eugen_nerf.ops import dispatch
from eugen_nerf.ops.dispatch import Backend
from eugen_nerf.ops.layout import HashGridLayout

# exp(89) is infinite in float32.
MAX_LOG_DENSITY = 80.0


@dataclass(frozen=True, eq=False)
class RadianceField:
    """Hash grid, density network and colour network with their parameters merged; for inference.

    The density network's first output is the logarithm of the density; the colour network receives spherical
    harmonics of the direction [16] followed by the density network's other outputs.
    """

    table: Tensor  # [layout.num_entries, F]; on a GPU it may be of fp16
    layout: HashGridLayout
    density: MergedChain
    color: MergedChain
    backend: Backend = "auto"

    def __call__(self, unit: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions in the unit cube [N, 3], unit directions [N, 3] -> density [N], rgb [N, 3] in [0, 1]."""
        encoded = dispatch.hash_encode(unit, self.table, self.layout, backend=self.backend)
        raw = dispatch.network(encoded, self.density, backend=self.backend)
        harmonics = dispatch.spherical_harmonics(directions, backend=self.backend)
        color = dispatch.network(torch.cat([harmonics, raw[:, 1:]], dim=-1), self.color, backend=self.backend)
        return torch.exp(raw[:, 0].clamp(max=MAX_LOG_DENSITY)), torch.sigmoid(color)
