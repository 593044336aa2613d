"""Random projection matrices, the initial values of an EUGen layer's projections G.

Every function returns [m, d] with entries of zero mean and unit variance, so the three kinds are interchangeable in the
unbiased polynomial form (EUGens, NeurIPS 2025, arXiv 2601.22563, Theorem 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("gaussian", "orthogonal", "rademacher")


def gaussian(
    num_features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent standard normal entries, [num_features, dim]."""
    rows = torch.randn(num_features, dim, generator=generator, dtype=_drawing_dtype(dtype), device=device)
    return rows.to(_resolved(dtype))


def orthogonal(
    num_features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Gaussian-orthogonal rows, [num_features, dim].

    The rows form blocks of up to `dim` mutually orthogonal rows; blocks are independent of each other. A row is a
    uniformly distributed direction times an independent chi-distributed length, so its marginal distribution is exactly
    Gaussian (Orthogonal Random Features, NIPS 2016, arXiv 1610.09072).
    """
    drawing = _drawing_dtype(dtype)
    blocks = -(-num_features // dim)
    square = torch.randn(blocks, dim, dim, generator=generator, dtype=drawing, device=device)
    q, r = torch.linalg.qr(square)
    # Householder QR chooses the signs of R's diagonal; undoing that makes Q uniform (Haar-distributed).
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(drawing)
    directions = (q * signs.unsqueeze(-2)).transpose(-1, -2).reshape(blocks * dim, dim)[:num_features]
    lengths = torch.randn(num_features, dim, generator=generator, dtype=drawing, device=device).norm(dim=-1)
    return (directions * lengths.unsqueeze(-1)).to(_resolved(dtype))


def rademacher(
    num_features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Independent random signs, [num_features, dim]. Their fourth moment is 1; that of Gaussian entries is 3."""
    bits = torch.randint(0, 2, (num_features, dim), generator=generator, device=device)
    return (2 * bits - 1).to(_resolved(dtype))


def make_projection(
    kind: str,
    num_features: int,
    dim: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw a random projection matrix of the given kind, [num_features, dim].

    Entries have zero mean and unit variance, as Theorem 3.1 of EUGens (arXiv 2601.22563) requires.

    Args:
        kind: "gaussian", "orthogonal" or "rademacher"; see the functions of these names.
        num_features: number of rows m.
        dim: number of columns d.
        generator: source of random numbers; PyTorch's default generator if None.
        dtype: dtype of the result; PyTorch's default dtype if None.
        device: device of the result.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "gaussian":
        return gaussian(num_features, dim, generator=generator, dtype=dtype, device=device)
    if kind == "orthogonal":
        return orthogonal(num_features, dim, generator=generator, dtype=dtype, device=device)
    if kind == "rademacher":
        return rademacher(num_features, dim, generator=generator, dtype=dtype, device=device)
    raise ValueError(f"unknown projection {kind!r}; known: {', '.join(KINDS)}")


def _resolved(dtype: torch.dtype | None) -> torch.dtype:
    return torch.get_default_dtype() if dtype is None else dtype


def _drawing_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """QR supports only float32 and float64, so half-precision rows are drawn in float32 and rounded once."""
    return torch.float64 if _resolved(dtype) == torch.float64 else torch.float32
