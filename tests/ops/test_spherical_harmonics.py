"""spherical_harmonics: an orthonormal basis of the polynomials up to degree 3 on the sphere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from eugen_nerf.ops import spherical_harmonics


def quadrature() -> tuple[Tensor, Tensor]:
    """Directions [Q, 3] and weights [Q] that integrate polynomials up to degree 7 over the sphere exactly."""
    nodes, node_weights = np.polynomial.legendre.leggauss(4)
    z, weights = torch.from_numpy(nodes), torch.from_numpy(node_weights)
    phi = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    radius = (1 - z * z).sqrt()
    grid = torch.stack([radius[:, None] * phi.cos(), radius[:, None] * phi.sin(), z[:, None].expand(-1, 8)], dim=-1)
    return grid.reshape(-1, 3), (weights[:, None] * (2 * math.pi / 8)).expand(-1, 8).reshape(-1)


def test_spherical_harmonics_are_orthonormal() -> None:
    directions, weights = quadrature()
    assert weights.sum().item() == pytest.approx(4 * math.pi)
    values = spherical_harmonics(directions)
    gram = values.T @ (weights[:, None] * values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-12)


def test_spherical_harmonics_are_sorted_by_degree() -> None:
    """Reversing the direction multiplies degree l by (-1)^l; degree l has 2 l + 1 functions."""
    directions = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
    )
    signs = torch.tensor([(-1.0) ** degree for degree in range(4) for _ in range(2 * degree + 1)]).double()
    torch.testing.assert_close(spherical_harmonics(-directions), signs * spherical_harmonics(directions))


def test_spherical_harmonics_in_single_precision_and_without_directions() -> None:
    directions, _ = quadrature()
    torch.testing.assert_close(
        spherical_harmonics(directions.float()).double(), spherical_harmonics(directions), rtol=0, atol=1e-6
    )
    assert spherical_harmonics(torch.empty(0, 3)).shape == (0, 16)
