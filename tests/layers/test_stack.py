"""A stack evaluated in merged form gives the same results as its separate layers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eugen_nerf.layers import EUGen, LayerStack, MergedChain


def one_by_one(stack: LayerStack, x: Tensor) -> Tensor:
    inputs = x
    for i, (layer, activation) in enumerate(zip(stack.layers, stack.activations, strict=True)):
        if i in stack.skip_connections:
            x = torch.cat([inputs, x], dim=-1)
        x = activation(layer(x))
    return x


def build(kinds: list[bool], skips: list[int], *, norm: bool = True, order: int = 1, bias: bool = True) -> LayerStack:
    torch.manual_seed(0)
    layers: list[nn.Linear | EUGen] = []
    for i, eugen in enumerate(kinds):
        width = 5 if i == 0 else 12 + (5 if i in skips else 0)
        if eugen:
            layer: nn.Linear | EUGen = EUGen(width, 12, 4, order=order, norm=norm, bias=bias)
            if bias:
                nn.init.normal_(layer.bias)  # type: ignore[arg-type]
        else:
            layer = nn.Linear(width, 12, bias=bias)
        layers.append(layer)
    return LayerStack(layers, [None if eugen else nn.ReLU() for eugen in kinds], skips).double()


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.booleans(), min_size=1, max_size=6),
    skips=st.sets(st.integers(1, 5)),
    norm=st.booleans(),
    order=st.integers(1, 2),
    bias=st.booleans(),
)
def test_merged_equals_one_by_one(kinds: list[bool], skips: set[int], norm: bool, order: int, bias: bool) -> None:
    stack = build(kinds, sorted(i for i in skips if i < len(kinds)), norm=norm, order=order, bias=bias)
    x = torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = one_by_one(stack, x)
    # The norm inside a chain is computed from a quadratic form, whose size is that of the squared values.
    torch.testing.assert_close(stack(x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(stack(x), expected, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_factors() -> None:
    stack = build([False, True, True, True, False], [2])
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    variables = [x, *stack.parameters()]
    merged = torch.autograd.grad(stack(x).square().sum(), variables)
    factored = torch.autograd.grad(one_by_one(stack, x).square().sum(), variables)
    for first, second in zip(merged, factored, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-8, atol=1e-8)


def test_one_call_of_the_network_up_to_a_skip_connection_or_an_activation_without_a_name() -> None:
    stack = build([False, True, False, True, False, True, False], [4])
    stack.activations[5], stack.activations[6] = nn.Identity(), nn.Sigmoid()
    calls: list[tuple[int, int, int]] = []

    def network(x: Tensor, chain: MergedChain) -> Tensor:
        calls.append((x.shape[0], len(chain.stages), chain.out_features))
        return chain.evaluate(x)

    x = torch.randn(3, 2, 5, dtype=torch.float64)
    expected = stack(x)
    stack.network = network
    assert torch.equal(stack(x), expected)
    # The 4 features in front of the skip connection are passed on unchanged.
    assert calls == [(6, 4, 4), (6, 2, 12)]
    stack.activations[4] = nn.Tanh()
    calls.clear()
    stack(x)
    assert calls == [(6, 4, 4), (6, 0, 12), (6, 1, 12)]
    assert stack(x[0, 0]).shape == (12,)
    assert stack(x[:0]).shape == (0, 2, 12)


def test_counts_by_hand() -> None:
    """5 -> 12, then EUGen with 4 features in front of a layer with a skip connection: 5 + 4 -> 12."""
    stack = build([False, True, False], [2], norm=False)
    assert stack.multiply_adds() == 5 * 12 + 12 * 4 + (5 + 4) * 12
    assert stack.num_parameters() == stack.multiply_adds() + 12 + 12  # plus two biases
    assert build([False, False], []).multiply_adds() == 5 * 12 + 12 * 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "0 layers"),
        (([nn.Linear(2, 3)], [nn.ReLU(), None]), "1 layers with 2 activations"),
        (([nn.Linear(2, 3)], [None], [1]), "skip connections"),
        (([nn.Linear(2, 3), nn.Linear(2, 3)], [None, None]), "layer 1 takes 2 inputs but receives 3"),
        (([nn.Linear(2, 3), nn.Linear(3, 3)], [None, None], [1]), "layer 1 takes 3 inputs but receives 5"),
        (([EUGen(2, 3, 2)], [nn.ReLU()]), "an activation after layer 0"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerStack(*arguments)
