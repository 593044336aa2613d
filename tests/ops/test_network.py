"""network on a merged chain: its definition written as loops, and training that equals factored training."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf.layers import ACTIVATIONS, build_network, merge_chain
from eugen_nerf.layers.merge import FeatureStage, MergedChain
from eugen_nerf.ops import network

F64 = torch.float64
KINDS = [
    pytest.param("eugen", {"order": 1}, id="eugen"),
    pytest.param("eugen", {"order": 2, "phi": "gelu"}, id="eugen-order-2"),
    pytest.param("eugen", {"order": 1, "phi": "softplus", "trainable_projections": False}, id="eugen-frozen"),
    pytest.param("mlp", {}, id="mlp"),
    pytest.param("low-rank", {"activation": "softplus"}, id="low-rank"),
    pytest.param("snnk", {}, id="snnk"),
]


def normal(*shape: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def factored(kind: str, options: dict[str, object]) -> nn.Sequential:
    """Two hidden layers wider than their number of features, with every tensor random, including biases."""
    layers = build_network(kind, 5, 24, 2, 4, 6, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for index, tensor in enumerate(layers.state_dict().values()):
            tensor.copy_(normal(*tensor.shape, seed=index) / math.sqrt(tensor.shape[-1]))
    return layers


def squared_error(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_network_has_the_loss_and_the_gradients_of_the_factored_layers(kind: str, options: dict) -> None:
    layers = factored(kind, options)
    x, target = normal(40, 5, seed=100).requires_grad_(), normal(40, 4, seed=101)
    inputs = [x, *layers.parameters()]
    losses, gradients = [], []
    for output in (layers(x), network(x, merge_chain(layers))):
        loss = squared_error(output, target)
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, inputs))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    for name, merged, expected in zip(
        ["x", *(name for name, _ in layers.named_parameters())], gradients[1], gradients[0], strict=True
    ):
        torch.testing.assert_close(merged, expected, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")
        assert expected.abs().max() > 0, name


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_training_the_merged_chain_is_training_the_factored_layers(kind: str, options: dict) -> None:
    plain = factored(kind, options)
    merged = copy.deepcopy(plain)
    x, target = normal(64, 5, seed=7), normal(64, 4, seed=8)
    losses = []
    for layers in (plain, merged):
        optimizer = torch.optim.Adam(layers.parameters(), lr=0.01, eps=1e-3)
        for _ in range(30):
            optimizer.zero_grad()
            loss = squared_error(layers(x) if layers is plain else network(x, merge_chain(layers)), target)
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(merged.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-11)
    before = squared_error(factored(kind, options)(x), target).item()
    assert losses[0] < 0.9 * before  # the steps were significant


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("n", [0, 1, 77])
def test_network_in_single_precision(kind: str, options: dict, n: int) -> None:
    layers = factored(kind, options)
    x = normal(n, 5, seed=3)
    expected = layers(x)
    got = network(x.float(), merge_chain(layers.float()))
    assert got.dtype == torch.float32
    assert got.shape == (n, 4)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def by_loops(x: list[float], chain: MergedChain) -> list[float]:
    """Evaluate one input value by value, from the formulas in the docstring of `FeatureStage`."""

    def affine(matrix: Tensor, offset: Tensor | None, vector: list[float]) -> list[float]:
        products = [sum(a * v for a, v in zip(row, vector, strict=True)) for row in matrix.tolist()]
        return products if offset is None else [p + o for p, o in zip(products, offset.tolist(), strict=True)]

    for stage in chain.stages:
        projected = affine(stage.projections, stage.offsets, x)
        if stage.norm_column is not None:
            inner = x if stage.norm_factor is None else affine(stage.norm_factor, stage.norm_offset, x)
            constant = 0.0 if stage.norm_constant is None else stage.norm_constant.item()
            norm = math.sqrt(sum(v * v for v in inner) + constant + stage.eps)
            projected = [p + norm * c for p, c in zip(projected, stage.norm_column.tolist(), strict=True)]
        m = stage.out_features // stage.order
        phi = ACTIVATIONS[stage.phi]
        x = []
        for i in range(1, stage.order + 1):
            first = 0 if stage.shared else i * (i - 1) // 2
            for feature in range(m):
                product = math.prod(projected[(first + j) * m + feature] for j in range(i))
                x.append(phi(torch.tensor(product, dtype=F64)).item())
    return affine(chain.weight, chain.bias, x)


def stage(d: int, m: int, order: int, shared: bool, phi: str, norm: str, seed: int, offsets: bool) -> FeatureStage:
    rows = m * (order if shared else order * (order + 1) // 2)
    return FeatureStage(
        projections=normal(rows, d, seed=seed),
        offsets=normal(rows, seed=seed + 1) if offsets else None,
        norm_column=None if norm == "none" else normal(rows, seed=seed + 2),
        norm_factor=normal(3, d, seed=seed + 3) if norm == "form" else None,
        norm_offset=normal(3, seed=seed + 4) if norm == "form" else None,
        norm_constant=torch.tensor(0.7, dtype=F64) if norm == "form" else None,
        order=order,
        shared=shared,
        phi=phi,
        eps=1e-3,
    )


@pytest.mark.parametrize("norm", ["none", "input", "form"])
@pytest.mark.parametrize(("order", "shared"), [(1, False), (2, False), (3, False), (3, True)])
def test_network_against_loops(norm: str, order: int, shared: bool) -> None:
    first = stage(4, 3, order, shared, "sin", norm, seed=10, offsets=True)
    second = stage(first.out_features, 2, 1, False, "squared_relu", "none", seed=20, offsets=False)
    chain = MergedChain((first, second), normal(5, 2, seed=30), normal(5, seed=31))
    x = normal(6, 4, seed=40)
    expected = torch.tensor([by_loops(row, chain) for row in x.tolist()], dtype=F64)
    torch.testing.assert_close(network(x, chain), expected)
    bare = dataclasses.replace(chain, bias=None)
    torch.testing.assert_close(network(x, bare), expected - chain.bias)


def test_network_of_a_linear_layer_alone() -> None:
    chain = MergedChain((), normal(2, 3, seed=0), normal(2, seed=1))
    x = normal(4, 3, seed=2)
    torch.testing.assert_close(network(x, chain), x @ chain.weight.T + chain.bias)
