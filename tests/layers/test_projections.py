"""Random projections: moments, orthogonality, reproducibility."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eugen_nerf.layers.projections import KINDS, gaussian, make_projection, orthogonal, rademacher

FOURTH_MOMENT = {"gaussian": 3.0, "orthogonal": 3.0, "rademacher": 1.0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_entries_have_zero_mean_unit_variance_and_the_fourth_moment_of_their_kind(kind: str) -> None:
    num_features, dim = 30_000, 5
    rows = make_projection(kind, num_features, dim, generator=seeded(0), dtype=torch.float64)
    # Orthogonal rows depend on the dim - 1 others of their block, so counting only blocks is conservative.
    independent = num_features / dim
    for power, expected, spread in (
        (1, 0.0, 1.0),
        (2, 1.0, math.sqrt(2.0)),
        (4, FOURTH_MOMENT[kind], math.sqrt(96.0)),
    ):
        moments = (rows**power).mean(dim=0)
        assert (moments - expected).abs().max() < 5 * spread / math.sqrt(independent)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_uncorrelated(kind: str) -> None:
    rows = make_projection(kind, 30_000, 4, generator=seeded(1), dtype=torch.float64)
    covariance = rows.T @ rows / rows.shape[0]
    assert (covariance - torch.eye(4, dtype=torch.float64)).abs().max() < 5 * math.sqrt(2 / (30_000 / 4))


def test_rademacher_rows_are_signs() -> None:
    rows = rademacher(50, 7, generator=seeded(0))
    assert set(rows.unique().tolist()) == {-1.0, 1.0}


@given(num_features=st.integers(1, 40), dim=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_orthogonal_rows_are_orthogonal_within_each_block(num_features: int, dim: int, seed: int) -> None:
    rows = orthogonal(num_features, dim, generator=seeded(seed), dtype=torch.float64)
    assert rows.shape == (num_features, dim)
    for block in rows.split(dim):
        directions = block / block.norm(dim=1, keepdim=True)
        identity = torch.eye(len(block), dtype=torch.float64)
        torch.testing.assert_close(directions @ directions.T, identity, rtol=0, atol=1e-10)


def test_orthogonal_lengths_are_chi_distributed() -> None:
    dim, count = 6, 20_000
    squared = orthogonal(count, dim, generator=seeded(2), dtype=torch.float64).square().sum(dim=1)
    # Chi-squared with dim degrees of freedom: mean d, variance 2 d, fourth central moment 12 d (d + 4).
    assert abs(squared.mean() - dim) < 5 * math.sqrt(2 * dim / count)
    spread = math.sqrt((12 * dim * (dim + 4) - 4 * dim**2) / count)
    assert abs(squared.var() - 2 * dim) < 5 * spread


def test_orthogonal_directions_have_no_preferred_sign() -> None:
    # LAPACK's QR of a 1 x 1 matrix always has Q = 1; the sign has to be recovered from R.
    rows = orthogonal(4000, 1, generator=seeded(3))
    assert abs((rows > 0).float().mean() - 0.5) < 5 * 0.5 / math.sqrt(4000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_makes_rows_reproducible(kind: str) -> None:
    first = make_projection(kind, 9, 4, generator=seeded(5))
    again = make_projection(kind, 9, 4, generator=seeded(5))
    other = make_projection(kind, 9, 4, generator=seeded(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtype_is_honored(kind: str, dtype: torch.dtype) -> None:
    rows = make_projection(kind, 9, 4, dtype=dtype)
    assert rows.dtype == dtype
    assert rows.isfinite().all()


def test_the_default_dtype_is_torchs() -> None:
    assert gaussian(2, 3).dtype == torch.get_default_dtype()


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"unknown projection 'hadamard'.*gaussian, orthogonal, rademacher"):
        make_projection("hadamard", 2, 3)
