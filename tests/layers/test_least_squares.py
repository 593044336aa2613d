"""Streamed ridge regression against its definition, and feature selection against brute force."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eugen_nerf.layers.least_squares import NormalEquations

F64 = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def problem(n: int = 200, m: int = 6, out: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features and targets, both far from zero."""
    features = normal(n, m, seed=seed) @ normal(m, m, seed=seed + 1) + 5 * normal(m, seed=seed + 2)
    targets = features @ normal(m, out, seed=seed + 3) + normal(n, out, seed=seed + 4) - 7
    return features, targets


def equations(features: Tensor, targets: Tensor, parts: int = 3, constant: bool = True) -> NormalEquations:
    result = NormalEquations(constant)
    for f, y in zip(features.chunk(parts), targets.chunk(parts), strict=True):
        result.add(f, y)
    return result


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 7), st.booleans(), st.sampled_from([0.0, 1e-6, 1e-2, 10.0]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_it_minimizes_what_the_docstring_says(m: int, out: int, parts: int, constant: bool, ridge: float) -> None:
    features, targets = problem(100, m, out)
    solution = equations(features, targets, parts, constant).solve(ridge)
    centered = features - features.mean(dim=0) if constant else features
    penalty = ridge * centered.square().mean()
    weight = solution.weight.clone().requires_grad_()
    bias = solution.bias.clone().requires_grad_()
    error = features @ weight.T + bias - targets
    loss = error.square().sum() / len(features) + penalty * weight.square().sum()
    gradients = torch.autograd.grad(loss, (weight, bias))
    scale = features.square().mean() + targets.square().mean()
    assert gradients[0].abs().max() < 1e-9 * scale
    if constant:
        assert gradients[1].abs().max() < 1e-9 * scale
    else:
        assert not solution.bias.any()


def test_the_constant_is_not_penalized() -> None:
    features, targets = problem()
    first = equations(features, targets).solve(1.0)
    second = equations(features, targets + 1000).solve(1.0)
    torch.testing.assert_close(second.weight, first.weight, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(second.bias, first.bias + 1000, rtol=1e-8, atol=1e-8)


def test_the_penalty_has_no_unit() -> None:
    features, targets = problem()
    first = equations(features, targets).solve(0.1)
    second = equations(1000 * features, targets).solve(0.1)
    torch.testing.assert_close(1000 * second.weight, first.weight)


def test_explained_share_is_that_of_the_prediction() -> None:
    features, targets = problem()
    solution = equations(features, targets).solve(1e-3)
    error = (features @ solution.weight.T + solution.bias - targets).square().sum()
    total = (targets - targets.mean(dim=0)).square().sum()
    assert solution.explained == pytest.approx(1 - (error / total).item(), abs=1e-10)


class TestSingularGramMatrix:
    @pytest.mark.parametrize("ridge", [0.0, 1e-6])
    def test_dead_and_repeated_features(self, ridge: float) -> None:
        features, targets = problem(m=4)
        singular = torch.cat([features, features[:, :2], torch.full((200, 1), 3.0, dtype=F64)], dim=1)
        solution = equations(singular, targets).solve(ridge)
        assert solution.weight.isfinite().all()
        assert solution.weight[:, 6].abs().max() < 1e-9  # a constant feature carries no information
        expected = equations(features, targets).solve(0.0)
        predicted = singular @ solution.weight.T + solution.bias
        torch.testing.assert_close(predicted, features @ expected.weight.T + expected.bias, rtol=1e-4, atol=1e-4)

    def test_no_feature_ever_fires(self) -> None:
        _, targets = problem()
        solution = equations(torch.zeros(200, 5, dtype=F64), targets).solve(1e-6)
        assert not solution.weight.any()
        torch.testing.assert_close(solution.bias, targets.mean(dim=0))
        assert solution.explained == pytest.approx(0)

    def test_a_constant_target_is_met(self) -> None:
        features, _ = problem()
        solution = equations(features, torch.full((200, 2), 4.0, dtype=F64)).solve(1e-6)
        torch.testing.assert_close(solution.bias, torch.full((2,), 4.0, dtype=F64))
        assert solution.explained == 1


@pytest.mark.parametrize(("offset", "dtype"), [(1e3, torch.float32), (1e6, F64)])
def test_batches_far_from_zero_lose_nothing(offset: float, dtype: torch.dtype) -> None:
    features, targets = problem(n=4000)
    shifted = (features + offset).to(dtype)
    solution = equations(shifted, targets, parts=9).solve(0.0)
    expected = torch.linalg.lstsq(
        torch.cat([shifted.double() - offset, torch.ones(4000, 1, dtype=F64)], dim=1), targets
    ).solution
    torch.testing.assert_close(solution.weight, expected[:-1].T, rtol=1e-7, atol=1e-7)


class TestChoice:
    def test_leverage_scores_are_the_diagonal_of_the_smoother(self) -> None:
        features, targets = problem()
        centered = features - features.mean(dim=0)
        gram = centered.T @ centered / len(centered)
        penalty = 0.1 * gram.diagonal().mean() * torch.eye(6, dtype=F64)
        expected = (gram @ torch.linalg.inv(gram + penalty)).diagonal()
        torch.testing.assert_close(equations(features, targets).leverage_scores(0.1), expected)

    def test_leverage_prefers_what_nothing_else_says(self) -> None:
        features, targets = problem(m=3)
        repeated = torch.cat([features[:, :2], features[:, :2], features[:, 2:]], dim=1)
        assert 4 in equations(repeated, targets).choose(1, "leverage", 1e-6)

    @pytest.mark.parametrize("seed", range(4))
    def test_each_contribution_is_the_largest_there_is(self, seed: int) -> None:
        features, targets = problem(m=7, seed=10 * seed)
        consumer = normal(2, 3, seed=seed)

        def left(columns: tuple[int, ...]) -> float:
            seen = targets @ consumer.T
            return 1 - equations(features[:, list(columns)], seen).solve(0.0).explained

        chosen: set[int] = set()
        for number in range(1, 5):
            greedy = set(equations(features, targets).choose(number, "contribution", 0.0, consumer).tolist())
            errors = {i: left((*chosen, i)) for i in set(range(7)) - chosen}
            best = min(errors, key=lambda i: errors[i])
            assert greedy == chosen | {best}
            chosen = greedy

    @pytest.mark.parametrize("seed", range(4))
    def test_columns_of_a_feature_are_chosen_together(self, seed: int) -> None:
        features, targets = problem(m=10, seed=10 * seed)

        def left(chosen: tuple[int, ...]) -> float:
            columns = [i + 5 * order for order in range(2) for i in chosen]
            return 1 - equations(features[:, columns], targets).solve(0.0).explained

        chosen: set[int] = set()
        for number in range(1, 5):
            greedy = set(equations(features, targets).choose(number, "contribution", 0.0, columns_each=2).tolist())
            errors = {i: left((*chosen, i)) for i in set(range(5)) - chosen}
            assert greedy == chosen | {min(errors, key=lambda i: errors[i])}
            chosen = greedy

    def test_contribution_is_near_the_best_subset(self) -> None:
        features, targets = problem(m=7)
        chosen = equations(features, targets).choose(3, "contribution", 0.0).tolist()
        shares = {
            columns: equations(features[:, list(columns)], targets).solve(0.0).explained
            for columns in itertools.combinations(range(7), 3)
        }
        assert shares[tuple(chosen)] >= 0.95 * max(shares.values())

    @pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
    def test_a_large_ridge_is_no_reason_to_take_what_comes_first(self, ridge: float) -> None:
        features, _ = problem(m=6)
        features[:, :4] *= 2  # so that the variances of the others are below the mean
        targets = features[:, 4:] @ normal(2, 3)
        assert equations(features, targets).choose(2, "contribution", ridge).tolist() == [4, 5]

    def test_repetitions_are_chosen_last(self) -> None:
        features, targets = problem(m=3)
        repeated = torch.cat([features, features, torch.zeros(200, 2, dtype=F64)], dim=1)
        chosen = equations(repeated, targets).choose(4, "contribution", 1e-9).tolist()
        assert len(set(chosen)) == 4
        assert {index % 3 for index in chosen if index < 6} == {0, 1, 2}


class TestRefusals:
    def test_nothing_added(self) -> None:
        empty = NormalEquations()
        empty.add(torch.zeros(0, 3), torch.zeros(0, 2))
        with pytest.raises(ValueError, match="no samples"):
            empty.solve(0.1)

    def test_not_a_number(self) -> None:
        features, targets = problem()
        features[3, 1] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            equations(features, targets).solve(0.1)
