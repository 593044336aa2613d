"""Products of the factors of a chain's matrices, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from eugen_nerf.layers import EUGen, build_network, merge_chain
from eugen_nerf.layers.factor_products import Product
from eugen_nerf.layers.merge import factor_chain
from eugen_nerf.ops import cpu, factor_products, operators, reference
from eugen_nerf.ops.packing import pack_chain, pack_products
from eugen_nerf.ops.products import MAX_FACTORS, MAX_PRODUCTS, describe
from eugen_nerf.ops.tiles import MAX_STAGES
from tests.ops.comparisons import FACTORS, products_of, random_factors, relative_error
from tests.ops.test_cpu import have_compiler

needs_compiler = pytest.mark.skipif(not have_compiler(), reason="no C++ compiler")


def networks() -> dict[str, nn.Sequential]:
    torch.manual_seed(0)
    return {
        "eugen": build_network("eugen", 8, 20, 2, 5, 12, norm_first=True),
        "order-2": build_network("eugen", 8, 20, 2, 5, 12, order=2, shared=True, feature_bias=True, norm_first=False),
        "norms": nn.Sequential(EUGen(6, 30, 4), EUGen(30, 20, 5), nn.Linear(20, 9), nn.Linear(9, 3)),
        "mlp": build_network("mlp", 8, 20, 2, 5, 0),
        "low-rank": build_network("low-rank", 8, 20, 2, 5, 4),
    }


@needs_compiler
@pytest.mark.parametrize("frozen", [(), (0,), (1, 4)], ids=["all", "one frozen", "two frozen"])
@pytest.mark.parametrize("shapes", FACTORS)
def test_values_and_gradients(shapes: str, frozen: tuple[int, ...]) -> None:
    factors = random_factors(*FACTORS[shapes])
    results: list[list[Tensor]] = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        mine = [f.detach().to(dtype).requires_grad_(i not in frozen) for i, f in enumerate(factors)]
        values = factor_products(products_of(mine), backend=backend)  # type: ignore[arg-type]
        weight = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        inputs = [factor for factor in mine if factor.requires_grad]
        results.append([values.detach(), *torch.autograd.grad((values * weight).sum(), inputs)])
    assert len(results[0]) == 1 + len(factors) - len(frozen)
    for ours, exact in zip(*results, strict=True):
        assert relative_error(ours, exact) <= 1e-6


@needs_compiler
@pytest.mark.parametrize("name", networks())
def test_of_a_chain_they_are_its_packed_parameters(name: str) -> None:
    layers = networks()[name]
    results: list[list[Tensor]] = []
    for make in (
        lambda: factor_products(pack_products(factor_chain(layers)).products, backend="cpu"),
        lambda: pack_chain(merge_chain(layers)).parameters,
    ):
        packed = make()
        weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
        results.append([packed.detach(), *torch.autograd.grad((packed * weight).sum(), list(layers.parameters()))])
    for ours, other in zip(*results, strict=True):
        assert relative_error(ours, other) <= 1e-5


def test_a_factor_is_passed_once_and_contiguous() -> None:
    a, b = random_factors((4, 3), (3, 5))
    factors, places = describe([Product(b, a), Product(b), Product(b.T)])
    assert [factor.shape for factor in factors] == [(4, 3), (3, 5), (5, 3)]
    assert all(factor.is_contiguous() for factor in factors)
    assert places == (0, 1, -1, 4, 3, 5, -1, 1, -1, 3, 3, 5, -1, 2, -1, 5, 5, 3)
    values = factor_products([Product(b, a), Product(b), Product(b.T)])
    torch.testing.assert_close(values, torch.cat([t.flatten() for t in (a @ b, b, b.T)]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b, v: Product(a, a), r"\[4, 3\] and \[4, 3\] cannot be multiplied"),
        (lambda a, b, v: Product(v, a), r"\[4, 3\] and \[4\] cannot be multiplied"),
        (lambda a, b, v: Product(b[:, 0], a, v[:2]), r"constant of a product must be \[4\], not \[2\]"),
        (lambda a, b, v: Product(b, a, v), r"constant of a product must be \[4\], not \[4\]"),
    ],
)
def test_shapes_that_do_not_fit(make: Callable[..., Product], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe([make(*random_factors((4, 3), (3, 5), (4,)))])


@needs_compiler
@pytest.mark.parametrize(
    ("places", "message"),
    [
        ((0, 1, -1, 4, 3, 5, -1), "at most"),
        ((0, 1, -1, 4, 3, 5) * (MAX_PRODUCTS + 1), "at most"),
        ((0, 1, -1, 4, 3, 0), "do not fit"),
        ((0, 1, 0, 4, 3, 5), "do not fit"),
        ((0, 2, -1, 4, 3, 5), "do not fit"),
        ((-1, 1, -1, 3, 3, 5), "do not fit"),
        ((0, 1, -1, 4, 3, 5, -1, 0, -1, 4, 4, 4), "do not fit"),
        ((-1, 1, -1, 4, 3, 5, -1, 0, -1, 4, 4, 3), "do not fit"),
        ((0, 1, -1, 4, 3, 6), "factor 1 must have 18 values, not 15"),
    ],
)
def test_places_that_do_not_fit_are_refused(places: tuple[int, ...], message: str) -> None:
    """Native code would read and write elsewhere."""
    with pytest.raises(ValueError, match=message):
        operators.factor_products(random_factors((4, 3), (3, 5)), places)


@needs_compiler
def test_dtypes_and_gradients_are_checked() -> None:
    a, b = random_factors((4, 3), (3, 5))
    factors, places = describe([Product(b, a)])
    with pytest.raises(TypeError, match=r"factor 1 must be torch\.float32"):
        operators.factor_products([a, b.double()], places)
    with pytest.raises(ValueError, match="grad must have the shape"):
        operators.factor_products_backward(factors, places, torch.zeros(7), [True, True])
    with pytest.raises(ValueError, match="one entry for each factor"):
        operators.factor_products_backward(factors, places, torch.zeros(20), [True])


@needs_compiler
def test_gradients_are_not_differentiated_again() -> None:
    a, b = (t.requires_grad_() for t in random_factors((4, 3), (3, 5)))
    (grad,) = torch.autograd.grad(factor_products([Product(b, a)], backend="cpu").square().sum(), a, create_graph=True)
    with pytest.raises(NotImplementedError, match="first-order gradients only"):
        grad.sum().backward()
    values = factor_products([Product(b, a)], backend="reference")
    (grad,) = torch.autograd.grad(values.square().sum(), a, create_graph=True)
    grad.sum().backward()


@needs_compiler
def test_the_operators_are_described_to_pytorch() -> None:
    factors = [t.requires_grad_(number != 1) for number, t in enumerate(random_factors(*FACTORS["wide"]))]
    found, places = describe(products_of(factors))
    torch.library.opcheck(operators.factor_products, (found, places))
    grad = torch.randn(reference.factor_products(products_of(factors)).shape)
    detached = [factor.detach() for factor in found]
    tests = ("test_schema", "test_faketensor")
    needed = [True, False, True, True, True]
    torch.library.opcheck(operators.factor_products_backward, (detached, places, grad, needed), test_utils=tests)
    given = cpu.factor_products_backward(detached, places, grad, needed)
    assert [gradient.numel() for gradient in given] == [60, 0, 20, 3, 66]


def test_the_largest_network_fits() -> None:
    """Every stage with offsets of its own, and with a norm that merging expresses by R and c."""
    layers = [EUGen(8, 20, 4, feature_bias=True), *(EUGen(20, 20, 4, feature_bias=True) for _ in range(MAX_STAGES - 1))]
    factors, places = describe(pack_products(factor_chain([*layers, nn.Linear(20, 3)])).products)
    assert len(places) // 6 <= MAX_PRODUCTS
    assert len(factors) <= MAX_FACTORS
