"""EUGen layers that are unbiased estimates of a dense layer with a polynomial activation, and their variance.

EUGens, NeurIPS 2025, arXiv 2601.22563, Theorems 3.1 and 3.2. For f(z) = sum_i a_i z^i, Phi = Psi = identity,
no norm, and projections with independent zero-mean unit-variance rows D,

    prod_j (D_ij w)(D_ij x)   has the expectation   (w.x)^i,

because the i factors are independent. The estimate of f(w.x) averages this product over m features. Its noise falls as
1 / sqrt(m) and scales with ||w|| ||x||, not with w.x. It is therefore a check of the mathematics and a starting point
for training, but without training no way to compress a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from eugen_nerf.layers.eugen import EUGen, combine_orders, num_projections
from eugen_nerf.layers.projections import make_projection


@torch.no_grad()
def polynomial_eugen(
    coefficients: Sequence[float],
    weight: Tensor,
    bias: Tensor | None,
    num_features: int,
    *,
    shared: bool = False,
    projection: str = "gaussian",
    generator: torch.Generator | None = None,
) -> EUGen:
    """Create an EUGen layer whose expectation over its projections is f(weight x + bias) (arXiv 2601.22563, Thm. 3.1).

    The bias is absorbed by expanding f around it: f(z + b) = sum_i a_i(b) z^i for each output. The projections are
    D / sqrt(d), as in a newly created `EUGen`. All other factors are on the weight side: the coefficient a_i(b) with
    its sign, d^(i/2) and 1 / m. Order 0 is the layer's bias, a_0(b) = f(b).

    Args:
        coefficients: a_0, ..., a_k of the polynomial f; the layer's order is k.
        weight: [out, d].
        bias: [out] or None.
        num_features: m, features per order.
        shared: uses k projections instead of k (k + 1) / 2; also unbiased, with a different variance.
        projection: "gaussian", "orthogonal" or "rademacher".
        generator: source of the random projections.

    Returns:
        The layer, [..., d] -> [..., out], without a norm and with Phi = identity.

    Raises:
        ValueError: no coefficients, an unknown projection, or `num_features` below 1.
    """
    expanded = _expanded_coefficients(coefficients, weight, bias)
    order = expanded.shape[1] - 1
    out_features, in_features = weight.shape
    dtype, device = weight.dtype, weight.device
    drawn = [
        make_projection(projection, num_features, in_features, generator=generator, dtype=dtype, device=device)
        for _ in range(num_projections(order, shared))
    ]
    rows = torch.stack(drawn) if drawn else weight.new_empty(0, num_features, in_features)
    layer = EUGen(
        in_features,
        out_features,
        num_features,
        order=order,
        norm=False,
        phi="identity",
        shared=shared,
        projection=rows / math.sqrt(in_features),
        dtype=dtype,
        device=device,
    )
    products = combine_orders(torch.einsum("od,pmd->opm", weight, rows), order, shared)
    powers = torch.arange(1, order + 1, dtype=dtype, device=device)
    scale = expanded[:, 1:] * in_features ** (powers / 2) / num_features
    layer.weight.copy_(products * scale.repeat_interleave(num_features, dim=1))
    assert layer.bias is not None
    layer.bias.copy_(expanded[:, 0])
    return layer


def variance_independent(
    coefficients: Sequence[float],
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    num_features: int,
    *,
    fourth_moment: float = 3.0,
) -> Tensor:
    """Variance of `polynomial_eugen(..., shared=False)` at x (arXiv 2601.22563, Theorem 3.2).

        (1 / m) sum_{i >= 1} a_i^2 (v^i - s^(2 i)),     s = w.x,
        v = 2 s^2 + ||w||^2 ||x||^2 + (tau - 3) sum_l w_l^2 x_l^2 = E (D w)^2 (D x)^2

    Valid for independent entries, that is for Gaussian (tau = 3) and Rademacher (tau = 1) projections. With a bias, the
    a_i are the coefficients expanded around it.

    Args:
        coefficients: a_0, ..., a_k.
        weight: [out, d].
        bias: [out] or None.
        x: [..., d].
        num_features: m.
        fourth_moment: tau, E D^4 of one entry.

    Returns:
        The variance of each output, [..., out].

    Raises:
        ValueError: no coefficients.
    """
    expanded = _expanded_coefficients(coefficients, weight, bias)
    s, v = _moments(weight, x, fourth_moment)
    total = torch.zeros_like(s)
    for i in range(1, expanded.shape[1]):
        total = total + expanded[:, i] ** 2 * (v**i - s ** (2 * i))
    return total / num_features


def variance_shared(
    coefficients: Sequence[float],
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    num_features: int,
    *,
    fourth_moment: float = 3.0,
) -> Tensor:
    """Variance of `polynomial_eugen(..., shared=True)` at x.

        (1 / m) sum_{i, l >= 1} a_i a_l (v^min(i, l) s^|i - l| - s^(i + l))

    s and v are those of `variance_independent`. Orders i and l share their first min(i, l) factors, so their estimates
    are correlated. The formula extends Theorem 3.2 of arXiv 2601.22563 to shared projections; the paper does not state
    it.

    Args:
        coefficients: a_0, ..., a_k.
        weight: [out, d].
        bias: [out] or None.
        x: [..., d].
        num_features: m.
        fourth_moment: tau, E D^4 of one entry.

    Returns:
        The variance of each output, [..., out].

    Raises:
        ValueError: no coefficients.
    """
    expanded = _expanded_coefficients(coefficients, weight, bias)
    s, v = _moments(weight, x, fourth_moment)
    total = torch.zeros_like(s)
    for i in range(1, expanded.shape[1]):
        for j in range(1, expanded.shape[1]):
            covariance = v ** min(i, j) * s ** abs(i - j) - s ** (i + j)
            total = total + expanded[:, i] * expanded[:, j] * covariance
    return total / num_features


def _expanded_coefficients(coefficients: Sequence[float], weight: Tensor, bias: Tensor | None) -> Tensor:
    """a_i(b) = sum_n a_n C(n, i) b^(n - i) for every output, [out, k + 1]; without a bias, the a_i themselves."""
    if len(coefficients) == 0:
        raise ValueError("a polynomial needs at least its constant coefficient")
    b = weight.new_zeros(weight.shape[0]) if bias is None else bias
    order = len(coefficients) - 1
    columns = []
    for i in range(order + 1):
        column = torch.zeros_like(b)
        for n in range(i, order + 1):
            column = column + coefficients[n] * math.comb(n, i) * b ** (n - i)
        columns.append(column)
    return torch.stack(columns, dim=1)


def _moments(weight: Tensor, x: Tensor, fourth_moment: float) -> tuple[Tensor, Tensor]:
    """s = w.x and v = E (D w)^2 (D x)^2, each [..., out]."""
    s = x @ weight.T
    w_squared, x_squared = weight.square(), x.square()
    lengths = x_squared.sum(dim=-1, keepdim=True) * w_squared.sum(dim=-1)
    return s, 2 * s.square() + lengths + (fourth_moment - 3) * (x_squared @ w_squared.T)
