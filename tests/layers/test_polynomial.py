"""Unbiasedness and variance of the polynomial form (arXiv 2601.22563, Theorems 3.1 and 3.2)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eugen_nerf.layers import EUGen, polynomial, polynomial_eugen, variance_independent, variance_shared

F64 = torch.float64
COEFFICIENTS = [0.4, -0.9, 0.6, -0.3]  # mixed signs, all orders present


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def evaluate_polynomial(coefficients: list[float], z: Tensor) -> Tensor:
    return sum((a * z**i for i, a in enumerate(coefficients)), torch.zeros_like(z))


def estimates(layer: EUGen, x: Tensor) -> Tensor:
    """One estimate of the output per feature, [m, N, out]; the layer's output is their mean."""
    m, order = layer.num_features, layer.order
    terms = layer.features(x)[:, None, :] * layer.weight  # [N, out, k * m]
    per_feature = terms.unflatten(-1, (order, m)).sum(dim=-2) * m
    assert layer.bias is not None
    return (per_feature + layer.bias[:, None]).movedim(-1, 0)


@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shared", [False, True], ids=["independent", "shared"])
@pytest.mark.parametrize("coefficients", [COEFFICIENTS[:2], COEFFICIENTS[:3], COEFFICIENTS], ids=len)
def test_exact_over_all_sign_patterns(
    coefficients: list[float], shared: bool, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Rademacher rows the expectation is a finite sum, in which every sign pattern is one feature."""
    order, dim = len(coefficients) - 1, 2
    matrices = order if shared else order * (order + 1) // 2
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=matrices * dim)), dtype=F64)
    rows = iter(patterns.unflatten(1, (matrices, dim)).unbind(dim=1))
    monkeypatch.setattr(polynomial, "make_projection", lambda *args, **kwargs: next(rows))
    weight, x = normal(3, dim, seed=0), normal(4, dim, seed=1)
    bias = normal(3, seed=2) if with_bias else None

    layer = polynomial_eugen(coefficients, weight, bias, len(patterns), shared=shared)

    expected = evaluate_polynomial(coefficients, torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)
    formula = variance_shared if shared else variance_independent
    variance = estimates(layer, x).var(dim=0, unbiased=False)
    predicted = formula(coefficients, weight, bias, x, 1, fourth_moment=1.0)
    torch.testing.assert_close(variance, predicted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shared", [False, True], ids=["independent", "shared"])
@pytest.mark.parametrize("projection", ["gaussian", "rademacher", "orthogonal"])
def test_unbiased(projection: str, shared: bool) -> None:
    dim, m = 4, 100_000
    weight, bias, x = normal(2, dim, seed=3) / 2, normal(2, seed=4), normal(3, dim, seed=5) / 2
    layer = polynomial_eugen(
        COEFFICIENTS,
        weight,
        bias,
        m,
        shared=shared,
        projection=projection,
        generator=torch.Generator().manual_seed(6),
    )
    # Orthogonal rows are only independent between blocks, so blocks of dim features are the samples.
    samples = estimates(layer, x).detach().unflatten(0, (m // dim, dim)).mean(dim=1)
    standard_error = samples.std(dim=0) / math.sqrt(len(samples))
    expected = evaluate_polynomial(COEFFICIENTS, x @ weight.T + bias)
    assert ((layer(x) - expected).abs() < 5 * standard_error).all()
    # The errors are small compared to the values, so the comparison above is meaningful.
    assert standard_error.max() < 0.02


@pytest.mark.parametrize(
    ("shared", "formula"),
    [(False, variance_independent), (True, variance_shared)],
    ids=["independent", "shared"],
)
@pytest.mark.parametrize(("projection", "fourth_moment"), [("gaussian", 3.0), ("rademacher", 1.0)])
def test_variance(projection: str, fourth_moment: float, shared: bool, formula: Callable[..., Tensor]) -> None:
    coefficients, dim, m = COEFFICIENTS[:3], 3, 200_000
    weight, bias, x = normal(2, dim, seed=7), normal(2, seed=8), normal(3, dim, seed=9)
    layer = polynomial_eugen(
        coefficients,
        weight,
        bias,
        m,
        shared=shared,
        projection=projection,
        generator=torch.Generator().manual_seed(10),
    )
    squares = (estimates(layer, x) - evaluate_polynomial(coefficients, x @ weight.T + bias)).detach().square()
    standard_error = squares.std(dim=0) / math.sqrt(m)
    predicted = formula(coefficients, weight, bias, x, 1, fourth_moment=fourth_moment)
    assert ((squares.mean(dim=0) - predicted).abs() < 5 * standard_error).all()
    assert (standard_error < 0.1 * predicted).all()


def test_variance_of_the_layer_falls_with_the_number_of_features() -> None:
    weight, x = normal(2, 3, seed=0), normal(4, 3, seed=1)
    one = variance_shared(COEFFICIENTS, weight, None, x, 1)
    torch.testing.assert_close(variance_shared(COEFFICIENTS, weight, None, x, 64), one / 64)


def test_rademacher_rows_never_have_more_variance() -> None:
    weight, x = normal(5, 3, seed=0), normal(20, 3, seed=1)
    gaussian = variance_independent(COEFFICIENTS, weight, None, x, 8)
    rademacher = variance_independent(COEFFICIENTS, weight, None, x, 8, fourth_moment=1.0)
    assert (rademacher < gaussian).all()


def test_one_order_has_the_same_variance_shared_or_not() -> None:
    weight, x = normal(5, 3, seed=0), normal(20, 3, seed=1)
    only_square = [0.0, 0.0, 0.7]
    torch.testing.assert_close(
        variance_independent(only_square, weight, None, x, 8),
        variance_shared(only_square, weight, None, x, 8),
    )


def test_a_constant_polynomial_is_exact() -> None:
    layer = polynomial_eugen([0.7], normal(2, 3, seed=0), normal(2, seed=1), 4)
    torch.testing.assert_close(layer(normal(5, 3, seed=2)), torch.full((5, 2), 0.7, dtype=F64))
    assert (variance_independent([0.7], normal(2, 3, seed=0), None, normal(5, 3, seed=2), 4) == 0).all()


def test_features_of_unit_variance_inputs_have_unit_variance() -> None:
    layer = polynomial_eugen(
        COEFFICIENTS, normal(2, 64, seed=0), None, 4096, generator=torch.Generator().manual_seed(1)
    )
    for block in layer.features(normal(100, 64, seed=2)).split(4096, dim=-1):
        assert block.square().mean().item() == pytest.approx(1.0, rel=0.2)


def test_the_layer_can_be_trained_and_has_the_weights_dtype() -> None:
    layer = polynomial_eugen(COEFFICIENTS, torch.randn(2, 3), torch.randn(2), 4)
    assert {p.dtype for p in layer.parameters()} == {torch.float32}
    layer(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least its constant coefficient"):
        polynomial_eugen([], torch.ones(2, 3), None, 4)
    with pytest.raises(ValueError, match="unknown projection 'uniform'"):
        polynomial_eugen([0.0, 1.0], torch.ones(2, 3), None, 4, projection="uniform")
